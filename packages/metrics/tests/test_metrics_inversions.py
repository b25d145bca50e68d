from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import kendalltau

from kit_metrics import count_inversions, inversions_per_segment, kendall_tau_pooled

# One element more and less than every width at which the counting changes its way.
EDGES = (0, 1, 2, 3, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513, 1023, 1024, 1025, 2047, 2048, 2049, 5000)


def brute_force(values):
    return sum(int(np.count_nonzero(values[:j] > values[j])) for j in range(len(values)))


@pytest.mark.parametrize("n", EDGES)
def test_equals_brute_force_at_every_width(n):
    generator = np.random.default_rng(n)
    permutation = generator.permutation(n)
    few = generator.integers(0, max(1, n // 3), n)
    for values in (permutation, few, few * 0.5, np.zeros(n), np.sort(few)):
        assert count_inversions(values) == brute_force(values)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_integer_dtypes_and_their_extremes(dtype):
    generator = np.random.default_rng(1)
    low, high = (0, 1) if dtype is np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = generator.choice(np.array([low, high, high // 2 if dtype is not np.bool_ else 1, 1], dtype=dtype), 300)
    assert count_inversions(values) == brute_force(values)
    assert inversions_per_segment(values, [0, 100, 300]).tolist() == [
        brute_force(values[:100]),
        brute_force(values[100:]),
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_float_dtypes_with_infinities_and_both_zeros(dtype):
    values = np.random.default_rng(2).choice(np.array([-np.inf, -1.5, -0.0, 0.0, 2.5, np.inf], dtype=dtype), 200)
    assert count_inversions(values) == brute_force(values)
    assert inversions_per_segment(values, [0, 200]).tolist() == [brute_force(values)]


@pytest.mark.parametrize("low", [-70_000, -5, 0, 65_530, 65_536, 2**40])
def test_integers_around_the_narrow_range(low):
    values = np.random.default_rng(3).integers(low, low + 20, 150)
    assert count_inversions(values) == brute_force(values)


@given(st.lists(st.integers(-4, 4), max_size=90))
def test_plain_lists_with_ties(values):
    expected = sum(a > b for j, b in enumerate(values) for a in values[:j])
    assert count_inversions(np.array(values, dtype=np.int64)) == expected
    assert count_inversions([float(value) for value in values]) == expected


@given(hnp.arrays(np.float64, st.integers(0, 150), elements=st.floats(allow_nan=False)))
def test_any_floats(values):
    assert count_inversions(values) == brute_force(values)


@given(st.permutations(list(range(100))))
def test_reversing_loses_exactly_the_pairs_that_were_kept(order):
    assert count_inversions(order) + count_inversions(order[::-1]) == 100 * 99 // 2


@given(st.integers(2, 200), st.data())
def test_moving_one_element_by_d_places_costs_d(n, data):
    start, end = (data.draw(st.integers(0, n - 1)) for _ in range(2))
    order = list(range(n))
    order.insert(end, order.pop(start))
    assert count_inversions(order) == abs(start - end)


@pytest.mark.parametrize("n", [2, 10, 33, 34, 500, 1000])
def test_tau_equals_scipy(n):
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(n)
        tau = kendall_tau_pooled([count_inversions(order)], [n])
        assert tau == pytest.approx(kendalltau(np.arange(n), order).statistic, abs=1e-12)


def test_two_hundred_thousand_elements():
    n = 200_000
    order = np.random.default_rng(4).permutation(n)
    inversions = count_inversions(order)
    assert 1 - 4 * inversions / (n * (n - 1)) == pytest.approx(kendalltau(np.arange(n), order).statistic, abs=1e-12)
    assert count_inversions(np.arange(n)[::-1]) == n * (n - 1) // 2
    assert count_inversions(np.arange(n) * 0.25) == 0


def test_the_input_is_left_as_it_was():
    values = np.random.default_rng(5).permutation(3000)
    before = values.copy()
    count_inversions(values)
    inversions_per_segment(values, [0, 30, 3000])
    assert (values == before).all()


@given(st.lists(st.integers(0, 150), max_size=30), st.integers(0, 2**32 - 1))
def test_segments_equal_one_by_one(lengths, seed):
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    values = np.random.default_rng(seed).integers(-50, 50, int(offsets[-1]))
    expected = [brute_force(values[a:b]) for a, b in pairwise(offsets)]
    assert inversions_per_segment(values, offsets).tolist() == expected
    assert inversions_per_segment(values / 7, offsets).tolist() == expected


def test_segments_of_very_different_lengths():
    lengths = np.array([0, 1, 5000, 2, 64, 65, 1024, 1025, 0, 500, 3, 1])
    offsets = np.concatenate([[0], lengths.cumsum()])
    values = np.random.default_rng(6).integers(0, 400, offsets[-1])
    expected = [brute_force(part) for part in np.split(values, offsets[1:-1])]
    assert inversions_per_segment(values, offsets).tolist() == expected


def test_no_segments_and_no_values():
    assert inversions_per_segment([], [0]).tolist() == []
    assert inversions_per_segment([], [0, 0, 0]).tolist() == [0, 0]


def test_a_hundred_and_forty_thousand_segments():
    generator = np.random.default_rng(7)
    lengths = generator.geometric(1 / 46, 140_000)
    offsets = np.concatenate([[0], lengths.cumsum()])
    values = generator.integers(0, 1000, offsets[-1])
    inversions = inversions_per_segment(values, offsets)
    for segment in generator.integers(0, len(lengths), 50):
        assert inversions[segment] == brute_force(values[offsets[segment] : offsets[segment + 1]])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 2)), "one-dimensional"),
        (np.array(["b", "a"]), "numbers"),
        (np.array([1, None]), "numbers"),
        (np.array([1j, 2]), "numbers"),
        ([1.0, np.nan], "NaN"),
    ],
)
def test_values_without_an_order_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        count_inversions(values)
    with pytest.raises(ValueError, match=words):
        inversions_per_segment(values, [0, len(values)])


@pytest.mark.parametrize("offsets", [[], [0, 2], [1, 3], [0, 4], [0, 2, 1, 3], [0.0, 3.0], [[0, 3]]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    with pytest.raises(ValueError, match="offsets"):
        inversions_per_segment([3, 1, 2], offsets)


def test_pooled_tau_weighs_by_pairs():
    assert kendall_tau_pooled([0, 0], [5, 1]) == 1
    assert kendall_tau_pooled([10], [5]) == -1
    # 10 of 10 pairs of the short one lost, none of the 45 of the long one.
    assert kendall_tau_pooled([10, 0], [5, 10]) == pytest.approx(1 - 2 * 10 / 55)


@pytest.mark.parametrize("lengths", [[], [1], [1, 1, 1], [0]])
def test_pooled_tau_without_a_pair_is_refused(lengths):
    with pytest.raises(ValueError, match="no pair"):
        kendall_tau_pooled([0] * len(lengths), lengths)


@pytest.mark.parametrize(("inversions", "lengths"), [([2], [2]), ([-1], [3]), ([0], [-1])])
def test_impossible_counts_are_refused(inversions, lengths):
    with pytest.raises(ValueError, match="between 0 and"):
        kendall_tau_pooled(inversions, lengths)


def test_pooled_tau_needs_a_length_for_every_count():
    with pytest.raises(ValueError, match="one shape"):
        kendall_tau_pooled([0, 0], [2])
