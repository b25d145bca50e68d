"""Two runs, or two submissions, on the same tracks: the difference and its interval, as kit_metrics gives them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kit_core.errors import DataError
from kit_metrics.multilabel import bootstrap_paired_macro_average_precision, macro_average_precision
from yandex_tagging.cli import main
from yandex_tagging.compare import compare_runs, compare_submissions
from yandex_tagging.data import load
from yandex_tagging.submission import write_submission


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a sample whose tracks come in groups."""
    folder = tmp_path_factory.mktemp("compare") / "data"
    assert main(["sample", "--out", str(folder), "--tracks", "150"]) == 0
    ids = [int(line.partition(",")[0]) for line in (folder / "train.csv").read_text().splitlines()[1:]]
    (folder / "groups.csv").write_text("track,group\n" + "".join(f"{track},g{track % 19}\n" for track in ids))
    return folder


def train(preset: str, data: Path, run: Path, *more: str) -> Path:
    assert main(["train", preset, "--data", str(data), "--run", str(run), "--data.n-folds", "3", *more]) == 0
    return run


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return train("logistic", data, folder / "a"), train("knn", data, folder / "b")


def test_two_runs_are_compared_over_the_groups_of_their_folds(runs: tuple[Path, Path], data: Path) -> None:
    found = compare_runs(*runs)
    tracks = load(data)
    assert tracks.tags is not None
    assert tracks.groups is not None
    logits = [np.stack(pq.read_table(run / "oof.parquet")["logits"].to_numpy()) for run in runs]
    order = [pq.read_table(run / "oof.parquet")["track"].to_pylist() for run in runs]
    assert order == [tracks.ids, tracks.ids]
    expected = bootstrap_paired_macro_average_precision(tracks.tags, *logits, tracks.groups)
    assert (found.difference, *found.interval) == pytest.approx(expected, abs=1e-9)
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.score_a == macro_average_precision(tracks.tags, logits[0])
    for run, score in zip(runs, (found.score_a, found.score_b), strict=True):
        assert json.loads((run / "summary.json").read_text())["score"] == pytest.approx(score)
    assert (found.n, found.n_groups, found.group_by) == (100, 19, "series (groups.csv)")
    ungrouped = bootstrap_paired_macro_average_precision(tracks.tags, *logits)
    assert found.interval != pytest.approx(ungrouped[1:], abs=1e-4)


def test_a_run_equals_itself(runs: tuple[Path, Path]) -> None:
    found = compare_runs(runs[0], runs[0])
    assert (found.difference, found.interval) == (0, (0, 0))


def test_the_verb_prints_a_table_or_json(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["compare", *map(str, runs), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(json.dumps(compare_runs(*runs).to_dict()))
    assert main(["compare", *map(str, runs)]) == 0
    text = capsys.readouterr().out
    assert f"{report['difference']:+.4f}" in text
    assert "groups resampled (series (groups.csv))" in text


def test_runs_that_cannot_be_compared_are_refused(runs: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert main(["sample", "--out", str(other), "--tracks", "150", "--seed", "1"]) == 0
    with pytest.raises(DataError, match="different data: found fingerprints"):
        compare_runs(runs[0], train("knn", other, tmp_path / "data"))
    one_fold = train("knn", data, tmp_path / "fold", "--data.fold", "1")
    with pytest.raises(DataError, match=r"different tracks: found \d\d tracks scored by one of them only \(\d+, "):
        compare_runs(runs[0], one_fold)
    ids = load(data).ids
    (tmp_path / "groups.csv").write_text("track,group\n" + "".join(f"{track},{track % 7}\n" for track in ids))
    regrouped = train("knn", data, tmp_path / "groups", "--data.groups", str(tmp_path / "groups.csv"))
    with pytest.raises(DataError, match=r"different groups: found 'series \(groups.csv\)' and 'groups groups.csv'"):
        compare_runs(runs[0], regrouped)
    with pytest.raises(DataError, match="no run folder"):
        compare_runs(runs[0], tmp_path / "absent")


def test_a_run_without_groups_in_its_answers_is_told(data: Path, tmp_path: Path) -> None:
    """As version 0.1 wrote them; the file is out of its run's checksums, so that it may be made older here."""
    run = train("knn", data, tmp_path / "run")
    pq.write_table(pq.read_table(run / "oof.parquet").select(["track", "fold", "logits"]), run / "oof.parquet")
    (run / "digests.json").unlink()
    with pytest.raises(DataError, match=r"found no group, tags[\s\S]*train again"):
        compare_runs(run, run)


def test_submissions_are_compared_over_tracks_or_groups(data: Path, tmp_path: Path) -> None:
    truth = data / "test_truth.csv"
    tracks = load(data, "test")
    generator = np.random.default_rng(0)
    tags = np.zeros((len(tracks), tracks.n_tags), dtype=bool)
    by_track = {
        int(track): [int(tag) for tag in tags_.strip('"').split(",")]
        for track, _, tags_ in (line.partition(",") for line in truth.read_text().splitlines()[1:])
    }
    for row, track in enumerate(tracks.ids):
        tags[row, by_track[track]] = True
    good = (0.5 * tags + 0.5 * generator.random(tags.shape)).astype(np.float32)
    poor = generator.random(tags.shape, dtype=np.float32)
    write_submission(tmp_path / "good.csv", tracks.ids, good)
    write_submission(tmp_path / "poor.csv", tracks.ids, poor)
    found = compare_submissions(tmp_path / "good.csv", tmp_path / "poor.csv", truth)
    expected = bootstrap_paired_macro_average_precision(tags, good, poor)
    assert found.difference == pytest.approx(expected[0])
    assert found.interval == pytest.approx(expected[1:], abs=0.02)  # rows are drawn in the order of the truth
    assert found.interval[0] > 0
    assert (found.n, found.group_by, found.n_groups) == (50, "track", 50)
    groups = tmp_path / "groups.csv"
    groups.write_text("track,group\n" + "".join(f"{track},{track % 9}\n" for track in tracks.ids))
    by_group = compare_submissions(tmp_path / "good.csv", tmp_path / "poor.csv", truth, groups)
    assert (by_group.difference, by_group.n_groups) == (found.difference, 9)
    assert by_group.interval != found.interval
    write_submission(tmp_path / "few.csv", tracks.ids, poor[:, :5])
    with pytest.raises(DataError, match="number of tags: found 5"):
        compare_submissions(tmp_path / "good.csv", tmp_path / "few.csv", truth)
