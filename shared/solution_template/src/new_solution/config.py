"""The settings of a run: dataclass defaults, overridden by a preset, overridden by flags (`--softmax.epochs 5`)."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Which rows are fitted and which are scored."""

    fold: int | Literal["all"] = "all"
    """The fold that is left out and scored; all: each in turn."""
    folds: int = 3
    """Number of folds; rows of a group stay together."""


@dataclass(frozen=True)
class SoftmaxConfig:
    """Gradient descent of the linear classifier."""

    epochs: int = 120
    learning_rate: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 0.001


@dataclass(frozen=True)
class Config:
    """One run.

    Raises:
        ValueError: settings that cannot work together.
    """

    model: Literal["majority", "softmax"] = "softmax"
    seed: int = 0
    """Of the folds and of the bootstrap."""
    data: DataConfig = field(default_factory=DataConfig)
    softmax: SoftmaxConfig = field(default_factory=SoftmaxConfig)

    def __post_init__(self) -> None:
        if self.data.folds < 2:
            raise ValueError(f"data.folds: found {self.data.folds}, expected 2 or more")
        if self.data.fold != "all" and not 0 <= self.data.fold < self.data.folds:
            raise ValueError(f"data.fold: found {self.data.fold}, expected 0 to {self.data.folds - 1} or all")
        if self.softmax.epochs < 1 or self.softmax.learning_rate <= 0:
            raise ValueError("softmax: epochs must be 1 or more and learning_rate positive")
