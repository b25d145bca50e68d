"""Inversion counting of one notebook: `kit_metrics.count_inversions` beside `scipy.stats.kendalltau`.

    python benchmarks/bench_inversions.py

takes about two seconds and prints a Markdown table. Both sides turn the same predicted orders into Kendall's tau, and
equal values are asserted before anything is timed. The two are timed in turn on the same twenty notebooks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from timing import in_turn

from kit_metrics import count_inversions

Order = NDArray[np.int64]
REPEATS = 50
NOTEBOOKS = 20  # timed together, as an evaluation meets them: one after the other
# Cells of a notebook, and the ratio that must be reached: a long notebook has one, the mean one is for information.
CASES: tuple[tuple[int, float | None], ...] = ((46, None), (1000, 5.0))


def run() -> list[dict[str, Any]]:
    """One row a case: `name`, `ours_seconds`, `peer`, `peer_seconds`, `ratio`, `spread`, `required_ratio` (or None)."""
    generator = np.random.default_rng(0)
    rows = []
    for cells, required_ratio in CASES:
        orders = [generator.permutation(cells) for _ in range(NOTEBOOKS)]
        for order in orders:
            assert abs(_ours(order) - _peer(order)) < 1e-12, f"the two disagree on {order.tolist()}"
        rows.append(
            in_turn(
                f"Kendall tau of {NOTEBOOKS} notebooks, {cells:,} cells each",
                partial(_all, _ours, orders),
                "scipy.stats.kendalltau",
                partial(_all, _peer, orders),
                required=required_ratio,
                repeats=REPEATS,
            )
        )
    return rows


def _all(tau: Callable[[Order], float], orders: list[Order]) -> None:
    for order in orders:
        tau(order)


def _ours(order: Order) -> float:
    n = len(order)
    return 1 - 4 * count_inversions(order) / (n * (n - 1))


def _peer(order: Order) -> float:
    return float(kendalltau(np.arange(len(order)), order).statistic)


if __name__ == "__main__":
    from run import render_rows

    print(render_rows(run()))
