"""AP losses beside average precision itself, beside slow loops, and beside pytorch-metric-learning."""

from collections.abc import Callable

import pytest
import torch
from pytorch_metric_learning.losses import SmoothAPLoss
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional

from kit_losses import ranking
from kit_losses.ranking import roadmap, smooth_ap, sup_ap


def _batch(n: int = 40, labels: int = 9, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    y = torch.randint(0, labels, (n,))
    return torch.randn(n, 6, dtype=torch.float64) + spread * torch.randn(labels, 6, dtype=torch.float64)[y], y


def _mean_average_precision(embeddings: Tensor, labels: Tensor) -> float:
    z = functional.normalize(embeddings, dim=1)
    found = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        relevant = (labels[others] == labels[i]).numpy()
        if relevant.any():
            found.append(average_precision_score(relevant, (z[others] @ z[i]).numpy()))
    return sum(found) / len(found)


def test_a_sharp_step_gives_average_precision() -> None:
    embeddings, labels = _batch()
    assert 1 - float(smooth_ap(embeddings, labels, temperature=1e-7)) == pytest.approx(
        _mean_average_precision(embeddings, labels), abs=1e-5
    )


def test_sup_ap_bounds_average_precision() -> None:
    for seed in range(5):
        embeddings, labels = _batch(seed=seed)
        assert (
            1 - float(sup_ap(embeddings, labels, temperature=1e-4))
            <= _mean_average_precision(embeddings, labels) + 1e-6
        )


def test_equals_pytorch_metric_learning_where_that_is_right() -> None:
    torch.manual_seed(3)
    labels = torch.arange(5).repeat_interleave(5)  # as many labels as rows a label
    embeddings = torch.randn(25, 8)
    values = []
    for loss in (
        lambda e: smooth_ap(e, labels, temperature=0.1, count_self=True),
        lambda e: SmoothAPLoss(0.1)(e, labels),
    ):
        leaf = embeddings.clone().requires_grad_()
        value = loss(leaf)
        value.backward()
        values.append((value.detach(), leaf.grad))
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)


def test_sup_ap_equals_slow_loops() -> None:
    embeddings, labels = _batch(n=14, labels=4)
    tau, slope, offset, delta = 0.05, 20.0, 1.3, 0.1
    z = functional.normalize(embeddings, dim=1)
    s = (z @ z.T).tolist()
    y = labels.tolist()
    per_query = []
    for i in range(14):
        relevant = [k for k in range(14) if k != i and y[k] == y[i]]
        precisions = []
        for k in relevant:
            among = 1 + sum(s[i][j] > s[i][k] for j in relevant if j != k)
            ahead = 0.0
            for j in range(14):
                if y[j] == y[i]:
                    continue
                x = s[i][j] - s[i][k]
                soft = float(torch.sigmoid(torch.tensor(x / tau, dtype=torch.float64)))
                ahead += soft if x <= 0 else soft + 0.5 if x <= delta else slope * (x - delta) + offset
            precisions.append(among / (among + ahead))
        if relevant:
            per_query.append(sum(precisions) / len(precisions))
    found = sup_ap(embeddings, labels, temperature=tau, slope=slope, offset=offset, delta=delta)
    assert float(found) == pytest.approx(1 - sum(per_query) / len(per_query), abs=1e-9)


def test_roadmap_weighs_sup_ap_against_a_contrastive_loss_with_two_margins() -> None:
    embeddings, labels = _batch()
    z = functional.normalize(embeddings, dim=1)
    pulls, pushes = [], []
    for i in range(len(z)):
        for j in range(len(z)):
            s = float(z[i] @ z[j])
            if i != j and labels[i] == labels[j] and s < 0.7:
                pulls.append(0.7 - s)
            if labels[i] != labels[j] and s > 0.2:
                pushes.append(s - 0.2)
    assert pulls
    assert pushes
    calibration = sum(pulls) / len(pulls) + sum(pushes) / len(pushes)
    settings = {"temperature": 0.05, "slope": 20.0, "offset": 1.3, "delta": 0.1}
    expected = 0.75 * float(sup_ap(embeddings, labels, **settings)) + 0.25 * calibration
    found = roadmap(embeddings, labels, share=0.25, positive_margin=0.7, negative_margin=0.2, **settings)
    assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("loss", [smooth_ap, sup_ap, roadmap])
def test_under_autocast_the_loss_is_computed_in_float32(loss: Callable[..., Tensor]) -> None:
    embeddings, labels = _batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(embeddings.float(), labels)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(loss(embeddings, labels)), rel=1e-4), "that of float64"


@pytest.mark.parametrize("loss", [smooth_ap, sup_ap, roadmap])
def test_pieces_change_nothing(loss: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = _batch()

    def both() -> tuple[Tensor, Tensor]:
        leaf = embeddings.clone().requires_grad_()
        value = loss(leaf, labels)
        value.backward()
        return value.detach(), leaf.grad

    whole = both()
    monkeypatch.setattr(ranking, "PIECE_ELEMENTS", 100)
    torch.testing.assert_close(both(), whole)
    assert whole[1].abs().sum() > 0


@pytest.mark.parametrize("loss", [smooth_ap, sup_ap, roadmap])
def test_descent_raises_average_precision(loss: Callable[..., Tensor]) -> None:
    embeddings, labels = _batch(spread=0.3)
    before = _mean_average_precision(embeddings, labels)
    embeddings.requires_grad_()
    optimizer = torch.optim.Adam([embeddings], lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        loss(embeddings, labels, temperature=0.05).backward()
        optimizer.step()
    assert _mean_average_precision(embeddings.detach(), labels) > before + 0.1


def test_without_positives_the_loss_is_zero_and_finite() -> None:
    embeddings = torch.randn(5, 3, requires_grad=True)
    value = smooth_ap(embeddings, torch.arange(5))
    value.backward()
    assert value.item() == 0.0
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
