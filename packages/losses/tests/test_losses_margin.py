"""ArcFace beside pytorch-metric-learning, at hand-placed angles, and with labels that do not fit."""

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss, SubCenterArcFaceLoss

from kit_losses.margin import ArcFace, add_angle


@pytest.mark.parametrize("sub_centers", [1, 3])
@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 1.2])
def test_equals_pytorch_metric_learning(sub_centers: int, margin: float) -> None:
    torch.manual_seed(0)
    ours = ArcFace(7, 12, scale=30.0, margin=margin, sub_centers=sub_centers)
    settings = {"num_classes": 7, "embedding_size": 12, "margin": math.degrees(margin), "scale": 30}
    theirs = ArcFaceLoss(**settings) if sub_centers == 1 else SubCenterArcFaceLoss(**settings, sub_centers=3)
    theirs.W.data = ours.weight.data.T.clone()
    embeddings, labels = torch.randn(40, 12), torch.randint(0, 7, (40,))
    values = []
    for loss, weight in ((ours, ours.weight), (theirs, theirs.W)):
        leaf = embeddings.clone().requires_grad_()
        value = loss(leaf, labels)
        value.backward()
        gradient = weight.grad if weight is ours.weight else weight.grad.T
        values.append((value.detach(), leaf.grad, gradient))
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)


def test_angles_placed_by_hand() -> None:
    angles = torch.tensor([0.0, 30.0, 90.0, 120.0, 150.0, 180.0], dtype=torch.float64).deg2rad()
    moved = add_angle(angles.cos(), math.radians(45))
    by_hand = (angles[:4] + math.radians(45)).cos()  # 150 + 45 passes 180 degrees, so the cosine falls evenly instead
    torch.testing.assert_close(moved[:4], by_hand, atol=1e-5, rtol=0)
    beyond = angles[4:].cos() - math.radians(45) * math.sin(math.radians(45))
    torch.testing.assert_close(moved[4:], beyond, atol=1e-5, rtol=0)
    assert (moved.diff() < 0).all()


def test_a_row_on_its_centre_has_a_finite_gradient() -> None:
    head = ArcFace(3, 4)
    embeddings = head.weight.detach()[:1].clone().requires_grad_()
    head(embeddings, torch.tensor([0])).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_the_margin_can_move() -> None:
    torch.manual_seed(1)
    head = ArcFace(5, 8, margin=0.0)
    embeddings, labels = torch.randn(20, 8), torch.randint(0, 5, (20,))
    before = head(embeddings, labels)
    head.margin = 0.4
    assert head(embeddings, labels) > before


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_out_of_range_are_refused(label: int) -> None:
    with pytest.raises(ValueError, match=r"expected 0 to 4"):
        ArcFace(5, 8)(torch.randn(2, 8), torch.tensor([0, label]))


@pytest.mark.parametrize(
    "settings", [{"classes": 1}, {"sub_centers": 0}, {"margin": 2.0}, {"margin": -0.1}, {"scale": 0.0}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ArcFace(**({"classes": 5, "d": 8} | settings))


def test_autocast_changes_nothing() -> None:
    torch.manual_seed(2)
    head, embeddings, labels = ArcFace(5, 8), torch.randn(6, 8), torch.arange(6) % 5
    plain = head(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(embeddings, labels), plain)
