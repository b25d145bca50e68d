"""What `scripts/record.py` writes into a results table."""

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

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


def finished(path: Path, score: float | None, preset: str = "small", metric: str = "tau") -> RunFolder:
    with RunFolder.create(path, config=Settings(), preset=preset, data_hashes={}, seed=0) as run:
        interval = None if score is None else [0.1, 0.9]
        run.finish({"metric": metric, "score": score, "interval": interval, "n": 12, "seconds": 3.21, "parameters": 99})
    return RunFolder.open(path)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_becomes_a_row_and_a_second_run_replaces_it(recorder: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "RESULTS.csv"
    for name, preset, score in (("a", "small", 0.25), ("b", "large", 0.5), ("c", "small", 0.75)):
        run = finished(tmp_path / name, score, preset)
        recorder.record(table, recorder.row_of(run, "mini", "5 by group", "two cores"))
    rows = rows_of(table)
    assert [(row["preset"], row["score"]) for row in rows] == [("small", "0.7500"), ("large", "0.5000")]
    assert tuple(rows[0]) == recorder.COLUMNS
    git = RunFolder.open(tmp_path / "c").manifest["git"]
    expected = git["revision"][:7] + ("+" if git["dirty"] else "") if git else ""
    assert rows[0] | {"revision": expected} == {
        "preset": "small", "data": "mini", "folds": "5 by group", "metric": "tau", "score": "0.7500", "low": "0.1000",
        "high": "0.9000", "n": "12", "seconds": "3.2", "parameters": "99", "revision": expected, "remarks": "two cores",
    }  # fmt: skip
    assert rows[0]["revision"] == expected


def test_another_split_of_the_data_is_another_row_and_old_tables_gain_columns(
    recorder: ModuleType, tmp_path: Path
) -> None:
    table = tmp_path / "RESULTS.csv"
    table.write_text("preset,data,folds,metric,score\nsmall,mini,hold-out,tau,0.1\n", encoding="utf-8")
    recorder.record(table, recorder.row_of(finished(tmp_path / "a", 0.25), "mini", "5 by group", ""))
    assert [(row["folds"], row["score"], row["n"]) for row in rows_of(table)] == [
        ("hold-out", "0.1", ""),
        ("5 by group", "0.2500", "12"),
    ]


def test_another_metric_is_another_row(recorder: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "RESULTS.csv"
    for name, metric, score in (("a", "macro_f1", 0.25), ("b", "accuracy", 0.5), ("c", "accuracy", 0.75)):
        run = finished(tmp_path / name, score, metric=metric)
        recorder.record(table, recorder.row_of(run, "mini", "5 by group", ""))
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
