"""Embeddings on the disk: what a model said about tracks, kept for sweeps, re-ranking and ensembles."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kit_core.atomic import write_bytes
from kit_core.errors import DataError

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Vectors:
    """Embeddings float32[n, d] of tracks, in the order of `ids` (int64[n]).

    `folds` (int64[n]) says which fold each is from, where every fold has a model of its own: their embeddings do not
    compare with one another. None: one model for all. `fingerprint` is that of the tracks.
    """

    ids: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    folds: NDArray[np.int64] | None
    fingerprint: str

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.embeddings.ndim != 2 or len(self.embeddings) != n or (self.folds is not None and len(self.folds) != n):
            raise ValueError(f"found {n} ids for embeddings of shape {self.embeddings.shape}")


def save_vectors(path: Path, vectors: Vectors) -> None:
    """Write vectors as safetensors; atomic."""
    arrays = {"ids": vectors.ids.astype(np.int64), "embeddings": vectors.embeddings.astype(np.float32)}
    if vectors.folds is not None:
        arrays["folds"] = vectors.folds.astype(np.int64)
    header = {"header": json.dumps({"format_version": FORMAT_VERSION, "fingerprint": vectors.fingerprint})}
    write_bytes(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, header))


def load_vectors(path: Path) -> Vectors:
    """Read what `save_vectors` wrote.

    Raises:
        DataError: no such file, damaged, or of another format.
    """
    try:
        with safe_open(path, "numpy") as stored:
            header = json.loads((stored.metadata() or {}).get("header", "{}"))
            if header.get("format_version") != FORMAT_VERSION:
                raise ValueError(f"format_version {header.get('format_version')}, not {FORMAT_VERSION}")
            folds = stored.get_tensor("folds") if "folds" in stored.keys() else None  # noqa: SIM118 - no mapping
            return Vectors(stored.get_tensor("ids"), stored.get_tensor("embeddings"), folds, header["fingerprint"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{path}: no stored vectors\n  found: {error}\n  expected: embeddings that `train` wrote\n  do: train again"
        ) from None
