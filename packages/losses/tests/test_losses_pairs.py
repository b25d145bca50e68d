"""Pair losses beside pytorch-metric-learning, in value and gradient, and on batches that have nothing to teach."""

from collections.abc import Callable

import pytest
import torch
from pytorch_metric_learning import losses as peer
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor

from kit_losses import pairs
from kit_losses.pairs import PairLosses, circle, contrastive, multi_similarity, nt_xent, random_triplets, triplet_margin

Loss = Callable[[Tensor, Tensor], Tensor]

CASES: dict[str, tuple[Loss, Loss]] = {
    "multi_similarity": (multi_similarity, peer.MultiSimilarityLoss()),
    "multi_similarity of the seed": (lambda e, y: multi_similarity(e, y, base=1.0), peer.MultiSimilarityLoss(base=1.0)),
    "circle": (circle, peer.CircleLoss()),
    "circle for faces": (lambda e, y: circle(e, y, margin=0.25, scale=256.0), peer.CircleLoss(m=0.25, gamma=256)),
    "nt_xent": (nt_xent, peer.NTXentLoss()),
    "contrastive": (
        lambda e, y: contrastive(e, y, positive_margin=0.9, negative_margin=0.6),
        peer.ContrastiveLoss(pos_margin=0.9, neg_margin=0.6, distance=CosineSimilarity()),
    ),
}
LABELS = {
    "uneven": lambda n: torch.randint(0, max(2, n // 6), (n,)),
    "two": lambda n: torch.arange(n) % 2,
    "mostly lonely": lambda n: torch.arange(n).clamp(min=3),
}


def _value_and_gradient(loss: Loss, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    value = loss(leaf, labels)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("layout", LABELS)
@pytest.mark.parametrize("name", CASES)
def test_equals_pytorch_metric_learning(name: str, layout: str) -> None:
    ours, theirs = CASES[name]
    torch.manual_seed(0)
    for n, spread in ((7, 1.0), (60, 0.3), (150, 3.0)):
        labels = LABELS[layout](n)
        embeddings = torch.randn(n, 16) + spread * torch.randn(int(labels.max()) + 1, 16)[labels]
        value, gradient = _value_and_gradient(ours, embeddings, labels)
        expected, expected_gradient = _value_and_gradient(theirs, embeddings, labels)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = CASES[name]
    torch.manual_seed(1)
    embeddings, labels = torch.randn(100, 8, dtype=torch.float64), torch.randint(0, 30, (100,))
    whole = _value_and_gradient(ours, embeddings, labels)
    monkeypatch.setitem(pairs._BLOCK_ELEMENTS, "cpu", 1)  # the smallest blocks: one label each
    torch.testing.assert_close(_value_and_gradient(ours, embeddings, labels), whole)


@pytest.mark.parametrize("name", [name for name in CASES if "circle" not in name])  # its weights count as constants
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    ours, _ = CASES[name]
    torch.manual_seed(2)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3])
    embeddings = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: ours(e, labels), (embeddings,))


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("swap", [True, False])
def test_triplets_equal_pytorch_metric_learning(smooth: bool, swap: bool) -> None:
    torch.manual_seed(3)
    embeddings, labels = torch.randn(50, 8), torch.randint(0, 10, (50,))
    triplets = random_triplets(labels, 10)
    reference = peer.TripletMarginLoss(0.05, swap=swap, smooth_loss=smooth, distance=CosineSimilarity())
    torch.testing.assert_close(
        _value_and_gradient(
            lambda e, y: triplet_margin(e, y, swap=swap, smooth=smooth, triplets=triplets), embeddings, labels
        ),
        _value_and_gradient(lambda e, y: reference(e, y, triplets), embeddings, labels),
        rtol=1e-5,
        atol=1e-6,
    )


def test_random_triplets_are_uniform_over_what_is_allowed() -> None:
    labels = torch.tensor([4, 2, 4, 4, 2, 9])
    anchors, positives, negatives = random_triplets(labels, 4000, torch.Generator().manual_seed(0))
    assert torch.bincount(anchors, minlength=6).tolist() == [4000] * 5 + [0]  # 9 is alone
    assert (labels[anchors] == labels[positives]).all()
    assert (anchors != positives).all()
    assert (labels[anchors] != labels[negatives]).all()
    of_first = anchors == 0
    torch.testing.assert_close(
        torch.bincount(positives[of_first], minlength=6) / 4000,
        torch.tensor([0, 0, 0.5, 0.5, 0, 0]),
        atol=0.03,
        rtol=0,
    )
    torch.testing.assert_close(
        torch.bincount(negatives[of_first], minlength=6) / 4000,
        torch.tensor([0, 1 / 3, 0, 0, 1 / 3, 1 / 3]),
        atol=0.03,
        rtol=0,
    )


def test_the_sum_equals_the_seed_recipe_of_pytorch_metric_learning() -> None:
    torch.manual_seed(4)
    embeddings, labels = torch.randn(80, 12), torch.randint(0, 16, (80,))
    triplets = random_triplets(labels, 10, torch.Generator().manual_seed(5))
    leaf = embeddings.clone().requires_grad_()
    found = PairLosses()(leaf, labels, torch.Generator().manual_seed(5))
    found.loss.backward()

    def reference(e: Tensor, y: Tensor) -> Tensor:
        triplet = peer.TripletMarginLoss(0.05, swap=True, smooth_loss=True, distance=CosineSimilarity())
        sum_of_three = peer.MultiSimilarityLoss(2, 50, 1.0)(e, y) + 0.025 * peer.CircleLoss(0.4, 80)(e, y)
        return sum_of_three + triplet(e, y, triplets)

    value, gradient = _value_and_gradient(reference, embeddings, labels)
    torch.testing.assert_close(found.loss.detach(), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaf.grad, gradient, rtol=1e-4, atol=1e-6)
    assert set(found.parts) == {"multi_similarity", "circle", "triplet"}
    assert not any(part.requires_grad for part in found.parts.values())


def test_a_batch_without_positive_pairs_is_counted() -> None:
    embeddings = torch.randn(5, 4, requires_grad=True)
    found = PairLosses(nt_xent=1.0)(embeddings, torch.arange(5))
    found.loss.backward()
    assert (found.positive_pairs, found.lonely_anchors) == (0, 5)
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    mixed = PairLosses()(embeddings, torch.tensor([0, 0, 1, 1, 2]))
    assert (mixed.positive_pairs, mixed.lonely_anchors) == (4, 1)


def test_without_positive_pairs_two_losses_still_push_apart_and_the_others_are_0() -> None:
    torch.manual_seed(7)
    embeddings, labels = torch.randn(6, 4), torch.arange(6)
    s = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None], dim=2)
    away = ~torch.eye(6, dtype=torch.bool)
    pushes = {
        "multi_similarity": torch.log1p((torch.exp(50 * (s - 0.5)) * away).sum(dim=1)).mean() / 50,
        "contrastive": s[away][s[away] > 0].mean(),
    }
    losses: dict[str, Loss] = {"multi_similarity": multi_similarity, "contrastive": contrastive}
    for name, loss in losses.items():
        value, gradient = _value_and_gradient(loss, embeddings, labels)
        torch.testing.assert_close(value, pushes[name])
        assert value > 0
        assert gradient.abs().sum() > 0
    for loss in (circle, nt_xent, triplet_margin):
        value, gradient = _value_and_gradient(loss, embeddings, labels)
        assert value == 0
        assert not gradient.any()
    assert PairLosses(triplet=0.0)(embeddings, labels).loss > 0  # its default holds multi_similarity


@pytest.mark.parametrize("name", CASES)
def test_one_label_and_equal_rows_stay_finite(name: str) -> None:
    ours, _ = CASES[name]
    for labels in (torch.zeros(6, dtype=torch.int64), torch.tensor([0, 0, 0, 1, 1, 1])):
        value, gradient = _value_and_gradient(ours, torch.ones(6, 4), labels)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_autocast_changes_nothing() -> None:
    torch.manual_seed(6)
    embeddings, labels = torch.randn(40, 8), torch.randint(0, 8, (40,))
    plain = _value_and_gradient(multi_similarity, embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = _value_and_gradient(multi_similarity, embeddings, labels)
    assert torch.equal(plain[0], under[0])
    assert torch.equal(plain[1], under[1])


def test_weights_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing would be learnt"):
        PairLosses(multi_similarity=0, circle=0, triplet=0)
