"""Runs and results as DataFrames."""

import json
from pathlib import Path

import pandas as pd
import pytest

from kit_core.errors import DataError
from kit_report import load_results, load_run

COLUMNS = "preset,data,folds,group_by,metric,score,low,high,n,seconds,threads,parameters,revision,remarks\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"preset": "best", "config": {"optim": {"lr": 0.1}}}))
    (folder / "manifest.json").write_text(json.dumps({"argv": ["demo", "train", "best"]}))
    (folder / "metrics.jsonl").write_text('{"epoch": 0, "loss": 2.0}\n{"epoch": 1, "loss": 1.0, "score": 0.5}\n')
    (folder / "summary.json").write_text('{"score": 0.5}')
    (folder / "DONE").touch()
    pd.DataFrame({"track": [7, 8], "fold": [0, 1], "p": [0.25, 0.75]}).to_parquet(folder / "oof.parquet")
    return folder


def test_a_run_is_its_settings_figures_and_frames(run: Path) -> None:
    loaded = load_run(run)
    assert (loaded.preset, loaded.config, loaded.summary) == ("best", {"optim": {"lr": 0.1}}, {"score": 0.5})
    assert loaded.metrics["loss"].tolist() == [2.0, 1.0]
    assert loaded.metrics["score"].isna().tolist() == [True, False]
    assert loaded.oof is not None
    assert loaded.oof["track"].tolist() == ["7", "8"]
    assert loaded.oof["p"].tolist() == [0.25, 0.75]


def test_an_unfinished_run_has_metrics_and_no_summary(run: Path) -> None:
    (run / "DONE").unlink()
    (run / "oof.parquet").unlink()
    loaded = load_run(str(run))
    assert (loaded.summary, loaded.oof, len(loaded.metrics)) == ({}, None, 2)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_damaged_run_is_refused_by_file(run: Path, name: str) -> None:
    (run / name).write_text("{torn")
    with pytest.raises(DataError, match=name):
        load_run(run)


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        load_run(tmp_path)


def test_results_of_all_solutions_are_one_frame(tmp_path: Path) -> None:
    for name, score in (("one", 0.5), ("two", 0.25)):
        folder = tmp_path / "solutions" / name
        folder.mkdir(parents=True)
        (folder / "RESULTS.csv").write_text(f"{COLUMNS}best,mini,5 by x,x,tau,{score},0.1,0.9,10,1.5,1,0,abc1234,\n")
    results = load_results(tmp_path)
    assert results["solution"].tolist() == ["one", "two"]
    assert results["score"].tolist() == [0.5, 0.25]
    assert results.loc[1, "revision"] == "abc1234"
    (tmp_path / "solutions" / "two" / "RESULTS.csv").write_text("preset,score\nbest,1\n")
    with pytest.raises(DataError, match="found the columns preset, score"):
        load_results(tmp_path)


def test_without_a_repository_nothing_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"RESULTS\.csv"):
        load_results(tmp_path)
