"""kit_losses.multilabel against slow formulas in float64, published limits, and extreme logits."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from kit_losses.multilabel import DistributionBalancedLoss, asymmetric_loss, focal_loss

COUNTS = torch.tensor([40, 3, 12, 0, 50])
N = 50
Loss = Callable[..., torch.Tensor]


def batch(seed: int = 0, rows: int = 7, tags: int = 5, soft: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, tags, generator=generator, dtype=torch.float64)
    shares = torch.rand(rows, tags, generator=generator, dtype=torch.float64)
    return logits, shares if soft else (shares < 0.4).double()


def slow(formula: Callable[[float, float, int, int], float], logits: torch.Tensor, targets: torch.Tensor) -> Any:
    """A formula of (logit, target, row, tag), element by element."""
    rows, tags = logits.shape
    return np.array(
        [[formula(float(logits[i, j]), float(targets[i, j]), i, j) for j in range(tags)] for i in range(rows)]
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- focal ---


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.7])
@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
@pytest.mark.parametrize("soft", [False, True])
def test_focal_equals_its_formula(gamma, alpha, soft):
    logits, targets = batch(soft=soft)
    weights = torch.rand(5, dtype=torch.float64)

    def formula(x: float, t: float, _: int, tag: int) -> float:
        p = sigmoid(x)
        entropy = -(t * math.log(p) + (1 - t) * math.log(1 - p))
        factor = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
        return factor * float(weights[tag]) * (1 - (p * t + (1 - p) * (1 - t))) ** gamma * entropy

    found = focal_loss(logits, targets, gamma, alpha, tag_weights=weights, reduction="none")
    np.testing.assert_allclose(found.numpy(), slow(formula, logits, targets), rtol=1e-11)


def test_focal_is_the_form_that_takes_the_probability_from_the_entropy():
    """The original network's way: p_t = exp(-cross-entropy), a weight for every tag, the sum."""
    logits, targets = batch(3)
    weights = torch.rand(5, dtype=torch.float64)
    entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    expected = (weights * (1 - (-entropy).exp()) ** 2 * entropy).sum()
    torch.testing.assert_close(focal_loss(logits, targets, 2.0, tag_weights=weights, reduction="sum"), expected)


# --- asymmetric ---


@pytest.mark.parametrize(
    ("negative", "positive", "clip"), [(4, 0, 0.05), (2, 1, 0.2), (0.5, 0.5, 0.1), (3, 1, 0.0), (0, 0, 0.1)]
)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("focal_gradient", [False, True])
def test_asymmetric_equals_its_formula(negative, positive, clip, soft, focal_gradient):
    logits, targets = batch(1, soft=soft)

    def formula(x: float, t: float, _: int, __: int) -> float:
        p = sigmoid(x)
        shifted = max(p - clip, 0.0)
        rejected = -(shifted**negative) * math.log(1 - shifted) if shifted else 0.0
        return -t * (1 - p) ** positive * math.log(p) + (1 - t) * rejected

    found = asymmetric_loss(logits, targets, negative, positive, clip, focal_gradient=focal_gradient, reduction="none")
    np.testing.assert_allclose(found.numpy(), slow(formula, logits, targets), rtol=1e-9, atol=1e-15)


def test_negatives_below_the_clip_have_neither_loss_nor_gradient():
    logits = torch.tensor([[-4.0, -2.9]], requires_grad=True)  # probabilities .018 and .052
    loss = asymmetric_loss(logits, torch.zeros(1, 2), 4.0, 1.0, 0.05, reduction="none")
    loss.sum().backward()
    assert loss[0, 0] == 0
    assert loss[0, 1] > 0
    assert logits.grad is not None
    assert logits.grad[0, 0] == 0
    assert logits.grad[0, 1] > 0


def test_without_the_focal_gradient_the_powers_are_constants():
    logits, targets = batch(5)
    logits.requires_grad_()
    p = torch.sigmoid(logits).detach()
    weights = targets * (1 - p) + (1 - targets) * p**3
    expected = torch.autograd.grad(
        (weights * binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum(), logits
    )
    found = torch.autograd.grad(asymmetric_loss(logits, targets, 3.0, 1.0, 0.0, reduction="sum"), logits)
    torch.testing.assert_close(found, expected)


# --- distribution-balanced ---


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_distribution_balanced_equals_its_formula(soft, gamma):
    logits, targets = batch(2, soft=soft)
    if not soft:
        targets[0] = 0  # a row without a tag
    alpha, beta, mu, scale, bias = 0.1, 10.0, 0.2, 2.0, 0.05
    counts = [40, 3, 12, 1, 49]  # the last two moved away from 0 and N

    def formula(x: float, t: float, row: int, tag: int) -> float:
        in_row = sum(float(targets[row, j]) / counts[j] for j in range(5))
        weight = alpha + (sigmoid(beta * (1 / counts[tag] / in_row - mu)) if in_row else 1.0)
        z = x - bias * math.log(N / counts[tag] - 1)
        entropy = t * math.log1p(math.exp(-z)) + (1 - t) * math.log1p(math.exp(scale * z)) / scale
        p = sigmoid(z if t > 0.5 else scale * z)
        return 2.0 * weight * (1 - (p * t + (1 - p) * (1 - t))) ** gamma * entropy

    loss = DistributionBalancedLoss(COUNTS, N, gamma=gamma, neg_scale=scale, init_bias=bias, reduction="none")
    np.testing.assert_allclose(loss(logits, targets).numpy(), slow(formula, logits, targets), rtol=2e-6)


def test_the_rarer_of_two_tags_of_a_row_weighs_more():
    loss = DistributionBalancedLoss(torch.tensor([100, 10, 50]), 200, init_bias=0.0, reduction="none")
    found = loss(torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.0]]))
    assert found[0, 1] > 1.5 * found[0, 0]


def test_the_loss_has_no_state_to_be_saved():
    assert not DistributionBalancedLoss(COUNTS, N).state_dict()


# --- what all have in common ---

ALL: list[tuple[str, Loss]] = [
    ("focal", focal_loss),
    ("focal, gamma .5", lambda x, t, **k: focal_loss(x, t, 0.5, 0.25, **k)),
    ("asymmetric", asymmetric_loss),
    ("asymmetric, gammas .5", lambda x, t, **k: asymmetric_loss(x, t, 0.5, 0.5, 0.1, focal_gradient=True, **k)),
    ("asymmetric, no clip", lambda x, t, **k: asymmetric_loss(x, t, 1.0, 1.0, 0.0, focal_gradient=True, **k)),
    ("distribution-balanced", lambda x, t, **k: DistributionBalancedLoss(COUNTS, N, **k)(x, t)),
]
every = pytest.mark.parametrize("loss", [loss for _, loss in ALL], ids=[name for name, _ in ALL])


@pytest.mark.parametrize("soft", [False, True])
def test_without_their_parameters_all_are_cross_entropy(soft):
    logits, targets = batch(4, soft=soft)
    expected = binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(focal_loss(logits, targets, 0.0), expected)
    torch.testing.assert_close(asymmetric_loss(logits, targets, 0.0, 0.0, 0.0), expected)
    plain = DistributionBalancedLoss(
        COUNTS, N, alpha=0.5, beta=0.0, neg_scale=1.0, init_bias=0.0, gamma=0.0, scale=1.0
    )  # beta 0: every weight is .5 + sigmoid(0)
    torch.testing.assert_close(plain(logits, targets), expected)


@every
def test_extreme_logits_give_finite_losses_and_gradients(loss):
    logits = torch.tensor([[-1e4, -200.0, 0.0, 200.0, 1e4]] * 3, requires_grad=True)
    targets = torch.tensor([[0.0] * 5, [1.0] * 5, [0.3] * 5])
    value = loss(logits, targets)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", [loss for _, loss in ALL if loss is not asymmetric_loss])
def test_gradients_agree_with_differences(loss):
    """All but the asymmetric loss by default, whose powers count as constants, so that differences see another."""
    logits, targets = batch(6, rows=3, soft=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits.requires_grad_())


@every
def test_autocast_and_half_logits_compute_in_float32(loss):
    logits, targets = batch(7)
    expected = loss(logits.bfloat16().float(), targets.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(logits.bfloat16(), targets.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@every
def test_reductions_agree(loss):
    logits, targets = batch(8)
    each = loss(logits, targets, reduction="none")
    assert each.shape == logits.shape
    torch.testing.assert_close(loss(logits, targets, reduction="sum"), each.sum())
    torch.testing.assert_close(loss(logits, targets, reduction="mean"), each.mean())


@every
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_better_logit_is_never_worse(loss, seed):
    """Moving one logit towards its hard target never raises the loss, except where focal powers flatten it out."""
    logits, targets = batch(seed, rows=1)
    step = 0.2 * (2 * targets - 1)
    assert bool(
        (loss(logits + step, targets, reduction="none") <= loss(logits, targets, reduction="none") + 1e-12).all()
    )


@every
def test_other_shapes_are_refused(loss):
    with pytest.raises(ValueError, match="shape of the logits"):
        loss(torch.zeros(2, 5), torch.zeros(2, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: focal_loss(torch.zeros(1, 2), torch.zeros(1, 2), -1.0),
        lambda: focal_loss(torch.zeros(1, 2), torch.zeros(1, 2), 2.0, 1.5),
        lambda: asymmetric_loss(torch.zeros(1, 2), torch.zeros(1, 2), -1.0),
        lambda: asymmetric_loss(torch.zeros(1, 2), torch.zeros(1, 2), clip=1.0),
        lambda: DistributionBalancedLoss(torch.tensor([3, 51]), 50),
        lambda: DistributionBalancedLoss(torch.tensor([[3]]), 50),
        lambda: DistributionBalancedLoss(torch.tensor([3]), 50, neg_scale=0.0),
        lambda: DistributionBalancedLoss(torch.tensor([3]), 50)(torch.zeros(2, 3), torch.zeros(2, 3)),
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match="found"):
        wrong()
