"""Every encoder: blind to padding, built from its seed, trainable; and the criteria of every loss."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from kit_nn.pooling import lengths_to_padding_mask
from yandex_artists.config import ModelConfig, StageConfig
from yandex_artists.model import Criterion, Encoder, Trainee, build_model, supervised_contrastive

SMALL = ModelConfig(channels=8, layers=2, heads=2, ff=16, kernel=3, out=6, dropout=0.0, landmarks=20, correction=4)
ARCHITECTURES = ("convolution", "transformer", "conformer", "set", "mean-map", "codebook", "attention")
CHANNELS = 8


def _tracks(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    lengths = torch.tensor([12, 1, 7, 2, 5, 9, 3, 4])
    x = torch.randn(8, 12, CHANNELS)
    return x.masked_fill(lengths_to_padding_mask(lengths, 12)[..., None], 0.0), lengths


def _built(config: ModelConfig, seed: int = 0) -> Encoder:
    encoder = build_model(config, CHANNELS, seed)
    x, lengths = _tracks(9)
    encoder.fit_start(lambda: [(x, lengths)], np.arange(8) // 2, config, seed)
    return encoder


@pytest.mark.parametrize("standardise", ["no", "track", "data"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_track_alone_and_in_a_padded_batch_is_the_same(architecture: str, standardise: str) -> None:
    encoder = _built(dataclasses.replace(SMALL, architecture=architecture, standardise=standardise)).eval()
    x, lengths = _tracks()
    together = encoder(x, lengths_to_padding_mask(lengths, 12))
    assert together.shape == (8, encoder.d)
    for i, n in enumerate(lengths.tolist()):
        alone = encoder(x[i : i + 1, :n], torch.zeros(1, n, dtype=torch.bool))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_depend_on_the_seed_and_on_nothing_before(architecture: str) -> None:
    config = dataclasses.replace(SMALL, architecture=architecture)
    torch.manual_seed(77)
    first = _built(config, 1).state_dict()
    torch.manual_seed(78)
    again, other = _built(config, 1).state_dict(), _built(config, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_learns(architecture: str) -> None:
    encoder = _built(dataclasses.replace(SMALL, architecture=architecture, standardise="data"))
    x, lengths = _tracks()
    mask = lengths_to_padding_mask(lengths, 12)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    for _ in range(2):  # the correction's first layers get their first gradient once its last one has left zero
        optimizer.zero_grad()
        (encoder(x, mask) * torch.randn(8, encoder.d)).sum().backward()
        optimizer.step()
    unmoved = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before a batch normalisation, or one that a softmax sees in all its scores alike, has no effect.
    assert [name for name in unmoved if not name.endswith(("bias", "in_proj_bias"))] == []


def test_the_order_of_frames_means_nothing_to_sets() -> None:
    for architecture in ("set", "transformer", "mean-map"):
        encoder = _built(dataclasses.replace(SMALL, architecture=architecture)).eval()
        x = torch.randn(3, 10, CHANNELS)
        mask = torch.zeros(3, 10, dtype=torch.bool)
        torch.testing.assert_close(encoder(x.flip(1), mask), encoder(x, mask), rtol=1e-4, atol=1e-5)


def test_a_residual_starts_as_the_mean() -> None:
    encoder = _built(dataclasses.replace(SMALL, architecture="set", residual=True)).eval()
    x, lengths = _tracks()
    mask = lengths_to_padding_mask(lengths, 12)
    torch.testing.assert_close(encoder(x, mask), x.sum(1) / lengths[:, None])
    assert encoder.d == CHANNELS


def test_fading_forgets_what_comes_late() -> None:
    encoder = _built(dataclasses.replace(SMALL, architecture="mean-map", fading=0.5, correction=0)).eval()
    x, lengths = _tracks()
    mask = lengths_to_padding_mask(lengths, 12)
    late = (torch.arange(12)[None, :, None] >= 8) & ~mask[..., None]
    early = (torch.arange(12)[None, :, None] < 1) & ~mask[..., None]
    moved_late, moved_early = (encoder(x + 3.0 * change, mask)[0] - encoder(x, mask)[0] for change in (late, early))
    assert moved_late.norm() < 1e-4 * moved_early.norm()


def test_the_mean_map_starts_as_the_kernel_it_stands_for() -> None:
    """With all frames as landmarks and nothing evened out, its inner products are those of centred kernel means."""
    config = dataclasses.replace(
        SMALL, architecture="mean-map", landmarks=43, out=8, spectrum=0.0, correction=0, sharpness=2.0
    )
    torch.manual_seed(0)
    x, lengths = _tracks(9)
    x = torch.nn.functional.normalize(x, dim=2)
    encoder = build_model(config, CHANNELS, 0)
    encoder.fit_start(lambda: [(x, lengths)], np.arange(8), config, 0)
    found = encoder.eval()(x, lengths_to_padding_mask(lengths, 12)).double()
    tracks = [x[i, :n].double() for i, n in enumerate(lengths.tolist())]
    kernel = torch.tensor([[float((2.0 * (a @ b.T - 1)).exp().mean()) for b in tracks] for a in tracks])
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    inner = found @ found.T
    inner = inner / inner.diagonal().mean()
    torch.testing.assert_close(inner, (centred / centred.diagonal().mean()).double(), atol=0.02, rtol=0)


def test_the_spread_within_artists_is_shrunk() -> None:
    torch.manual_seed(0)
    artists = np.arange(60) // 3
    centres = torch.randn(20, CHANNELS)
    nuisance = torch.randn(60, 1) * torch.eye(CHANNELS)[0] * 4  # tracks of one artist differ in the first channel only
    x = (centres[artists] + nuisance)[:, None, :] + 0.1 * torch.randn(60, 6, CHANNELS)
    lengths = torch.full((60,), 6)
    mask = lengths_to_padding_mask(lengths, 6)

    def share_within(within: float) -> float:
        config = dataclasses.replace(
            SMALL, architecture="mean-map", landmarks=200, out=12, within=within, correction=0, standardise="data"
        )
        encoder = build_model(config, CHANNELS, 0)
        encoder.fit_start(lambda: [(x, lengths)], artists, config, 0)
        z = encoder.eval()(x, mask)
        z = torch.nn.functional.normalize(z - z.mean(0), dim=1).detach()
        means = torch.stack([z[artists == a].mean(0) for a in range(20)])
        return float((z - means[artists]).square().sum() / z.square().sum())

    assert share_within(0.95) < 0.8 * share_within(0.0)


@pytest.mark.parametrize(
    "stage",
    [
        StageConfig(loss="arcface", sub_centers=2),
        StageConfig(loss="pairs", batching="artists"),
        StageConfig(loss="nt-xent", batching="groups"),
        StageConfig(loss="supcon", batching="artists"),
        StageConfig(loss="roadmap", batching="groups"),
        StageConfig(loss="smooth-ap", batching="groups"),
    ],
    ids=lambda stage: stage.loss,
)
def test_every_loss_falls(stage: StageConfig) -> None:
    encoder = _built(dataclasses.replace(SMALL, architecture="mean-map", standardise="data"))
    trainee = Trainee(encoder, Criterion(stage, encoder.d, 4))
    x, lengths = _tracks()
    mask, classes = lengths_to_padding_mask(lengths, 12), torch.arange(8) % 4
    optimizer = torch.optim.Adam(trainee.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        torch.manual_seed(0)  # the triplets
        learned = trainee(x, mask, classes)
        optimizer.zero_grad()
        learned.loss.backward()
        optimizer.step()
        losses.append(learned.loss.item())
    assert math.isfinite(losses[0])
    assert losses[-1] < 0.9 * losses[0]
    assert learned.positive_pairs in (8, None)


def test_losses_of_pairs_count_their_pairs() -> None:
    for loss in ("pairs", "nt-xent", "supcon", "roadmap", "smooth-ap"):
        criterion = Criterion(StageConfig(loss=loss, batching="groups"), 6, 9)
        assert criterion(torch.randn(4, 6, requires_grad=True), torch.arange(4)).positive_pairs == 0


def test_a_weighted_mean_starts_as_the_mean_and_ignores_padding() -> None:
    torch.manual_seed(0)
    encoder = build_model(ModelConfig(architecture="attention", ff=4, out=0), 6, 0).eval()
    x = torch.randn(3, 5, 6)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] + [True] * 4])
    means = torch.stack([x[0].mean(0), x[1, :3].mean(0), x[2, 0]])
    torch.testing.assert_close(encoder(x, mask), means)
    torch.nn.init.normal_(encoder.body.pooled.last.weight, std=3.0)
    found = encoder(x, mask)
    assert not torch.allclose(found[:2], means[:2], atol=0.1)
    torch.testing.assert_close(found[2], means[2])
    torch.testing.assert_close(encoder(x[1:2, :3], mask[1:2, :3]), found[1:2])


def test_the_supervised_contrastive_loss_equals_its_formula() -> None:
    torch.manual_seed(0)
    z, classes = torch.randn(9, 5), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3])
    unit = z.double() / z.double().norm(dim=1, keepdim=True)
    of_anchors = []
    for i in range(9):
        others = [j for j in range(9) if j != i]
        below = sum(math.exp(float(unit[i] @ unit[j]) / 0.2) for j in others)
        positive = [j for j in others if classes[j] == classes[i]]
        if positive:  # the only one of class 2 has none
            of_anchors.append(-np.mean([math.log(math.exp(float(unit[i] @ unit[j]) / 0.2) / below) for j in positive]))
    assert len(of_anchors) == 8
    assert float(supervised_contrastive(z, classes, temperature=0.2)) == pytest.approx(np.mean(of_anchors), rel=1e-5)
    alone = torch.randn(3, 5, requires_grad=True)
    loss = supervised_contrastive(alone, torch.arange(3))
    loss.backward()
    assert loss == 0
    assert alone.grad is not None
    assert torch.equal(alone.grad, torch.zeros(3, 5))


def test_a_codebook_is_the_logarithms_of_shares_evened_out() -> None:
    config = ModelConfig(architecture="codebook", landmarks=5, sharpness=4.0, out=3, dropout=0.0, spectrum=1.0)
    encoder = _built(config).eval()
    x, lengths = _tracks(9)  # those that it was fitted to
    words = torch.nn.functional.normalize(encoder.body.words.detach(), dim=1).numpy().astype(np.float64)
    frames = np.concatenate([x[i, :n].numpy() for i, n in enumerate(lengths.tolist())])
    assert all(np.isclose(frames, word, atol=1e-6).all(axis=1).any() for word in encoder.body.words.detach().numpy())
    logs = []
    for i, n in enumerate(lengths.tolist()):
        shares = np.exp(4.0 * x[i, :n].numpy().astype(np.float64) @ words.T)
        logs.append(np.log((shares / shares.sum(axis=1, keepdims=True)).mean(axis=0) + 1e-4))
    z = encoder(x, lengths_to_padding_mask(lengths, 12)).detach().numpy().astype(np.float64)
    centred = np.array(logs) - np.mean(logs, axis=0)
    np.testing.assert_allclose(z, centred @ encoder.body.projection.numpy(), atol=1e-4)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    covariance = z.T @ z / len(z)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-4)  # principal components
    assert np.square(z).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-4)
