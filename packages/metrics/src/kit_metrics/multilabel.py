"""Macro average precision of many tags per row, as scikit-learn computes it, and bootstrap intervals of it.

Average precision is the mean, over the true rows of a tag, of the precision among all rows scored at least as high. So
only the true rows need a rank: one sort of the bare scores of a tag and a binary search for its few true rows do.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kit_metrics.bootstrap import bootstrap_interval, effective_groups, effective_groups_per_label

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

BLOCK = 512  # resamples at a time: enough to make up for the Python call of each sum, few enough for the cache


def average_precision_per_tag(truth: ArrayLike, scores: ArrayLike) -> FloatArray:
    """Average precision of every tag: float64[tags]; equal scores share one threshold, a tag without a true row has 0.

    Shapes: `truth` bool[rows, tags], `scores` [rows, tags]; only the order of scores within a tag matters.

    Raises:
        ValueError: shapes differ, no rows or tags, `truth` is not 0 and 1, or a score is NaN or infinite.

    Source: equals scikit-learn's `average_precision_score(truth, scores, average=None)`.
    """
    present, (values,) = _checked(truth, [scores])
    result = np.zeros(present.shape[1])
    for tag in range(present.shape[1]):
        ranks = _Ranks.of(present[:, tag], values[tag])
        if ranks is not None:
            hits = np.cumsum(ranks.hits)
            result[tag] = (ranks.hits * hits / ranks.ends).sum() / hits[-1]
    return result


def macro_average_precision(truth: ArrayLike, scores: ArrayLike, *, present_only: bool = False) -> float:
    """Mean average precision over all tags, those without a true row as 0; or over the tags with one (`present_only`).

    Raises:
        ValueError: as `average_precision_per_tag`, or `present_only` without any true row.

    Source: equals scikit-learn's `average_precision_score(truth, scores, average="macro")`.
    """
    per_tag = average_precision_per_tag(truth, scores)
    if not present_only:
        return float(per_tag.mean())
    present = np.asarray(truth).any(axis=0)
    if not present.any():
        raise ValueError("no tag has a true row")
    return float(per_tag[present].mean())


def bootstrap_macro_average_precision(
    truth: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    present_only: bool = False,
) -> tuple[float, float]:
    """Interval (lo, hi) of macro average precision over `n` resamples of the groups [rows], by default of the rows.

    A tag whose true rows a resample happens to miss is left out of its mean. A resample repeats rows, and a true row
    that is there twice makes its tag easier: resampled scores lie above the score. So the rule moves the percentiles
    by the difference of the mean resample and the score. The interval always holds the score.

    Raises:
        ValueError: as `macro_average_precision`, no true rows, groups of another length, `n` below 1, or `level`
            outside (0, 1).

    Source: the rule of `kit_metrics.bootstrap.bootstrap_interval`, with groups as the unit.
    """
    (resampled,), share, counts = _resampled(truth, [scores], groups, n, seed, present_only)
    score = macro_average_precision(truth, scores, present_only=present_only)
    return bootstrap_interval(resampled * share, score, *counts, level=level, limits=(0.0, share))


def bootstrap_paired_macro_average_precision(
    truth: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    present_only: bool = False,
) -> tuple[float, float, float]:
    """Difference a - b of two macro average precisions on the same rows, with its interval: (difference, lo, hi).

    Both sides see the same resamples, so that what they have in common cancels.

    Raises:
        ValueError: as `bootstrap_macro_average_precision`.

    Source: as `bootstrap_macro_average_precision`.
    """
    (a, b), share, counts = _resampled(truth, [scores_a, scores_b], groups, n, seed, present_only)
    score_a, score_b = (macro_average_precision(truth, s, present_only=present_only) for s in (scores_a, scores_b))
    difference = score_a - score_b
    low, high = bootstrap_interval((a - b) * share, difference, *counts, level=level, limits=(-share, share))
    return difference, low, high


class _Ranks:
    """The thresholds of one tag that add to its average precision: the distinct scores of its true rows, falling.

    ends  how many rows score at least the threshold; hits  how many true rows score exactly it.
    """

    def __init__(self, ends: IntArray, hits: IntArray) -> None:
        self.ends = ends
        self.hits = hits

    @staticmethod
    def of(present: BoolArray, scores: NDArray[np.floating]) -> "_Ranks | None":
        """None for a tag without a true row."""
        thresholds, hits = np.unique(scores[present], return_counts=True)
        if not len(thresholds):
            return None
        below = np.asarray(np.searchsorted(np.sort(scores), thresholds, side="left"), dtype=np.int64)
        return _Ranks(len(scores) - below[::-1], hits[::-1].astype(np.int64))


def _checked(truth: ArrayLike, scores: list[ArrayLike]) -> tuple[BoolArray, list[NDArray[np.floating]]]:
    """Truth as bool[rows, tags], scores as contiguous [tags, rows]."""
    present = np.asarray(truth)
    tables = [np.asarray(table) for table in scores]
    if present.ndim != 2 or not present.size or any(table.shape != present.shape for table in tables):
        found = ", ".join(str(array.shape) for array in (present, *tables))
        raise ValueError(f"truth and scores must be of one shape (rows, tags) that is not empty, found {found}")
    if present.dtype != np.bool_ and not np.isin(present, (0, 1)).all():
        raise ValueError("truth must hold only 0 and 1")
    columns = []
    for table in tables:
        if table.dtype not in (np.float32, np.float64):
            table = table.astype(np.float64)
        if not np.isfinite(table).all():
            raise ValueError("scores must be finite")
        columns.append(np.ascontiguousarray(table.T))
    return present.astype(np.bool_), columns


def _resampled(
    truth: ArrayLike, scores: list[ArrayLike], groups: ArrayLike | None, n: int, seed: int, present_only: bool
) -> tuple[list[FloatArray], float, tuple[float, FloatArray]]:
    """Mean average precision over the tags present in each of `n` resamples, for every table of scores.

    The share of tags in the truth brings them to the scale of the score: those that count as 0 are not there to be
    resampled. Last come the effective numbers of groups, of all rows and of every tag.
    """
    present, columns = _checked(truth, scores)
    if n < 1:
        raise ValueError(f"the number of resamples must be at least 1, found {n}")
    names = np.arange(len(present)) if groups is None else np.asarray(groups)
    if names.shape != (len(present),):
        raise ValueError(f"groups must name one group for each of {len(present)} rows, found shape {names.shape}")
    if not present.any():
        raise ValueError("no tag has a true row")
    group = np.unique(names, return_inverse=True)[1]
    sizes = np.bincount(group)
    n_groups = len(sizes)
    tags = np.flatnonzero(present.any(axis=0))
    plans = [[_Plan.of(present[:, tag], table[tag]) for tag in tags] for table in columns]
    generator = np.random.default_rng(seed)
    results = [np.empty(n) for _ in columns]
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        times = np.stack(
            [np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups) for _ in range(start, stop)],
            axis=1,
        )
        largest = (times * sizes[:, None]).sum(axis=0).max()  # no sum of weights is above it
        # How often each resample holds each row: [rows, resamples].
        weights = (times.astype(np.uint16) if largest < 1 << 16 else times.astype(np.uint32))[group]
        for result, of_tags in zip(results, plans, strict=True):
            total, counted = np.zeros(stop - start), np.zeros(stop - start)
            for plan in of_tags:
                precision, found = plan.average_precision(weights)
                total += precision
                counted += found
            result[start:stop] = np.divide(total, counted, out=np.full(stop - start, np.nan), where=counted > 0)
    true_row, true_tag = np.nonzero(present)
    counts = effective_groups(sizes), effective_groups_per_label(true_tag, group[true_row])
    return results, 1.0 if present_only else len(tags) / present.shape[1], counts


class _Plan:
    """One tag under resampling: which rows lie between its thresholds, and which are true at each."""

    def __init__(self, order: IntArray, ends: IntArray, true_rows: IntArray, true_starts: IntArray) -> None:
        self.order, self.ends, self.true_rows, self.true_starts = order, ends, true_rows, true_starts

    @staticmethod
    def of(present: BoolArray, scores: NDArray[np.floating]) -> "_Plan":
        ranks = _Ranks.of(present, scores)
        assert ranks is not None, "only tags with a true row are resampled"
        order = np.argsort(-scores)[: ranks.ends[-1]]
        return _Plan(order, ranks.ends, order[present[order]], np.cumsum(ranks.hits) - ranks.hits)

    def average_precision(self, weights: NDArray[np.uint16 | np.uint32]) -> tuple[FloatArray, BoolArray]:
        """Average precision in each resample [rows, resamples], 0 where the tag is absent; and where it is present."""
        sorted_weights = weights.take(self.order, axis=0)
        rows = np.empty((len(self.ends), weights.shape[1]), dtype=np.float32)  # sums of whole numbers: exact to 2 ** 24
        start = 0
        for between, end in zip(rows, self.ends.tolist(), strict=True):
            # `np.add.reduceat` does the same in one call, and walks the memory across: ten times slower.
            between[:] = np.add.reduce(sorted_weights[start:end], axis=0, dtype=weights.dtype)
            start = end
        np.cumsum(rows, axis=0, out=rows)
        hits = weights.take(self.true_rows, axis=0).astype(np.float32)
        if len(self.true_rows) > len(self.ends):
            hits = np.add.reduceat(hits, self.true_starts, axis=0)
        found = np.cumsum(hits, axis=0)
        precision = (hits * found / np.maximum(rows, 1)).sum(axis=0, dtype=np.float64)
        return precision / np.maximum(found[-1], 1), found[-1] > 0
