"""What `scripts/record.py` writes into a results table."""

import csv
import importlib.util
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kit_core.atomic import write_json
from kit_core.errors import DataError
from kit_core.run import RunFolder


@dataclass(frozen=True)
class Settings:
    layers: int = 2


@pytest.fixture(scope="module")
def recorder(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_script", repo_root / "scripts" / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLEAN = {"revision": "abc1234" + "0" * 33, "dirty": False}


def finished(
    path: Path,
    score: float | None,
    preset: str = "small",
    metric: str = "tau",
    *,
    git: dict[str, Any] | None = CLEAN,
    flags: Sequence[str] = (),
    **summary: Any,
) -> RunFolder:
    with RunFolder.create(path, config=Settings(), preset=preset, data_hashes={}, seed=0) as run:
        interval = None if score is None else [0.1, 0.9]
        run.manifest["git"] = git
        run.manifest["threads"] = {"cores": 2, "OMP_NUM_THREADS": "1"}
        run.manifest["argv"] = ["demo", "train", preset, *flags]
        write_json(path / "manifest.json", run.manifest)
        facts = {"metric": metric, "score": score, "interval": interval, "n": 12, "seconds": 3.21, "parameters": 99}
        run.finish({**facts, "group_by": "series", "genre": {"f1": 0.5, "f1_interval": [0.4, 0.6], "n": 7}, **summary})
    return RunFolder.open(path)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_becomes_a_row_and_a_second_run_replaces_it(recorder: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "RESULTS.csv"
    for name, preset, score in (("a", "small", 0.25), ("b", "large", 0.5), ("c", "small", 0.75)):
        run = finished(tmp_path / name, score, preset)
        recorder.record(table, recorder.result_row(run, "mini", "5 by group", "two cores"))
    rows = rows_of(table)
    assert [(row["preset"], row["score"]) for row in rows] == [("small", "0.7500"), ("large", "0.5000")]
    assert tuple(rows[0]) == recorder.COLUMNS
    assert rows[0] == {
        "preset": "small", "data": "mini", "folds": "5 by group", "group_by": "series", "metric": "tau",
        "score": "0.7500", "low": "0.1000", "high": "0.9000", "n": "12", "seconds": "3.2", "threads": "1",
        "parameters": "99", "revision": "abc1234", "remarks": "two cores",
    }  # fmt: skip


def test_another_split_of_the_data_is_another_row_and_old_tables_gain_columns(
    recorder: ModuleType, tmp_path: Path
) -> None:
    table = tmp_path / "RESULTS.csv"
    table.write_text("preset,data,folds,metric,score\nsmall,mini,hold-out,tau,0.1\n", encoding="utf-8")
    recorder.record(table, recorder.result_row(finished(tmp_path / "a", 0.25), "mini", "5 by group", ""))
    assert [(row["folds"], row["score"], row["n"]) for row in rows_of(table)] == [
        ("hold-out", "0.1", ""),
        ("5 by group", "0.2500", "12"),
    ]


def test_another_metric_is_another_row(recorder: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "RESULTS.csv"
    for name, metric, score in (("a", "macro_f1", 0.25), ("b", "accuracy", 0.5), ("c", "accuracy", 0.75)):
        run = finished(tmp_path / name, score, metric=metric)
        recorder.record(table, recorder.result_row(run, "mini", "5 by group", ""))
    assert [(row["metric"], row["score"]) for row in rows_of(table)] == [("macro_f1", "0.2500"), ("accuracy", "0.7500")]


def test_runs_without_a_score_are_refused_in_words(
    recorder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.create(tmp_path / "open", config=Settings(), preset="small", data_hashes={}, seed=0):
        pass
    finished(tmp_path / "unscored", None)
    monkeypatch.setattr(recorder, "ROOT", tmp_path)
    (tmp_path / "solutions" / "one").mkdir(parents=True)
    for name, words in (("open", "the run is not finished"), ("unscored", "found no score, interval")):
        options = [str(tmp_path / name), "--solution", "one", "--data", "mini", "--folds", "5"]
        monkeypatch.setattr("sys.argv", ["record.py", *options])
        assert recorder.main() == 3
        assert words in capsys.readouterr().err
    assert not list((tmp_path / "solutions" / "one").iterdir())


def test_flags_of_the_training_are_remarks_and_make_another_row(recorder: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "RESULTS.csv"
    places = ["--data", "../data/mini", "--run=runs/x", "--resume"]
    for number, flags in enumerate(([], ["--optim.lr", "1e-3", "--data.groups", "some/where/g.csv"], [])):
        run = finished(tmp_path / str(number), number / 4, flags=[*places[:2], *flags, *places[2:]])
        recorder.record(table, recorder.result_row(run, "mini", "5 by group", "quiet"))
    assert [(row["score"], row["remarks"]) for row in rows_of(table)] == [
        ("0.5000", "quiet"),
        ("0.2500", "--optim.lr 1e-3 --data.groups g.csv; quiet"),
    ]


def test_a_choice_on_the_scored_fold_is_said(recorder: ModuleType, tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.5, selected_on_scored_fold=True)
    assert recorder.result_row(run, "mini", "5", "quiet")["remarks"] == "selected on the scored fold; quiet"


def test_another_score_of_the_summary_comes_with_its_own_interval_and_count(
    recorder: ModuleType, tmp_path: Path
) -> None:
    run = finished(tmp_path / "a", 0.25)
    row = recorder.result_row(run, "mini", "5", "", "genre.f1")
    assert [row[key] for key in ("metric", "score", "low", "high", "n")] == ["f1", "0.5000", "0.4000", "0.6000", "7"]
    with pytest.raises(DataError, match="found no score, interval"):
        recorder.result_row(run, "mini", "5", "", "emotion.f1")


@pytest.mark.parametrize(("git", "words"), [(CLEAN | {"dirty": True}, "differed from the commit"), (None, "no commit")])
def test_a_run_of_files_in_no_commit_is_refused(
    recorder: ModuleType, tmp_path: Path, git: dict[str, Any] | None, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        recorder.result_row(finished(tmp_path / "a", 0.5, git=git), "mini", "5", "")


def test_a_comparison_is_what_the_program_prints(
    recorder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        finished(tmp_path / name, 0.5, f"preset-{name}")
    printed = {"group_by": "series", "metric": "tau", "difference": 0.05, "interval": [0.01, 0.1], "n": 12}
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, json.dumps(printed), "")

    monkeypatch.setattr(recorder.subprocess, "run", run)
    monkeypatch.setattr(recorder, "ROOT", tmp_path)
    (tmp_path / "solutions" / "my_task").mkdir(parents=True)
    options = ["--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--solution", "my_task", "--data", "mini"]
    monkeypatch.setattr("sys.argv", ["record.py", *options, "--folds", "5"])
    assert recorder.main() == 0
    [row] = rows_of(tmp_path / "solutions" / "my_task" / "COMPARISONS.csv")
    assert row == {
        "preset_a": "preset-a", "preset_b": "preset-b", "data": "mini", "folds": "5", "group_by": "series",
        "metric": "tau", "difference": "0.0500", "low": "0.0100", "high": "0.1000", "n": "12", "revision": "abc1234",
        "remarks": "",
    }  # fmt: skip
    assert [Path(commands[0][0]).name, *commands[0][1:]] == [
        "my-task", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"
    ]  # fmt: skip
