"""One raw input, here eight numbers, and an answer for a person."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kit_core.console import render_table
from kit_core.errors import ConfigError
from new_solution.data import FEATURES
from new_solution.infer import predict_rows


def predict_text(numbers: Sequence[float], runs: Sequence[Path]) -> str:
    """Render the probabilities of the labels for one row of numbers, the likeliest first.

    Raises:
        ConfigError: there are not as many numbers as columns.
        DataError: as `infer.predict_rows`.
    """
    if len(numbers) != len(FEATURES):
        raise ConfigError(f"found {len(numbers)} numbers, expected {len(FEATURES)}: {', '.join(FEATURES)}")
    (probabilities,) = predict_rows(runs, np.array([numbers], dtype=np.float32))
    order = np.argsort(-probabilities, kind="stable")
    return render_table(["label", "probability"], [(str(label), f"{probabilities[label]:.4f}") for label in order])
