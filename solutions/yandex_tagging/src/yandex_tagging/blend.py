"""Several members, one answer: logits brought to one scale for each tag, and weights found out of fold.

The weights of a tag lie between those that are best for all tags together and its own: with n positives its own count
n / (n + shrinkage).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch

from kit_ensemble.selection import greedy_selection
from kit_metrics.multilabel import average_precision_per_tag
from kit_train.weights import load_weights, save_weights

OWN_ROUNDS = 10  # of the selection for one tag: a finer one would fit the noise of a few positives


@dataclass(frozen=True)
class Blend:
    """The scale of each member and tag, and the weights: `mean`, `deviation`, `weights`, float64 [members, tags]."""

    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(
        cls,
        logits: list[np.ndarray],
        tags: np.ndarray,
        *,
        scale: Literal["logit", "z-score"],
        weights: Literal["equal", "global", "per-tag"],
        shrinkage: float,
        rounds: int,
    ) -> Self:
        """Measure the scales and find the weights on out-of-fold logits, float [n, tags] of each member."""
        stack = np.stack(logits).astype(np.float64)
        members, _, n_tags = stack.shape
        mean, deviation = np.zeros((members, n_tags)), np.ones((members, n_tags))
        if scale == "z-score":
            mean, deviation = stack.mean(1), np.maximum(stack.std(1), 1e-6)
        scaled = (stack - mean[:, None]) / deviation[:, None]
        found = np.full((members, n_tags), 1 / members)
        if weights != "equal":
            overall = _best_weights(scaled, tags, rounds)
            found = np.repeat(overall[:, None], n_tags, 1)
        if weights == "per-tag":
            for tag in range(n_tags):
                positives = int(tags[:, tag].sum())
                if positives:
                    own = _best_weights(scaled[:, :, tag : tag + 1], tags[:, tag : tag + 1], OWN_ROUNDS)
                    share = positives / (positives + shrinkage)
                    found[:, tag] = share * own + (1 - share) * found[:, tag]
        return cls(mean, deviation, found)

    def mix(self, logits: list[np.ndarray]) -> np.ndarray:
        """Return the blended logits, float32 [n, tags], moved back to the members' weighted scale."""
        scaled = np.zeros(logits[0].shape)
        for one, mean, deviation, weight in zip(logits, self.mean, self.deviation, self.weights, strict=True):
            scaled += weight * (one - mean) / deviation
        back = (self.weights * self.deviation).sum(0)
        return (scaled * back + (self.weights * self.mean).sum(0)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write it to one file."""
        tensors = {"mean": self.mean, "deviation": self.deviation, "weights": self.weights}
        save_weights(path, {name: torch.from_numpy(a) for name, a in tensors.items()}, {"kind": "blend"})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is absent or damaged.
        """
        tensors, _ = load_weights(path)
        return cls(*(tensors[name].numpy() for name in ("mean", "deviation", "weights")))


def _best_weights(scaled: np.ndarray, tags: np.ndarray, rounds: int) -> np.ndarray:
    """Find the weights [members] with the best mean average precision over the tags that have positives."""
    present = tags.any(0)
    scaled, tags = scaled[:, :, present], tags[:, present]

    def score(weights: np.ndarray) -> float:
        return float(average_precision_per_tag(tags, np.tensordot(weights, scaled, 1)).mean())

    weights, _ = greedy_selection(len(scaled), score, rounds=rounds)
    return weights
