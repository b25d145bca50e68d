"""The network of the neural ranker."""

import torch
from torch import nn

from ai4code.config import MlpConfig


class Standardise(nn.Module):
    """Damp heavy tails by sign(x)·ln(1 + |x|), then centre and scale by the training set's statistics, clipped at ±6.

    The statistics are buffers, so they travel with the weights.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> None:
        """Take mean and standard deviation from float32 [rows, n_features]; constant columns get scale 1."""
        damped = self._damp(features)
        self.mean.copy_(damped.mean(dim=0))
        deviation = damped.std(dim=0)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    @staticmethod
    def _damp(features: torch.Tensor) -> torch.Tensor:
        return features.sign() * features.abs().log1p()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return ((self._damp(features) - self.mean) / self.scale).clamp(-6.0, 6.0)


class Block(nn.Module):
    """LayerNorm → linear → GELU → dropout → linear, added to its input."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.layers(hidden)
        return hidden


class PositionMlp(nn.Module):
    """Features of markdown cells, float32 [rows, n_features] → relative places on the code axis, float32 [rows]."""

    def __init__(self, n_features: int, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.standardise = Standardise(n_features)
        self.enter = nn.Sequential(nn.Linear(n_features, width), nn.Dropout(dropout))
        self.blocks = nn.Sequential(*(Block(width, dropout) for _ in range(blocks)))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.blocks(self.enter(self.standardise(features)))
        return self.leave(hidden).squeeze(-1).sigmoid()


def build_model(config: MlpConfig, n_features: int) -> PositionMlp:
    """Make the network with fresh weights from torch's current random state."""
    return PositionMlp(n_features, config.width, config.blocks, config.dropout)
