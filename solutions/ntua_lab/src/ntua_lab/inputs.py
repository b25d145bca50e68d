"""Batches of spectra out of the packs, their targets, and what training does to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kit_io.ragged import RaggedPack
from kit_nn.pooling import lengths_to_padding_mask
from ntua_lab.config import AXES, InputConfig, TrainConfig
from ntua_lab.data import MEL_ROWS, ROWS, Clips

COLUMNS = {"mel": slice(0, MEL_ROWS), "chroma": slice(MEL_ROWS, ROWS), "fused": slice(0, ROWS)}
STATISTICS_EVERY = 7  # frames; neighbours are alike, and a prime misses no rhythm

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a network is given of some clips: a version, some rows, and the length of windows (0: the whole clip)."""

    pack: RaggedPack
    rows: Int64  # for every clip its item in the pack
    columns: slice
    chunk: int

    @classmethod
    def of(cls, clips: Clips, indices: Int64, settings: InputConfig) -> "Inputs":
        """Take these clips of a data set.

        Raises:
            DataError: one of them has not the version.
        """
        clips.need(settings.version, indices)
        pack, rows = clips.packs[settings.version], clips.rows[settings.version]
        return cls(pack, rows, COLUMNS[settings.features], settings.chunk)

    def whole(self, indices: Int64) -> tuple[Tensor, Tensor]:
        """Return spectra float[b, T, rows], padded at the end, and their padding mask bool[b, T]."""
        return self._tensors(*self.pack.gather(self.rows[indices]))

    def random(self, indices: Int64, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return a random window of each clip; whole clips where there are no windows."""
        if not self.chunk:
            return self.whole(indices)
        lengths = self.pack.lengths[self.rows[indices]]
        taken = np.minimum(lengths, self.chunk)
        start = generator.integers(0, lengths - taken + 1)
        return self._tensors(*self.pack.gather(self.rows[indices], start=start, length=taken, pad_to=self.chunk))

    def windows(self, indices: Int64) -> Int64:
        """Return how many windows cover each clip, int64[indices]."""
        if not self.chunk:
            return np.ones(len(indices), np.int64)
        return np.maximum(1, -(-self.pack.lengths[self.rows[indices]] // self.chunk))

    def covering(self, indices: Int64) -> tuple[Tensor, Tensor, Tensor]:
        """Return windows that cover every clip, their mask, and the place of each one's clip, int64[windows]."""
        if not self.chunk:
            return *self.whole(indices), torch.arange(len(indices))
        owner, start, taken = [], [], []
        lengths = self.pack.lengths[self.rows[indices]]
        for place, (length, windows) in enumerate(zip(lengths.tolist(), self.windows(indices).tolist(), strict=True)):
            last = max(0, length - self.chunk)
            start += np.linspace(0, last, windows).round().astype(int).tolist()
            owner += [place] * windows
            taken += [min(length, self.chunk)] * windows
        x, mask = self._tensors(
            *self.pack.gather(
                self.rows[indices][owner], start=np.array(start), length=np.array(taken), pad_to=self.chunk
            )
        )
        return x, mask, torch.tensor(owner)

    def statistics(self, indices: Int64) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of every row over the clips, float[rows] each; 1 for a row that never changes."""
        frames = [self.pack.item(int(row))[::STATISTICS_EVERY, self.columns] for row in self.rows[indices]]
        table = np.concatenate(frames).astype(np.float64)
        scale = table.std(axis=0)
        scale[scale < 1e-6] = 1.0
        return torch.from_numpy(table.mean(axis=0)).float(), torch.from_numpy(scale).float()

    def _tensors(self, values: Floats, lengths: Int64) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.ascontiguousarray(values[:, :, self.columns]))
        return x, lengths_to_padding_mask(torch.from_numpy(lengths), x.shape[1])


def of_arrays(arrays: Sequence[Floats], settings: InputConfig) -> Inputs:
    """Give a network spectra that lie in memory, float32[140, T] each."""
    pack = RaggedPack.from_items([np.ascontiguousarray(array.T) for array in arrays])
    return Inputs(pack, np.arange(len(arrays)), COLUMNS[settings.features], settings.chunk)


def targets_of(clips: Clips, heads: dict[str, int]) -> dict[str, Tensor]:
    """Return for every head the targets of all clips: genre shares [n, classes] (zeros: unknown), axes [n] (NaN)."""
    targets = {}
    for name in heads:
        if name == "genre":
            known = clips.label >= 0
            shares = np.zeros((len(clips), len(clips.classes)), np.float32)
            shares[np.flatnonzero(known), clips.label[known]] = 1.0
            targets[name] = torch.from_numpy(shares)
        else:
            targets[name] = torch.from_numpy(np.ascontiguousarray(clips.emotion[:, AXES.index(name)]))
    return targets


def augment(x: Tensor, settings: TrainConfig, bands: int, generator: torch.Generator) -> Tensor:
    """Tilt the first `bands` rows and mask runs of frames and bands of standardised spectra [b, T, rows].

    Source: SpecAugment, Park et al., Interspeech 2019, without time warping; a random tilt is what another microphone
    or mastering does, and what is left of loudness when every clip is measured from its own maximum.
    """
    n, frames, rows = x.shape
    if settings.tilt and bands:
        slope = settings.tilt * torch.randn(n, 1, 1, generator=generator)
        ramp = torch.zeros(rows)
        ramp[:bands] = torch.linspace(-1.0, 1.0, bands)
        x = x + slope.to(x.device) * ramp.to(x.device)
    for axis, size, widest in ((1, frames, int(settings.time_mask * frames)), (2, bands, settings.band_mask)):
        if widest < 1 or not size:
            continue
        for _ in range(2):
            width = torch.randint(0, min(widest, size) + 1, (n, 1), generator=generator)
            start = (torch.rand(n, 1, generator=generator) * (size - width + 1)).long()
            place = torch.arange(x.shape[axis])[None]
            hidden = ((place >= start) & (place < start + width)).to(x.device)
            x = x.masked_fill(hidden[:, :, None] if axis == 1 else hidden[:, None, :], 0.0)
    return x


def mix(
    x: Tensor, padding_mask: Tensor, targets: dict[str, Tensor], alpha: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Mix every clip with another of the batch, and their targets in the same shares.

    A pair of which one target is unknown keeps that unknown. Source: Zhang et al., mixup, ICLR 2018.
    """
    share = float(generator.beta(alpha, alpha))
    other = torch.from_numpy(generator.permutation(len(x)))
    mixed = {}
    for name, target in targets.items():
        blend = share * target + (1 - share) * target[other]
        if name == "genre":
            both = (target.sum(dim=1) > 0) & (target[other].sum(dim=1) > 0)
            blend = blend * both[:, None]
        mixed[name] = blend
    return share * x + (1 - share) * x[other], padding_mask & padding_mask[other], mixed
