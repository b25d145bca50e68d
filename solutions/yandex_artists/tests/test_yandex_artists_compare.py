"""Comparisons of runs and submissions against `kit_metrics` by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from kit_core.errors import DataError
from kit_metrics import bootstrap_paired_ratio, ndcg_per_query, paired_ndcg
from yandex_artists.baseline import MeanEncoder
from yandex_artists.cli import main
from yandex_artists.compare import compare
from yandex_artists.data import as_ids, load, read_truth, validation_folds, write_submission
from yandex_artists.sample import write_sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    write_sample(out, 45, 0, 16)
    return out


@pytest.fixture(scope="module")
def runs(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two methods on the same halves, one of them on other folds, and one on other data."""
    root = tmp_path_factory.mktemp("runs")
    write_sample(root / "other", 45, 1, 16)
    wanted = {
        "naive": (sample, "2", "naive"),
        "whitened": (sample, "2", "whitened"),
        "three": (sample, "3", "naive"),
        "foreign": (root / "other", "2", "naive"),
    }
    for name, (data, folds, preset) in wanted.items():
        words = ["train", preset, "--data", str(data), "--run", str(root / name), "--data.n-folds", folds]
        assert main(words) == 0
    return {name: root / name for name in wanted}


def test_a_comparison_of_runs_is_the_paired_bootstrap_over_artists(sample: Path, runs: dict[str, Path]) -> None:
    tracks = load(sample, "train")
    assert tracks.artists is not None
    folds = validation_folds(tracks, 2)
    scores: dict[bool, list[float]] = {False: [], True: []}
    groups: list[int] = []
    for fold in (0, 1):
        held, fitted = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        artists = tracks.artists[held]
        for whiten, found in scores.items():
            encoder = MeanEncoder.fit(tracks.pack, tracks.rows[fitted], whiten=whiten)
            cosines = (lambda x: x @ x.T)(encoder.embed(tracks.pack, tracks.rows[held]).astype(np.float64))
            np.fill_diagonal(cosines, -9)
            near = np.argsort(-cosines, axis=1)[:, : min(100, len(held) - 1)]
            found += ndcg_per_query(near, artists).tolist()
        groups += artists.tolist()
    asked = ~np.isnan(scores[True])
    a, b = (np.array(scores[whiten])[asked] for whiten in (True, False))
    expected = bootstrap_paired_ratio(a, b, np.ones_like(a), np.array(groups)[asked])
    found = compare(runs["whitened"], runs["naive"])
    assert (found.difference, *found.interval) == pytest.approx(expected, abs=1e-6)
    assert (found.score_a, found.score_b) == pytest.approx((a.mean(), b.mean()), abs=1e-6)
    assert abs(found.difference) > 1e-3
    assert (found.n, found.group_by, found.metric) == (asked.sum(), "artist", "ndcg@100")
    assert found.n_groups == len(np.unique(np.array(groups)[asked]))


def test_a_run_against_itself_differs_by_nothing(runs: dict[str, Path]) -> None:
    found = compare(runs["naive"], runs["naive"])
    assert (found.difference, found.interval) == (0, (0, 0))


def test_runs_that_scored_other_rows_are_refused(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="differ in track, artist or fold"):
        compare(runs["naive"], runs["three"])
    with pytest.raises(DataError, match="different data"):
        compare(runs["naive"], runs["foreign"])
    assert main(["compare", str(runs["naive"]), str(runs["foreign"])]) == 3
    queries = runs["three"] / "queries.csv"
    content = queries.read_text()
    queries.unlink()
    assert main(["compare", str(runs["three"]), str(runs["three"])]) == 3
    assert "no scores of queries" in capsys.readouterr().err
    queries.write_text(content)


def test_submissions_are_compared_by_their_truth(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracks = load(sample, "train")
    assert tracks.artists is not None
    rng = np.random.default_rng(0)
    tables = []
    for name in ("a", "b"):
        others = [np.delete(np.arange(len(tracks)), query) for query in range(len(tracks))]
        near = np.stack([rng.permutation(rows)[:100] for rows in others])
        if name == "a":  # one of the same artist in front
            for query, rows in enumerate(near):
                same = [row for row in others[query] if tracks.artists[row] == tracks.artists[query]]
                if same and same[0] not in rows:
                    near[query, 0] = same[0]
        tables.append(near)
        write_submission(tmp_path / name, tracks.ids, as_ids(tracks, near))
    truth = sample / "train_meta.tsv"
    labels = np.unique(read_truth(truth)["artistid"], return_inverse=True)[1]
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--truth", str(truth)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = paired_ndcg(*tables, labels)
    assert (found["difference"], *found["interval"]) == pytest.approx(expected)
    assert found["difference"] > 0.05
    assert found["interval"][0] > 0
    assert main(words) == 0
    assert "95 % interval of A - B" in capsys.readouterr().out
