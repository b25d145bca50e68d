"""The generated sample: official layout, published statistics, and that the way of reading frames decides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kit_core.errors import ConfigError
from kit_metrics.multilabel import macro_average_precision
from yandex_tagging.data import Tracks, fingerprint, load, prepare, read_truth
from yandex_tagging.sample import PARENTS, write_sample
from yandex_tagging.submission import check_submission


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "sample"
    written = write_sample(folder, 600)
    assert (written.train, written.test, written.tags, written.dim) == (400, 200, 40, 32)
    return folder


def test_it_has_the_official_layout(sample: Path) -> None:
    names = {path.name for path in sample.iterdir()}
    assert names == {"train.csv", "test.csv", "test_truth.csv", "sample_submission.csv", "track_embeddings"}
    train, test = load(sample, "train"), load(sample, "test")
    assert sorted(train.ids + test.ids) == list(range(600))
    assert train.ids != sorted(train.ids)
    assert train.tags is not None
    assert read_truth(sample / "test_truth.csv")[0] == test.ids
    assert not check_submission(sample / "sample_submission.csv", test.ids, 40).any()
    assert np.load(sample / "track_embeddings" / "0.npy").dtype == np.float32


def test_tags_are_as_published(sample: Path) -> None:
    tags = load(sample, "train").tags
    assert tags is not None
    counts = tags.sum(axis=0)
    assert counts.min() >= 10
    assert counts[0] > 0.3 * 400  # tags are numbered by falling frequency, and two of them are on a third of the tracks
    assert np.corrcoef(counts, np.arange(40))[0, 1] < -0.6
    assert 3.4 < tags.sum(axis=1).mean() < 4.4
    together = tags.T.astype(float) @ tags / counts  # [i, j]: share of the tracks with tag j that have tag i
    with_parent = (together - np.eye(40)).max(axis=0)
    assert (with_parent > 0.85).sum() >= 40 - len(PARENTS)


def test_lengths_and_scales_are_spread(sample: Path) -> None:
    tracks = load(sample, "train")
    assert tracks.lengths.min() >= 10
    assert 24 < np.median(tracks.lengths) < 36
    deviations = np.asarray(tracks.pack.values, np.float32).std(axis=0)
    assert deviations.max() > 2 * deviations.min()  # not normalised


def test_the_same_seed_gives_the_same_bytes_in_a_folder_and_in_an_archive(tmp_path: Path) -> None:
    for name, seed, archive in (("a", 0, True), ("b", 0, True), ("c", 1, True), ("d", 0, False)):
        write_sample(tmp_path / name, 60, seed, archive=archive)
    archives = [(tmp_path / name / "track_embeddings.tar.gz").read_bytes() for name in "abc"]
    assert archives[0] == archives[1] != archives[2]
    prepare(tmp_path / "a", tmp_path / "packed", dtype="float32")
    tracks = load(tmp_path / "packed")
    for row, track in zip(tracks.rows, tracks.ids, strict=True):
        stored = np.load(tmp_path / "d" / "track_embeddings" / f"{track}.npy")
        np.testing.assert_array_equal(tracks.pack.item(row), stored)
    assert fingerprint(tmp_path / "packed") == fingerprint(tmp_path / "a")


@pytest.mark.parametrize("by_size", [False, True])
def test_large_samples_have_the_official_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_size: bool) -> None:
    if by_size:
        monkeypatch.setattr("yandex_tagging.sample.OFFICIAL_FROM", 60)
    written = write_sample(tmp_path / "sample", 90, form=None if by_size else "official")
    assert (written.dim, written.tags) == (768, 256)
    assert 45 < written.frames / 90 < 70
    assert (tmp_path / "sample" / "sample_submission.csv").read_text().splitlines()[1].count(",") == 256


def features(tracks: Tracks, kind: str, mean: Any, deviation: Any) -> Any:
    rows = []
    for row in tracks.rows:
        frames = (tracks.pack.item(row) - mean) / deviation
        if kind == "mean":
            rows.append(frames.mean(axis=0))
        elif kind == "max":
            rows.append(np.r_[frames.max(axis=0), frames.min(axis=0)])
        else:  # products of neighbouring frames, later by earlier: they know the order
            rows.append((frames[1:].T @ frames[:-1] / len(frames)).ravel())
    return np.array(rows)


def test_a_maximum_beats_the_mean_and_order_tells_siblings_apart(sample: Path) -> None:
    """Logistic regressions on features that see more and more; tags of a family share frames and differ in order."""
    train, test = load(sample, "train"), load(sample, "test")
    assert train.tags is not None
    truth = read_truth(sample / "test_truth.csv", 40)[1]
    values = np.asarray(train.pack.values, np.float32)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    scores, found = {}, {}
    for kind in ("mean", "max", "order"):
        model = OneVsRestClassifier(make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)))
        model.fit(features(train, kind, mean, deviation), train.tags)
        found[kind] = model.predict_proba(features(test, kind, mean, deviation))
        scores[kind] = macro_average_precision(truth, found[kind])
    chance = truth.mean()
    assert scores["mean"] > chance + 0.08
    assert scores["max"] > scores["mean"] + 0.08
    both = macro_average_precision(truth, found["max"] + found["order"])
    assert both > scores["max"] + 0.02


@pytest.mark.parametrize("tracks", [59, 76_715])
def test_impossible_samples_are_refused(tmp_path: Path, tracks: int) -> None:
    with pytest.raises(ConfigError, match=f"found {tracks}, expected 60 to 76714"):
        write_sample(tmp_path / "sample", tracks)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_sample(tmp_path, 60)
