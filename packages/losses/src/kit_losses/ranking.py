"""Losses that follow average precision: SmoothAP, SupAP, and ROADMAP, which adds a calibrating contrastive loss.

Each row of a batch is a query, all others are its gallery, those of its label are relevant. Positives are taken pair by
pair in pieces that are computed again for the gradient, so that memory is O(n · piece), not O(n³) or O(n² · positives).
Everything is computed in fp32 (float64 stays float64), also under autocast.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kit_losses.pairs import contrastive, unit_rows

PIECE_ELEMENTS = 2**22  # positive pairs × rows that are compared at once

Step = Callable[[Tensor], Tensor]


def smooth_ap(embeddings: Tensor, labels: Tensor, *, temperature: float = 0.01, count_self: bool = False) -> Tensor:
    """1 - AP with a sigmoid for each comparison of ranks, mean over the rows that have a positive.

    Shapes: `embeddings` float[n, d], of any norm; `labels` int[n]. Returns a scalar. `count_self`: a query is its own
    first hit, as in the authors' code and in pytorch-metric-learning's SmoothAPLoss (whose views of the batch are
    right only for as many labels as rows a label); a search that leaves the query out wants False.

    Source: Brown et al., Smooth-AP (ECCV 2020).
    """

    def sigmoid(difference: Tensor) -> Tensor:
        return (difference / temperature).sigmoid()

    return _average_precision_loss(embeddings, labels, sigmoid, sigmoid, count_self)


def sup_ap(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.01,
    slope: float = 100.0,
    offset: float = 1.44,
    delta: float = 0.05,
) -> Tensor:
    """1 - a lower bound of AP whose slope does not vanish for a negative far above a positive.

    A negative at `x` above the positive adds to its rank sigmoid(x / temperature) for x <= 0, that plus a half up to
    `delta`, and `slope · (x - delta) + offset` beyond; positives count exactly, and without gradient. Shapes: as
    `smooth_ap`.

    Source: Ramzi et al., Robust and Decomposable Average Precision for Image Retrieval (NeurIPS 2021).
    """

    def above(difference: Tensor) -> Tensor:
        near = (difference / temperature).sigmoid() + 0.5 * (difference > 0)
        return torch.where(difference > delta, slope * (difference - delta) + offset, near)

    def exact(difference: Tensor) -> Tensor:
        return (difference.detach() > 0).to(difference.dtype)

    return _average_precision_loss(embeddings, labels, above, exact, count_self=False)


def roadmap(
    embeddings: Tensor,
    labels: Tensor,
    *,
    share: float = 0.5,
    positive_margin: float = 0.9,
    negative_margin: float = 0.6,
    temperature: float = 0.01,
    slope: float = 100.0,
    offset: float = 1.44,
    delta: float = 0.05,
) -> Tensor:
    """(1 - `share`) · SupAP + `share` · contrastive loss, which pulls positives above 0.9 and negatives below 0.6.

    The second part makes similarities comparable between batches. Shapes: as `smooth_ap`. Source: as `sup_ap`.
    """
    ranking = sup_ap(embeddings, labels, temperature=temperature, slope=slope, offset=offset, delta=delta)
    calibration = contrastive(embeddings, labels, positive_margin=positive_margin, negative_margin=negative_margin)
    return (1 - share) * ranking + share * calibration


def _average_precision_loss(
    embeddings: Tensor, labels: Tensor, step_of_negatives: Step, step_of_positives: Step, count_self: bool
) -> Tensor:
    with torch.autocast(embeddings.device.type, enabled=False):
        z = unit_rows(embeddings)
        similarity = z @ z.T
        n = len(labels)
        relevant = labels[:, None] == labels
        others = relevant.sum(dim=1) - 1
        lonely = others == 0
        if not count_self:
            relevant.fill_diagonal_(False)
        queries, hits = torch.nonzero(relevant & ~lonely[:, None], as_tuple=True)
        if not len(queries):
            return z.sum() * 0

        def precisions(similarity: Tensor, queries: Tensor, hits: Tensor) -> Tensor:
            """Rank of each hit among the positives of its query over its rank among all: float[pairs]."""
            difference = similarity.index_select(0, queries)
            difference = difference - difference.gather(1, hits[:, None])
            counted = torch.ones_like(difference, dtype=torch.bool)
            counted.scatter_(1, hits[:, None], False)
            if not count_self:
                counted.scatter_(1, queries[:, None], False)
            positive = counted & relevant.index_select(0, queries)
            among = 1 + (step_of_positives(difference) * positive).sum(dim=1)
            ahead = (step_of_negatives(difference) * (counted & ~positive)).sum(dim=1)
            return among / (among + ahead)

        size = max(1, PIECE_ELEMENTS // n)
        found = [
            checkpoint(precisions, similarity, q, h, use_reentrant=False, preserve_rng_state=False)
            for q, h in zip(torch.split(queries, size), torch.split(hits, size), strict=True)
        ]
        precision = torch.cat(found)
        per_query = precision.new_zeros(n).index_add(0, queries, precision) / (others + count_self).clamp(min=1)
        return 1 - per_query[~lonely].mean()
