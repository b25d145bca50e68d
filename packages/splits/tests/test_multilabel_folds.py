"""kit_splits.multilabel: every row once, groups whole, labels spread at least as evenly as by the peer."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

from kit_core.errors import ConfigError, DataError
from kit_splits.folds import assert_groups_whole, group_folds
from kit_splits.multilabel import multilabel_folds


def long_tailed(n: int = 2000, labels: int = 40, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return generator.random((n, labels)) < np.maximum(0.4 / np.arange(1, labels + 1), 0.008)


def deviation(targets: Any, folds: Any, n_folds: int) -> float:
    """Mean over folds and labels of |count - share| / share."""
    share = targets.sum(axis=0) / n_folds
    counts = np.array([targets[folds == fold].sum(axis=0) for fold in range(n_folds)])
    return float((np.abs(counts - share) / share).mean())


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 40),
    labels=st.integers(0, 5),
    n_folds=st.integers(2, 6),
    n_groups=st.integers(1, 40) | st.none(),
    seed=st.integers(0, 99),
)
def test_every_row_is_placed_no_fold_is_empty_and_groups_are_whole(n, labels, n_folds, n_groups, seed):
    generator = np.random.default_rng(seed)
    targets = generator.random((n, labels)) < 0.3
    groups = None if n_groups is None else generator.integers(n_groups, size=n)
    if (n if groups is None else len(np.unique(groups))) < n_folds:
        with pytest.raises(ConfigError, match="fewer folds"):
            multilabel_folds(targets, n_folds, groups=groups, seed=seed)
        return
    folds = multilabel_folds(targets, n_folds, groups=groups, seed=seed)
    assert folds.shape == (n,)
    assert sorted(set(folds.tolist())) == list(range(n_folds))
    if groups is not None:
        assert_groups_whole(folds, groups)


@pytest.mark.parametrize("n_folds", [3, 5, 10])
def test_labels_are_spread_as_evenly_as_by_the_peer(n_folds):
    targets = long_tailed()
    peer = np.zeros(len(targets), dtype=np.int64)
    splitter = MultilabelStratifiedKFold(n_folds, shuffle=True, random_state=0)
    for fold, (_, test) in enumerate(splitter.split(targets, targets)):
        peer[test] = fold
    ours = multilabel_folds(targets, n_folds)
    assert deviation(targets, ours, n_folds) <= 1.1 * deviation(targets, peer, n_folds)
    assert np.ptp(np.bincount(ours)) <= max(np.ptp(np.bincount(peer)), 0.03 * len(targets) / n_folds)


def test_the_rarest_label_is_in_every_fold_where_there_are_rows_enough():
    targets = np.zeros((100, 3), dtype=bool)
    targets[:, 0] = True
    targets[:5, 1] = True
    targets[3:13, 2] = True
    folds = multilabel_folds(targets, 5)
    assert [int(targets[folds == fold, 1].sum()) for fold in range(5)] == [1] * 5
    assert [int(targets[folds == fold, 2].sum()) for fold in range(5)] == [2] * 5
    assert np.bincount(folds).tolist() == [20] * 5


def test_whole_groups_are_spread_better_than_by_size_alone():
    targets = long_tailed(1200, 20)
    groups = np.random.default_rng(1).integers(300, size=1200)
    targets |= targets[groups]  # rows of a group are alike
    ours, by_size = multilabel_folds(targets, 5, groups=groups), group_folds(groups, 5)
    assert_groups_whole(ours, groups)
    assert deviation(targets, ours, 5) < 0.6 * deviation(targets, by_size, 5)
    assert np.ptp(np.bincount(ours)) < 0.15 * 1200 / 5


def test_the_seed_decides():
    targets = long_tailed(300)
    first = multilabel_folds(targets, 5, seed=1)
    np.testing.assert_array_equal(first, multilabel_folds(targets.astype(np.int8), 5, seed=1))
    assert (first != multilabel_folds(targets, 5, seed=2)).any()


def test_group_names_may_be_texts():
    targets = long_tailed(50)
    names = [f"series {i % 10}" for i in range(50)]
    folds = multilabel_folds(targets, 5, groups=names)
    np.testing.assert_array_equal(folds, multilabel_folds(targets, 5, groups=np.arange(50) % 10))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: multilabel_folds(np.zeros((5, 2)), 1), ConfigError, "at least 2"),
        (lambda: multilabel_folds(np.zeros((3, 2)), 4), ConfigError, "4 folds of 3 rows"),
        (lambda: multilabel_folds(np.zeros((5, 2)), 3, groups=["a", "a", "b", "b", "b"]), ConfigError, "of 2 groups"),
        (lambda: multilabel_folds(np.zeros((2, 2)), 2, groups=["a", None]), DataError, "no group"),  # type: ignore[list-item]  # on purpose
        (lambda: multilabel_folds(np.zeros((2, 2)), 2, groups=["a"]), ValueError, "1 groups for 2 rows"),
        (lambda: multilabel_folds(np.full((2, 2), 3), 2), ValueError, "0 and 1"),
        (lambda: multilabel_folds(np.zeros(4), 2), ValueError, "rows, labels"),
    ],
)
def test_what_cannot_be_split_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
