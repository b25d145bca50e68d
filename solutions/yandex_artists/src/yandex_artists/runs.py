"""Finished runs, whatever their method: from run folders and tracks to neighbours and vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kit_core.errors import ConfigError
from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from yandex_artists import infer
from yandex_artists.baseline import BaselineRun
from yandex_artists.data import ANSWERS, Tracks, too_few

Floats = NDArray[np.float32]
Int64 = NDArray[np.int64]


class Encoder(Protocol):
    """What turns tracks into vectors."""

    def embed(self, pack: RaggedPack, rows: Int64) -> Floats:
        """Embeddings float32[n, d] of the items `rows` of a pack; the inner product of two is their similarity."""
        ...


def open_encoder(path: Path, device: str = "cpu") -> Encoder:
    """The encoder of a finished run.

    Raises:
        DataError: the run is unfinished, damaged, or of another format.
    """
    return BaselineRun.open(path) if is_baseline(path) else infer.FittedRun.open(path, device)


def neighbours(paths: Sequence[Path], tracks: Tracks, device: str = "cpu") -> Int64:
    """The 100 nearest of every track, itself left out, the best first, as rows int64[n, 100] into the tracks.

    Raises:
        ConfigError: several runs of which one is a baseline.
        DataError: a run is unfinished, damaged or learnt from other features; or there are fewer than 101 tracks.
    """
    if len(tracks) <= ANSWERS:
        raise too_few(len(tracks))
    baselines = [path for path in paths if is_baseline(path)]
    if baselines and len(paths) > 1:
        raise ConfigError(
            f"{baselines[0]}: a baseline in an ensemble of {len(paths)} runs; only runs of networks are joined: "
            "leave it out, or give it alone"
        )
    if baselines:
        return BaselineRun.open(paths[0]).neighbours(tracks.pack, tracks.rows, ANSWERS)
    return infer.neighbours([infer.FittedRun.open(path, device) for path in paths], tracks, k=ANSWERS)


def is_baseline(path: Path) -> bool:
    """Whether a finished run is of a method without a network; raises as `RunFolder.open`."""
    return bool(RunFolder.open(path).config.get("method", "networks") != "networks")
