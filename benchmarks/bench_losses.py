"""Losses beside pytorch-metric-learning: forward and backward, in time and in peak memory.

    python benchmarks/bench_losses.py

takes about a minute and prints a Markdown table. Before anything counts, both sides must agree in value and gradient
on the same triplets. The two are measured in turn, so that a slow moment of the machine meets both; the ratio is the
median of the ratios, its spread their range over the median. Peak memory is what a process of its own grows by in one
step, above the libraries and the batch (Linux); it must be at most half the peer's.
"""

import subprocess
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import losses as peer
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor

from kit_losses.pairs import PairLosses, random_triplets

ROWS, WIDTH, ROWS_PER_LABEL = 2_000, 128, 10
REPEATS = 5
REQUIRED_PAIRS = 6.0
MEMORY_SHARE = 0.5
GROWTH = """
import re, runpy, sys
import torch
def peak():  # of this process alone; getrusage would count what its parent held when it started
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
bench = runpy.run_path(sys.argv[1])
embeddings, labels = bench["batch"]()
small = torch.randperm(len(labels))[:64]
bench[sys.argv[2]](embeddings[small], labels[small])
before = peak()
bench[sys.argv[2]](embeddings, labels)
print(peak() - before)
"""


def run() -> list[dict[str, Any]]:
    """One row a case: `name`, `ours_seconds`, `peer`, `peer_seconds`, `ratio`, `spread`, `required_ratio`."""
    return [pair_losses()]


def pair_losses() -> dict[str, Any]:
    """Multi-similarity + 0.025 · circle + 10 triplets an anchor, as Yandex Cup 2022's seed solution adds them up."""
    embeddings, labels = batch()
    check_pairs(embeddings, labels)
    ours, theirs = growth("our_pairs"), growth("their_pairs")
    assert ours <= MEMORY_SHARE * theirs, f"grew by {ours:.0f} MiB, the peer by {theirs:.0f}"
    row = timed(lambda: our_pairs(embeddings, labels), lambda: their_pairs(embeddings, labels))
    name = f"three pair losses, {ROWS:,} × {WIDTH}, forward and backward (peer's memory {theirs:.0f} MiB)"
    peer_name = "pytorch-metric-learning, the three summed"
    return {"name": name, "peer": peer_name, "required_ratio": REQUIRED_PAIRS, "memory_mb": ours, **row}


def batch() -> tuple[Tensor, Tensor]:
    """Rows around a centre for each label, of a seed."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) // ROWS_PER_LABEL
    centres = torch.randn(ROWS // ROWS_PER_LABEL, WIDTH, generator=generator)
    return centres[labels] + torch.randn(ROWS, WIDTH, generator=generator), labels


def our_pairs(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of ours."""
    leaf = embeddings.clone().requires_grad_()
    loss = PairLosses()(leaf, labels, torch.Generator().manual_seed(0)).loss
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def their_pairs(
    embeddings: Tensor, labels: Tensor, triplets: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Value and gradient of the peer's sum; it draws the triplets itself unless they are given."""
    leaf = embeddings.clone().requires_grad_()
    triplet = peer.TripletMarginLoss(
        0.05, swap=True, smooth_loss=True, triplets_per_anchor=10, distance=CosineSimilarity()
    )
    loss = peer.MultiSimilarityLoss(2, 50, 1.0)(leaf, labels) + 0.025 * peer.CircleLoss(0.4, 80)(leaf, labels)
    loss = loss + triplet(leaf, labels, triplets)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def check_pairs(embeddings: Tensor, labels: Tensor) -> None:
    """Both sides must agree on the same triplets."""
    triplets = random_triplets(labels, 10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        our_pairs(embeddings, labels), their_pairs(embeddings, labels, triplets), rtol=1e-4, atol=1e-5
    )


def growth(function: str) -> float:
    """MiB by which one call of a function of this file raises the peak memory of a process of its own."""
    command = [sys.executable, "-c", GROWTH, __file__, function]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def timed(ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, float]:
    """Medians of both, measured in turn."""
    seconds = np.array([(_seconds(ours), _seconds(theirs)) for _ in range(REPEATS)])
    ratios = seconds[:, 1] / seconds[:, 0]
    ratio = float(np.median(ratios))
    ours_seconds, peer_seconds = np.median(seconds, axis=0)
    return {
        "ours_seconds": float(ours_seconds),
        "peer_seconds": float(peer_seconds),
        "ratio": ratio,
        "spread": float(np.ptp(ratios)) / ratio,
    }


def _seconds(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def main() -> None:
    print("| what | ours, s | peer | peer, s | ratio | spread | required | peak memory |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for row in run():
        memory = f"{row['memory_mb']:.0f} MiB" if "memory_mb" in row else ""
        print(
            f"| {row['name']} | {row['ours_seconds']:.3g} | {row['peer']} | {row['peer_seconds']:.3g} "
            f"| {row['ratio']:.1f} | {row['spread']:.0%} | ≥ {row['required_ratio']:g} | {memory} |"
        )


if __name__ == "__main__":
    main()
