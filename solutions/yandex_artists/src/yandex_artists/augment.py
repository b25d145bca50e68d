"""What training does to a padded batch of tracks on its device; random numbers come from torch's global generator.

Everywhere `x` is float32[b, T, channels] with zeros from frame `lengths[i]` on, `lengths` int64[b], and the answer has
zeros there again.
"""

import torch
from torch import Tensor

from yandex_artists.config import AugmentConfig


def augment(x: Tensor, lengths: Tensor, artists: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Apply what the configuration asks for, in a fixed order; `artists` int64[b]. Returns frames and lengths."""
    if config.splice:
        x = splice(x, lengths, artists, config.splice)
    if config.roll:
        x = roll(x, lengths, config.roll)
    if config.keep < 1:
        x, lengths = keep_some(x, lengths, config.keep)
    if config.bootstrap:
        x = bootstrap(x, lengths)
    if config.mask_frames:
        x = mask_run(x, lengths, config.mask_frames)
    if config.seed_recipe:
        x = zero_and_copy_runs(x, lengths)
    if config.channel_dropout:
        kept = torch.rand(len(x), 1, x.shape[2], device=x.device) >= config.channel_dropout
        x = x * kept
    if config.noise:
        x = x + config.noise * x.std() * torch.randn_like(x)
    return x.masked_fill(_steps(x) >= lengths[:, None, None], 0.0), lengths


def bootstrap(x: Tensor, lengths: Tensor) -> Tensor:
    """Every frame is one of the track's, drawn with replacement; padding is never drawn.

    Source: the first place of Yandex Cup 2022, which draws one set of places for the whole batch.
    """
    drawn = (torch.rand(x.shape[:2], device=x.device) * lengths[:, None]).long()
    return _take(x, drawn)


def keep_some(x: Tensor, lengths: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Keep a random share of the frames, between `smallest` and 1 for each track, at least one, in their order."""
    share = smallest + (1 - smallest) * torch.rand(len(x), device=x.device)
    kept = (share * lengths).round().long().clamp(min=1)
    noise = torch.rand(x.shape[:2], device=x.device).masked_fill(_steps(x)[..., 0] >= lengths[:, None], 2.0)
    rank = noise.argsort(dim=1).argsort(dim=1)
    order = torch.where(rank < kept[:, None], 0, 1).argsort(dim=1, stable=True)
    longest = int(kept.max())
    return _take(x, order[:, :longest]), kept


def roll(x: Tensor, lengths: Tensor, probability: float) -> Tensor:
    """Move the beginning of some tracks to their end. Source: the third place of Yandex Cup 2022."""
    shift = (torch.rand(len(x), device=x.device) * lengths).long()
    shift = shift * (torch.rand(len(x), device=x.device) < probability)
    return _take(x, (torch.arange(x.shape[1], device=x.device) + shift[:, None]) % lengths[:, None])


def mask_run(x: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """Zero a run of up to `longest` frames, and never more than half of a track, in half of the tracks."""
    size = (torch.rand(len(x), device=x.device) * (longest + 1)).long().minimum(lengths // 2)
    size = size * (torch.rand(len(x), device=x.device) < 0.5)
    start = (torch.rand(len(x), device=x.device) * (lengths - size + 1)).long()
    steps = _steps(x)[..., 0]
    inside = (steps >= start[:, None]) & (steps < (start + size)[:, None])
    return x.masked_fill(inside[..., None], 0.0)


def splice(x: Tensor, lengths: Tensor, artists: Tensor, probability: float) -> Tensor:
    """Replace the second half of some tracks by frames of another track of the same artist in the batch."""
    same = (artists[:, None] == artists).fill_diagonal_(False)
    has_other = same.any(dim=1) & (torch.rand(len(x), device=x.device) < probability)
    other = torch.multinomial(same.float() + (~same.any(dim=1, keepdim=True)), 1)[:, 0]
    steps = torch.arange(x.shape[1], device=x.device)
    borrowed = _take(x[other], steps % lengths[other, None])
    second_half = (steps >= lengths[:, None] // 2) & has_other[:, None]
    return torch.where(second_half[..., None], borrowed, x)


def zero_and_copy_runs(x: Tensor, lengths: Tensor) -> Tensor:
    """Zero runs of channels and frames, then copy runs of each over another place: the seed's last stage.

    Up to 10 tries on channels (runs of 2 to 5) and 5 on frames (2 to 5 zeroed, 2 to 10 copied); how many is drawn
    first, and each then happens with probability 0.3. Its "swap" copies one way, as here.
    """
    x = x.clone()
    zeroed_channels = _runs(x.new_full((len(x),), x.shape[2]).long(), x.shape[2], tries=10, longest=5)
    zeroed_frames = _runs(lengths, x.shape[1], tries=5, longest=5)
    x.masked_fill_(zeroed_channels[:, None, :], 0.0)
    x.masked_fill_(zeroed_frames[:, :, None], 0.0)
    whole = torch.full_like(lengths, x.shape[2])
    channels = _copied_places(whole, x.shape[2], tries=10, longest=5)
    x = x.gather(2, channels[:, None, :].expand(-1, x.shape[1], -1))
    return _take(x, _copied_places(lengths, x.shape[1], tries=5, longest=10))


def _runs(limits: Tensor, width: int, tries: int, longest: int) -> Tensor:
    """Which places bool[b, width] lie in a drawn run; runs stay below `limits`."""
    steps = torch.arange(width, device=limits.device)
    inside = torch.zeros(len(limits), width, dtype=torch.bool, device=limits.device)
    for happens in _tries(len(limits), tries, limits.device):
        start, size = _draw_run(limits, longest)
        inside |= happens[:, None] & (steps >= start[:, None]) & (steps < (start + size)[:, None])
    return inside


def _copied_places(limits: Tensor, width: int, tries: int, longest: int) -> Tensor:
    """For each place the place that it is copied from, int64[b, width]."""
    places = torch.arange(width, device=limits.device).expand(len(limits), -1).clone()
    steps = torch.arange(width, device=limits.device)
    for happens in _tries(len(limits), tries, limits.device):
        start, size = _draw_run(limits, longest)
        source = (torch.rand(len(limits), device=limits.device) * (limits - size + 1)).long()
        inside = happens[:, None] & (steps >= start[:, None]) & (steps < (start + size)[:, None])
        moved = (steps + (source - start)[:, None]).clamp(0, width - 1)
        places = torch.where(inside, places.gather(1, moved), places)
    return places


def _tries(n: int, tries: int, device: torch.device) -> list[Tensor]:
    count = torch.randint(0, tries + 1, (n,), device=device)
    return [(number < count) & (torch.rand(n, device=device) < 0.3) for number in range(tries)]


def _draw_run(limits: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    size = torch.randint(2, longest + 1, (len(limits),), device=limits.device).minimum(limits)
    start = (torch.rand(len(limits), device=limits.device) * (limits - size + 1)).long()
    return start, size


def _steps(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device)[None, :, None]


def _take(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
