"""Inversion counting of one notebook: `kit_metrics.count_inversions` beside `scipy.stats.kendalltau`.

    python benchmarks/bench_inversions.py

takes about two seconds and prints a Markdown table.  Both sides turn the same predicted orders into Kendall's tau, and
equal values are asserted before anything is timed.  The two are timed in turn on the same twenty notebooks, so that a
slow moment of the machine meets both; the ratio is the median over these pairs, its spread their interquartile range.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

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
        seconds = np.array([(_seconds(_ours, orders), _seconds(_peer, orders)) for _ in range(REPEATS)])
        low, ratio, high = np.quantile(seconds[:, 1] / seconds[:, 0], [0.25, 0.5, 0.75])
        ours_seconds, peer_seconds = np.median(seconds, axis=0)
        rows.append(
            {
                "name": f"Kendall tau of one notebook, {cells:,} cells",
                "ours_seconds": float(ours_seconds),
                "peer": "scipy.stats.kendalltau",
                "peer_seconds": float(peer_seconds),
                "ratio": float(ratio),
                "spread": float(high - low),
                "required_ratio": required_ratio,
            }
        )
    return rows


def _ours(order: Order) -> float:
    n = len(order)
    return 1 - 4 * count_inversions(order) / (n * (n - 1))


def _peer(order: Order) -> float:
    return float(kendalltau(np.arange(len(order)), order).statistic)


def _seconds(tau: Callable[[Order], float], orders: list[Order]) -> float:
    """Seconds a notebook."""
    start = perf_counter()
    for order in orders:
        tau(order)
    return (perf_counter() - start) / len(orders)


def main() -> None:
    print("| what | ours, µs | peer | peer, µs | ratio | spread | required |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for row in run():
        ours, peer = row["ours_seconds"] * 1e6, row["peer_seconds"] * 1e6
        required = "" if row["required_ratio"] is None else f"≥ {row['required_ratio']:.1f}"
        print(
            f"| {row['name']} | {ours:.0f} | {row['peer']} | {peer:.0f} | {row['ratio']:.1f} | {row['spread']:.1f} "
            f"| {required} |"
        )


if __name__ == "__main__":
    main()
