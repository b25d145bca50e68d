"""`compare`: two runs by what was held out, two submissions by a truth; never on different notebooks."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ai4code import cli
from ai4code.compare import SCORED_FILE, compare_runs, compare_submissions
from ai4code.config import Config, DataConfig, TreesConfig
from ai4code.data import Notebooks, fingerprint, load
from ai4code.evaluate import evaluate_submission
from ai4code.sample import write_sample
from ai4code.submission import read_orders, write_submission
from ai4code.train import train
from kit_core.errors import DataError
from kit_core.run import RunFolder
from kit_metrics.bootstrap import bootstrap_paired_ratio
from kit_metrics.ordering import count_inversions

TREES = TreesConfig(rounds=10, leaves=7, smallest_leaf=5, learning_rate=0.2)
LEARNED = Config(members=("position",), position=TREES, data=DataConfig(folds=3))
RULE = Config(members=("as-given",), data=DataConfig(folds=3))


def run_training(config: Config, notebooks: Notebooks, path: Path, hashes: dict[str, str]) -> dict[str, Any]:
    with RunFolder.create(path, config=config, preset="x", data_hashes=hashes, seed=config.seed) as run:
        return train(config, notebooks, run)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "sample"
    write_sample(folder, notebooks=40)
    return folder


@pytest.fixture(scope="module")
def notebooks(data: Path) -> Notebooks:
    return load(data, "train", workers=1)


@pytest.fixture(scope="module")
def runs(data: Path, notebooks: Notebooks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, hashes = tmp_path_factory.mktemp("runs"), {"train": fingerprint(data)}
    summaries = {
        name: run_training(config, notebooks, folder / name, hashes)
        for name, config in (("learned", LEARNED), ("rule", RULE))
    }
    return {"folder": folder, **summaries}


def tau(lost: np.ndarray) -> np.ndarray:
    return 1 - 4 * lost


def test_two_runs_by_hand(runs: dict[str, Any], notebooks: Notebooks) -> None:
    folder = runs["folder"]
    found = compare_runs(folder / "learned", folder / "rule")
    tables = [pq.read_table(folder / name / SCORED_FILE).to_pydict() for name in ("learned", "rule")]
    assert tables[0]["id"] == notebooks.ids
    assert notebooks.ancestors is not None
    pairs = notebooks.lengths * (notebooks.lengths - 1)
    lost = [np.array(table["inversions"]) for table in tables]
    expected = bootstrap_paired_ratio(*lost, pairs, np.array(notebooks.ancestors), transform=tau, limits=(-1.0, 1.0))
    assert (found.difference, *found.interval) == expected
    assert found.difference == pytest.approx(runs["learned"]["score"] - runs["rule"]["score"])
    assert (found.score_a, found.score_b) == (runs["learned"]["score"], runs["rule"]["score"])
    assert found.difference != 0
    assert (found.n, found.group_by) == (len(notebooks), "ancestor")
    assert found.n_groups == len(set(notebooks.ancestors)) < len(notebooks)


def test_the_stored_inversions_are_those_of_the_orders(runs: dict[str, Any], notebooks: Notebooks) -> None:
    """The order as given needs no model to repeat."""
    table = pq.read_table(runs["folder"] / "rule" / SCORED_FILE).to_pydict()
    assert notebooks.true_rank is not None
    for i, inversions in enumerate(table["inversions"]):
        rank = notebooks.true_rank[notebooks.offsets[i] : notebooks.offsets[i + 1]]
        assert inversions == count_inversions(rank)


def test_a_run_equals_itself(runs: dict[str, Any]) -> None:
    found = compare_runs(runs["folder"] / "learned", runs["folder"] / "learned")
    assert (found.difference, *found.interval) == (0, 0, 0)


def test_runs_on_other_notebooks_are_refused(
    runs: dict[str, Any], notebooks: Notebooks, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = runs["folder"] / "learned"
    run_training(RULE, notebooks, tmp_path / "other", {"train": "0" * 64})
    assert cli.main(["compare", str(learned), str(tmp_path / "other")]) == 3
    assert "different data" in capsys.readouterr().err
    one_fold = replace(RULE, data=replace(RULE.data, fold=0))
    run_training(one_fold, notebooks, tmp_path / "fold", {"train": fingerprint(data)})
    assert cli.main(["compare", str(learned), str(tmp_path / "fold")]) == 3
    assert "0 in the second only" in capsys.readouterr().err


def test_a_run_without_its_held_out_notebooks_is_refused(
    runs: dict[str, Any], notebooks: Notebooks, data: Path, tmp_path: Path
) -> None:
    config = replace(RULE, data=replace(RULE.data, fold="none"))
    run_training(config, notebooks, tmp_path / "whole", {"train": fingerprint(data)})
    with pytest.raises(DataError, match=r"scored\.parquet: not found"):
        compare_runs(tmp_path / "whole", tmp_path / "whole")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs["folder"] / "rule", unfinished)
    (unfinished / "DONE").unlink()
    with pytest.raises(DataError, match="not finished"):
        compare_runs(unfinished, runs["folder"] / "learned")


# --- submissions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def submissions(data: Path, notebooks: Notebooks, tmp_path: Path) -> tuple[Path, Path]:
    """The order as given, and the true one with its first two cells exchanged."""
    truth = read_orders(data / "train_orders.csv")
    given = [notebooks.cells(i) for i in range(len(notebooks))]
    near = [[*truth[id_][1::-1], *truth[id_][2:]] for id_ in notebooks.ids]
    write_submission(tmp_path / "given.csv", notebooks.ids, given)
    write_submission(tmp_path / "near.csv", notebooks.ids, near)
    return tmp_path / "near.csv", tmp_path / "given.csv"


def test_two_submissions(submissions: tuple[Path, Path], data: Path, notebooks: Notebooks) -> None:
    assert notebooks.ancestors is not None
    by_family = compare_submissions(*submissions, data)
    scores = [evaluate_submission(path, data)["tau"] for path in submissions]
    assert (by_family.score_a, by_family.score_b) == tuple(scores)
    assert (by_family.group_by, by_family.n_groups) == ("ancestor", len(set(notebooks.ancestors)))

    bare = compare_submissions(*submissions, data / "train_orders.csv")
    assert (bare.group_by, bare.n_groups) == ("notebook", len(notebooks))
    told = compare_submissions(*submissions, data / "train_orders.csv", data / "train_ancestors.csv")
    assert (told.difference, told.n_groups) == (by_family.difference, by_family.n_groups)
    assert told.interval == by_family.interval != bare.interval


def test_the_program(
    submissions: tuple[Path, Path], data: Path, runs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    near, given = map(str, submissions)
    assert cli.main(["compare", near, given, "--truth", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare_submissions(*submissions, data).to_dict()
    names = [str(runs["folder"] / name) for name in ("learned", "rule")]
    assert cli.main(["compare", *names]) == 0
    assert "groups resampled (ancestor)" in capsys.readouterr().out
    assert cli.main(["compare", *names, "--ancestors", str(data / "train_ancestors.csv")]) == 2


def test_families_that_lack_a_notebook_are_refused(submissions: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    with (data / "train_ancestors.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    with (tmp_path / "some.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows[:-2])
    with pytest.raises(DataError, match="no ancestor_id") as caught:
        compare_submissions(*submissions, data / "train_orders.csv", tmp_path / "some.csv")
    assert rows[-1][0] in str(caught.value)
