"""Bootstrap intervals of ratios of sums, resampled by group (a fork family, an artist, a speaker).

Rows of one group are not independent, so whole groups are drawn with replacement.  A ratio of sums needs only the two
sums of every group: the metric itself is computed once, whatever the number of resamples.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Transform = Callable[[FloatArray], FloatArray]


def bootstrap_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    groups: ArrayLike,
    *,
    transform: Transform | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval (lo, hi) of `transform(sum(numerator) / sum(denominator))` over `n` resamples of the groups.

    Shapes: `numerator`, `denominator`, `groups` are [rows]; `transform` maps an array of ratios elementwise (None: the
    ratio itself).  A resample whose denominator is zero has no ratio and is left out.  The order of rows has no effect.

    Raises:
        ValueError: unequal lengths, no rows, a value that is not finite, a negative denominator or only zeros,
            `n` below 1, `level` outside (0, 1).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3, with groups as the unit.
    """
    table = _group_sums([numerator], denominator, groups)
    sums = _resample(table, n, seed)
    return percentile_interval((transform or _identity)(_ratios(sums[:, 0], sums[:, 1])), level)


def bootstrap_paired_ratio(
    numerator_a: ArrayLike,
    numerator_b: ArrayLike,
    denominator: ArrayLike,
    groups: ArrayLike,
    *,
    transform: Transform | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Difference a - b of two ratios over one denominator, with its percentile interval: (difference, lo, hi).

    Shapes: all arrays are [rows]; `transform` as in `bootstrap_ratio`, applied to each ratio before subtraction.  Both
    sides see the same resamples, so what they have in common cancels.

    Raises:
        ValueError: as `bootstrap_ratio`.

    Source: as `bootstrap_ratio`.
    """
    table = _group_sums([numerator_a, numerator_b], denominator, groups)
    transform = transform or _identity

    def difference(sums: FloatArray) -> FloatArray:
        a, b = (transform(_ratios(sums[:, column], sums[:, 2])) for column in (0, 1))
        return a - b

    low, high = percentile_interval(difference(_resample(table, n, seed)), level)
    return float(difference(table.sum(axis=0, keepdims=True))[0]), low, high


def _identity(ratio: FloatArray) -> FloatArray:
    return ratio


def _group_sums(numerators: list[ArrayLike], denominator: ArrayLike, groups: ArrayLike) -> FloatArray:
    """Sums of the numerators and, last, of the denominator within every group: float64[groups, columns]."""
    columns = [np.asarray(column, dtype=np.float64) for column in (*numerators, denominator)]
    labels = np.asarray(groups)
    if labels.ndim != 1 or any(column.shape != labels.shape for column in columns):
        found = ", ".join(str(array.shape) for array in (*columns, labels))
        raise ValueError(f"numerator, denominator and groups must be one-dimensional and equally long, found {found}")
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError("numerator and denominator must be finite")
    if (columns[-1] < 0).any() or columns[-1].sum() == 0:
        raise ValueError("the denominator must be non-negative with a positive sum")
    distinct, group = np.unique(labels, return_inverse=True)
    return np.stack([np.bincount(group, column, len(distinct)) for column in columns], axis=1, dtype=np.float64)


def _resample(table: FloatArray, n: int, seed: int) -> FloatArray:
    """Column sums over `n` draws with replacement of as many groups as `table` [groups, columns] has: [n, columns]."""
    if n < 1:
        raise ValueError(f"the number of resamples must be at least 1, found {n}")
    generator = np.random.default_rng(seed)
    groups = len(table)
    sums = np.empty((n, table.shape[1]))
    for row in sums:
        drawn = generator.integers(groups, size=groups, dtype=np.int32)
        row[:] = np.bincount(drawn, minlength=groups) @ table
    return sums


def _ratios(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def percentile_interval(statistics: FloatArray, level: float) -> tuple[float, float]:
    """Return the bounds (lo, hi) that hold the share `level` of resampled statistics [n]; NaN are left out.

    Raises:
        ValueError: `level` outside (0, 1), or nothing but NaN.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level must lie between 0 and 1, found {level}")
    defined = statistics[~np.isnan(statistics)]
    if not len(defined):
        raise ValueError("no resample holds anything to score; draw more resamples")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
