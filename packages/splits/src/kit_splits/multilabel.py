"""Folds of rows with many labels, in which every label, also a rare one, is spread as evenly as can be."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kit_core.errors import ConfigError
from kit_splits.folds import distinct_groups


def multilabel_folds(
    targets: NDArray[np.generic],
    n_folds: int,
    *,
    groups: Sequence[str] | NDArray[np.generic] | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Assign rows, or whole groups of rows, to folds that hold each label about equally often: int64[n] from 0.

    `targets` is bool[n, labels]; `groups` names the group of each row, which is never cut. Labels go from rare to
    frequent, counted in what is still unassigned; of a label, the groups with most of it go first; each goes to the
    fold that lacks most of this label, of equal ones to that which lacks most rows, of those to any by `seed`. What has
    no label fills up the folds. Folds differ by about one row in each label where groups are small.

    Raises:
        ConfigError: fewer than two folds, or fewer rows or groups than folds.
        DataError: rows without a group (None or NaN).
        ValueError: `targets` is no table of 0 and 1, or `groups` has another length.
    Source: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011; whole groups
        in place of rows are ours.
    """
    labels = np.asarray(targets)
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"targets of shape {labels.shape}, expected (rows, labels) of 0 and 1")
    if n_folds < 2:
        raise ConfigError(f"{n_folds} folds: at least 2 are needed, one to test on and one to learn from")
    if groups is None:
        unit_of_row = np.arange(len(labels))
    else:
        unit_of_row = distinct_groups(groups)[1]
        if len(unit_of_row) != len(labels):
            raise ValueError(f"{len(unit_of_row)} groups for {len(labels)} rows")
    n_units = int(unit_of_row.max(initial=-1)) + 1
    if n_units < n_folds:
        raise ConfigError(
            f"{n_folds} folds of {n_units} {'rows' if groups is None else 'groups'}: "
            "every fold needs one of its own; ask for fewer folds"
        )
    sizes = np.bincount(unit_of_row)
    counts = np.zeros((n_units, labels.shape[1]), dtype=np.int64)
    np.add.at(counts, unit_of_row, labels.astype(np.int64))
    return _assign(counts, sizes, n_folds, np.random.default_rng(seed))[unit_of_row]


def _assign(
    counts: NDArray[np.int64], sizes: NDArray[np.int64], n_folds: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Fold of every unit, from its number of rows with each label [units, labels] and its number of rows."""
    n_units = len(counts)
    fold_of_unit = np.full(n_units, -1, dtype=np.int64)
    remaining = counts.sum(axis=0)
    lacking = np.tile(remaining / n_folds, (n_folds, 1))  # rows with each label that a fold still lacks
    lacking_rows = np.full(n_folds, sizes.sum() / n_folds)
    free = n_folds  # folds without a unit

    def place(unit: int, wanted: NDArray[np.float64]) -> None:
        nonlocal free, remaining
        candidates = np.arange(n_folds)
        left = int((fold_of_unit < 0).sum()) if free else 0
        if free and left <= free:  # else a fold would stay empty
            candidates = np.setdiff1d(candidates, fold_of_unit)
        for preference in (wanted, lacking_rows):
            of_candidates = preference[candidates]
            candidates = candidates[of_candidates >= of_candidates.max() - 1e-9]  # equal but for rounding
        fold = int(candidates[0] if len(candidates) == 1 else generator.choice(candidates))
        if free and not (fold_of_unit == fold).any():
            free -= 1
        fold_of_unit[unit] = fold
        lacking[fold] -= counts[unit]
        lacking_rows[fold] -= sizes[unit]
        remaining = remaining - counts[unit]

    while remaining.any():
        label = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
        units = generator.permutation(np.flatnonzero((counts[:, label] > 0) & (fold_of_unit < 0)))
        # Heavy groups first, as long as much is free; of equal ones the larger.
        order = np.lexsort((-sizes[units], -counts[units, label]))
        for unit in units[order].tolist():
            place(unit, lacking[:, label])
    unlabelled = generator.permutation(np.flatnonzero(fold_of_unit < 0))
    for unit in unlabelled[np.argsort(-sizes[unlabelled], kind="stable")].tolist():
        place(unit, lacking_rows)
    return fold_of_unit
