"""Losses beside pytorch-metric-learning: forward and backward, in time and in peak memory.

    python benchmarks/bench_losses.py

takes about a minute and prints a Markdown table. Before anything counts, both sides must agree in value and gradient
on the same triplets. The two are measured in turn. Peak memory is what a process of its own grows by in one
step, above the libraries and the batch (Linux); it must be at most half the peer's.
"""

from typing import Any

import torch
from pytorch_metric_learning import losses as peer
from pytorch_metric_learning.distances import CosineSimilarity
from timing import in_own_process, in_turn
from torch import Tensor

from kit_losses.pairs import PairLosses, random_triplets

ROWS, WIDTH, ROWS_PER_LABEL = 2_000, 128, 10
REPEATS = 5
REQUIRED_PAIRS = 6.0
MEMORY_SHARE = 0.5
GROWTH = """
import sys
import bench_losses
import torch
from timing import own_peak_mb
step = getattr(bench_losses, sys.argv[1])
embeddings, labels = bench_losses.batch()
small = torch.randperm(len(labels))[:64]
step(embeddings[small], labels[small])
before = own_peak_mb()
step(embeddings, labels)
print(own_peak_mb() - before)
"""


def run() -> list[dict[str, Any]]:
    """One row a case: `name`, `ours_seconds`, `peer`, `peer_seconds`, `ratio`, `spread`, `required_ratio`."""
    return [pair_losses()]


def pair_losses() -> dict[str, Any]:
    """Multi-similarity + 0.025 · circle + 10 triplets an anchor, as Yandex Cup 2022's seed solution adds them up."""
    embeddings, labels = batch()
    check_pairs(embeddings, labels)
    ours, theirs = (in_own_process(GROWTH, step) for step in ("our_pairs", "their_pairs"))
    assert ours <= MEMORY_SHARE * theirs, f"grew by {ours:.0f} MiB, the peer by {theirs:.0f}"
    name = f"three pair losses, {ROWS:,} × {WIDTH}, forward and backward (peer's memory {theirs:.0f} MiB)"
    row = in_turn(
        name,
        lambda: our_pairs(embeddings, labels),
        "pytorch-metric-learning, the three summed",
        lambda: their_pairs(embeddings, labels),
        required=REQUIRED_PAIRS,
        repeats=REPEATS,
    )
    return row | {"memory_mb": ours}


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


if __name__ == "__main__":
    from run import render_rows

    print(render_rows(run()))
