"""No fold cuts a group."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ntua_lab import data as official
from ntua_lab import train as training
from ntua_lab.cli import main

NETWORK = (
    "--network.channels", "4", "6", "--input.chunk", "24", "--train.epochs", "2", "--train.batch", "8",
)  # fmt: skip


def cut(groups: list[str], folds: list[int]) -> list[str]:
    """The groups that lie in several folds."""
    found = defaultdict(set)
    for group, fold in zip(groups, folds, strict=True):
        found[group].add(fold)
    return [group for group, places in found.items() if len(places) > 1]


@pytest.mark.parametrize("group", ["track", "artist"])
@pytest.mark.parametrize("task", ["genre", "emotion"])
def test_no_fold_cuts_a_group(
    group: str,
    task: str,
    grouped: Path,
    named: dict[str, tuple[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
