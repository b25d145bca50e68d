"""Votes of frames against plain loops, and the smoothing of scores against that of vectors."""

import numpy as np
import pytest
from scipy import sparse

from kit_core.errors import DataError
from kit_io.ragged import RaggedPack
from kit_metrics import ndcg_report
from kit_retrieval import l2_normalise, top_k
from yandex_artists.frame_matching import FrameMatcher, frame_votes, nearest_by_scores, pair_scores


def make_frames(lengths: list[int], d: int = 5, seed: int = 0) -> np.ndarray:
    return l2_normalise(np.random.default_rng(seed).standard_normal((sum(lengths), d)).astype(np.float32))


def test_votes_are_those_of_a_loop_over_the_listed_pairs() -> None:
    lengths = [3, 1, 4, 2, 5]
    frames = make_frames(lengths)
    tracks = np.split(frames, np.cumsum(lengths)[:-1])
    listed = np.array([[0, 1, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [1, 1, 0, 1, 0]])
    votes = frame_votes(frames, np.array(lengths), sparse.csr_array(listed.astype(np.float32)), 3.0)
    assert np.array_equal(votes.toarray() > 0, listed > 0)
    for i, own in enumerate(tracks):
        expected = np.zeros(5)
        for frame in own:
            best = {j: max(float(frame @ other) for other in tracks[j]) for j in np.flatnonzero(listed[i])}
            total = sum(np.exp(3 * value) for value in best.values())
            for j, value in best.items():
                expected[j] += np.exp(3 * value) / total / len(own)
        np.testing.assert_allclose(votes.toarray()[i], expected, atol=1e-5)
    scores = pair_scores(votes).toarray()
    both = listed > 0
    np.testing.assert_allclose(scores, scores.T, atol=1e-6)
    logs = np.log(votes.toarray(), where=both, out=np.zeros((5, 5)))
    expected = logs + logs.T
    np.testing.assert_allclose(scores[both] - scores[both].min(), expected[both] - expected[both].min(), atol=1e-4)


def test_scores_are_smoothed_on_both_sides() -> None:
    rng = np.random.default_rng(1)
    dense = rng.random((9, 9)) + 0.1
    dense = dense + dense.T
    np.fill_diagonal(dense, 0)
    weights = np.array([5.0, 2.0, 1.0])
    own = dense + np.diag(dense.max(axis=1))
    mixing = np.zeros((9, 9))
    for i, row in enumerate(dense):
        mixing[i, [i, *np.argsort(-row, kind="stable")[:2]]] = weights / weights.sum()
    expected = mixing @ own @ mixing.T
    np.fill_diagonal(expected, -np.inf)
    scores = sparse.csr_array(dense)
    assert np.array_equal(nearest_by_scores(scores, 8, tuple(weights)), np.argsort(-expected, axis=1)[:, :8])
    plain = np.where(np.eye(9, dtype=bool), -np.inf, dense)
    assert np.array_equal(nearest_by_scores(scores, 8), np.argsort(-plain, axis=1)[:, :8])
    assert not np.array_equal(nearest_by_scores(scores, 8), nearest_by_scores(scores, 8, tuple(weights)))


def test_a_shared_frame_is_found_that_the_mean_does_not_show() -> None:
    """Tracks are noise around one centre, but for two frames that all tracks of an artist have."""
    rng = np.random.default_rng(0)
    signs = rng.standard_normal((30, 2, 12))
    labels = np.arange(30).repeat(4)
    items = [
        np.concatenate([rng.standard_normal((rng.integers(10, 40), 12)), signs[label] + 0.1]).astype(np.float32)
        for label in labels
    ]
    pack, rows = RaggedPack.from_items(items), np.arange(len(items))
    matcher = FrameMatcher.restore(FrameMatcher.fit(pack, rows).arrays())
    by_vector = ndcg_report(top_k(matcher.embed(pack, rows), k=100).indices, labels, bootstrap=0)["ndcg@100"]
    found = matcher.rank(pack, rows, 100)
    score = ndcg_report(found, labels, bootstrap=0)["ndcg@100"]
    assert score > 0.8
    assert score > by_vector + 0.2
    few = matcher.rank(pack, rows, 100, candidates=100)  # all but 19 of them
    assert ndcg_report(few, labels, bootstrap=0)["ndcg@100"] > by_vector + 0.1
    with pytest.raises(DataError, match="found tracks of 3 channels, expected 12"):
        matcher.rank(RaggedPack.from_items([np.zeros((4, 3), np.float32)] * 3), np.arange(3), 2)
