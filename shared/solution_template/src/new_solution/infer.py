"""Answers from run folders; nothing of the training is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kit_core.errors import DataError
from kit_core.run import RunFolder


def scores_of(model: Mapping[str, NDArray[np.float64]], features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return logits [n, labels] of one model for features [n, width]."""
    x = (features.astype(np.float64) - model["mean"]) / model["scale"]
    return np.asarray(x @ model["weights"] + model["bias"])


def predict_rows(runs: Sequence[Path], features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return probabilities [n, labels]: the mean over every fold's model of every run.

    Raises:
        DataError: a run is not finished or has no models, or runs have other labels than the first.
    """
    found: list[NDArray[np.float64]] = []
    for path in runs:
        folder = RunFolder.open(path).path / "models"
        files = sorted(folder.glob("fold*.npz"))
        if not files:
            raise DataError(f"{folder}: found no models; train again into another --run")
        for file in files:
            try:
                with np.load(file, allow_pickle=False) as model:
                    logits = scores_of(model, features)
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"{file}: damaged: {error}; train again into another --run") from error
            logits -= logits.max(axis=1, keepdims=True)
            found.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
            if found[-1].shape != found[0].shape:
                raise DataError(f"{file}: found {found[-1].shape[1]} labels, the first run has {found[0].shape[1]}")
    return np.asarray(np.mean(found, axis=0))
