"""Which tracks make a batch, and which frames of them: artists whole, artists in groups, or tracks at random."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kit_io.ragged import RaggedPack
from kit_train.batches import random_batches
from kit_train.device_pack import to_device
from yandex_artists.config import StageConfig

Rows = NDArray[np.int64]
SHARE_OF_GPU = 0.5  # of its free memory that the frames may take; larger packs stay on the host


def artist_batches(artists: Rows, size: int, seed: int) -> list[Rows]:
    """Batches with all tracks of up to `size` artists each; no artist is in two batches, none is left out.

    `artists` int64[n] are any numbers: they are only compared. Artists are spread evenly, so that the last batch is not
    a small rest. Returns positions in `artists`.
    """
    _, inverse = np.unique(artists, return_inverse=True)
    n = int(inverse.max()) + 1
    shuffled = np.random.default_rng(seed).permutation(n)
    batch_of_artist = np.empty(n, np.int64)
    for number, chunk in enumerate(np.array_split(shuffled, -(-n // size))):
        batch_of_artist[chunk] = number
    batch = batch_of_artist[inverse]
    order = np.argsort(batch, kind="stable").astype(np.int64)
    return np.split(order, np.flatnonzero(np.diff(batch[order])) + 1)


def group_batches(artists: Rows, size: int, per_artist: int, seed: int) -> list[Rows]:
    """Batches with up to `per_artist` tracks, drawn anew, of up to `size` artists each; every artist once an epoch."""
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(artists)).astype(np.int64)
    by_artist = shuffled[np.argsort(artists[shuffled], kind="stable")]
    sorted_artists = artists[by_artist]
    first = np.r_[True, sorted_artists[1:] != sorted_artists[:-1]]
    starts = np.flatnonzero(first)
    place = np.arange(len(artists)) - starts[np.cumsum(first) - 1]
    drawn = by_artist[place < per_artist]
    return [drawn[rows] for rows in artist_batches(artists[drawn], size, int(generator.integers(2**32)))]


def epoch_batches(artists: Rows, stage: StageConfig, seed: int) -> list[Rows]:
    """The batches of one epoch of a stage: positions in `artists` int64[n]."""
    _, inverse, counts = np.unique(artists, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts[inverse] >= stage.smallest_artist)
    if not len(kept):
        return []
    if stage.batching == "artists":
        batches = artist_batches(artists[kept], stage.batch, seed)
    elif stage.batching == "groups":
        batches = group_batches(artists[kept], stage.batch, stage.per_artist, seed)
    else:
        batches = random_batches(len(kept), stage.batch, seed)
    return [kept[rows] for rows in batches]


def random_windows(lengths: Rows, crop: int, seed: int) -> tuple[Rows, Rows]:
    """First frames and lengths, int64[b], of a window of `crop` frames at a random place; 0: the whole track."""
    taken = np.minimum(lengths, crop) if crop else lengths
    start = np.random.default_rng(seed).integers(0, lengths - taken + 1)
    return start, taken


def rolling_windows(length: int, window: int, hop: int) -> list[tuple[int, int]]:
    """Windows (start, frames) from the end of a track backwards, every `hop` frames while they fit; at least one."""
    if length <= window:
        return [(0, length)]
    return [(start, window) for start in range(length - window, -1, -hop)]


class Frames:
    """Frames of tracks as padded batches on a device: from the device itself where they fit, else from the host."""

    def __init__(self, pack: RaggedPack, device: torch.device) -> None:
        self._pack, self._device = pack, device
        fits = device.type == "cuda" and pack.values.nbytes < SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]
        self._on_device = to_device(pack, device) if fits else None

    def gather(self, rows: Rows, start: Rows | None = None, length: Rows | None = None) -> tuple[Tensor, Tensor]:
        """Frames float32[b, L, channels] with zeros behind the end, and lengths int64[b], of rows of the pack."""
        if self._on_device is not None:
            return self._on_device.gather(rows, start=start, length=length)
        values, lengths = self._pack.gather(rows, start=start, length=length)
        return torch.from_numpy(values).to(self._device), torch.from_numpy(lengths).to(self._device)
