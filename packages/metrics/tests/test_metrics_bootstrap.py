import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kit_metrics import bootstrap_interval, bootstrap_paired_ratio, bootstrap_ratio


def clusters(seed, groups=80):
    """Rows of unequal groups with a common effect in each: numerator, denominator, labels."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 9, groups)
    labels = np.repeat([f"author {k}" for k in range(groups)], sizes)
    denominator = generator.integers(1, 50, len(labels)).astype(float)
    effect = np.repeat(generator.normal(0.3, 0.1, groups), sizes)
    return denominator * (effect + generator.normal(0, 0.02, len(labels))), denominator, labels


def scipy_resamples(numerators, denominator, labels, statistic, n=20_000):
    sums = [
        np.array([column[labels == label].sum() for label in np.unique(labels)])
        for column in (*numerators, denominator)
    ]
    return stats.bootstrap(
        sums,
        lambda *columns, axis: statistic(*(column.sum(axis=axis) for column in columns)),
        paired=True,
        vectorized=True,
        n_resamples=n,
        method="percentile",
        rng=np.random.default_rng(1),
    ).bootstrap_distribution


@pytest.mark.parametrize("groups", [80, 12])
def test_interval_equals_scipy_over_group_sums(groups, slow_interval):
    numerator, denominator, labels = clusters(0, groups)
    resampled = scipy_resamples([numerator], denominator, labels, lambda a, b: a / b)
    expected = slow_interval(resampled, numerator.sum() / denominator.sum(), labels, weights=denominator)
    found = bootstrap_ratio(numerator, denominator, labels, n=20_000)
    assert found == pytest.approx(tuple(expected), abs=0.02 * (expected[1] - expected[0]))


@pytest.mark.parametrize("groups", [80, 12])
def test_paired_interval_equals_scipy_over_group_sums(groups, slow_interval):
    numerator, denominator, labels = clusters(0, groups)
    other = numerator * np.random.default_rng(1).uniform(0.5, 1.2, len(labels))
    resampled = scipy_resamples([numerator, other], denominator, labels, lambda a, b, n: a / n - b / n)
    gap = (numerator.sum() - other.sum()) / denominator.sum()
    expected = slow_interval(resampled, gap, labels, weights=denominator)
    found = bootstrap_paired_ratio(numerator, other, denominator, labels, n=20_000)
    assert found[0] == pytest.approx(gap)
    assert found[1:] == pytest.approx(tuple(expected), abs=0.02 * (expected[1] - expected[0]))


def test_the_degrees_of_freedom_of_a_difference_are_the_groups_in_which_two_models_differ(slow_interval):
    generator = np.random.default_rng(0)
    a, names = (generator.random(60) < 0.7).astype(float), np.arange(60) // 2
    b = a.copy()
    b[:10:2] = 1 - b[:10:2]  # one row in each of five groups
    resampled = scipy_resamples([a, b], np.ones(60), names, lambda a, b, n: (a - b) / n)
    expected = slow_interval(resampled, a.mean() - b.mean(), names, differs=names < 5)
    found = bootstrap_paired_ratio(a, b, np.ones(60), names, n=20_000)
    assert found[1:] == pytest.approx(tuple(expected), abs=0.02)


def test_resamples_are_recentred_and_the_score_is_always_held():
    moved = np.random.default_rng(0).normal(5, 1, 4000)  # all of them far above the score
    low, high = bootstrap_interval(moved, 0.0, groups=1e6)
    assert (low, high) == pytest.approx((-1.96, 1.96), abs=0.1)
    assert bootstrap_interval(moved, 0.5, groups=50, limits=(0, 1)) == (0, 1)
    assert bootstrap_interval([0.2, 0.2, np.nan], 0.7, groups=50) == (0.7, 0.7)
    skewed = np.array([0.0] * 999 + [1e4])  # the mean lies outside of the percentiles
    low, high = bootstrap_interval(skewed, 0.0, groups=50)
    assert low < 0.0 == high


def test_few_groups_widen_the_interval_by_students_t():
    resampled = np.random.default_rng(0).normal(size=4000)
    wide, narrow = (bootstrap_interval(resampled, 0.0, groups)[1] for groups in (6, 1e6))
    assert wide / narrow == pytest.approx(np.sqrt(6 / 5) * stats.t.ppf(0.975, 5) / 1.96, rel=0.01)
    of_labels = bootstrap_interval(resampled, 0.0, 1e6, [1, 2, 5, 11])[1]  # one group counts as two
    assert of_labels / narrow == pytest.approx(np.sqrt((2 + 2 + 5 / 4 + 11 / 10) / 4), rel=0.01)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_share_has_an_interval_of_shares_that_holds_it(seed, groups):
    generator = np.random.default_rng(seed)
    right, labels = generator.random(8) < generator.random(), generator.integers(groups, size=8)
    low, high = bootstrap_ratio(right, np.ones(8), labels, n=30)
    assert 0 <= low <= right.mean() <= high <= 1
    other = generator.random(8) < 0.5
    difference, low, high = bootstrap_paired_ratio(right, other, np.ones(8), labels, n=30)
    assert -1 <= low <= difference <= high <= 1
    assert bootstrap_paired_ratio(right, right, np.ones(8), labels, n=30) == (0, 0, 0)


def test_limits_are_those_of_the_rows_or_the_given_ones():
    values, names = np.array([0.01, 0.0, 0.02, 1.9]), np.arange(4)
    low, high = bootstrap_ratio(values, np.ones(4), names)
    assert low == 0
    assert high > values.mean()
    assert bootstrap_ratio(values - 1, np.ones(4), names)[0] < -1
    turned = bootstrap_ratio(values, np.ones(4), names, transform=lambda ratio: 1 - 4 * ratio)
    assert turned == pytest.approx((1 - 4 * high, 1))
    assert bootstrap_ratio(values, np.ones(4), names, limits=(0.4, 0.5)) == (0.4, 0.5)


def test_mean_of_independent_rows_has_the_normal_interval():
    values = np.random.default_rng(2).normal(size=900)
    low, high = bootstrap_ratio(values, np.ones(900), np.arange(900), n=4000)
    half = 1.96 * values.std() / 30
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_rows_of_a_group_are_drawn_together():
    values = np.random.default_rng(3).normal(size=50)
    repeated, labels = np.repeat(values, 20), np.repeat(np.arange(50), 20)
    by_group = bootstrap_ratio(repeated, np.ones(1000), labels)
    by_row = bootstrap_ratio(repeated, np.ones(1000), np.arange(1000))
    assert by_group == pytest.approx(bootstrap_ratio(values, np.ones(50), np.arange(50)))
    assert by_group[1] - by_group[0] > 3 * (by_row[1] - by_row[0])  # sqrt(20) in theory


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_has_no_effect(seed):
    numerator, denominator, labels = clusters(4, groups=10)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    expected = bootstrap_ratio(numerator, denominator, labels, n=50)
    assert bootstrap_ratio(numerator[shuffled], denominator[shuffled], labels[shuffled], n=50) == pytest.approx(
        expected
    )


def test_transform_and_level():
    numerator, denominator, labels = clusters(5)
    low, high = bootstrap_ratio(numerator, denominator, labels)
    falling = bootstrap_ratio(numerator, denominator, labels, transform=lambda ratio: 1 - 4 * ratio)
    assert falling == pytest.approx((1 - 4 * high, 1 - 4 * low))
    narrow_low, narrow_high = bootstrap_ratio(numerator, denominator, labels, level=0.5)
    assert low < narrow_low < narrow_high < high


@pytest.mark.parametrize("transform", [np.log, np.arctanh, lambda ratio: 1 / ratio])
def test_a_transform_with_a_pole_at_a_limit_gives_no_warning(transform):
    values = np.random.default_rng(11).uniform(0.1, 0.9, 60)
    low, high = bootstrap_ratio(values, np.ones(60), np.arange(60), transform=transform)
    assert np.isfinite([low, high]).all()
    assert low < transform(values.mean()) < high


def test_seeds_repeat():
    rows = clusters(6)
    assert bootstrap_ratio(*rows, seed=1) == bootstrap_ratio(*rows, seed=1)
    assert bootstrap_ratio(*rows, seed=1) != bootstrap_ratio(*rows, seed=2)


def test_one_group_has_an_interval_of_no_width():
    assert bootstrap_ratio([1, 2], [4, 8], ["a", "a"]) == (0.25, 0.25)


def test_resamples_without_a_denominator_are_left_out():
    low, high = bootstrap_ratio([1, 0], [2, 0], ["a", "b"])
    assert (low, high) == (0.5, 0.5)


def test_paired_difference_is_far_narrower_than_two_intervals():
    numerator, denominator, labels = clusters(7)
    better = numerator + 0.01 * denominator
    difference, low, high = bootstrap_paired_ratio(better, numerator, denominator, labels)
    assert (difference, low, high) == pytest.approx((0.01, 0.01, 0.01))
    alone = bootstrap_ratio(numerator, denominator, labels)
    assert alone[1] - alone[0] > 0.02


def test_paired_difference_with_a_transform():
    numerator, denominator, labels = clusters(8)
    generator = np.random.default_rng(9)
    other = numerator * generator.uniform(0.8, 1.1, len(labels))
    difference, low, high = bootstrap_paired_ratio(
        numerator, other, denominator, labels, transform=lambda ratio: 1 - 4 * ratio
    )
    assert difference == pytest.approx(-4 * (numerator.sum() - other.sum()) / denominator.sum())
    assert low < difference < high
    mirrored = bootstrap_paired_ratio(other, numerator, denominator, labels, transform=lambda ratio: 1 - 4 * ratio)
    assert mirrored == pytest.approx((-difference, -high, -low))
    assert bootstrap_paired_ratio(numerator, numerator, denominator, labels) == (0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (([1, 2], [1], ["a", "b"]), {}, "equally long"),
        (([1, 2], [1, 1], ["a"]), {}, "equally long"),
        (([[1]], [[1]], [["a"]]), {}, "one-dimensional"),
        (([np.nan], [1], ["a"]), {}, "finite"),
        (([1], [np.inf], ["a"]), {}, "finite"),
        (([1, 1], [2, -1], ["a", "b"]), {}, "non-negative"),
        (([1], [0], ["a"]), {}, "positive sum"),
        (([], [], []), {}, "positive sum"),
        (([1], [1], ["a"]), {"n": 0}, "at least 1"),
        (([1], [1], ["a"]), {"level": 1.0}, "between 0 and 1"),
    ],
)
def test_misuse_is_refused(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_ratio(*arguments, **options)
    with pytest.raises(ValueError, match=words):
        bootstrap_paired_ratio(arguments[0], *arguments, **options)


def test_a_perfect_share_has_no_width():
    assert bootstrap_ratio(np.ones(30), np.ones(30), np.arange(30) // 2) == (1, 1)


def test_only_empty_resamples_are_refused():
    # Two groups, one of them without weight: some seed draws the empty one twice in its only resample.
    empty = next(s for s in range(50) if (np.random.default_rng(s).integers(2, size=2, dtype=np.int32) == 1).all())
    with pytest.raises(ValueError, match="draw more"):
        bootstrap_ratio([1, 0], [2, 0], ["a", "b"], n=1, seed=empty)
