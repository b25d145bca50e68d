"""nDCG@k against a slow reference that walks through dictionaries, on every edge row of the two official scripts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_metrics import bootstrap_ratio, ndcg_per_query, ndcg_report, paired_ndcg


def judge(lists: dict[int, list[int]], artist_of: dict[int, int], k: int = 100) -> list[float]:
    """Every row of the truth; a missing query scores 0; the query is dropped from its list; hits count again."""
    scores = []
    for query, artist in artist_of.items():
        others = sum(other == artist for other in artist_of.values()) - 1
        found = [track for track in lists.get(query, []) if track != query][:k]
        gain = sum(1 / math.log2(place + 2) for place, track in enumerate(found) if artist_of[track] == artist)
        scores.append(gain / sum(1 / math.log2(place + 2) for place in range(min(k, others))))
    return scores


def baseline(lists: dict[int, list[int]], artist_of: dict[int, int], k: int = 100) -> list[float]:
    """Every list; queries without an answer are left out; the query in its own list is an error."""
    scores = []
    for query, found in lists.items():
        if query in found:
            raise AssertionError(query)
        others = sum(other == artist_of[query] for other in artist_of.values()) - 1
        if others:
            gain = 0.0
            for place, track in enumerate(found[:k]):
                gain += (artist_of[track] == artist_of[query]) / math.log2(place + 2)
            scores.append(gain / sum(1 / math.log2(place + 2) for place in range(min(k, others))))
    return scores


def table(lists: dict[int, list[int]], n: int) -> np.ndarray:
    width = max(1, *(len(row) for row in lists.values()))
    return np.array([lists.get(q, []) + [-1] * (width - len(lists.get(q, []))) for q in range(n)])


LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
LISTS = {
    0: [1, 2, 3, 4],  # perfect
    1: [3, 0, 4, 2],
    2: [5, 6, 7, 8],  # nothing found
    3: [4],  # shorter than the others
    5: [6, 3, 7, 8],
    6: [0, 1, 2, 3],
    7: [8, 5, 6, 0],
    8: [7, 0, 5],
}  # 4 is missing


def test_judge_and_baseline_on_a_missing_query():
    found, artist_of = table(LISTS, 9), dict(enumerate(LABELS.tolist()))
    by_judge = ndcg_per_query(found, LABELS, singletons="refuse", missing="zero", own="drop")
    np.testing.assert_allclose(by_judge, judge(LISTS, artist_of), atol=1e-12)
    assert by_judge[4] == 0
    local = ndcg_per_query(found, LABELS, missing="skip")
    assert np.isnan(local[4])
    np.testing.assert_allclose(local[~np.isnan(local)], baseline(LISTS, artist_of), atol=1e-12)
    assert np.nanmean(local) > np.nanmean(by_judge)


def test_hand_computed_values():
    # Two others: found at places 1 and 3 of three.
    score = ndcg_per_query([[1, 3, 2], [0, 2, 3], [3, 0, 1], [0, 1, 2]], [0, 0, 0, 1])
    ideal = 1 + 1 / math.log2(3)
    assert score[:3].tolist() == pytest.approx([(1 + 0.5) / ideal, 1.0, (1 / math.log2(3) + 0.5) / ideal])
    assert np.isnan(score[3])  # a singleton
    # IDCG of R = 1 .. 9, as everybody can add up.
    for others, ideal in enumerate([1, 1.6309, 2.1309, 2.5616, 2.9485, 3.3047, 3.6380, 3.9535, 4.2545], start=1):
        labels = np.array([0] * (others + 1) + [1])
        found = np.array([[1]] + [[others + 1]] * (others + 1))
        found[-1] = 0
        assert ndcg_per_query(found, labels)[0] == pytest.approx(1 / ideal, abs=1e-4)


def test_singletons_are_left_out_or_refused():
    labels = [0, 0, 1]
    found = [[1, 2], [0, 2], [0, 1]]
    assert np.isnan(ndcg_per_query(found, labels)).tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"1 queries \(the first: 2\) with a label that no other row has"):
        ndcg_per_query(found, labels, singletons="refuse")


def test_the_query_in_its_own_list_is_refused_or_dropped_and_the_next_move_up():
    labels = np.array([0, 0, 0, 1, 1])
    lists = {0: [0, 1, 3, 2], 1: [0, 1, 2, 3], 2: [3, 4, 0, 1], 3: [4, 3, 0, 1], 4: [0, 1, 2, 4]}
    found = table(lists, 5)
    with pytest.raises(ValueError, match=r"4 queries \(the first: 0, 1, 3, 4\) among their own"):
        ndcg_per_query(found, labels)
    artist_of = dict(enumerate(labels.tolist()))
    for k in (1, 2, 3, 100):
        dropped = ndcg_per_query(found, labels, own="drop", k=k)
        np.testing.assert_allclose(dropped, judge(lists, artist_of, k), atol=1e-12)


def test_a_hit_that_comes_twice_is_refused_or_counted_again_as_the_judge_does():
    labels = np.array([0, 0, 1, 1])
    lists = {0: [1, 1, 2], 1: [0, 2, 2], 2: [3, 0, 1], 3: [2, 0, 1]}
    found = table(lists, 4)
    with pytest.raises(ValueError, match=r"2 queries \(the first: 0, 1\) with a neighbour that comes twice"):
        ndcg_per_query(found, labels)
    counted = ndcg_per_query(found, labels, repeated="count")
    np.testing.assert_allclose(counted, judge(lists, dict(enumerate(labels.tolist()))), atol=1e-12)
    assert counted[0] > 1


def test_places_behind_k_do_not_count():
    labels = np.array([0] * 3 + [1] * 4)
    found = np.array([[3, 4, 1], [3, 4, 0], [3, 4, 0], [0, 1, 4], [0, 1, 5], [0, 1, 6], [0, 1, 3]])
    assert ndcg_per_query(found, labels, k=2).tolist() == [0.0] * 7
    assert ndcg_per_query(found, labels, k=3).min() > 0


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 25), width=st.integers(1, 12), artists=st.integers(1, 6), k=st.integers(1, 15),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_random_lists_equal_the_slow_references(n: int, width: int, artists: int, k: int, seed: int):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, artists, n)
    lists = {q: rng.permutation(n)[: rng.integers(0, width + 1)].tolist() for q in range(n)}
    artist_of = dict(enumerate(labels.tolist()))
    if np.bincount(labels)[labels].min() > 1:
        found = ndcg_per_query(table(lists, n), labels, k=k, own="drop", singletons="refuse")
        np.testing.assert_allclose(found, judge(lists, artist_of, k), atol=1e-12)
    without_own = {q: [track for track in row if track != q] for q, row in lists.items()}
    kept = {q: row for q, row in without_own.items() if row}
    found = ndcg_per_query(table(without_own, n), labels, k=k, missing="skip")
    np.testing.assert_allclose(found[~np.isnan(found)], baseline(kept, artist_of, k), atol=1e-12)


def test_queries_may_be_a_part_of_the_gallery():
    labels = np.array([0, 1, 0, 1])
    whole = ndcg_per_query([[2, 1], [0, 3], [1, 3], [1, 0]], labels)
    part = ndcg_per_query([[1, 0], [2, 1]], labels, queries=[3, 0])
    assert part.tolist() == [whole[3], whole[0]]


def test_blocks_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 50)
    found = np.array([rng.permutation(np.delete(np.arange(50), q))[:20] for q in range(50)])
    whole = ndcg_per_query(found, labels)
    monkeypatch.setattr("kit_metrics.retrieval.ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(ndcg_per_query(found, labels), whole)


def test_report_holds_the_gallery_and_an_interval_over_labels():
    rng = np.random.default_rng(1)
    labels = np.append(np.repeat(np.arange(20), 5), [20, 21])
    found = np.array([rng.permutation(np.delete(np.arange(102), q))[:100] for q in range(102)])
    report = ndcg_report(found, labels)
    score = ndcg_per_query(found, labels)
    scored = ~np.isnan(score)
    assert report["ndcg@100"] == pytest.approx(score[scored].mean())
    assert report["interval"] == list(bootstrap_ratio(score[scored], np.ones(100), labels[scored]))
    assert (report["queries"], report["left_out"], report["labels"], report["gallery"]) == (100, 2, 20, 102)
    assert report["hit@1"] == pytest.approx((labels[found[:100, 0]] == labels[:100]).mean())
    hits = (labels[found[:100]] == labels[:100, None]).sum(axis=1)
    assert report["recall@100"] == pytest.approx((hits / 4).mean())
    assert ndcg_report(found, labels, bootstrap=0)["interval"] is None
    with pytest.raises(ValueError, match="no query is left"):
        ndcg_report([[1], [0]], [0, 1])


def test_report_drops_the_query_itself_and_the_next_move_up():
    labels = np.array([0, 0, 0, 1, 1])
    found = np.array([[0, 1, 2], [3, 1, 0], [0, 1, 3], [3, 4, 0], [3, 4, 0]])
    without_own = np.array([[1, 2], [3, 0], [0, 1], [4, 0], [3, 0]])
    for k in (1, 2):
        report = ndcg_report(found, labels, own="drop", k=k, bootstrap=0)
        assert report == ndcg_report(without_own, labels, k=k, bootstrap=0)


def test_a_paired_difference_is_that_of_the_means_and_less_uncertain_than_either():
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(40), 5)
    good, noise = np.empty((200, 50), dtype=np.int64), np.empty((200, 50), dtype=np.int64)
    for q in range(200):
        own = np.setdiff1d(np.arange(q // 5 * 5, q // 5 * 5 + 5), [q])
        others = rng.permutation(np.setdiff1d(np.arange(200), [*own, q]))[:50]
        places = np.sort(rng.permutation(20)[:4])
        good[q] = np.insert(others, places, own)[:50]
        noise[q] = np.roll(good[q], 1)
    difference, low, high = paired_ndcg(good, noise, labels)
    a, b = ndcg_report(good, labels), ndcg_report(noise, labels)
    assert difference == pytest.approx(a["ndcg@100"] - b["ndcg@100"])
    assert low < difference < high
    assert high - low < a["interval"][1] - a["interval"][0]
    assert paired_ndcg(good, good, labels) == (0, 0, 0)


@pytest.mark.parametrize(
    ("neighbours", "labels", "options", "words"),
    [
        ([[1], [0]], [0.5, 1.0], {}, "labels"),
        ([[1], [0]], [-1, 0], {}, "labels"),
        ([[1.0], [0.0]], [0, 0], {}, "neighbours"),
        ([1, 0], [0, 0], {}, "neighbours"),
        ([[2], [0]], [0, 0], {}, "expected gallery rows 0 .. 1"),
        ([[-2], [0]], [0, 0], {}, "expected gallery rows 0 .. 1"),
        ([[-1, 1], [0, -1]], [0, 0], {}, "-1 before a neighbour"),
        ([[1]], [0, 0], {}, "queries"),
        ([[1]], [0, 0], {"queries": [2]}, "queries"),
        ([[1], [0]], [0, 0], {"k": 0}, "k: found 0"),
    ],
)  # fmt: skip
def test_misuse_is_refused(neighbours: object, labels: object, options: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        ndcg_per_query(neighbours, labels, **options)
