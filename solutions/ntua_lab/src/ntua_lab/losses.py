"""The loss of one or several tasks at once: logits and targets of all → a weighted sum on one scale."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ntua_lab.config import AXES


class MultitaskLoss(nn.Module):
    """Cross-entropy for genre and an error for each axis, each divided by what guessing costs, then summed.

    Guessing the mean costs an axis the variance of its targets, guessing evenly costs genre log(classes): so every part
    starts near 1 whatever its unit. With `uncertainty` each part also has a learnt weight exp(−s), with s added as its
    price. Targets that are missing (genre rows of zeros, NaN) count nowhere.

    Source: Kendall, Gal and Cipolla, Multi-task learning using uncertainty, CVPR 2018, for the learnt weights.
    """

    def __init__(
        self, scales: Mapping[str, float], *, kind: str = "mse", uncertainty: bool = False, smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.names: Sequence[str] = tuple(scales)
        self.scales = {name: max(float(scale), 1e-6) for name, scale in scales.items()}
        self.kind = kind
        self.smoothing = smoothing
        self.log_weights = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in scales} if uncertainty else {}
        )

    def forward(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum, and each part before weighting, on its own scale.

        Args:
            logits: "genre" [b, classes], each axis [b].
            targets: "genre" [b, classes] shares that sum to 1, or zeros where unknown; each axis [b] in 0..1, or NaN.
        """
        parts = {}
        for name in self.names:
            known = targets[name].sum(dim=1) > 0 if name == "genre" else torch.isfinite(targets[name])
            if known.any():
                given, wanted = logits[name].float()[known], targets[name].float()[known]
                error = self._genre(given, wanted) if name == "genre" else self._axis(given, wanted)
                parts[name] = error / self.scales[name]
        total = torch.zeros((), device=next(iter(logits.values())).device)
        if not parts:  # a batch that mixing left without an answer teaches nothing, and can still be trained on
            total = total + 0.0 * torch.cat([one.float().ravel() for one in logits.values()]).sum()
        for name, part in parts.items():
            if name in self.log_weights:
                s = self.log_weights[name]
                part = torch.exp(-s) * part + s
            total = total + part
        return total, {name: part.detach() for name, part in parts.items()}

    def _genre(self, logits: Tensor, shares: Tensor) -> Tensor:
        smooth = shares * (1 - self.smoothing) + self.smoothing / shares.shape[1]
        return -(smooth * logits.log_softmax(dim=1)).sum(dim=1).mean()

    def _axis(self, logits: Tensor, wanted: Tensor) -> Tensor:
        squared = torch.mean((torch.sigmoid(logits) - wanted) ** 2)
        if self.kind == "mse":
            return squared
        order = rank_loss(logits, wanted)
        return order if self.kind == "rank" else 0.5 * squared + 0.5 * order


def rank_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return (1 − correlation of logits [b] with the ranks of the targets [b]) times the variance of the targets.

    The metric is Spearman's correlation: only the order of targets counts, and this is its smooth half. The factor
    brings it to the scale of a squared error. Fewer than three clips, or equal targets, order nothing: 0.
    """
    if len(logits) < 3 or bool((wanted == wanted[0]).all()):
        return logits.sum() * 0.0
    rank = wanted.argsort().argsort().to(logits.dtype)
    x, y = logits - logits.mean(), rank - rank.mean()
    correlation = (x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-6)
    return (1 - correlation) * wanted.var(unbiased=False)


def scales_of(targets: Mapping[str, Tensor]) -> dict[str, float]:
    """Return what guessing costs for the targets of the fitted clips: log(classes), and the variance of each axis."""
    scales: dict[str, float] = {}
    for name in ("genre", *AXES):
        if name == "genre" and name in targets:
            scales[name] = math.log(max(2, targets[name].shape[1]))
        elif name in targets:
            known = targets[name][torch.isfinite(targets[name])]
            scales[name] = float(known.var(unbiased=False)) if len(known) else 1.0
    return scales
