"""Vectors before the search: unit length, whitening, and the embeddings of several models side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def l2_normalise(x: Floats) -> Floats:
    """Rows at length 1, float32[n, d], so that inner products are cosines; a row of zeros stays one."""
    array = np.asarray(x, dtype=np.float32)
    # In float64, where the squares of small numbers do not vanish.
    norms = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))[:, None]
    unit: Floats = np.divide(array, norms, out=np.zeros_like(array), where=norms > 0, casting="same_kind")
    return unit


def concatenate(parts: Sequence[Floats], weights: Sequence[float] | None = None) -> Floats:
    """Embeddings of several models side by side, float32[n, sum of d], of length 1: the cosine is the weighted mean.

    Each part is brought to length 1 first; without that, the model with the longest vectors would decide alone. A
    `weight` of a part is the weight of its cosine; by default all count alike.

    Raises:
        ValueError: no parts, unequal numbers of rows, or weights that are negative, all zero or too few.
    """
    shares = np.ones(len(parts)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(parts) or len({len(part) for part in parts}) != 1:
        raise ValueError(f"parts: found {[len(part) for part in parts]} rows, expected one or more of equally many")
    if shares.shape != (len(parts),) or (shares < 0).any() or shares.sum() == 0:
        raise ValueError(f"weights: found {shares.tolist()}, expected {len(parts)} from 0, one of them above")
    scaled = [l2_normalise(part) * np.float32(share**0.5) for part, share in zip(parts, shares, strict=True)]
    return l2_normalise(np.concatenate(scaled, axis=1))


@dataclass(frozen=True, eq=False)
class Whitening:
    """An affine map that evens out the variances: `mean` float32[d], `projection` float32[d, dimensions]."""

    mean: Floats
    projection: Floats

    @staticmethod
    def fit(x: Floats, *, power: float = 1.0, shrinkage: float = 1e-3, dimensions: int | None = None) -> "Whitening":
        """Learn the map from rows [n, d].

        Args:
            power: 1 brings every direction to variance 1, 0 only centres and turns, between them the large directions
                keep a part of their weight.
            shrinkage: share of the mean variance that every variance is raised by, so that directions of hardly any
                are not blown up; 0..1.
            dimensions: how many directions of largest variance are kept; None: all.

        Raises:
            ValueError: fewer than two rows, or settings out of range.

        Source: Jégou and Chum, Negative evidences and co-occurrences in image retrieval, ECCV 2012 (PCA whitening).
        """
        rows = np.asarray(x, dtype=np.float64)
        if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
            raise ValueError(f"found shape {rows.shape}, expected two or more rows of finite numbers")
        kept = rows.shape[1] if dimensions is None else dimensions
        if not 0 <= power <= 1 or not 0 <= shrinkage <= 1 or not 1 <= kept <= rows.shape[1]:
            raise ValueError(f"power and shrinkage must be in [0, 1] and dimensions in 1 .. {rows.shape[1]}")
        mean = rows.mean(axis=0)
        variances: NDArray[np.float64]
        variances, directions = np.linalg.eigh(np.cov(rows - mean, rowvar=False).reshape(len(mean), len(mean)))
        shrunk: NDArray[np.float64] = np.maximum(variances, 0) * (1 - shrinkage) + shrinkage * np.mean(variances)
        largest = np.argsort(-shrunk, kind="stable")[:kept]
        scale: NDArray[np.float64] = np.maximum(shrunk[largest], float(np.finfo(np.float32).tiny)) ** (-power / 2)
        return Whitening(mean.astype(np.float32), (directions[:, largest] * scale).astype(np.float32))

    def apply(self, x: Floats) -> Floats:
        """Rows [n, d] → float32[n, dimensions]."""
        return np.asarray((np.asarray(x, dtype=np.float32) - self.mean) @ self.projection, dtype=np.float32)
