"""From frames to one vector, exact under padding: a track alone and inside a padded batch gives the same.

Everywhere `x` is float [b, T, d] and `padding_mask` bool [b, T], True where there is no frame (torch's way). What
stands in padded frames never matters, and every item has at least one frame.
"""

import math

import torch
from torch import Tensor, nn


def lengths_to_padding_mask(lengths: Tensor, T: int) -> Tensor:
    """Return bool [b, T], True from frame `lengths[i]` on, on the device of `lengths` (int [b])."""
    return torch.arange(T, device=lengths.device) >= lengths[:, None]


def zero_padding(x: Tensor, padding_mask: Tensor) -> Tensor:
    """Return x with zeros in padded frames, whatever stood there (NaN too)."""
    return x.masked_fill(padding_mask[:, :, None], 0.0)


def masked_mean(x: Tensor, padding_mask: Tensor) -> Tensor:
    """Return the mean of the real frames, [b, d]."""
    return zero_padding(x, padding_mask).sum(1) / _counts(padding_mask, x)


def masked_max(x: Tensor, padding_mask: Tensor) -> Tensor:
    """Return the largest value of each channel among the real frames, [b, d]."""
    return x.masked_fill(padding_mask[:, :, None], -math.inf).amax(1)


def masked_std(x: Tensor, padding_mask: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the standard deviation over the real frames (divided by n), [b, d]; `eps` bounds its gradient at 0."""
    centred = zero_padding(x - masked_mean(x, padding_mask)[:, None], padding_mask)
    return (centred.square().sum(1) / _counts(padding_mask, x) + eps).sqrt()


class MeanMax(nn.Module):
    """Mean and maximum of the real frames side by side: [b, 2d]."""

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, 2d]."""
        return torch.cat([masked_mean(x, padding_mask), masked_max(x, padding_mask)], -1)


class AttentionPooling(nn.Module):
    """A mean whose weights are learned from the frames, apart for each of `heads` groups of channels: [b, d].

    The score of a frame is Linear(d, heads), or with `hidden` channels Linear, LayerNorm, GELU, Linear.

    Raises:
        ValueError: `d` is no multiple of `heads`.

    Source: Ilse et al. 2018, arXiv:1802.04712, with groups of channels as in multi-head attention.
    """

    def __init__(self, d: int, heads: int = 1, hidden: int | None = None) -> None:
        super().__init__()
        if d % heads:
            raise ValueError(f"heads: found {heads}, expected a divisor of d = {d}")
        self.heads = heads
        self.score: nn.Module = nn.Linear(d, heads)
        if hidden is not None:
            self.score = nn.Sequential(nn.Linear(d, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, heads))

    def weights(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return how much each frame counts, [b, T, heads]: 0 for padding, sum 1 over the frames."""
        scores: Tensor = self.score(zero_padding(x, padding_mask))
        return scores.masked_fill(padding_mask[:, :, None], -math.inf).softmax(1)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, d]."""
        groups = zero_padding(x, padding_mask).view(len(x), x.shape[1], self.heads, -1)
        return torch.einsum("bth,bthc->bhc", self.weights(x, padding_mask), groups).flatten(1)


class GeM(nn.Module):
    """The generalised mean of what is positive, with a learned exponent: p = 1 is the mean, large p the maximum.

    Source: Radenović et al. 2018, arXiv:1711.02512.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, d]; negative values count as `eps`."""
        powers = zero_padding(x, padding_mask).clamp_min(self.eps).pow(self.p)
        return masked_mean(powers, padding_mask).pow(1 / self.p)


def _counts(padding_mask: Tensor, x: Tensor) -> Tensor:
    return (~padding_mask).sum(1, keepdim=True).to(x.dtype)
