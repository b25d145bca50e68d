"""Readers of official formats, of prepared data and of kit_io on damaged files: taken or refused in words, no more.

See fuzz.py for the damages and the formats. 50 damaged files of each format in the default run, 500 in the slow one.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FUZZ = Path(__file__).resolve().parent / "fuzz.py"
FEW, MANY = 50, 500
KINDS = {
    "kit_io": (
        "csv", "zip", "tar", "tar.gz", "png", "palette png", "jpeg", "cmyk jpeg", "gif", "webp", "tiff", "bmp", "avif",
        "pack info", "pack offsets", "pack values", "weights", "state",
    ),
    "ai4code": (
        "notebook", "orders", "ancestors", "zip", "submission", "ipynb", "prepared manifest", "prepared shard",
    ),
    "ntua_lab": (
        "genres", "emotions", "spectra", "mapping", "clips", "zip", "submission", "prepared manifest", "prepared clips",
    ),
    "russian_art": ("labels", "train table", "image", "zip", "submission", "prepared manifest"),
    "yandex_artists": (
        "train table", "test table", "features", "zip", "tar", "submission", "truth", "prepared manifest",
        "prepared table",
    ),
    "yandex_tagging": (
        "train table", "test table", "embeddings", "zip", "tar", "submission", "truth", "prepared manifest",
        "prepared table",
    ),
}  # fmt: skip
NAMED = [(module, kind) for module, kinds in KINDS.items() for kind in kinds]
TABLES = {  # of which the rows of the first items are kept, and in which column the name of an item is
    "ai4code": (("train_orders.csv", "train", 6), ("train_ancestors.csv", "train", 6), ("test_orders.csv", "test", 2)),
    "russian_art": (("train.csv", "train", 12), ("test.csv", "test", 3)),
}


def keep_rows(file: Path, names: set[str]) -> None:
    """Leave the header and the rows that begin with one of the names."""
    header, *rows = file.read_text(encoding="utf-8").splitlines()
    kept = [row for row in rows if re.split("[,\t]", row)[0] in names]
    file.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")


def shrink(module: str, sample: Path, target: Path) -> None:
    """Copy a sample with few of its items, so that a reading takes milliseconds."""
    shutil.copytree(sample, target)
    for name, folder, count in TABLES.get(module, ()):
        files = sorted((target / folder).iterdir())
        for file in files[count:]:
            file.unlink()
        # Notebooks go by their id, pictures by the name of their file.
        keep_rows(target / name, {file.stem if module == "ai4code" else file.name for file in files[:count]})
    for name, count in (("train", 12), ("test", 4)) if module.startswith("yandex") else ():
        table = target / (f"{name}_meta.tsv" if module == "yandex_artists" else f"{name}.csv")
        lines = table.read_text(encoding="utf-8").splitlines()[: count + 1]
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if module == "yandex_artists":
            wanted = {line.split("\t")[-1] for line in lines[1:]}
            for file in (target / f"{name}_features").rglob("*.npy"):
                if file.relative_to(target / f"{name}_features").as_posix() not in wanted:
                    file.unlink()
    if module == "yandex_tagging":
        rows = [f"{name},{index % 3}" for index, name in enumerate(read_column(target / "train.csv"))]
        (target / "train.csv").write_text("\n".join(["track,tags", *rows]) + "\n", encoding="utf-8")
        wanted = {*read_column(target / "train.csv"), *read_column(target / "test.csv")}
        for file in (target / "track_embeddings").iterdir():
            if file.stem not in wanted:
                file.unlink()


def read_column(table: Path) -> list[str]:
    """The first values of the rows."""
    return [line.split(",")[0] for line in table.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.fixture(scope="session")
def small_of(
    whole_of: Callable[[Any], Any],
    cases: tuple[Any, ...],
    spectra_layout: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, dict[str, str]]]:
    """Make a small layout of a solution, with the prepared data and a submission; once for each."""
    made: dict[str, tuple[Path, dict[str, str]]] = {}

    def make(module: str) -> tuple[Path, dict[str, str]]:
        if module not in made:
            layout = tmp_path_factory.mktemp(f"{module}-small") / "layout"
            places: dict[str, str] = {}
            if module == "kit_io":
                layout.mkdir()
            else:
                whole = whole_of(next(case for case in cases if case.module == module))
                places = {"prepared": str(whole.prepared), "submission": str(whole.submission)}
                if module == "ntua_lab":
                    spectra_layout(layout, train=4, test=1)
                    mapping = {name: name for name in ("Rock", "Classical", "Electronic", "Folk")} | {"Other": None}
                    (layout / "class_mapping.json").write_text(json.dumps(mapping), encoding="utf-8")
                    clips = [f"{1000 + i},genre,train,Rock,artist {i},{i}.wav,0.00,6.00" for i in range(4)]
                    header = "id,set,split,raw,artist,track,start,seconds"
                    (layout / "clips.csv").write_text("\n".join([header, *clips]) + "\n", encoding="utf-8")
                else:
                    shrink(module, whole.sample, layout)
            made[module] = layout, places
        return made[module]

    return make


@pytest.mark.parametrize("count", [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("module", "kind"), NAMED, ids=[f"{module} {kind}" for module, kind in NAMED])
def test_damaged_files_are_taken_or_refused_in_words(
    module: str,
    kind: str,
    count: int,
    small_of: Callable[[str], tuple[Path, dict[str, str]]],
    launch: Callable[..., Any],
    tmp_path: Path,
) -> None:
    layout, places = small_of(module)
    report, work = tmp_path / "report.json", tmp_path / "work"
    work.mkdir()
    arguments = {
        "module": module, "kind": kind, "layout": str(layout), "work": str(work), "count": count, "report": str(report),
    } | places  # fmt: skip
    ran = launch(module=module, file=str(FUZZ), function="run", arguments=arguments, limit_seconds=550)
    assert ran.code == 0, ran.log
    found = json.loads(report.read_text(encoding="utf-8"))
    assert not found["findings"], "\n".join(found["findings"])
    assert sum(found["outcomes"].values()) == count
    # A picture that cannot be read is set aside by `prepare`, and the others are packed.
    assert found["outcomes"]["refused"] or kind == "image", "no damage reached the reader"
