"""The one interface of all models, and the one decoder.

Every model, classical or neural, answers a notebook with a `Placement`: for each markdown cell a distribution over the
gaps between the code cells, a position on the same axis, and, if it can, which markdown cell stands before which.
Gap g lies after g code cells: gap 0 opens the notebook, gap n_code closes it. The code cells never move.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Placement:
    """Where the markdown cells of one notebook belong; rows in json order.

    Shapes: position float64 [n_markdown], in gaps, 0..n_code; gap_probability float64 [n_markdown, n_code + 1], rows
    sum to 1, or None where the model knows a position only; markdown_before float64 [n_markdown, n_markdown], the
    probability that the row's cell stands before the column's, or None.
    """

    position: np.ndarray
    gap_probability: np.ndarray | None = None
    markdown_before: np.ndarray | None = None

    @classmethod
    def from_gap_scores(cls, scores: np.ndarray) -> "Placement":
        """Make a placement of non-negative scores [n_markdown, n_code + 1]; rows without any mass become uniform."""
        total = scores.sum(axis=1, keepdims=True)
        uniform = np.full_like(scores, 1.0 / scores.shape[1], dtype=np.float64)
        probability = np.divide(scores, total, out=uniform, where=total > 0)
        return cls(probability @ np.arange(scores.shape[1]), probability)


def median_gap(gap_probability: np.ndarray) -> np.ndarray:
    """The gap of least expected inversions against the code cells: int64 [n_markdown].

    A markdown cell that is d gaps off makes exactly d inversions with code cells, so the best gap is the median of the
    distribution, not its mode (the rule of the competition's second place).
    """
    below = np.cumsum(gap_probability, axis=1) < 0.5 - 1e-12  # so that rounding cannot pass an exact half by
    return np.minimum(below.sum(axis=1), gap_probability.shape[1] - 1)


def gap_of(placement: Placement, n_code: int) -> np.ndarray:
    """Choose a gap for every markdown cell: int64 [n_markdown], 0..n_code."""
    if placement.gap_probability is not None:
        return median_gap(placement.gap_probability)
    return np.clip(np.rint(placement.position), 0, n_code).astype(np.int64)


def decode(placement: Placement, n_code: int) -> np.ndarray:
    """Merge the markdown cells into the fixed chain of code cells: int64 [n_cells], json indices in predicted order.

    Cells that share a gap are ordered by expected wins where `markdown_before` is known, else by position; what is
    still equal keeps its json order, so that a constant model leaves the markdown cells as given.
    """
    n_markdown = len(placement.position)
    inside = placement.position
    if placement.markdown_before is not None and n_markdown > 1:
        wins = placement.markdown_before.sum(axis=1) - np.diag(placement.markdown_before)
        inside = -wins
    gaps = gap_of(placement, n_code)
    axis = np.concatenate([np.arange(n_code), gaps])
    # In one gap the markdown cells come before the code cell that follows it; code cell j has key (j, 1).
    is_code = np.concatenate([np.ones(n_code, np.int64), np.zeros(n_markdown, np.int64)])
    second = np.concatenate([np.zeros(n_code), inside])
    return np.lexsort((second, is_code, axis))


def expected_before(placement: Placement) -> np.ndarray:
    """The probability that one markdown cell stands before another, float64 [n_markdown, n_markdown]; ½ with itself.

    Gaps are taken as independent; within one gap `markdown_before` decides, or nothing does.
    """
    assert placement.gap_probability is not None
    p = placement.gap_probability
    later = p[:, ::-1].cumsum(axis=1)[:, ::-1] - p  # probability to stand in a later gap than this one
    inside = np.full((len(p), len(p)), 0.5) if placement.markdown_before is None else placement.markdown_before
    before = p @ later.T + (p @ p.T) * inside
    before = (before + 1.0 - before.T) / 2.0
    np.fill_diagonal(before, 0.5)
    return before


def decode_jointly(placement: Placement, n_code: int, sweeps: int = 4) -> np.ndarray:
    """Merge by expected inversions, those between markdown cells among them: int64 [n_cells], as `decode`.

    Starts from `decode`; each markdown cell in turn is taken out and put back where the expected number of inversions
    is least, until none moves. That number never rises.
    """
    order = decode(placement, n_code)
    n_markdown = len(placement.position)
    if placement.gap_probability is None or n_markdown == 0 or n_code == 0:
        return order
    # before[i, x]: markdown cell i stands before cell x of the notebook, in json order.
    before = np.concatenate([placement.gap_probability.cumsum(axis=1)[:, :-1], expected_before(placement)], axis=1)
    for _ in range(sweeps):
        moved = False
        for cell in range(n_code, n_code + n_markdown):
            here = int(np.flatnonzero(order == cell)[0])
            rest = np.delete(order, here)
            chance = before[cell - n_code, rest]
            # In slot s it stands behind rest[:s] and before rest[s:].
            cost = (
                np.concatenate([[0.0], np.cumsum(chance)])
                + np.concatenate([[0.0], np.cumsum((1.0 - chance)[::-1])])[::-1]
            )
            best = int(cost.argmin())
            if cost[best] < cost[here] - 1e-9:
                order = np.insert(rest, best, cell)
                moved = True
        if not moved:
            break
    return order


def spread(placement: Placement, n_code: int, error: float) -> Placement:
    """Give a placement that knows positions only a distribution: a Laplace law around each position.

    Least absolute deviation is the likelihood of that law, so `error` is the mean absolute error, relative to the axis
    of n_code + 1 gaps, that the model showed on notebooks it had not seen. What falls off an end counts for the last
    gap there, so that the median stays where the position was.
    """
    if placement.gap_probability is not None:
        return placement
    edges = np.concatenate([[-np.inf], np.arange(n_code) + 0.5, [np.inf]])
    z = (edges[None, :] - placement.position[:, None]) / (error * (n_code + 1))
    mass = np.where(z < 0, 0.5 * np.exp(np.minimum(z, 0.0)), 1.0 - 0.5 * np.exp(-np.maximum(z, 0.0)))
    return Placement(placement.position, np.diff(mass, axis=1), placement.markdown_before)


def average(placements: Sequence[Placement]) -> Placement:
    """Fuse the answers of one model fitted on several folds: mean distribution, or median position without one."""
    if any(placement.gap_probability is None for placement in placements):
        return Placement(np.median([placement.position for placement in placements], axis=0))
    return mix(placements, [1.0] * len(placements))


def mix(placements: Sequence[Placement], weights: Sequence[float]) -> Placement:
    """Average distributions for one notebook; weights need not sum to 1.

    What some know of the order of markdown cells is averaged among those.

    Raises:
        ValueError: a placement has no distribution (`spread` makes one).
    """
    total = float(sum(weights))
    parts = []
    for placement, weight in zip(placements, weights, strict=True):
        if placement.gap_probability is None:
            raise ValueError("only distributions can be mixed: spread the positions first")
        parts.append(placement.gap_probability * (weight / total))
    probability = np.sum(parts, axis=0)
    orders = [
        (placement.markdown_before, weight)
        for placement, weight in zip(placements, weights, strict=True)
        if placement.markdown_before is not None and weight > 0
    ]
    known = sum(weight for _, weight in orders)
    before = np.sum([order * (weight / known) for order, weight in orders], axis=0) if orders else None
    return Placement(probability @ np.arange(probability.shape[1]), probability, before)


def true_gaps(true_rank: np.ndarray, n_code: int) -> np.ndarray:
    """The gap of every markdown cell in the true order: int64 [n_markdown]; `true_rank` int64 [n_cells], json order."""
    return np.searchsorted(true_rank[:n_code], true_rank[n_code:])
