"""Losses of many yes-or-no labels per row, where most labels are absent and some are rare.

All take logits and float targets of one shape (rows, tags); targets may be soft (mixing, smoothing) and then count with
their shares. They compute in float32 at least, whatever autocast is on: differences such as 1 - p vanish in bfloat16.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Reduction = Literal["none", "mean", "sum"]

TINY = 1e-12  # below this a factor is a constant, so that its power has a finite slope at 0


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 2.0,
    alpha: float | None = None,
    *,
    tag_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy times (1 - p_t)^gamma: what is right already counts little.

    `logits`, `targets` (rows, tags); p_t is the probability given to the truth. `alpha` in 0..1 weighs positives by
    alpha and negatives by 1 - alpha, None weighs both by 1; `tag_weights` (tags) weighs whole tags. With gamma 0 and no
    weights this is binary cross-entropy. Returns a scalar, or (rows, tags) with reduction "none".

    Raises:
        ValueError: shapes differ, gamma is negative, or alpha lies outside 0..1.
    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
    """
    if gamma < 0 or (alpha is not None and not 0 <= alpha <= 1):
        raise ValueError(f"gamma must not be negative and alpha lie in 0..1, found {gamma} and {alpha}")
    with _full_precision(logits):
        logits, targets = _checked(logits, targets)
        loss = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        if gamma > 0:
            loss = loss * _miss(logits, targets, gamma)
        if alpha is not None:
            loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
        if tag_weights is not None:
            loss = loss * tag_weights.to(loss)
        return _reduced(loss, reduction)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_negative: float = 4.0,
    gamma_positive: float = 0.0,
    clip: float = 0.05,
    *,
    focal_gradient: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Focus negatives and positives apart, and forget negatives below the probability `clip`.

    With p_m = max(p - clip, 0) the loss is -(1 - p)^gamma_positive log p of a positive and -p_m^gamma_negative
    log(1 - p_m) of a negative. `logits`, `targets` (rows, tags). `focal_gradient` lets the gradient pass through the
    powers too; the authors recommend to leave it out. Gammas and clip 0: binary cross-entropy. Returns a scalar, or
    (rows, tags) with reduction "none".

    Raises:
        ValueError: shapes differ, a gamma is negative, or clip lies outside 0 <= clip < 1.
    Source: Ridnik et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021.
    """
    if min(gamma_negative, gamma_positive) < 0 or not 0 <= clip < 1:
        raise ValueError(
            f"gammas must not be negative and clip lie in 0..1, found {gamma_negative}, {gamma_positive} and {clip}"
        )
    with _full_precision(logits):
        logits, targets = _checked(logits, targets)
        log_hit = functional.logsigmoid(logits)
        log_rejected = (torch.sigmoid(-logits) + clip).clamp(max=1.0).log() if clip else functional.logsigmoid(-logits)
        with torch.set_grad_enabled(focal_gradient and torch.is_grad_enabled()):
            positive = (gamma_positive * functional.logsigmoid(-logits)).exp()
            negative = (torch.sigmoid(logits) - clip).clamp(min=TINY) ** gamma_negative
        return _reduced(-(targets * positive * log_hit + (1 - targets) * negative * log_rejected), reduction)


class DistributionBalancedLoss(nn.Module):
    """Undo what sampling rows does to tags that come together, and stop punishing negatives that are far below 0.

    Each pair of row and tag is weighed by alpha + sigmoid(beta (r - mu)), r = (1 / n_tag) / sum over the row's tags of
    1 / n: a rare tag beside frequent ones counts more. Logits are moved by init_bias * log(p / (1 - p)), p the share of
    rows with the tag; the logits of negatives are multiplied by neg_scale and their loss divided by it. At last comes
    the focal factor (1 - p_t)^gamma, and `scale`. A row without a tag has r = infinity.
    """

    tag_shares: Tensor
    logit_bias: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        n: int,
        *,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.2,
        neg_scale: float = 2.0,
        init_bias: float = 0.05,
        gamma: float = 2.0,
        scale: float = 2.0,
        reduction: Reduction = "mean",
    ) -> None:
        """Take the rows with each tag, `class_counts` (tags), of `n` rows; both of the training part alone.

        A count of 0 or n is moved by one, where the bias would be infinite. The defaults are the authors' for COCO.

        Raises:
            ValueError: counts that are not one-dimensional or lie outside 0..n, n below 2, or neg_scale not positive.
        Source: Wu et al., "Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed Datasets", ECCV
        2020; the focal factor on top is in the authors' code.
        """
        super().__init__()
        counts = torch.as_tensor(class_counts).detach().to(torch.float64)
        if counts.ndim != 1 or n < 2 or bool(((counts < 0) | (counts > n)).any()):
            raise ValueError(f"class_counts must be (tags) with values in 0..{n}, found shape {tuple(counts.shape)}")
        if neg_scale <= 0:
            raise ValueError(f"neg_scale must be positive, found {neg_scale}")
        counts = counts.clamp(1, n - 1)
        self.register_buffer("tag_shares", (1 / counts).float(), persistent=False)
        self.register_buffer("logit_bias", (init_bias * (counts / (n - counts)).log()).float(), persistent=False)
        self.alpha, self.beta, self.mu = alpha, beta, mu
        self.neg_scale, self.gamma, self.scale, self.reduction = neg_scale, gamma, scale, reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of `logits`, `targets` (rows, tags): a scalar, or (rows, tags) with reduction "none".

        Raises:
            ValueError: shapes differ, or are not (rows, tags) with the tags that were counted.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self.tag_shares):
            raise ValueError(f"logits must be (rows, {len(self.tag_shares)}), found {tuple(logits.shape)}")
        with _full_precision(logits):
            logits, targets = _checked(logits, targets)
            share = self.tag_shares.to(logits)
            in_row = (targets * share).sum(dim=1, keepdim=True)
            weights = self.alpha + torch.sigmoid(self.beta * (share / in_row - self.mu))
            logits = logits + self.logit_bias.to(logits)
            pulled = logits * self.neg_scale
            loss = targets * functional.softplus(-logits) + (1 - targets) * functional.softplus(pulled) / self.neg_scale
            if self.gamma:
                # The factor sees the logits that the cross-entropy sees: those of negatives multiplied.
                loss = loss * _miss(torch.where(targets > 0.5, logits, pulled), targets, self.gamma)
            return _reduced(self.scale * weights * loss, self.reduction)


def _miss(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """(1 - p_t)^gamma by logarithms: exact where p_t is nearly 1, and its slope is finite for every gamma."""
    positive, negative = functional.logsigmoid(-logits), functional.logsigmoid(logits)  # log(1 - p_t) of either kind
    return (gamma * torch.logaddexp(targets.log() + positive, (1 - targets).log() + negative)).exp()


def _full_precision(logits: Tensor) -> torch.autocast:
    return torch.autocast(device_type=logits.device.type, enabled=False)


def _checked(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the same precision, float32 at least."""
    if logits.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of the logits {tuple(logits.shape)}, found {tuple(targets.shape)}"
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits, targets.to(logits)


def _reduced(loss: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
