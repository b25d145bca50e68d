"""The reference without learning: whatever the row, the most frequent label."""

import numpy as np
from numpy.typing import NDArray


def fit_majority(labels: NDArray[np.int64], n_labels: int, width: int) -> dict[str, NDArray[np.float64]]:
    """Return a linear model, arrays as `train.fit_softmax` gives, whose scores are the shares of the labels."""
    shares = np.bincount(labels, minlength=n_labels) / len(labels)
    return {
        "mean": np.zeros(width),
        "scale": np.ones(width),
        "weights": np.zeros((width, n_labels)),
        "bias": shares,
    }
