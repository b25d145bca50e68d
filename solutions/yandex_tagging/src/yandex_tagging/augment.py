"""What training does to tracks: windows before they are read, and changes of a batch after.

All draws come from one NumPy generator that the caller seeds for each batch, so that a resumed run repeats them; new
tensors are made, and what was read is never changed.
"""

import numpy as np
import torch
from torch import Tensor

from kit_nn.pooling import lengths_to_padding_mask


def draw_windows(
    lengths: np.ndarray, generator: np.random.Generator, *, span: float, span_shortest: float, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the part of each track that is read: (first frame, frames), int64 [b], at least one frame.

    With probability `span` a random span with a share of `span_shortest` to 1 of the frames; then at most `longest`
    frames of it (0: no limit), at a random place.
    """
    b = len(lengths)
    share = np.where(generator.random(b) < span, generator.uniform(span_shortest, 1, b), 1.0)
    kept = np.maximum(np.rint(share * lengths), 1).astype(np.int64)
    if longest:
        kept = np.minimum(kept, longest)
    start = np.floor(generator.random(b) * (lengths - kept + 1)).astype(np.int64)
    return start, kept


def drop_frames(x: Tensor, lengths: Tensor, generator: np.random.Generator, rate: float) -> tuple[Tensor, Tensor]:
    """Leave each frame out with probability `rate` and close the gaps; of each track at least one frame stays."""
    b, T, _ = x.shape
    draws = torch.from_numpy(generator.random((b, T), np.float32)).to(x.device)
    real = ~lengths_to_padding_mask(lengths, T)
    kept = (draws >= rate) & real
    spare = draws.masked_fill(~real, -1).argmax(1)  # the frame with the largest draw stays in any case
    kept[torch.arange(b, device=x.device), spare] = True
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    lengths = kept.sum(1)
    width = int(lengths.max())
    order = order[:, :width]
    x = x.gather(1, order[:, :, None].expand(-1, -1, x.shape[2]))
    return x.masked_fill(lengths_to_padding_mask(lengths, width)[:, :, None], 0.0), lengths


def turn_round(x: Tensor, lengths: Tensor, generator: np.random.Generator, probability: float) -> Tensor:
    """Turn time round, for each track with a probability."""
    b, T, _ = x.shape
    turned = torch.from_numpy(generator.random(b) < probability).to(x.device)
    steps = torch.arange(T, device=x.device).expand(b, T)
    back = lengths[:, None] - 1 - steps
    index = torch.where(turned[:, None] & (back >= 0), back, steps)
    return x.gather(1, index[:, :, None].expand_as(x))


def add_noise(x: Tensor, lengths: Tensor, generator: np.random.Generator, scale: Tensor) -> Tensor:
    """Add normal noise with the deviations `scale` [dim] to the real frames."""
    noise = torch.from_numpy(generator.standard_normal(x.shape, np.float32)).to(x.device) * scale
    return x + noise.masked_fill(lengths_to_padding_mask(lengths, x.shape[1])[:, :, None], 0.0)


def mixup(x: Tensor, lengths: Tensor, targets: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each track with another of the batch, frame by frame, and their labels by the same share (uniform in 0..1).

    The result is as long as the longer one; behind the end of the shorter the longer goes on alone.
    """
    b, T, _ = x.shape
    other = torch.from_numpy(generator.permutation(b)).to(x.device)
    share = torch.from_numpy(generator.random(b, np.float32)).to(x.device)
    real = (~lengths_to_padding_mask(lengths, T)).to(x.dtype)
    own, others = share[:, None] * real, (1 - share)[:, None] * real[other]
    total = (own + others).clamp_min(1e-6)  # 0 only where both have ended
    mixed = (own / total)[:, :, None] * x + (others / total)[:, :, None] * x[other]
    labels = share[:, None] * targets + (1 - share)[:, None] * targets[other]
    return mixed, torch.maximum(lengths, lengths[other]), labels


def cutmix(
    x: Tensor, lengths: Tensor, targets: Tensor, generator: np.random.Generator, probability: float
) -> tuple[Tensor, Tensor]:
    """Paste a span of another track, up to half of this one, over a random place of it; its labels join.

    For each track with a probability; returns frames and labels, the lengths stay.
    """
    b, T, _ = x.shape
    other = torch.from_numpy(generator.permutation(b)).to(x.device)
    chosen = torch.from_numpy(generator.random(b) < probability).to(x.device)
    share, place, source = torch.from_numpy(generator.random((3, b), np.float32)).to(x.device)
    most = torch.minimum(lengths // 2, lengths[other])
    chosen = chosen & (most > 0)
    span = (1 + (share * most).long()).clamp_max(most.clamp_min(1))
    start = (place * (lengths - span + 1)).long()
    begin = (source * (lengths[other] - span + 1).clamp_min(1)).long()
    steps = torch.arange(T, device=x.device)
    inside = (steps >= start[:, None]) & (steps < (start + span)[:, None]) & chosen[:, None]
    index = (begin[:, None] + steps - start[:, None]).clamp(0, T - 1)
    pasted = x[other].gather(1, index[:, :, None].expand_as(x))
    labels = torch.where(chosen[:, None], torch.maximum(targets, targets[other]), targets)
    return torch.where(inside[:, :, None], pasted, x), labels
