"""No fold cuts a group, and nothing of a held-out clip reaches the models of its fold."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ntua_lab import data as official
from ntua_lab import train as training
from ntua_lab.cli import main

NETWORK = (
    "--network.channels", "4", "6", "--input.chunk", "24", "--train.epochs", "2", "--train.batch", "8",
)  # fmt: skip


def names_of(first: int, count: int) -> list[tuple[str, str, str]]:
    """Id, artist and track of clips: tracks of one to three clips, artists of one to three tracks, some unknown."""
    rng = np.random.default_rng(first)
    rows: list[tuple[str, str]] = []
    track = artist = 0
    while len(rows) < count:
        artist += 1
        name = f"artist {first}-{artist}" if artist % 4 else ""
        for _ in range(rng.integers(1, 4)):
            track += 1
            rows += [(name, f"track {first}-{track}")] * int(rng.integers(1, 4))
    return [(str(first + place), name, track_name) for place, (name, track_name) in enumerate(rows[:count])]


@pytest.fixture(scope="module")
def grouped(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official folder, with a clips.csv that names tracks and most artists."""
    out = tmp_path_factory.mktemp("grouped") / "official"
    shutil.copytree(whole, out)
    rows = [row for first, count in ((1000, 30), (5000, 10), (100_000_000, 16)) for row in names_of(first, count)]
    (out / "clips.csv").write_text("\n".join(["id,artist,track", *map(",".join, rows)]) + "\n")
    return out


def cut(groups: list[str], folds: list[int]) -> list[str]:
    """The groups that lie in several folds."""
    found = defaultdict(set)
    for group, fold in zip(groups, folds, strict=True):
        found[group].add(fold)
    return [group for group, places in found.items() if len(places) > 1]


@pytest.mark.parametrize("group", ["track", "artist"])
@pytest.mark.parametrize("task", ["genre", "emotion"])
def test_no_fold_cuts_a_group(
    group: str, task: str, grouped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {id_: (artist, track) for first, count in ((1000, 30), (5000, 10), (100_000_000, 16))
             for id_, artist, track in names_of(first, count)}  # fmt: skip
    flags = ("--task", task, "--data.clips", "all", "--data.folds", "3", "--data.group", group)
    capsys.readouterr()
    assert main(["train", "majority", "--data", str(grouped), "--run", str(tmp_path / "run"), *flags]) == 0
    table = pq.read_table(tmp_path / "run/oof.parquet").to_pydict()
    folds, ids = table["fold"], table["id"]
    assert set(folds) == {0, 1, 2}
    assert not cut([named[id_][1] for id_ in ids], folds)  # tracks are whole by artist too, also those of no one
    wanted = [named[id_][1] if group == "track" else named[id_][0] or named[id_][1] for id_ in ids]
    assert not cut(wanted, folds)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    sizes = Counter(wanted)
    facts = (group, len(sizes), max(sizes.values()))
    assert (summary["group_by"], summary["n_groups"], summary["largest_group"]) == facts
    assert f"groups: {facts[1]} by {group}, the largest of {facts[2]}" in capsys.readouterr().err
    if group == "track" and task == "genre":
        by_artist = [(named[id_][0], fold) for id_, fold in zip(ids, folds, strict=True) if named[id_][0]]
        assert cut([one for one, _ in by_artist], [fold for _, fold in by_artist])  # else the test proves nothing


@pytest.mark.parametrize("group", ["track", "artist"])
def test_early_stopping_cuts_no_group(
    group: str, grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, seen = training._inner_split, []

    def spy(*arguments: object) -> object:
        seen.append(split(*arguments))  # type: ignore[arg-type]  # what the real one takes
        return seen[-1]

    monkeypatch.setattr(training, "_inner_split", spy)
    flags = (
        "--data.clips",
        "all",
        "--data.fold",
        "all",
        "--data.folds",
        "3",
        "--data.group",
        group,
        "--train.patience",
        "2",
    )
    run = tmp_path / "run"
    assert main(["train", "short-chunk-cnn", "--data", str(grouped), "--run", str(run), *NETWORK, *flags]) == 0
    clips = official.load(grouped)
    table = pq.read_table(run / "oof.parquet").to_pydict()
    assert len(seen) == 3
    for fold, (fitted, inner) in enumerate(seen):
        assert len(fitted) > len(inner) > 0
        held = {id_ for id_, one in zip(table["id"], table["fold"], strict=True) if one == fold}
        of_groups = [{clips.groups[group][i] for i in part} for part in (fitted, inner)]
        of_groups.append({clips.groups[group][clips.ids.index(id_)] for id_ in held})
        assert len(set.union(*of_groups)) == sum(map(len, of_groups))  # none in two of them
        assert not {clips.ids[i] for i in (*fitted, *inner)} & held


def test_data_without_names_is_by_clip(whole: Path, tmp_path: Path) -> None:
    for group in ("track", "artist"):
        run = tmp_path / group
        assert main(["train", "majority", "--data", str(whole), "--run", str(run), "--data.group", group]) == 0
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["group_by"], summary["n_groups"], summary["largest_group"]) == ("clip", 24, 1)


def change(folder: Path, held: set[str], rng: np.random.Generator) -> None:
    """Give the clips `held` other spectra, genres and emotion values."""
    for path in folder.rglob("*.npy*"):
        if official.clip_id(path.name) in held:
            array = official.read_array(path.read_bytes(), path.name).T
            path.unlink()
            np.save(path.with_name(path.name.removesuffix(".gz")), array[:, ::-1] * rng.uniform(0.3, 0.6))
    for path in folder.rglob("train_labels.txt"):
        lines = path.read_text().splitlines()
        for place, line in enumerate(lines[1:], start=1):
            if official.clip_id(line.replace("\t", ",").split(",")[0].split(".")[0]) not in held:
                continue
            lines[place] = line.split("\t")[0] + "\tJazz" if "\t" in line else line.split(",")[0] + ",0.5,0.01,0.99"
        path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("preset", "flags"),
    [
        ("majority", ()),
        ("pooled-svm", ()),
        ("pooled-lightgbm", ("--pooled.rounds", "5")),
        ("best-pooled", ()),
        ("best", (*NETWORK, "--copies", "2")),
        ("lstm-beat", ("--network.hidden", "4", "--train.epochs", "2")),
        ("best-pooled", ("--task", "emotion")),
        ("pooled-lightgbm", ("--task", "emotion", "--pooled.rounds", "5")),
        ("multitask", NETWORK),
    ],
)
def test_models_of_a_fold_know_nothing_of_its_held_out_clips(
    preset: str, flags: tuple[str, ...], grouped: Path, tmp_path: Path
) -> None:
    settings = ("--data.folds", "3", "--data.fold", "all", *flags)
    first = tmp_path / "first"
    assert main(["train", preset, "--data", str(grouped), "--run", str(first), *settings]) == 0
    table = pq.read_table(first / "oof.parquet").to_pydict()
    held = {id_ for id_, fold in zip(table["id"], table["fold"], strict=True) if fold == 0}
    changed = tmp_path / "changed"
    shutil.copytree(grouped, changed)
    change(changed, held, np.random.default_rng(0))
    second = tmp_path / "second"
    assert main(["train", preset, "--data", str(changed), "--run", str(second), *settings]) == 0
    other = pq.read_table(second / "oof.parquet").to_pydict()
    assert other["id"] == table["id"]
    assert other["fold"] == table["fold"]

    def models(run: Path, fold: int) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (run / f"models/fold{fold}").iterdir()}

    assert models(first, 0) == models(second, 0)
    for fold in (1, 2):  # these were fitted on the changed clips
        same = [name for name, content in models(second, fold).items() if models(first, fold)[name] == content]
        assert not same
