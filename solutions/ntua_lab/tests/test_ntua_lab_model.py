"""Networks under padding, the last step, the losses, and what training does to its inputs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from ntua_lab.config import Config, DataConfig, InputConfig, NetworkConfig, TrainConfig
from ntua_lab.inputs import Inputs, augment, mix, of_arrays
from ntua_lab.losses import MultitaskLoss, rank_loss, scales_of
from ntua_lab.model import ConvBackbone, LstmBackbone, Network, build_network

HEADS = {"genre": 4, "valence": 1}
KINDS = {
    "lstm": (NetworkConfig(kind="lstm", hidden=8), InputConfig()),
    "lstm, one layer": (NetworkConfig(kind="lstm", hidden=8, layers=1), InputConfig(features="fused")),
    "cnn": (NetworkConfig(kind="cnn", channels=(3, 4, 5, 6), pooling="mean"), InputConfig()),
    "cnn, mean and max": (
        NetworkConfig(kind="cnn", channels=(3, 4), pooling="mean-max"),
        InputConfig(features="fused"),
    ),
    "cnn, attention": (NetworkConfig(kind="cnn", channels=(3, 4), pooling="attention"), InputConfig(features="chroma")),
    "ast": (NetworkConfig(kind="ast", hidden=16, layers=1, heads=2, pooling="mean"), InputConfig(chunk=64)),
}


def make(kind: str) -> tuple[Network, InputConfig]:
    settings, input_ = KINDS[kind]
    torch.manual_seed(0)
    network = build_network(settings, input_, HEADS)
    network.mean.normal_()
    network.scale.uniform_(0.5, 2.0)
    network.train()
    x = torch.randn(6, 40, len(network.mean))
    with torch.no_grad():
        network(x, torch.zeros(6, 40, dtype=torch.bool))  # statistics of batch normalisation that are not 0 and 1
    return network.eval(), input_


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [5, 17, 37])
def test_a_clip_alone_and_in_a_padded_batch(kind: str, length: int) -> None:
    network, _ = make(kind)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(3, 60, len(network.mean), generator=rng)
    mask = torch.zeros(3, 60, dtype=torch.bool)
    mask[0, length:] = True
    x[0, length:] = float("nan")  # what stands in padding never matters
    with torch.inference_mode():
        together = network(network.standardise(x, mask), mask)
        alone_mask = torch.zeros(1, length, dtype=torch.bool)
        alone = network(network.standardise(x[:1, :length], alone_mask), alone_mask)
    for name, size in HEADS.items():
        assert together[name].shape == ((3, size) if name == "genre" else (3,))
        torch.testing.assert_close(together[name][:1], alone[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_lstm_is_that_of_packed_sequences(layers: int) -> None:
    torch.manual_seed(0)
    backbone = LstmBackbone(5, 4, layers, 0.0)
    peer = nn.LSTM(5, 4, layers, batch_first=True, bidirectional=True)
    for layer in range(layers):
        for module, suffix in ((backbone.ahead[layer], ""), (backbone.back[layer], "_reverse")):
            for name, own in module.named_parameters():
                getattr(peer, name.replace("_l0", f"_l{layer}") + suffix).data.copy_(own)
    lengths = torch.tensor([9, 6, 1])
    x = torch.randn(3, 9, 5)
    mask = torch.arange(9) >= lengths[:, None]
    got = backbone(x, mask)
    _, (state, _) = peer(pack_padded_sequence(x, lengths, batch_first=True))
    expected = torch.cat([state[-2], state[-1]], dim=1)
    torch.testing.assert_close(got, expected)
    got.square().sum().backward()
    expected.square().sum().backward()
    for layer in range(layers):
        torch.testing.assert_close(backbone.ahead[layer].weight_hh_l0.grad, getattr(peer, f"weight_hh_l{layer}").grad)
        own, reverse = backbone.back[layer].weight_ih_l0.grad, getattr(peer, f"weight_ih_l{layer}_reverse").grad
        torch.testing.assert_close(own, reverse)


def test_the_cnn_is_four_times_conv_norm_relu_pool() -> None:
    torch.manual_seed(0)
    backbone = ConvBackbone(128, (2, 3, 4, 5), "mean").eval()
    x = torch.randn(2, 64, 128)
    plain: Tensor = x.transpose(1, 2)[:, None]
    for block in backbone.blocks:
        parts = nn.Sequential(block.convolution, block.norm, nn.ReLU(), nn.MaxPool2d(2))
        plain = parts(plain)
    assert plain.shape == (2, 5, 8, 4)
    expected = plain.flatten(1, 2).mean(dim=2)
    torch.testing.assert_close(backbone(x, torch.zeros(2, 64, dtype=torch.bool)), expected)


def logits_and_targets() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    logits = {"genre": torch.randn(6, 3, generator=rng), "energy": torch.randn(6, generator=rng)}
    shares = nn.functional.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3).float()
    shares[5] = 0.0  # unknown
    energy = torch.tensor([0.1, 0.9, float("nan"), 0.4, 0.6, 0.2])
    return logits, {"genre": shares, "energy": energy}


def test_the_loss_of_both_tasks_by_hand() -> None:
    logits, targets = logits_and_targets()
    total, parts = MultitaskLoss({"genre": 2.0, "energy": 0.5})(logits, targets)
    genre = nn.functional.cross_entropy(logits["genre"][:5], torch.tensor([0, 1, 2, 0, 1])) / 2.0
    known = torch.tensor([0, 1, 3, 4, 5])
    energy = nn.functional.mse_loss(logits["energy"][known].sigmoid(), targets["energy"][known]) / 0.5
    torch.testing.assert_close(parts["genre"], genre)
    torch.testing.assert_close(parts["energy"], energy)
    torch.testing.assert_close(total, genre + energy)
    smooth = MultitaskLoss({"genre": 1.0}, smoothing=0.2)(logits, targets)[1]["genre"]
    torch.testing.assert_close(
        smooth, nn.functional.cross_entropy(logits["genre"][:5], torch.tensor([0, 1, 2, 0, 1]), label_smoothing=0.2)
    )


def test_learnt_weights_find_the_scale_of_each_part() -> None:
    logits, targets = logits_and_targets()
    loss = MultitaskLoss({"genre": 1.0, "energy": 1.0}, uncertainty=True)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for _ in range(500):
        total, parts = loss(logits, targets)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    for name, part in parts.items():  # the optimum of exp(-s) L + s is s = log L
        assert float(loss.log_weights[name].detach().exp()) == pytest.approx(float(part), rel=0.02)


def test_unknown_targets_count_nowhere() -> None:
    logits, targets = logits_and_targets()
    nothing = {"genre": targets["genre"] * 0, "energy": targets["energy"] * float("nan")}
    total, parts = MultitaskLoss({"genre": 1.0, "energy": 1.0})(logits, nothing)
    assert float(total) == 0.0
    assert not parts


def test_the_rank_loss_sees_order_alone() -> None:
    wanted = torch.tensor([0.1, 0.2, 0.3, 0.9])
    right = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float(rank_loss(right, wanted)) == pytest.approx(0.0, abs=1e-6)
    assert float(rank_loss(10 * right - 3, wanted**2)) == pytest.approx(0.0, abs=1e-6)
    assert float(rank_loss(-right, wanted)) == pytest.approx(2 * float(wanted.var(unbiased=False)), rel=1e-5)
    assert float(rank_loss(right[:2], wanted[:2])) == 0.0
    assert float(rank_loss(right, torch.full((4,), 0.5))) == 0.0
    logits, targets = logits_and_targets()
    for kind in ("rank", "both"):
        assert torch.isfinite(MultitaskLoss({"energy": 1.0}, kind=kind)(logits, targets)[0])


def test_guessing_costs_one() -> None:
    targets = {"genre": torch.eye(4), "energy": torch.tensor([0.2, 0.8, 0.4, 0.6])}
    scales = scales_of(targets)
    logits = {"genre": torch.zeros(4, 4), "energy": torch.zeros(4)}  # even shares, and 0.5, the mean
    _, parts = MultitaskLoss(scales)(logits, targets)
    assert [float(part) for part in parts.values()] == pytest.approx([1.0, 1.0], rel=1e-5)


def memory(lengths: list[int], chunk: int) -> Inputs:
    arrays = [
        np.full((140, length), number, np.float32) + np.arange(length) / 1000 for number, length in enumerate(lengths)
    ]
    return of_arrays([array.astype(np.float32) for array in arrays], InputConfig(chunk=chunk))


@pytest.mark.parametrize("chunk", [8, 10, 31, 40])
def test_windows_cover_every_frame(chunk: int) -> None:
    lengths = [31, 5, 20]
    inputs = memory(lengths, chunk)
    x, mask, owner = inputs.covering(np.arange(3))
    assert x.shape[1] == chunk
    for place, length in enumerate(lengths):
        seen = {round(float(v % 1 * 1000)) for v in x[owner == place][~mask[owner == place]][:, 0]}
        assert seen == set(range(length))
        assert len(x[owner == place]) == max(1, -(-length // chunk))


def test_random_windows_lie_inside_their_clip() -> None:
    inputs = memory([31, 5], 8)
    starts = set()
    for seed in range(200):
        x, mask = inputs.random(np.array([1, 0]), np.random.default_rng(seed))
        assert (~mask).sum(dim=1).tolist() == [5, 8]
        frames = [round(float(v - 0) * 1000) for v in x[1, :, 0]]
        assert frames == list(range(frames[0], frames[0] + 8))
        starts.add(frames[0])
    assert starts == set(range(24))


def test_statistics_are_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal((140, 700)) * 3 + 5).astype(np.float32) for _ in range(4)]
    mean, scale = of_arrays(arrays, InputConfig(features="chroma")).statistics(np.arange(4))
    assert mean.shape == (12,)
    np.testing.assert_allclose(mean, 5, atol=0.6)
    np.testing.assert_allclose(scale, 3, atol=0.6)


def test_masks_and_tilt() -> None:
    x = torch.ones(50, 60, 140)
    draws = torch.Generator().manual_seed(0)
    out = augment(x, TrainConfig(time_mask=0.2, band_mask=10), 128, draws)
    hidden = out == 0
    frames, bands = hidden.all(dim=2).sum(dim=1), hidden.all(dim=1).sum(dim=1)
    assert 0 < frames.max() <= 24
    assert 0 < bands.max() <= 20
    assert not hidden.all(dim=1)[:, 128:].any()  # chroma rows are no neighbours
    tilted = augment(x, TrainConfig(tilt=0.5), 128, draws)
    torch.testing.assert_close(tilted[:, :, :128].mean(dim=2), torch.ones(50, 60), atol=1e-4, rtol=0)
    torch.testing.assert_close(tilted[:, :, 128:], x[:, :, 128:])
    assert (tilted[:, 0, 0] - tilted[:, 0, 127]).std() > 0.5
    torch.testing.assert_close(augment(x, TrainConfig(), 128, draws), x)


def test_mixed_clips_carry_mixed_targets() -> None:
    x = torch.arange(4.0)[:, None, None].expand(4, 3, 2)
    targets = {"genre": torch.eye(4), "energy": torch.tensor([0.0, 1.0, 2.0, float("nan")])}
    mixed, mask, wanted = mix(x, torch.zeros(4, 3, dtype=torch.bool), targets, 1.0, np.random.default_rng(3))
    shares = wanted["genre"]
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(mixed[:, 0, 0], shares @ torch.arange(4.0))
    known = torch.isfinite(wanted["energy"])
    torch.testing.assert_close(wanted["energy"][known], (shares[:, :3] @ torch.tensor([0.0, 1.0, 2.0]))[known])
    assert not mask.any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": ()}, "members"),
        ({"axes": ("energy", "energy")}, "axes"),
        ({"data": DataConfig(fold=7)}, "data.fold"),
        ({"network": NetworkConfig(kind="cnn")}, "network.pooling"),
        ({"network": NetworkConfig(kind="ast", pooling="mean")}, "chunks"),
        (
            {"network": NetworkConfig(kind="cnn", pooling="mean"), "input": InputConfig(features="chroma")},
            "12 chroma rows",
        ),
        ({"separate": True}, "separate"),
        ({"task": "joint", "members": ("svm",)}, "joint"),
        ({"train": TrainConfig(overfit_batch=4), "members": ("svm",)}, "overfit_batch"),
        ({"train": TrainConfig(epochs=0)}, "train.epochs"),
        ({"train": TrainConfig(batch=1)}, "train.batch"),
        ({"data": DataConfig(limit=0)}, "data.limit"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**changes)  # type: ignore[arg-type]  # one of the fields above
