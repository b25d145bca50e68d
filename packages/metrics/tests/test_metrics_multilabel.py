"""kit_metrics.multilabel against scikit-learn, the bootstrap against rows that are really repeated."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score

from kit_metrics import (
    average_precision_per_tag,
    bootstrap_macro_average_precision,
    bootstrap_paired_macro_average_precision,
    macro_average_precision,
)


def peer(truth: Any, scores: Any, average: str | None = "macro") -> Any:
    with warnings.catch_warnings(action="ignore"):  # about tags without a true row, which count as 0 there too
        return average_precision_score(truth, scores, average=average)


def case(seed: int, n: int = 60, tags: int = 7, decimals: int = 1) -> tuple[Any, Any]:
    """Truth from frequent to absent, and scores with many ties that know something of it."""
    generator = np.random.default_rng(seed)
    truth = generator.random((n, tags)) < np.linspace(0.5, 0.0, tags)
    return truth, np.round(generator.random((n, tags)) + 0.3 * truth, decimals)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(2, 4)),
    data=st.data(),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.int64]),
)
def test_equals_scikit_learn_with_ties_empty_and_full_tags(shape, data, dtype):
    truth = data.draw(arrays.arrays(np.bool_, shape))
    scores = data.draw(arrays.arrays(np.int64, shape, elements=st.integers(-3, 3))).astype(dtype) / 1
    np.testing.assert_allclose(average_precision_per_tag(truth, scores), peer(truth, scores, None), rtol=0, atol=1e-12)
    assert macro_average_precision(truth, scores) == pytest.approx(peer(truth, scores), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_scikit_learn_at_the_size_of_a_fold(dtype):
    generator = np.random.default_rng(0)
    truth = generator.random((3000, 40)) < np.geomspace(0.4, 0.003, 40)
    scores = (generator.standard_normal((3000, 40)) + truth).astype(dtype)
    np.testing.assert_allclose(average_precision_per_tag(truth, scores), peer(truth, scores, None), rtol=0, atol=1e-12)


def test_values_that_a_person_can_check():
    truth = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert average_precision_per_tag(truth, scores).tolist() == [(1 / 1 + 2 / 3) / 2, 0.0]
    assert macro_average_precision(truth, scores) == (1 + 2 / 3) / 4
    assert macro_average_precision(truth, scores, present_only=True) == (1 + 2 / 3) / 2
    assert average_precision_per_tag(truth, np.zeros((4, 2))).tolist() == [0.5, 0.0]  # all tied: the prevalence


def test_only_the_order_within_a_tag_matters():
    truth, scores = case(1)
    moved = np.exp(3 * scores) * np.arange(1, 8) + np.arange(7)
    np.testing.assert_array_equal(average_precision_per_tag(truth, scores), average_precision_per_tag(truth, moved))


def slow_bootstrap(truth: Any, scores: Any, groups: Any, n: int, seed: int) -> Any:
    """Repeat the rows in fact, and ask scikit-learn; tags that a resample misses are left out of its mean."""
    names = np.unique(groups)
    generator = np.random.default_rng(seed)
    results = []
    for _ in range(n):
        drawn = names[generator.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(groups == name) for name in drawn])
        present = truth[rows].any(axis=0)
        per_tag = peer(truth[rows], scores[rows], None)
        results.append(per_tag[present].mean() * truth.any(axis=0).mean())
    return np.array(results)


@pytest.mark.parametrize("n_groups", [60, 9])
@pytest.mark.parametrize("decimals", [1, 8])
def test_the_bootstrap_equals_rows_really_repeated(n_groups, decimals, slow_interval):
    truth, scores = case(2, decimals=decimals)
    groups = np.random.default_rng(3).permutation(np.arange(60) % n_groups)
    expected = slow_bootstrap(truth, scores, groups, 40, 5)
    found = bootstrap_macro_average_precision(truth, scores, groups, n=40, seed=5)
    members = [truth[:, tag] for tag in np.flatnonzero(truth.any(axis=0))]
    interval = slow_interval(expected, peer(truth, scores), groups, members)
    np.testing.assert_allclose(found, np.clip(interval, 0, len(members) / truth.shape[1]), rtol=1e-3)

    _, other = case(4, decimals=decimals)
    difference = expected - slow_bootstrap(truth, other, groups, 40, 5)
    gap = peer(truth, scores) - peer(truth, other)
    paired = bootstrap_paired_macro_average_precision(truth, scores, other, groups, n=40, seed=5)
    np.testing.assert_allclose(paired, [gap, *slow_interval(difference, gap, groups, members)], rtol=1e-3)


def test_without_groups_every_row_is_its_own():
    truth, scores = case(6)
    by_name = bootstrap_macro_average_precision(truth, scores, np.arange(60), n=20)
    assert bootstrap_macro_average_precision(truth, scores, n=20) == by_name


def test_an_empty_tag_moves_the_interval_as_it_moves_the_score():
    truth, scores = case(7)  # the last of 7 tags is empty
    low, high = bootstrap_macro_average_precision(truth, scores, n=50)
    present = bootstrap_macro_average_precision(truth, scores, n=50, present_only=True)
    np.testing.assert_allclose(np.array(present) * 6 / 7, [low, high])


def test_a_model_beside_itself_differs_by_nothing():
    truth, scores = case(8)
    assert bootstrap_paired_macro_average_precision(truth, scores, 2 * scores, n=20) == (0.0, 0.0, 0.0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_interval_holds_the_score_and_stays_inside_of_0_and_1(seed):
    generator = np.random.default_rng(seed)
    truth, scores = case(seed, n=12)
    truth[0, 0] = True
    groups = generator.integers(4, size=12)
    low, high = bootstrap_macro_average_precision(truth, scores, groups, n=20)
    assert 0 <= low <= macro_average_precision(truth, scores) <= high <= 1
    difference, low, high = bootstrap_paired_macro_average_precision(truth, scores, -scores, groups, n=20)
    assert -1 <= low <= difference <= high <= 1
    order = generator.permutation(12)
    shuffled = bootstrap_paired_macro_average_precision(
        truth[order], scores[order], -scores[order], groups[order], n=20
    )
    assert shuffled == pytest.approx((difference, low, high))


def test_a_perfect_score_has_no_width():
    truth, _ = case(10)
    low, high = bootstrap_macro_average_precision(truth, truth, n=50, present_only=True)
    assert low == pytest.approx(1)
    assert high == 1


def test_more_blocks_than_one_give_the_same_resamples(monkeypatch):
    truth, scores = case(9)
    whole = bootstrap_macro_average_precision(truth, scores, n=50)
    monkeypatch.setattr("kit_metrics.multilabel.BLOCK", 7)
    assert bootstrap_macro_average_precision(truth, scores, n=50) == pytest.approx(whole)


def test_a_large_group_does_not_overflow_the_counts():
    """70,000 rows pass what 16 bits hold."""
    generator = np.random.default_rng(0)
    truth = generator.random((70_000, 1)) < 0.01
    scores = generator.random((70_000, 1)) + truth
    groups = np.minimum(np.arange(70_000), 3)
    low, high = bootstrap_macro_average_precision(truth, scores, groups, n=10)
    assert low <= macro_average_precision(truth, scores) <= high


@pytest.mark.slow
def test_the_interval_holds_the_mean_score_of_fresh_samples_as_often_as_it_says():
    generator = np.random.default_rng(0)
    prevalence = np.maximum(0.012, 0.3 / np.arange(1, 41))

    def fresh() -> tuple[Any, Any]:
        truth = generator.random((800, 40)) < prevalence
        return truth, generator.standard_normal((800, 40)) + 1.2 * truth

    mean = np.mean([macro_average_precision(*fresh()) for _ in range(300)])
    intervals = [bootstrap_macro_average_precision(*fresh(), n=300) for _ in range(150)]
    assert 0.9 <= np.mean([low <= mean <= high for low, high in intervals]) <= 0.995


TRUTH = np.array([[True, False], [False, False]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: average_precision_per_tag(TRUTH, np.zeros((2, 3))), "one shape"),
        (lambda: average_precision_per_tag(TRUTH[:, 0], np.zeros(2)), "one shape"),
        (lambda: average_precision_per_tag(np.zeros((0, 2)), np.zeros((0, 2))), "not empty"),
        (lambda: average_precision_per_tag(TRUTH * 2, np.zeros((2, 2))), "only 0 and 1"),
        (lambda: average_precision_per_tag(TRUTH, np.full((2, 2), np.nan)), "finite"),
        (lambda: average_precision_per_tag(TRUTH, np.full((2, 2), np.inf)), "finite"),
        (lambda: macro_average_precision(~TRUTH & TRUTH, np.zeros((2, 2)), present_only=True), "no tag"),
        (lambda: bootstrap_macro_average_precision(~TRUTH & TRUTH, np.zeros((2, 2))), "no tag"),
        (lambda: bootstrap_macro_average_precision(TRUTH, np.zeros((2, 2)), [1, 2, 3]), "groups"),
        (lambda: bootstrap_macro_average_precision(TRUTH, np.zeros((2, 2)), n=0), "at least 1"),
        (lambda: bootstrap_macro_average_precision(TRUTH, np.zeros((2, 2)), level=1.0), "level"),
    ],
)
def test_misuse_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
