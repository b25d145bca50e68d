"""Scores of one label per row: macro F1 over all labels, and the same on two levels, with bootstrap intervals.

A class that a split happens to lack still counts in `macro_f1`, as 0: the mean always runs over all `n_labels` classes,
as scikit-learn's `f1_score(labels=range(n_labels), average="macro", zero_division=0)` does.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kit_metrics.bootstrap import bootstrap_interval, effective_groups, effective_groups_per_label

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def confusion_matrix(true: ArrayLike, predicted: ArrayLike, n_labels: int) -> IntArray:
    """Count the rows of each pair of true (row) and predicted (column) label: int64[n_labels, n_labels].

    Raises:
        ValueError: unequal lengths, no rows, values that are no integers, or labels outside 0 .. n_labels - 1.
    """
    rows, columns = _labels(true, n_labels, "true"), _labels(predicted, n_labels, "predicted")
    if rows.shape != columns.shape:
        raise ValueError(f"true and predicted must be equally long, found {len(rows)} and {len(columns)}")
    return np.bincount(rows * n_labels + columns, minlength=n_labels**2).reshape(n_labels, n_labels).astype(np.int64)


def f1_per_label(confusion: ArrayLike) -> FloatArray:
    """F1 of every label from a confusion matrix [n, n]; 0 for a label that is neither true nor predicted anywhere."""
    counts = np.asarray(confusion, dtype=np.float64)
    return _f1(np.diag(counts), counts.sum(axis=1), counts.sum(axis=0))


def macro_f1(true: ArrayLike, predicted: ArrayLike, n_labels: int) -> float:
    """Mean F1 over all `n_labels` labels.

    Raises:
        ValueError: as `confusion_matrix`.
    """
    return float(f1_per_label(confusion_matrix(true, predicted, n_labels)).mean())


def bootstrap_macro_f1(
    true: ArrayLike,
    predicted: ArrayLike,
    n_labels: int,
    groups: ArrayLike | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval (lo, hi) of macro F1 over `n` resamples of the groups; by default each row is a group.

    The labels are those of the truth: one that it lacks counts as 0 in the score, and in every resample. A rare label
    may be absent from a resample alone; that resample's mean leaves it out, since a 0 would say that the model fails on
    it. The interval always holds the score.

    Raises:
        ValueError: as `confusion_matrix`, groups of another length, `n` below 1, `level` outside (0, 1).

    Source: the rule of `kit_metrics.bootstrap.bootstrap_interval`, with groups as the unit.
    """
    rows, [columns], group = _aligned(true, [predicted], n_labels, groups)
    [scores] = _resampled_macro_f1(rows, [columns], group, n_labels, n, seed)
    share = len(np.unique(rows)) / n_labels
    return bootstrap_interval(
        scores,
        macro_f1(rows, columns, n_labels),
        effective_groups(np.bincount(group)),
        effective_groups_per_label(rows, group),
        level=level,
        limits=(0.0, share),
    )


def bootstrap_paired_macro_f1(
    true: ArrayLike,
    predicted_a: ArrayLike,
    predicted_b: ArrayLike,
    n_labels: int,
    groups: ArrayLike | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Difference a - b of two macro F1 on the same rows, with its interval: (difference, lo, hi).

    Both sides see the same resamples, so that what they have in common cancels.

    Raises:
        ValueError: as `bootstrap_macro_f1`.

    Source: as `bootstrap_macro_f1`.
    """
    rows, [a, b], group = _aligned(true, [predicted_a, predicted_b], n_labels, groups)
    scores_a, scores_b = _resampled_macro_f1(rows, [a, b], group, n_labels, n, seed)
    difference = macro_f1(rows, a, n_labels) - macro_f1(rows, b, n_labels)
    share = len(np.unique(rows)) / n_labels
    low, high = bootstrap_interval(
        scores_a - scores_b,
        difference,
        effective_groups(np.bincount(group[a != b])),
        effective_groups_per_label(rows, group),
        level=level,
        limits=(-share, share),
    )
    return difference, low, high


def two_level_report(
    true: ArrayLike,
    predicted: ArrayLike,
    top_of: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of labels that belong to top-level classes (`top_of`: the top of every label), as plain Python values.

    Keys: `n`, `macro_f1`, `macro_f1_interval` (None for `bootstrap=0`), `accuracy`, `top_accuracy`, `top_macro_f1`,
    `within_top_accuracy` (share of right labels among the rows whose top is right; None without such rows) and
    `f1_per_label`.

    Raises:
        ValueError: as `bootstrap_macro_f1`; tops that are no integers from 0.
    """
    tops = np.asarray(top_of)
    if tops.ndim != 1 or not len(tops) or not np.issubdtype(tops.dtype, np.integer) or tops.min() < 0:
        raise ValueError(f"top_of must hold one integer from 0 for every label, found {tops!r}")
    n_labels, n_tops = len(tops), int(tops.max()) + 1
    confusion = confusion_matrix(true, predicted, n_labels)
    top_confusion = np.zeros((n_tops, n_tops), dtype=np.int64)
    np.add.at(top_confusion, (tops[:, None], tops[None, :]), confusion)
    n, right, top_right = int(confusion.sum()), int(np.trace(confusion)), int(np.trace(top_confusion))
    interval = bootstrap_macro_f1(true, predicted, n_labels, groups, n=bootstrap, seed=seed) if bootstrap else None
    return {
        "n": n,
        "macro_f1": float(f1_per_label(confusion).mean()),
        "macro_f1_interval": list(interval) if interval else None,
        "accuracy": right / n,
        "top_accuracy": top_right / n,
        "top_macro_f1": float(f1_per_label(top_confusion).mean()),
        "within_top_accuracy": right / top_right if top_right else None,
        "f1_per_label": f1_per_label(confusion).tolist(),
    }


def _f1(right: FloatArray, n_true: FloatArray, n_predicted: FloatArray) -> FloatArray:
    both = n_true + n_predicted
    return np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)


def _labels(values: ArrayLike, n_labels: int, name: str) -> IntArray:
    labels = np.asarray(values)
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must be a non-empty list of integers, found shape {labels.shape}, {labels.dtype}")
    if labels.min() < 0 or labels.max() >= n_labels:
        raise ValueError(f"{name} must lie in 0..{n_labels - 1}, found {labels.min()}..{labels.max()}")
    return labels.astype(np.int64)


def _aligned(
    true: ArrayLike, predictions: list[ArrayLike], n_labels: int, groups: ArrayLike | None
) -> tuple[IntArray, list[IntArray], IntArray]:
    """The checked labels, and the index of its group for every row."""
    rows = _labels(true, n_labels, "true")
    columns = [_labels(predicted, n_labels, "predicted") for predicted in predictions]
    names = np.arange(len(rows)) if groups is None else np.asarray(groups)
    if any(array.shape != rows.shape for array in (*columns, names)):
        found = ", ".join(str(array.shape) for array in (rows, *columns, names))
        raise ValueError(f"true, predicted and groups must be equally long, found {found}")
    return rows, columns, np.unique(names, return_inverse=True)[1].astype(np.int64)


def _resampled_macro_f1(
    true: IntArray, predictions: list[IntArray], group: IntArray, n_labels: int, n: int, seed: int
) -> list[FloatArray]:
    """Macro F1 of every prediction in the same `n` resamples of the groups.

    The mean runs over the labels that a resample holds; the share of labels without a true row counts as 0.
    """
    if n < 1:
        raise ValueError(f"the number of resamples must be at least 1, found {n}")
    n_groups = int(group.max()) + 1
    generator = np.random.default_rng(seed)
    times = np.empty((n, n_groups))  # how often each resample holds each group
    for row in times:
        row[:] = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups)

    def per_group(labels: IntArray, rows: NDArray[np.bool_] | slice = slice(None)) -> FloatArray:
        counts = np.bincount(group[rows] * n_labels + labels[rows], minlength=n_groups * n_labels)
        return times @ counts.reshape(n_groups, n_labels).astype(np.float64)

    n_true = per_group(true)
    present = n_true > 0
    share = len(np.unique(true)) / n_labels
    scores = []
    for predicted in predictions:
        f1 = _f1(per_group(true, true == predicted), n_true, per_group(predicted))
        scores.append((f1 * present).sum(axis=1) / present.sum(axis=1) * share)
    return scores
