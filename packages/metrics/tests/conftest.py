"""The rule of the intervals, written a second time with SciPy and loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats


def _effective(names: Any, weights: Any | None = None) -> float:
    """(sum w)^2 / sum w^2 over the sums w of each name."""
    weights = np.ones(len(names)) if weights is None else np.asarray(weights)
    sums = [weights[names == name].sum() for name in np.unique(names)]
    return float(sum(sums) ** 2 / sum(w * w for w in sums))


@pytest.fixture(scope="session")
def slow_interval() -> Callable[..., Any]:
    def interval(
        resampled: Any,
        score: float,
        names: Any,
        members: Any = None,
        weights: Any = None,
        differs: Any = None,
        level: float = 0.95,
    ) -> Any:
        """`names`: the group of every row; `members`: for every label, a mask of its true rows; None: no labels.

        `differs` masks the rows in which two models differ.
        """
        weights = np.ones(len(names)) if weights is None else np.asarray(weights)
        counts = [_effective(names[mask]) for mask in members] if members is not None else [_effective(names, weights)]
        widened = np.sqrt(np.mean([k / (k - 1) for k in np.maximum(counts, 2)]))
        carried = slice(None) if differs is None else differs
        degrees = max(_effective(names[carried], weights[carried]) - 1, 1)
        ends = np.array([(1 - level) / 2, (1 + level) / 2])
        t_over_normal = stats.t.ppf(ends[1], degrees) / stats.norm.ppf(ends[1])
        return score + widened * t_over_normal * (np.quantile(resampled, ends) - np.mean(resampled))

    return interval
