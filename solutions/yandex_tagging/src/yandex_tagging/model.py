"""The networks, from frames [b, T, dim] and their padding to logits [b, tags]; and the families of tags."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from kit_nn.encoders import CrossAttention, MaskedConformer, ResNet1d, TransformerEncoder
from kit_nn.pooling import AttentionPooling, GeM, MeanMax, masked_max, masked_mean, zero_padding
from yandex_tagging.config import NetworkConfig


class TagNet(nn.Module):
    """Input layer, encoder, pooling and head; each part as `NetworkConfig` says.

    With pooling "last" the answer depends on how much padding a track gets: the original's flaw, kept on demand.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: NetworkConfig, dim: int, n_tags: int, parents: np.ndarray | None = None) -> None:
        """Build it with random weights; `parents` int64 [n_tags] is needed by the head "family" (−1: no parent)."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))
        d = dim if config.input == "identity" else config.d
        self.input = _input(config, dim, d)
        self.encoder = _encoder(config, d)
        width = self.encoder.channels if isinstance(self.encoder, ResNet1d) else d
        self.queries: CrossAttention | None = None
        self.pooling: Callable[[Tensor, Tensor], Tensor] | None = None
        self.pooled_norm: nn.Module = nn.Identity()
        if config.head == "queries":
            self.queries = CrossAttention(
                width, n_tags, config.heads, config.query_layers, config.query_ff, config.dropout
            )
        elif config.head != "frames":
            self.pooling, width = _pooling(config, width)
            norms = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": nn.BatchNorm1d}
            self.pooled_norm = norms[config.pooled_norm](width)
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.head = _head(config, width, n_tags, parents)

    def standardise_by(self, mean: np.ndarray, deviation: np.ndarray) -> None:
        """Set what is subtracted from each input dimension and what it is divided by."""
        self.mean.copy_(torch.from_numpy(mean))
        self.deviation.copy_(torch.from_numpy(deviation))

    def frames(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return what the encoder makes of the frames, [b, T, channels]."""
        hidden = zero_padding(self.input((x - self.mean) / self.deviation), padding_mask)
        return hidden if self.encoder is None else self.encoder(hidden, padding_mask)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return logits [b, n_tags]."""
        hidden = self.frames(x, padding_mask)
        if isinstance(self.head, FrameHead):
            return self.head(self.head_dropout(hidden), padding_mask)
        if self.queries is not None:
            vectors = self.queries(hidden, padding_mask)  # [b, n_tags, d]
        else:
            assert self.pooling is not None
            vectors = self.pooled_norm(self.pooling(hidden, padding_mask))
        return self.head(self.head_dropout(vectors))

    def frame_weights(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return how much each frame counts, [b, T, n]: a column for each tag with the heads `queries` and
        `frames`, else for each head of the attention pooling, else one.

        Without attention it is the share of the pooled channels whose maximum lies in the frame, or the same for all.
        """
        hidden = self.frames(x, padding_mask)
        if self.queries is not None:
            _, weights = self.queries.attend(hidden, padding_mask, need_weights=True)
            assert weights is not None
            return weights.transpose(1, 2)
        if isinstance(self.head, FrameHead):
            return self.head.weights(hidden, padding_mask)
        attention = (
            self.pooling if isinstance(self.pooling, AttentionPooling) else getattr(self.pooling, "attention", 0)
        )
        if isinstance(attention, AttentionPooling):
            return attention.weights(hidden, padding_mask)
        if self.pooling is masked_mean:
            real = (~padding_mask).float()[:, :, None]
            return real / real.sum(1, keepdim=True)
        winners = hidden.masked_fill(padding_mask[:, :, None], -torch.inf).argmax(1)  # [b, channels]
        return nn.functional.one_hot(winners, hidden.shape[1]).float().mean(1)[:, :, None]


class AttentionMax(nn.Module):
    """Attention pooling and the maximum side by side: [b, 2d]."""

    def __init__(self, d: int, heads: int, hidden: int | None) -> None:
        super().__init__()
        self.attention = AttentionPooling(d, heads, hidden)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, 2d]."""
        return torch.cat([self.attention(x, padding_mask), masked_max(x, padding_mask)], -1)


class FamilyHead(nn.Module):
    """A linear layer where the logit of a tag gets a learned share of the logit of its parent, at first none."""

    parent: Tensor

    def __init__(self, d: int, parents: np.ndarray) -> None:
        super().__init__()
        self.linear = nn.Linear(d, len(parents))
        self.share = nn.Parameter(torch.zeros(len(parents)))
        self.register_buffer("parent", torch.from_numpy(parents))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [b, n_tags]."""
        own = self.linear(x)
        return own + self.share * (self.parent >= 0) * own[:, self.parent.clamp_min(0)]


class FrameHead(nn.Module):
    """Logits of each frame, averaged over the frames with weights that each tag finds for itself.

    Source: Kong et al. 2018, arXiv:1711.00927 (attention model for AudioSet), on logits in place of probabilities.
    """

    def __init__(self, d: int, n_tags: int) -> None:
        super().__init__()
        self.value = nn.Linear(d, n_tags)
        self.score = nn.Linear(d, n_tags)

    def weights(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, T, n_tags]: 0 for padding, sum 1 over the frames."""
        return self.score(x).masked_fill(padding_mask[:, :, None], -torch.inf).softmax(1)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return logits [b, n_tags]."""
        return (self.weights(x, padding_mask) * self.value(x)).sum(1)


class PerTagClassifier(nn.Module):
    """One logistic unit for each tag on a vector of its own: [b, n_tags, d] → [b, n_tags]."""

    def __init__(self, d: int, n_tags: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_tags, d) * d**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_tags))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [b, n_tags]."""
        return (x * self.weight).sum(-1) + self.bias


class IndependentHeads(nn.Module):
    """For each tag a hidden layer and a logistic unit of its own, which share nothing: [b, d] → [b, n_tags]."""

    def __init__(self, d: int, hidden: int, n_tags: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(n_tags, d, hidden) * (2 / d) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(n_tags, hidden))
        self.dropout = nn.Dropout(dropout)
        self.last = PerTagClassifier(hidden, n_tags)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [b, n_tags]."""
        return self.last(self.dropout(torch.relu(torch.einsum("bd,kdh->bkh", x, self.first) + self.bias)))


def last_position(x: Tensor, padding_mask: Tensor) -> Tensor:
    """Return x at the last position of the batch, padding or not: the original's pooling."""
    return x[:, -1]


def find_parents(tags: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Return for each tag the tag that comes with more than `share` of its tracks, the rarest of several; −1: none.

    `tags` is bool [n, k]; returns int64 [k]. A parent is more frequent than its child.
    """
    counts = tags.sum(0)
    together = tags.T.astype(np.float32) @ tags.astype(np.float32)
    given = together / np.maximum(counts, 1)[:, None]  # [i, j]: share of the tracks of i that have j
    possible = (given > share) & (counts[None, :] > counts[:, None])
    rarest = np.where(possible, counts[None, :], np.iinfo(np.int64).max).argmin(1)
    return np.where(possible.any(1), rarest, -1).astype(np.int64)


def fill_in_parents(tags: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Return the labels, bool [n, k], where each tag brings its parent (and that one its own) along."""
    filled = tags.copy()
    for _ in range(8):  # deeper chains than this are no families
        before = filled.sum()
        for tag in np.flatnonzero(parents >= 0):
            filled[:, parents[tag]] |= filled[:, tag]
        if filled.sum() == before:
            break
    return filled


def _input(config: NetworkConfig, dim: int, d: int) -> nn.Module:
    first: list[nn.Module] = [nn.LayerNorm(dim)] if config.input_norm else []
    if config.input == "identity":
        return nn.Sequential(*first)
    if config.input == "linear":
        return nn.Sequential(*first, nn.Linear(dim, d))
    return nn.Sequential(
        *first,
        nn.Linear(dim, config.input_hidden),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.input_hidden, d),
        nn.LayerNorm(d),
    )


def _encoder(config: NetworkConfig, d: int) -> nn.Module | None:
    positions = None if config.positions == "none" else config.positions
    if config.encoder == "transformer":
        return TransformerEncoder(
            d,
            config.layers,
            config.heads,
            config.ff,
            config.dropout,
            norm_first=config.norm_first,
            activation=config.activation,
            positions=positions,
        )
    if config.encoder == "conformer":
        return MaskedConformer(
            d,
            config.layers,
            config.heads,
            config.ff,
            config.kernel,
            config.dropout,
            norm=config.conformer_norm,
            positions=positions,
        )
    if config.encoder == "resnet1d":
        return ResNet1d(d, config.channels, config.kernels, config.dropout)
    return None


def _pooling(config: NetworkConfig, d: int) -> tuple[Callable[[Tensor, Tensor], Tensor], int]:
    hidden = config.pooling_hidden or None
    if config.pooling == "attention":
        return AttentionPooling(d, config.pooling_heads, hidden), d
    if config.pooling == "attention-max":
        return AttentionMax(d, config.pooling_heads, hidden), 2 * d
    if config.pooling == "mean-max":
        return MeanMax(), 2 * d
    if config.pooling == "gem":
        return GeM(), d
    return {"mean": masked_mean, "max": masked_max, "last": last_position}[config.pooling], d


def _head(config: NetworkConfig, d: int, n_tags: int, parents: np.ndarray | None) -> nn.Module:
    if config.head == "queries":
        return PerTagClassifier(d, n_tags)
    if config.head == "frames":
        return FrameHead(d, n_tags)
    if config.head == "independent":
        return IndependentHeads(d, config.head_hidden, n_tags, config.head_dropout)
    if config.head == "family":
        if parents is None:
            raise ValueError("the head 'family' needs the parents of the tags")
        return FamilyHead(d, parents)
    if config.head == "mlp":
        return nn.Sequential(
            nn.Linear(d, config.head_hidden),
            nn.ReLU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(config.head_hidden, config.head_hidden),
            nn.LayerNorm(config.head_hidden),
            nn.Linear(config.head_hidden, n_tags),
        )
    return nn.Linear(d, n_tags)
