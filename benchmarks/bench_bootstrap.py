"""Bootstrap interval of a ratio over groups: `kit_metrics.bootstrap_ratio` beside `scipy.stats.bootstrap`.

    python benchmarks/bench_bootstrap.py

takes about ten seconds and prints a Markdown table. Both sides resample the same 5,000 groups of 20,000 rows a thousand
times. Their intervals are compared before anything is timed; they differ by the resamples that each draws and by the
correction for few groups that ours has, so a tenth of the width is allowed.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from timing import in_turn

from kit_metrics import bootstrap_ratio

ROWS, GROUPS, RESAMPLES, REPEATS = 20_000, 5_000, 1_000, 10
Floats = NDArray[np.float64]


def run() -> list[dict[str, Any]]:
    """One row: `name`, `ours_seconds`, `peer`, `peer_seconds`, `ratio`, `spread`, `required_ratio`."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, GROUPS, ROWS)
    numerator, denominator = generator.random(ROWS), np.ones(ROWS)
    low, high = bootstrap_ratio(numerator, denominator, labels)
    peer_low, peer_high = _peer(numerator, denominator, labels)
    allowed = (high - low) / 10
    assert abs(low - peer_low) < allowed, f"found {low}, scipy {peer_low}"
    assert abs(high - peer_high) < allowed, f"found {high}, scipy {peer_high}"
    return [
        in_turn(
            f"bootstrap of a ratio, {GROUPS:,} groups of {ROWS:,} rows",
            partial(bootstrap_ratio, numerator, denominator, labels),
            "scipy.stats.bootstrap",
            partial(_peer, numerator, denominator, labels),
            required=1.0,
            repeats=REPEATS,
        )
    ]


def _peer(numerator: Floats, denominator: Floats, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Sum the rows of each group, and resample the groups."""
    _, places = np.unique(labels, return_inverse=True)
    sums = np.bincount(places, numerator), np.bincount(places, denominator)
    result = bootstrap(
        sums,
        lambda above, below, axis: above.sum(axis=axis) / below.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


if __name__ == "__main__":
    from run import render_rows

    print(render_rows(run()))
