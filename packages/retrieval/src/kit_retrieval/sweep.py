"""Try settings of what comes after the model, on vectors that are computed once."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit_core.console import progress


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and the score that they gave."""

    settings: dict[str, Any]
    score: float


def sweep(
    rank: Callable[..., NDArray[np.int64]],
    score: Callable[[NDArray[np.int64]], float],
    grid: Mapping[str, Sequence[Any]],
    *,
    label: str = "settings",
) -> list[Trial]:
    """Every combination of the grid, the best first; equal scores in the order of the grid.

    Args:
        rank: called with one value of each name of the grid as keywords; returns neighbours, int64[n, k].
        score: of those neighbours, higher is better. Choose on other queries than the ones that are reported, or the
            best of many trials flatters itself.
        grid: name → values.

    Raises:
        ValueError: a name without values.
    """
    empty = [name for name, values in grid.items() if not len(values)]
    if empty:
        raise ValueError(f"grid: found no values for {', '.join(empty)}")
    trials = []
    combinations = list(itertools.product(*grid.values()))
    for values in progress(combinations, label=label):
        settings = dict(zip(grid, values, strict=True))
        trials.append(Trial(settings, float(score(rank(**settings)))))
    return sorted(trials, key=lambda trial: -trial.score)
