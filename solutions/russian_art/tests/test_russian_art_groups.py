"""Groups: groups.csv read and checked, joined with the near-duplicates that are found, and never cut by a fold."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.metrics.cluster import pair_confusion_matrix

from kit_core.errors import DataError
from kit_core.run import RunFolder
from kit_splits.near_duplicates import connected_groups
from russian_art import train as training
from russian_art.cli import main
from russian_art.config import Config, DataConfig
from russian_art.data import load, prepare, stratified_folds
from russian_art.groups import BOTH, FOUND, compare_groups, content_of, join_groups, near_duplicates
from russian_art.sample import write_sample
from russian_art.train import train

SIZE = 48


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_sample(folder, images=90, seed=0)
    shutil.rmtree(folder / "test")
    return folder


@pytest.fixture
def official(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "sample"))


def names_of(official: Path) -> list[str]:
    return [line.split("\t")[0] for line in (official / "train.csv").read_text(encoding="utf-8").splitlines()[1:]]


def write_groups(official: Path, groups: dict[str, str], header: str = "image_name\tgroup\n") -> None:
    rows = "".join(f"{name}\t{group}\n" for name, group in groups.items())
    (official / "groups.csv").write_text(header + rows, encoding="utf-8")


def test_groups_of_the_file_and_found_ones_are_joined_and_reported(official: Path, tmp_path: Path) -> None:
    names = names_of(official)
    (official / "train" / names[9]).write_bytes((official / "train" / names[3]).read_bytes())  # the search joins these
    write_groups(official, {name: f"g{min(i, 3) if i < 5 else i}" for i, name in enumerate(names)})  # 3 and 4 together
    done = prepare(official, tmp_path / "out", size=SIZE, workers=1)
    art = load(tmp_path / "out", "train")
    assert art.group_by == BOTH
    assert art.group[3] == art.group[4] == art.group[9]
    one = done.agreements["train"]
    assert one.groups == len(set(art.group.tolist()))
    assert one.groups_given == len(names) - 1
    assert one.pairs_given == 1
    assert one.largest_group == np.bincount(art.group).max() >= 3
    assert f"{one.groups_given} groups in groups.csv, {one.groups_found} groups found" in str(done)
    assert f"recall {one.recall:.3f}" in str(done)
    assert f"precision {one.precision:.3f}" in str(done)
    assert str(prepare(official, tmp_path / "out", size=SIZE, workers=1)).splitlines()[1:] == str(done).splitlines()[1:]
    direct = load(official, "train", size=SIZE, workers=1)
    assert np.array_equal(direct.group, art.group)
    assert direct.group_by == BOTH


def test_without_the_file_groups_are_those_found(official: Path, tmp_path: Path) -> None:
    done = prepare(official, tmp_path / "out", size=SIZE, workers=1)
    assert (load(tmp_path / "out", "train").group_by, done.agreements) == (FOUND, {})
    assert len(str(done).splitlines()) == 1


def test_a_new_file_of_groups_makes_the_folder_anew(official: Path, tmp_path: Path) -> None:
    prepare(official, tmp_path / "out", size=SIZE, workers=1)
    before = load(tmp_path / "out", "train")
    write_groups(official, dict.fromkeys(names_of(official), "one"))
    prepare(official, tmp_path / "out", size=SIZE, workers=1)
    after = load(tmp_path / "out", "train")
    assert set(after.group.tolist()) == {0}
    assert after.fingerprint == before.fingerprint  # features in a cache stay good
    assert np.array_equal(after.pixels, before.pixels)


def test_a_folder_prepared_by_the_program_before_is_read(official: Path, tmp_path: Path) -> None:
    prepare(official, tmp_path / "out", size=SIZE, workers=1)
    file = tmp_path / "out" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    for entry in manifest["splits"].values():
        for key in ("group_by", "largest_group"):
            del entry[key]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    art = load(tmp_path / "out", "train")
    assert art.group_by == FOUND
    assert len(art) == len(names_of(official))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: dict(list(g.items())[7:]), ("found no row", "7 problems")),
        (lambda g: g | {"ff.jpg": "x"}, ("ff.jpg, which train.csv does not name",)),
        (lambda g: g | {next(iter(g)): " "}, ("line 2", "an empty group")),
    ],
)
def test_a_file_that_does_not_name_every_image_once_is_refused(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, words: tuple[str, ...]
) -> None:
    write_groups(official, change({name: name for name in names_of(official)}))
    assert main(["prepare", "--data", str(official), "--out", str(tmp_path / "out"), "--workers", "1"]) == 3
    said = capsys.readouterr().err
    for word in ("groups.csv", *words):
        assert word in said
    assert not (tmp_path / "out").exists()


def test_a_doubled_row_is_refused(official: Path) -> None:
    names = names_of(official)
    write_groups(official, dict(zip(names, names, strict=True)), f"image_name\tgroup\n{names[2]}\tagain\n")
    with pytest.raises(DataError, match=f"line 5: found {names[2]} a second time"):
        load(official, "train", size=SIZE, workers=1)


def test_no_fold_of_a_training_cuts_a_group(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With groups of pictures that look nothing alike, which folds by near-duplicates alone would cut."""
    monkeypatch.setattr(training, "write_plots", lambda *_: None)
    found = load(official, "train", size=SIZE, workers=1)
    trios = {name: f"t{i // 3}" for i, name in enumerate(found.names)}
    assert found.label is not None
    alone = stratified_folds(found.label, found.group, 3, seed=139)
    assert any(len(set(alone[i : i + 3].tolist())) > 1 for i in range(0, len(found) - 2, 3))
    write_groups(official, trios)
    art = load(official, "train", size=SIZE, workers=1)
    config = Config(members=("prior",), data=DataConfig(folds=3))
    with RunFolder.create(tmp_path / "run", config=config, preset="x", data_hashes={}, seed=0) as run:
        summary = train(config, art, run, {})
    from safetensors.numpy import load_file

    fold = load_file(tmp_path / "run" / "oof.safetensors")["fold"]
    for trio in set(trios.values()):
        assert len({int(fold[i]) for i, name in enumerate(art.names) if trios[name] == trio}) == 1
    assert summary["group_by"] == BOTH
    assert summary["n_groups"] == len(np.unique(art.group))
    assert summary["largest_group"] == np.bincount(art.group).max()
    assert summary["selected_on_scored_fold"] is False


def test_joined_groups_and_pair_counts_equal_slow_ones() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(1, 60))
        a, b = rng.integers(0, 30, n), rng.integers(0, 30, n)
        i, j = np.nonzero(np.triu((a[:, None] == a) | (b[:, None] == b), 1))
        assert np.array_equal(join_groups(a, b), connected_groups(n, np.stack([i, j], axis=1)))
        one = compare_groups(a, b)
        (_, only_b), (only_a, both) = pair_confusion_matrix(a, b) // 2  # scikit-learn counts every pair twice
        assert (one.pairs_both, one.pairs_given, one.pairs_found) == (both, both + only_a, both + only_b)
        assert one.groups == len(np.unique(join_groups(a, b)))


def drawing(seed: int, shift: int = 0, detail: int = 0, scale: float = 1.0) -> np.ndarray:
    """Coloured discs and bars on white, with a margin; `detail` adds one small mark."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(9):
        x, y, w, h = (rng.uniform(0, 1, 4) * (56, 56, 24, 24) + (0, 0, 8, 8)) * scale
        box = [20 + shift + x, 20 + shift + y, 20 + shift + x + w, 20 + shift + y + h]
        getattr(pen, ("ellipse", "rectangle")[int(rng.integers(2))])(box, tuple(rng.integers(0, 220, 3).tolist()))
    if detail:
        pen.ellipse([60 + shift, 60 + shift, 60 + shift + detail, 60 + shift + detail], (0, 0, 0))
    return np.asarray(picture)


def test_variants_of_one_drawing_are_found_wherever_they_lie() -> None:
    pictures = np.stack([drawing(1), drawing(1, shift=18), drawing(1, detail=8), drawing(1, scale=0.6), drawing(2)])
    cut = [content_of(one, 1.0) for one in pictures]
    n = len(pictures)
    nothing = np.random.default_rng(0).integers(0, 256, (n, 18), dtype=np.uint8)  # hashes that agree nowhere
    pairs, _ = near_duplicates(
        nothing, np.zeros((n, 8, 8, 3), np.uint8), np.stack([c for c, _ in cut]), np.array([a for _, a in cut]),
        [str(i) for i in range(n)], np.ones(n, dtype=bool),
    )  # fmt: skip
    assert connected_groups(n, pairs).tolist() == [0, 0, 0, 0, 1]


def test_a_plain_picture_is_taken_whole_and_joins_nothing_but_its_copy() -> None:
    flat = np.full((64, 64, 3), 128, dtype=np.uint8)
    cut, aspect = content_of(flat, 1.5)
    assert (cut.shape, aspect) == ((64, 64, 3), 1.5)
    contents = np.stack([cut, cut, content_of(drawing(3), 1.0)[0]])
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (3, 18), dtype=np.uint8)
    pairs, _ = near_duplicates(
        bits, np.zeros((3, 8, 8, 3), np.uint8), contents, np.array([1.5, 1.5, 1.0]), ["a", "a", "b"], np.ones(3, bool)
    )
    assert pairs.tolist() == [[0, 1]]
