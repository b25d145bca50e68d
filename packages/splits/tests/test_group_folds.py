"""kit_splits.folds: whole groups, balance, independence of the order of rows, and the refusals."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_core.errors import ConfigError, DataError
from kit_splits.folds import GroupCounts, assert_groups_whole, count_groups, group_folds

NAMES = st.text(alphabet="abc\0é", max_size=3)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], np.ndarray, int, int]:
    n_folds = draw(st.integers(2, 5))
    distinct = draw(st.lists(NAMES, min_size=n_folds, max_size=20, unique=True))
    extra = draw(st.lists(st.sampled_from(distinct), max_size=40))
    groups = draw(st.permutations(distinct + extra))
    weight = st.one_of(st.integers(0, 5).map(float), st.floats(0, 1e6, allow_subnormal=False))
    weights = draw(st.lists(weight, min_size=len(groups), max_size=len(groups)))
    return groups, np.array(weights), n_folds, draw(st.integers(0, 2**32))


@given(cases())
def test_groups_stay_whole_and_every_fold_is_used(case):
    groups, weights, n_folds, seed = case
    folds = group_folds(groups, n_folds, weights=weights, seed=seed)
    assert folds.dtype == np.int64
    assert folds.shape == (len(groups),)
    where = defaultdict(set)
    for group, fold in zip(groups, folds.tolist(), strict=True):
        where[group].add(fold)
    assert all(len(its_folds) == 1 for its_folds in where.values())
    assert {fold for its_folds in where.values() for fold in its_folds} == set(range(n_folds))
    assert_groups_whole(folds, groups)


@given(cases())
def test_folds_differ_by_at_most_the_heaviest_group(case):
    groups, weights, n_folds, seed = case
    folds = group_folds(groups, n_folds, weights=weights, seed=seed)
    loads = [math.fsum(weights[folds == fold]) for fold in range(n_folds)]
    heaviest = max(math.fsum(w for w, g in zip(weights, groups, strict=True) if g == name) for name in set(groups))
    assert max(loads) - min(loads) <= heaviest * (1 + 1e-9)


@given(cases(), st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(case, random):
    groups, weights, n_folds, seed = case
    order = list(range(len(groups)))
    random.shuffle(order)
    folds = group_folds(groups, n_folds, weights=weights, seed=seed)
    shuffled = group_folds([groups[i] for i in order], n_folds, weights=weights[order], seed=seed)
    np.testing.assert_array_equal(shuffled, folds[order])


@given(cases())
def test_kind_of_sequence_changes_nothing(case):
    groups, weights, n_folds, seed = case
    groups = [group.replace("\0", "-") for group in groups]  # a NumPy text array cannot hold a NUL at the end
    n_folds = min(n_folds, len(set(groups)))
    if n_folds < 2:
        return
    expected = group_folds(groups, n_folds, weights=weights, seed=seed)
    for other in (tuple(groups), np.array(groups), np.array(groups, dtype=object)):
        np.testing.assert_array_equal(group_folds(other, n_folds, weights=weights, seed=seed), expected)


@given(cases())
def test_without_weights_rows_count(case):
    groups, weights, n_folds, seed = case
    folds = group_folds(groups, n_folds, seed=seed)
    np.testing.assert_array_equal(folds, group_folds(groups, n_folds, weights=np.ones_like(weights), seed=seed))
    counts = np.bincount(folds, minlength=n_folds)
    assert counts.max() - counts.min() <= max(groups.count(group) for group in groups)


def test_against_the_rule_done_by_hand():
    groups = ["a"] * 7 + ["b"] * 6 + ["c"] * 5 + ["d"] * 4 + ["e"] * 3
    folds = group_folds(groups, 2)
    of_group = {group: int(fold) for group, fold in zip(groups, folds, strict=True)}
    # 7 | 6, then 5 to the 6, 4 to the 7, 3 to either of 11 and 11: the first.
    assert of_group == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 0}


def test_same_seed_same_folds_another_seed_others():
    groups = [f"group {i}" for i in range(100)]
    first = group_folds(groups, 5, seed=1)
    np.testing.assert_array_equal(first, group_folds(groups, 5, seed=1))
    assert (first != group_folds(groups, 5, seed=2)).any()
    assert np.bincount(first).tolist() == [20] * 5


def test_seed_does_not_matter_when_all_weights_differ():
    groups = [str(i) for i in range(30)]
    weights = np.arange(30.0)
    np.testing.assert_array_equal(
        group_folds(groups, 4, weights=weights, seed=1), group_folds(groups, 4, weights=weights, seed=2)
    )


def test_integer_groups_and_weights():
    folds = group_folds(np.array([7, 7, 3, 5]), 3, weights=np.array([1, 1, 9, 4], dtype=np.int32))
    assert folds.tolist() == [2, 2, 0, 1]


def test_groups_of_weight_zero_fill_empty_folds():
    assert sorted(group_folds(["a", "b", "c"], 3, weights=np.array([1.0, 0.0, 0.0])).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("groups", "n_folds", "words"),
    [
        (["a", "a", "b"], 3, "3 folds of 2 groups"),
        ([], 2, "2 folds of 0 groups"),
        (["a", "b"], 1, "1 folds: at least 2"),
        (["a", "b"], 0, "0 folds: at least 2"),
    ],
)
def test_impossible_folds_are_a_config_error(groups, n_folds, words):
    with pytest.raises(ConfigError, match=words) as caught:
        group_folds(groups, n_folds)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "groups", [["a", None, "b", None], np.array([1.0, np.nan, 2.0, np.nan]), ["a", float("nan"), "b", None]]
)
def test_rows_without_a_group_are_named(groups):
    with pytest.raises(DataError, match=r"2 problems\n  row 1: found no group\n  row 3"):
        group_folds(groups, 2)


@pytest.mark.parametrize(
    "weights", [np.ones(3), np.ones((2, 1)), np.array([1.0, -1.0]), np.array([1.0, np.nan]), np.array([1.0, np.inf])]
)
def test_wrong_weights_are_a_bug_of_the_caller(weights):
    with pytest.raises(ValueError, match="weights"):
        group_folds(["a", "b"], 2, weights=weights)


def test_table_of_groups_is_a_bug_of_the_caller():
    with pytest.raises(ValueError, match=r"groups of shape \(2, 2\)"):
        group_folds(np.array([["a", "b"], ["c", "d"]]), 2)


def test_cut_groups_are_named_and_counted():
    groups = [f"g{i}" for i in range(7)] * 2 + ["whole", "whole"]
    folds = [0] * 7 + [2] * 7 + [1, 1]
    with pytest.raises(DataError) as caught:
        assert_groups_whole(folds, groups)
    message = str(caught.value)
    assert "7 problems" in message
    assert "group g0: found rows in folds 0, 2" in message
    assert "... and 2 more" in message
    assert "group whole" not in message


def test_whole_groups_pass():
    assert_groups_whole([0, 1, 0], ["a", "b", "a"])
    assert_groups_whole([], [])


def test_folds_of_another_length_are_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="folds of shape"):
        assert_groups_whole([0, 1], ["a", "b", "c"])


def test_as_many_rows_as_the_largest_set():
    groups = [f"{i % 100_000:08x}" for i in range(139_256)]
    folds = group_folds(groups, 5, seed=3)
    assert_groups_whole(folds, groups)


def test_groups_are_counted_as_summaries_and_the_log_need_them():
    counts = count_groups(["a", "b", "a", "c", "a"], "artist")
    assert vars(counts) == {"group_by": "artist", "n_groups": 3, "largest_group": 3}
    assert str(counts) == "groups: 3 by artist, the largest of 3"
    assert count_groups(np.array([5, 5]), "row") == GroupCounts("row", 1, 2)
    with pytest.raises(ValueError, match="at least one row"):
        count_groups([], "artist")
    with pytest.raises(DataError, match="row 1: found no group"):
        count_groups(["a", None], "artist")
