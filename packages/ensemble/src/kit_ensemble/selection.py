"""Weights of a blend chosen by its score on out-of-fold predictions.

Both functions see the models only through `score`, a function of the weights that is to be maximised: whatever is
blended (positions, probabilities, ranks) and however it is judged stays with the caller.  Neither draws random numbers.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Score = Callable[[FloatArray], float]

_LEAST_GAIN = 1e-9  # a smaller one is rounding; without a bound the search could follow it almost without end


def greedy_selection(n_models: int, score: Score, *, rounds: int = 50, patience: int = 5) -> tuple[FloatArray, float]:
    """Add one model a round, repeats allowed, each time the one that makes the blend best: (weights, best score).

    `score` takes weights float64[n_models] with sum 1, higher is better; it is called at most `rounds * n_models`
    times.  The blend of the best round is returned, so no single model is better than it.  The search stops after
    `patience` rounds without a new best.  Equal candidates: the model of the lowest index.

    Raises:
        ValueError: `n_models`, `rounds` or `patience` below 1, or a score that is not finite.

    Source: Caruana et al., Ensemble selection from libraries of models (ICML 2004), selection with replacement.
    """
    for name, value in (("n_models", n_models), ("rounds", rounds), ("patience", patience)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    counts = np.zeros(n_models)
    best_weights, best, best_round = counts, -np.inf, 0
    for size in range(1, rounds + 1):
        candidates = (counts + np.eye(n_models)) / size
        scores = [_finite_score(score, weights) for weights in candidates]
        chosen = int(np.argmax(scores))
        counts[chosen] += 1
        if scores[chosen] > best:
            best_weights, best, best_round = candidates[chosen], scores[chosen], size
        elif size - best_round >= patience:
            break
    return best_weights, best


def coordinate_search(
    weights0: ArrayLike, score: Score, *, steps: Sequence[float] = (0.2, 0.1, 0.05, 0.02)
) -> tuple[FloatArray, float]:
    """Refine weights: move one at a time by a step while that helps, then by the next step: (weights, best score).

    `weights0`: [n_models], not negative, scaled to sum 1 here; after each move the weights are cut at 0 and scaled
    again.  `score` as in `greedy_selection`; gains below 1e-9 do not count.  The result is never worse than the start.

    Raises:
        ValueError: weights that are not one-dimensional, finite, non-negative and with a positive sum; no steps, or one
            that is not positive and finite; a score that is not finite.

    Source: pattern search, Hooke and Jeeves (1961), on the simplex.
    """
    weights = np.array(weights0, dtype=np.float64)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise ValueError(f"weights must be one-dimensional, non-negative and not all zero, found {weights.tolist()}")
    if not len(steps) or not all(0 < step < np.inf for step in steps):
        raise ValueError(f"steps must be positive numbers, at least one, found {list(steps)}")
    weights /= weights.sum()
    best = _finite_score(score, weights)
    for step in steps:
        improved = True
        while improved:
            improved = False
            for model in range(len(weights)):
                for move in (step, -step):
                    candidate = weights.copy()
                    candidate[model] = max(0.0, candidate[model] + move)
                    if candidate.sum() <= 0:  # the only model that is left cannot go
                        continue
                    candidate /= candidate.sum()
                    found = _finite_score(score, candidate)
                    if found > best + _LEAST_GAIN:
                        weights, best, improved = candidate, found, True
                        break
    return weights, best


def _finite_score(score: Score, weights: FloatArray) -> float:
    found = float(score(weights.copy()))  # a copy, so that the caller may keep or change it
    if not np.isfinite(found):
        raise ValueError(f"the score must be a finite number, found {found} for weights {weights.tolist()}")
    return found
