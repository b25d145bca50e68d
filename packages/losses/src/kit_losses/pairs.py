"""Losses over all pairs of a batch, on cosine similarities, sharing one pass over them.

The similarity matrix is never held: rows are sorted by label and taken in blocks of whole labels, and every block
leaves its share of the value and of the gradient at once. The positives of a block are then in the square at the
diagonal, so that only negatives cost a full row. Memory is O(n · block), whatever the number of losses.

Everything is computed in fp32 (float64 stays float64), also under autocast.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}  # of a block of similarities: one fits the CPU's cache, or fills a GPU


@dataclass(frozen=True)
class _Counts:
    """Of a whole batch: rows, ordered positive pairs, rows with a positive and a negative, rows without a positive."""

    rows: int
    positive_pairs: int
    complete: int
    lonely: int


@dataclass(frozen=True)
class _Block:
    """Similarities `s` float[r, n] of `r` rows, sorted by label, with all rows; columns `own` are they themselves."""

    s: Tensor
    own: slice
    same: Tensor  # bool[r, r]: of one label
    positive: Tensor  # `same` without the diagonal
    highest: Tensor  # float[r, 1]: the largest similarity with a negative, -1 without one


class _Term(Protocol):
    """One pair loss, a mean over something that the labels alone decide."""

    def add(self, block: _Block, counts: _Counts, weight: float, out: Tensor | None) -> Tensor:
        """Return the block's share of the loss, float64; add `weight` × its derivative by `s` to `out` float[r, n]."""


@dataclass(frozen=True)
class _MultiSimilarity:
    alpha: float
    beta: float
    base: float

    def add(self, block: _Block, counts: _Counts, weight: float, out: Tensor | None) -> Tensor:
        shift = ((block.highest - self.base) * self.beta).clamp_(min=0)  # exponents stay at 0 or below
        negative = block.s.mul(self.beta).sub_(shift + self.base * self.beta).exp_()
        negative[:, block.own].masked_fill_(block.same, 0)
        total = negative.sum(dim=1, keepdim=True) + torch.exp(-shift)
        positive = (-self.alpha * (block.s[:, block.own] - self.base)).masked_fill_(~block.positive, -torch.inf)
        positive_total = functional.softplus(torch.logsumexp(positive, dim=1, keepdim=True))
        if out is not None:
            out.addcmul_(negative, weight / (total * counts.rows))
            out[:, block.own].sub_(positive.sub_(positive_total).exp_().mul_(weight / counts.rows))
        losses = positive_total / self.alpha + (total.log() + shift) / self.beta
        return losses.sum(dtype=torch.float64) / counts.rows


@dataclass(frozen=True)
class _Circle:
    margin: float
    scale: float

    def add(self, block: _Block, counts: _Counts, weight: float, out: Tensor | None) -> Tensor:
        m, s = self.margin, block.s[:, block.own]
        pull = block.s.add(m).clamp_(min=0)
        highest = (block.highest + m).clamp_(min=0)
        shift = (self.scale * highest * (highest - 2 * m)).clamp_(min=0)  # the largest exponent, or above all of them
        negative = torch.addcmul(-shift, pull, pull - 2 * m, value=self.scale).exp_()
        negative[:, block.own].masked_fill_(block.same, 0)
        total = negative.sum(dim=1, keepdim=True)
        positive_pull = functional.relu(1 + m - s)
        positive = (-self.scale * positive_pull * (s - (1 - m))).masked_fill_(~block.positive, -torch.inf)
        positive_total = torch.logsumexp(positive, dim=1, keepdim=True)
        both = positive_total + total.log() + shift  # -inf where there is no positive or no negative: no loss
        if out is not None:
            factor = both.sigmoid() * (weight * self.scale / max(counts.complete, 1))
            out.addcmul_(negative.mul_(pull), factor / total.masked_fill(total == 0, 1))
            share = positive.sub_(positive_total.masked_fill(positive_total.isneginf(), 0)).exp_()
            out[:, block.own].sub_(share.mul_(positive_pull).mul_(factor))
        return functional.softplus(both).sum(dtype=torch.float64) / max(counts.complete, 1)


@dataclass(frozen=True)
class _NtXent:
    temperature: float

    def add(self, block: _Block, counts: _Counts, weight: float, out: Tensor | None) -> Tensor:
        shift = block.highest / self.temperature
        negative = block.s.div(self.temperature).sub_(shift).exp_()
        negative[:, block.own].masked_fill_(block.same, 0)
        total = negative.sum(dim=1, keepdim=True)
        against = total.log() + shift - block.s[:, block.own] / self.temperature
        if out is not None:
            share = against.sigmoid().masked_fill_(~block.positive, 0)
            share.mul_(weight / (self.temperature * max(counts.positive_pairs, 1)))
            out.addcmul_(negative, share.sum(dim=1, keepdim=True) / total.masked_fill(total == 0, 1))
            out[:, block.own].sub_(share)
        return functional.softplus(against)[block.positive].sum(dtype=torch.float64) / max(counts.positive_pairs, 1)


@dataclass(frozen=True)
class _SmoothTriplets:
    """Swapped triplets under softplus; row numbers of the sorted batch, ordered by anchor."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    margin: float

    def add(self, block: _Block, counts: _Counts, weight: float, out: Tensor | None) -> Tensor:
        first, last = torch.searchsorted(
            self.anchors, torch.tensor([block.own.start, block.own.stop], device=self.anchors.device)
        ).tolist()
        a, p = self.anchors[first:last] - block.own.start, self.positives[first:last] - block.own.start
        n, width = self.negatives[first:last], block.s.shape[1]
        s = block.s.view(-1)
        near_at = a * width + p + block.own.start
        from_anchor, from_positive = a * width + n, p * width + n  # a positive's row is in the block: labels are whole
        far_at = torch.where(s[from_anchor] >= s[from_positive], from_anchor, from_positive)
        violation = s[far_at] - s[near_at] + self.margin
        if out is not None:
            slope = violation.sigmoid() * (weight / max(len(self.anchors), 1))
            out.view(-1).index_add_(0, far_at, slope).index_add_(0, near_at, slope, alpha=-1)
        return functional.softplus(violation).sum(dtype=torch.float64) / max(len(self.anchors), 1)


class _OverPairs(torch.autograd.Function):
    """The weighted sum of terms on unit rows `z` float[n, d] that are sorted by label, and the terms alone."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, labels: Tensor, terms: Sequence[_Term], weights: Sequence[float], counts: _Counts
    ) -> tuple[Tensor, Tensor]:
        values = torch.zeros(len(terms), dtype=torch.float64, device=z.device)
        gradient = torch.zeros_like(z) if ctx.needs_input_grad[0] else None
        for block in _blocks(z, labels):
            ds = None if gradient is None else torch.zeros_like(block.s)
            for number, (term, weight) in enumerate(zip(terms, weights, strict=True)):
                values[number] += term.add(block, counts, weight, ds)
            if gradient is not None and ds is not None:
                gradient[block.own].addmm_(ds, z)
                gradient.addmm_(ds.T, z[block.own])
        total = values @ torch.tensor(weights, dtype=torch.float64, device=z.device)
        parts = values.to(z.dtype, copy=True)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(parts)
        return total.to(z.dtype), parts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.saved_tensors[0] * upstream, None, None, None, None


def multi_similarity(
    embeddings: Tensor, labels: Tensor, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5
) -> Tensor:
    """Multi-similarity loss without a miner, mean over all anchors.

    Shapes: `embeddings` float[n, d], of any norm; `labels` int[n]. Returns a scalar.

    Source: Wang et al., Multi-Similarity Loss (CVPR 2019); equal to pytorch-metric-learning's MultiSimilarityLoss.
    """
    return _single(embeddings, labels, _MultiSimilarity(alpha, beta, base))


def circle(embeddings: Tensor, labels: Tensor, *, margin: float = 0.4, scale: float = 80.0) -> Tensor:
    """Circle loss, mean over the anchors that have a positive and a negative.

    Shapes: as `multi_similarity`.

    Source: Sun et al., Circle Loss (CVPR 2020); equal to pytorch-metric-learning's CircleLoss.
    """
    return _single(embeddings, labels, _Circle(margin, scale))


def nt_xent(embeddings: Tensor, labels: Tensor, *, temperature: float = 0.07) -> Tensor:
    """NT-Xent: every positive pair against all negatives of its anchor, mean over positive pairs.

    Shapes: as `multi_similarity`.

    Source: Chen et al., SimCLR (ICML 2020); equal to pytorch-metric-learning's NTXentLoss.
    """
    return _single(embeddings, labels, _NtXent(temperature))


def contrastive(
    embeddings: Tensor, labels: Tensor, *, positive_margin: float = 1.0, negative_margin: float = 0.0
) -> Tensor:
    """Contrastive loss on similarities: `relu(positive_margin - s)` of positives plus `relu(s - negative_margin)`.

    Each of the two is a mean over the pairs where it is above 0, which needs the whole matrix at once: O(n²) memory.
    Shapes: as `multi_similarity`.

    Source: Hadsell et al. (CVPR 2006); equal to pytorch-metric-learning's ContrastiveLoss with cosine similarity.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        z = unit_rows(embeddings)
        s, same = z @ z.T, labels[:, None] == labels
        other = ~same
        same.fill_diagonal_(False)
        violations = functional.relu(positive_margin - s[same]), functional.relu(s[other] - negative_margin)
        near, far = (excess.sum() / (excess > 0).sum().clamp(min=1) for excess in violations)
        return near + far


def random_triplets(
    labels: Tensor, per_anchor: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw `per_anchor` triplets for every anchor that has a positive and a negative: anchors, positives, negatives.

    Positives and negatives are uniform over those of the anchor, with replacement. Shapes: `labels` int[n]; the answer
    is three int64[t] of row numbers.
    """
    order = torch.argsort(labels, stable=True)
    anchors, positives, negatives = (order[places] for places in _sorted_triplets(labels[order], per_anchor, generator))
    return anchors, positives, negatives


def triplet_margin(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.05,
    swap: bool = False,
    smooth: bool = False,
    per_anchor: int = 10,
    triplets: tuple[Tensor, Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Triplet loss on similarities, `s(a, n) - s(a, p) + margin` under relu or softplus (`smooth`), mean where above 0.

    Shapes: as `multi_similarity`. `swap`: the negative may be compared with the positive, where it is nearer to that.
    `triplets`: given ones (anchors, positives, negatives); otherwise drawn by `random_triplets`.

    Source: Schroff et al., FaceNet (CVPR 2015); Balntas et al. (BMVC 2016) for the swap; equal to
    pytorch-metric-learning's TripletMarginLoss with cosine similarity on the same triplets.
    """
    anchors, positives, negatives = triplets or random_triplets(labels, per_anchor, generator)
    with torch.autocast(embeddings.device.type, enabled=False):
        z = unit_rows(embeddings)
        a, p, n = (z.index_select(0, rows) for rows in (anchors, positives, negatives))
        near, far = torch.linalg.vecdot(a, p), torch.linalg.vecdot(a, n)
        if swap:
            far = torch.maximum(far, torch.linalg.vecdot(p, n))
        violation = far - near + margin
        losses = functional.softplus(violation) if smooth else functional.relu(violation)
        return losses.sum() / (losses > 0).sum().clamp(min=1)


class PairLoss(NamedTuple):
    """A weighted sum of pair losses, its parts, and how much there was to learn from."""

    loss: Tensor
    parts: dict[str, Tensor]
    """By name, unweighted, without gradient."""
    positive_pairs: int
    """Ordered pairs of different rows of one label. 0: nothing to pull together, which the caller must say."""
    lonely_anchors: int
    """Rows without a positive."""


class PairLosses(nn.Module):
    """A weighted sum of pair losses that share one pass over the similarities; a loss of weight 0 is not computed.

    The defaults are multi-similarity + 0.025 · circle + smooth swapped triplets, the recipe of Yandex Cup 2022's
    seed solution. Everything is as in the functions of this module; the pass computes value and gradient together, so
    that the gradient exists once.
    """

    def __init__(
        self,
        *,
        multi_similarity: float = 1.0,
        circle: float = 0.025,
        triplet: float = 1.0,
        nt_xent: float = 0.0,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 1.0,
        circle_margin: float = 0.4,
        circle_scale: float = 80.0,
        triplet_margin: float = 0.05,
        triplets_per_anchor: int = 10,
        temperature: float = 0.07,
    ) -> None:
        """Choose weights and settings; those of a loss are the arguments of its function.

        Raises:
            ValueError: every weight is 0.
        """
        super().__init__()
        self._terms: dict[str, tuple[float, _Term]] = {}
        if multi_similarity:
            self._terms["multi_similarity"] = multi_similarity, _MultiSimilarity(alpha, beta, base)
        if circle:
            self._terms["circle"] = circle, _Circle(circle_margin, circle_scale)
        if nt_xent:
            self._terms["nt_xent"] = nt_xent, _NtXent(temperature)
        self._triplet, self._triplet_margin, self._per_anchor = triplet, triplet_margin, triplets_per_anchor
        if not self._terms and not triplet:
            raise ValueError("every weight is 0: nothing would be learnt")

    def forward(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> PairLoss:
        """Losses of `embeddings` float[n, d] with `labels` int[n]; `generator` draws the triplets."""
        order = torch.argsort(labels, stable=True)
        labels = labels[order]
        counts = _count(labels)
        terms = dict(self._terms)
        if self._triplet:
            triplets = _sorted_triplets(labels, self._per_anchor, generator)
            terms["triplet"] = self._triplet, _SmoothTriplets(*triplets, self._triplet_margin)
        weights, weighted = [weight for weight, _ in terms.values()], [term for _, term in terms.values()]
        with torch.autocast(embeddings.device.type, enabled=False):
            z = unit_rows(embeddings).index_select(0, order)
            loss, values = _over_pairs(z, labels, weighted, weights, counts)
        return PairLoss(loss, dict(zip(terms, values.unbind(), strict=True)), counts.positive_pairs, counts.lonely)


def _single(embeddings: Tensor, labels: Tensor, term: _Term) -> Tensor:
    order = torch.argsort(labels, stable=True)
    labels = labels[order]
    with torch.autocast(embeddings.device.type, enabled=False):
        z = unit_rows(embeddings).index_select(0, order)
        return _over_pairs(z, labels, [term], [1.0], _count(labels))[0]


def _over_pairs(
    z: Tensor, labels: Tensor, terms: Sequence[_Term], weights: Sequence[float], counts: _Counts
) -> tuple[Tensor, Tensor]:
    loss, values = _OverPairs.apply(z, labels, terms, weights, counts)  # type: ignore[no-untyped-call]  # torch types no Function.apply
    return loss, values


def unit_rows(embeddings: Tensor) -> Tensor:
    """Return rows [n, d] at length 1, float32, or float64 where they are so already; to be called without autocast."""
    wide = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return functional.normalize(wide, dim=1)


def _count(labels: Tensor) -> _Counts:
    sizes = torch.unique_consecutive(labels, return_counts=True)[1]
    of_several = sizes[sizes > 1]
    pairs, complete, lonely = torch.stack(
        [(sizes * (sizes - 1)).sum(), of_several.sum() * (len(sizes) > 1), (sizes == 1).sum()]
    ).tolist()
    return _Counts(len(labels), pairs, complete, lonely)


def _sorted_triplets(
    labels: Tensor, per_anchor: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`random_triplets` for labels that are sorted; the anchors rise."""
    n = len(labels)
    _, inverse, counts = torch.unique_consecutive(labels, return_inverse=True, return_counts=True)
    starts, sizes = (counts.cumsum(0) - counts)[inverse], counts[inverse]
    rows = torch.arange(n, device=labels.device)
    anchors = rows[(sizes > 1) & (sizes < n)].repeat_interleave(per_anchor)
    start, size = starts[anchors], sizes[anchors]
    positives, negatives = (
        (torch.rand(len(anchors), generator=generator, device=labels.device, dtype=torch.float64) * span).long()
        for span in (size - 1, n - size)
    )
    positives = positives + start
    positives += positives >= anchors  # step over the anchor itself
    negatives += size * (negatives >= start)  # step over its label
    return anchors, positives, negatives


def _blocks(z: Tensor, labels: Tensor) -> Iterator[_Block]:
    """Blocks of whole labels, about as large as the device likes; one label that is larger makes a block alone."""
    wanted = max(1, _BLOCK_ELEMENTS.get(z.device.type, 2**22) // max(len(z), 1))
    ends = torch.unique_consecutive(labels, return_counts=True)[1].cumsum(0).tolist()
    start = 0
    for end, following in zip(ends, [*ends[1:], None], strict=True):
        if following is not None and following - start <= wanted:
            continue
        own = slice(start, end)
        s = z[own] @ z.T
        same = labels[own, None] == labels[None, own]
        square = s[:, own].clone()
        s[:, own].masked_fill_(same, -1)
        highest = s.amax(dim=1, keepdim=True)
        s[:, own] = square
        yield _Block(s, own, same, same.clone().fill_diagonal_(False), highest)
        start = end
