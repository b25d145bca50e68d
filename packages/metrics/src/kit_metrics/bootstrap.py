"""Bootstrap intervals, resampled by group (a fork family, an artist, a speaker): one rule for every metric.

Rows of one group are not independent, so whole groups are drawn with replacement.  A ratio of sums needs only the two
sums of every group: the metric itself is computed once, whatever the number of resamples.

The rule (`bootstrap_interval`) takes the percentiles of what the resamples gave, as distances from their mean, and lays
them around the score:

    score + f * (percentile of the resamples - mean of the resamples)

The mean is taken off because a resample repeats rows, which shifts some metrics (average precision up, macro F1 down).
What the interval is meant to hold is therefore the expected score of samples of this size.  A bootstrap over k groups
has a variance that is too small by (k - 1) / k, which matters for rare labels even where the data has many groups:

    f = sqrt(mean over labels of k / (k - 1)) * (quantile of Student's t / quantile of the normal distribution)

k is the effective number of groups that hold true rows of a label, (sum w)^2 / sum w^2 of its rows w in each group, and
the degrees of freedom of t are the effective number of groups of all rows, less one.  A difference of two models is
carried by the groups in which they differ, and its degrees of freedom count only those.

Coverage in simulations of the sizes of the small data sets: tests/test_metrics_coverage.py.
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Transform = Callable[[FloatArray], FloatArray]
Limits = tuple[float, float]


def bootstrap_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    groups: ArrayLike,
    *,
    transform: Transform | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    limits: Limits | None = None,
) -> tuple[float, float]:
    """Interval (lo, hi) of `transform(sum(numerator) / sum(denominator))` over `n` resamples of the groups.

    Shapes: `numerator`, `denominator`, `groups` are [rows]; `transform` is monotone and maps an array of ratios
    elementwise (None: the ratio itself).  A resample whose denominator is zero has no ratio and is left out.  The order
    of rows has no effect.

    The interval stays within `limits` of the statistic.  By default these are what the rows say: a ratio without a
    negative numerator is at least 0, and one whose numerators never exceed their denominators is at most 1.

    Raises:
        ValueError: unequal lengths, no rows, a value that is not finite, a negative denominator or only zeros,
            `n` below 1, `level` outside (0, 1).

    Source: as `bootstrap_interval`, with groups as the unit.
    """
    table = _group_sums([numerator], denominator, groups)
    transform = transform or _identity

    def statistic(sums: FloatArray) -> FloatArray:
        return transform(_ratios(sums[:, 0], sums[:, 1]))

    return bootstrap_interval(
        statistic(_resample(table, n, seed)),
        float(statistic(table.sum(axis=0, keepdims=True))[0]),
        effective_groups(table[:, 1]),
        level=level,
        limits=limits or _limits(numerator, denominator, transform),
    )


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
    limits: Limits | None = None,
) -> tuple[float, float, float]:
    """Difference a - b of two ratios over one denominator, with its interval: (difference, lo, hi).

    Shapes: all arrays are [rows]; `transform` and `limits` (of each ratio) as in `bootstrap_ratio`, applied before
    subtraction.  Both sides see the same resamples, so what they have in common cancels.

    Raises:
        ValueError: as `bootstrap_ratio`.

    Source: as `bootstrap_ratio`.
    """
    table = _group_sums([numerator_a, numerator_b], denominator, groups)
    transform = transform or _identity

    def difference(sums: FloatArray) -> FloatArray:
        a, b = (transform(_ratios(sums[:, column], sums[:, 2])) for column in (0, 1))
        return a - b

    score = float(difference(table.sum(axis=0, keepdims=True))[0])
    (low_a, high_a), (low_b, high_b) = (
        limits or _limits(a, denominator, transform) for a in (numerator_a, numerator_b)
    )
    low, high = bootstrap_interval(
        difference(_resample(table, n, seed)),
        score,
        effective_groups(np.where(table[:, 0] != table[:, 1], table[:, 2], 0.0)),
        effective_groups(table[:, 2]),
        level=level,
        limits=(low_a - high_b, high_a - low_b),
    )
    return score, low, high


def bootstrap_interval(
    resampled: ArrayLike,
    score: float,
    groups: float,
    groups_of_labels: ArrayLike | None = None,
    *,
    level: float = 0.95,
    limits: Limits = (-np.inf, np.inf),
) -> tuple[float, float]:
    """Interval (lo, hi) around `score` from the same statistic of resamples [n]; NaN are left out.

    The rule is that of this module: percentiles recentred on the score and widened for a small number of groups.
    `groups` is the effective number of groups that carry the statistic (for a difference: those in which the models
    differ), `groups_of_labels` that of each label whose scores the statistic averages (None: no labels, `groups`
    itself).  A label in one group alone, whose variance is unknown, counts as one in two.  The interval always holds
    the score, and is cut off at `limits`.

    Raises:
        ValueError: `level` outside (0, 1), or nothing but NaN.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 10 (bias) and section 13.3
    (percentiles); Hesterberg, What Teachers Should Know About the Bootstrap (2015), for the widening by n / (n - 1) and
    t; Kish, Survey Sampling (1965), for the effective number; Student's t by Cornish and Fisher's expansion.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level must lie between 0 and 1, found {level}")
    values = np.asarray(resampled, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError("no resample holds anything to score; draw more resamples")
    if values.min() == values.max():
        return score, score
    counts = np.maximum(np.asarray(groups if groups_of_labels is None else groups_of_labels, dtype=np.float64), 2.0)
    factor = float(np.sqrt((counts / (counts - 1)).mean())) * _t_over_normal(max(groups - 1, 1.0), (1 + level) / 2)
    low, high = factor * (np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - values.mean())
    return min(score, max(limits[0], float(score + low))), max(score, min(limits[1], float(score + high)))


def effective_groups(weights: ArrayLike) -> float:
    """Effective number of groups with these weights [groups], (sum w)^2 / sum w^2: their number if all are equal."""
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / (w**2).sum()) if w.any() else 0.0


def effective_groups_per_label(labels: ArrayLike, groups: ArrayLike) -> FloatArray:
    """Effective number of groups of every label that occurs, float64[labels], from `labels`, `groups` of rows."""
    label, group = np.asarray(labels, dtype=np.int64), np.asarray(groups, dtype=np.int64)
    if not len(label):
        return np.empty(0)
    n_groups = int(group.max()) + 1
    cells, rows = np.unique(label * n_groups + group, return_counts=True)
    of = cells // n_groups
    total, squares = np.bincount(of, rows), np.bincount(of, rows.astype(np.float64) ** 2)
    present = total > 0
    result: FloatArray = total[present] ** 2 / squares[present]
    return result


def _t_over_normal(degrees: float, probability: float) -> float:
    """Quantile of Student's t over that of the normal distribution; within 1 % from 3 degrees of freedom at 95 %."""
    z = NormalDist().inv_cdf(probability)
    return (
        1
        + (z**2 + 1) / (4 * degrees)
        + (5 * z**4 + 16 * z**2 + 3) / (96 * degrees**2)
        + (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / (384 * degrees**3)
    )


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


def _limits(numerator: ArrayLike, denominator: ArrayLike, transform: Transform) -> Limits:
    """What the transformed ratio cannot pass, given the signs and sizes of its rows."""
    part, whole = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    ends = np.array([0.0 if (part >= 0).all() else -np.inf, 1.0 if (part <= whole).all() else np.inf])
    with np.errstate(all="ignore"):  # a limit may be a pole of the transform, as 0 is of the logarithm
        low, high = np.sort(transform(ends))
    return (-np.inf if np.isnan(low) else float(low)), (np.inf if np.isnan(high) else float(high))
