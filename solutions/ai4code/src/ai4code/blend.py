"""How much each member counts: weights that make the blend best on notebooks no member was fitted on."""

from collections.abc import Sequence

import numpy as np

from ai4code.decode import Placement
from kit_ensemble.selection import greedy_selection


class GapErrors:
    """Distributions of several members over many notebooks, packed so that trying weights takes milliseconds.

    What is judged is the summed distance between median gap and true gap: the inversions of markdown with code cells,
    of which nearly all the metric's losses consist.
    """

    def __init__(self, members: Sequence[Sequence[Placement]], true_gaps: Sequence[np.ndarray]) -> None:
        """Pack `members[m][notebook]`, each with a distribution, and every notebook's true gaps, int64 [n_markdown]."""
        shapes = [placement.gap_probability.shape for placement in members[0]]  # type: ignore[union-attr]  # spread before
        width = np.repeat([gaps for _, gaps in shapes], [rows for rows, _ in shapes])  # gaps of each markdown cell
        self._starts = np.concatenate([[0], np.cumsum(width)])[:-1].astype(np.int64)
        self._true = np.concatenate([*true_gaps, np.zeros(0, np.int64)])
        cumulated = []
        for placements in members:
            rows = [np.cumsum(p.gap_probability, axis=1).ravel() for p in placements]  # type: ignore[arg-type]  # spread before
            cumulated.append(np.concatenate(rows))
        self._cdf = np.stack(cumulated).astype(np.float32)
        self._cells = len(width)

    def score(self, weights: np.ndarray) -> float:
        """Minus the mean gap error of the blend; higher is better."""
        if self._cells == 0:
            return 0.0
        below = (weights.astype(np.float32) @ self._cdf) < 0.5
        median = np.add.reduceat(below, self._starts, dtype=np.int64)
        return -float(np.abs(median - self._true).mean())


def fit_weights(members: Sequence[Sequence[Placement]], true_gaps: Sequence[np.ndarray], rounds: int) -> np.ndarray:
    """Choose member weights by greedy selection with replacement: float64 [members], sum 1."""
    if len(members) == 1:
        return np.ones(1)
    errors = GapErrors(members, true_gaps)
    weights, _ = greedy_selection(len(members), errors.score, rounds=rounds)
    return weights
