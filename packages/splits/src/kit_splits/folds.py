"""Cross-validation folds that never cut a group: what belongs together is learnt from or tested on, never both."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit_core.errors import ConfigError, Problems


def group_folds(
    groups: Sequence[str] | NDArray[np.generic],
    n_folds: int,
    *,
    weights: NDArray[np.generic] | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Assign whole groups to folds of nearly equal weight, and return the fold of every row, 0 .. n_folds - 1.

    `groups` names the group of each of the n rows; `weights` (n, non-negative, such as the number of cells) is what is
    balanced, by default the number of rows. The groups go, the heaviest first, each into the fold that is lightest so
    far, so that no two folds differ by more than the weight of the heaviest group, and no fold is empty. `seed`
    shuffles groups of equal weight. The order of the rows changes nothing: names, weights and seed decide.

    Raises:
        ConfigError: fewer than two folds, or fewer groups than folds.
        DataError: rows without a group (None or NaN).
        ValueError: `groups` or `weights` of a wrong shape, or weights that are negative or not finite.
    Source: longest-processing-time rule, R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969.
    """
    names, group_of_row = distinct_groups(groups)
    if n_folds < 2:
        raise ConfigError(f"{n_folds} folds: at least 2 are needed, one to test on and one to learn from")
    if len(names) < n_folds:
        raise ConfigError(
            f"{n_folds} folds of {len(names)} groups: every fold needs a group of its own; ask for fewer folds"
        )
    group_weights = _weight_of_groups(group_of_row, weights)

    shuffled = np.random.default_rng(seed).permutation(len(names))
    heaviest_first = shuffled[np.argsort(-group_weights[shuffled], kind="stable")]
    # The number of groups comes second, so that groups of weight 0 fill empty folds first.
    lightest = [(0.0, 0, fold) for fold in range(n_folds)]
    fold_of_group = np.empty(len(names), dtype=np.int64)
    for group in heaviest_first.tolist():
        load, count, fold = lightest[0]
        fold_of_group[group] = fold
        heapq.heapreplace(lightest, (load + float(group_weights[group]), count + 1, fold))
    return fold_of_group[group_of_row]


def assert_groups_whole(
    folds: Sequence[int] | NDArray[np.integer], groups: Sequence[str] | NDArray[np.generic]
) -> None:
    """Check that all rows of each group (`groups`, n) are in one fold (`folds`, n).

    Raises:
        DataError: rows of one group in several folds, with the first five such groups and their number, or rows without
            a group (None or NaN).
        ValueError: the two have different lengths.
    """
    names, group_of_row = distinct_groups(groups)
    fold_of_row = np.asarray(folds)
    if fold_of_row.shape != group_of_row.shape:
        raise ValueError(f"folds of shape {fold_of_row.shape} for groups of shape {group_of_row.shape}")
    if not len(names):
        return
    problems = Problems("folds", "all rows of a group in one fold", "make the folds by these groups")
    placed = np.unique(np.stack([group_of_row, fold_of_row], axis=1), axis=0)
    pieces = np.bincount(placed[:, 0], minlength=len(names))
    for name, its_folds in zip(names, np.split(placed[:, 1], np.cumsum(pieces)[:-1]), strict=True):
        if len(its_folds) > 1:
            problems.add(f"group {name}", f"rows in folds {', '.join(map(str, its_folds))}")
    problems.raise_if_any()


@dataclass(frozen=True)
class GroupCounts:
    """What the folds of a run keep whole: the name of the grouping, the number of groups, and the rows of the largest.

    `vars(counts)` are the keys of `summary.json`; `str(counts)` is the line that `train` prints.
    """

    group_by: str
    n_groups: int
    largest_group: int

    def __str__(self) -> str:
        return f"groups: {self.n_groups} by {self.group_by}, the largest of {self.largest_group}"


def count_groups(groups: Sequence[str] | NDArray[np.generic], group_by: str) -> GroupCounts:
    """Count the groups of n rows (`groups`, n); `group_by` says what they are, such as "series (groups.csv)".

    Raises:
        DataError: rows without a group (None or NaN).
        ValueError: no rows, or `groups` is not one-dimensional.
    """
    names, group_of_row = distinct_groups(groups)
    if not len(names):
        raise ValueError("expected at least one row")
    return GroupCounts(group_by, len(names), int(np.bincount(group_of_row).max()))


def distinct_groups(groups: Sequence[str] | NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Return the sorted names of the groups, and the index of its group for every row, int64[n].

    Raises:
        DataError: rows without a group (None or NaN).
        ValueError: `groups` is not one-dimensional.
    """
    # As objects, since NumPy's own text type would turn numbers into text and cut NUL characters off the end.
    names = groups if isinstance(groups, np.ndarray) else np.array(list(groups), dtype=object)
    if names.ndim != 1:
        raise ValueError(f"groups of shape {names.shape}, expected one name for each row")
    missing = names != names  # NaN alone differs from itself
    if names.dtype == object:
        missing |= np.fromiter((name is None for name in names), dtype=bool, count=len(names))
    problems = Problems("groups", "a name for every row", "give each row without relatives a group of its own")
    for row in np.flatnonzero(missing).tolist():
        problems.add(f"row {row}", "no group")
    problems.raise_if_any()
    distinct, group_of_row = np.unique(names, return_inverse=True)
    return distinct, group_of_row.astype(np.int64)


def _weight_of_groups(group_of_row: NDArray[np.int64], weights: NDArray[np.generic] | None) -> NDArray[np.float64]:
    if weights is None:
        return np.bincount(group_of_row).astype(np.float64)
    of_row = np.asarray(weights, dtype=np.float64)
    if of_row.shape != group_of_row.shape:
        raise ValueError(f"weights of shape {of_row.shape} for {len(group_of_row)} rows")
    if not (np.isfinite(of_row).all() and (of_row >= 0).all()):
        raise ValueError("weights must be finite and not negative")
    # Added up in the order of size: in the order of the rows, rounding would make the folds depend on that order.
    order = np.lexsort((of_row, group_of_row))
    first_of_group = np.flatnonzero(np.diff(group_of_row[order], prepend=-1))
    return np.add.reduceat(of_row[order], first_of_group)
