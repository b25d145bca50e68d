"""A track alone and inside a padded batch gives the same, in evaluation and in training, for everything here."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchaudio.models import Conformer

from kit_nn.averaging import WeightAverage, mean_of_weights
from kit_nn.encoders import CrossAttention, MaskedBatchNorm, MaskedConformer, Positions, ResNet1d, TransformerEncoder
from kit_nn.pooling import (
    AttentionPooling,
    GeM,
    MeanMax,
    lengths_to_padding_mask,
    masked_max,
    masked_mean,
    masked_std,
    zero_padding,
)

D = 8
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "transformer": lambda: TransformerEncoder(D, 2, 2, 16, 0.0),
    "transformer-post": lambda: TransformerEncoder(D, 2, 2, 16, 0.0, norm_first=False, activation="relu"),
    "transformer-sinusoidal": lambda: TransformerEncoder(D, 1, 2, 16, 0.0, positions="sinusoidal"),
    "transformer-learned": lambda: TransformerEncoder(D, 1, 2, 16, 0.0, positions="learned"),
    "conformer-batch": lambda: MaskedConformer(D, 2, 2, 16, 5, 0.0),
    "conformer-layer": lambda: MaskedConformer(D, 2, 2, 16, 5, 0.0, norm="layer", positions="sinusoidal"),
    "resnet": lambda: ResNet1d(D, (6, 6, 10), (5, 3)),
    "queries": lambda: CrossAttention(D, 3, 2, layers=2, ff=16, dropout=0.0),
}
POOLINGS: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "mean": lambda: masked_mean,
    "max": lambda: masked_max,
    "std": lambda: masked_std,
    "mean-max": MeanMax,
    "attention": lambda: AttentionPooling(D, 2),
    "attention-hidden": lambda: AttentionPooling(D, 1, hidden=5),
    "gem": GeM,
}


def frames_of(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, D, generator=generator) for length in lengths]


def padded(items: list[Tensor], extra: int = 0, filler: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return a batch and its mask; what stands in padded frames is `filler`, which must not matter."""
    lengths = torch.tensor([len(item) for item in items])
    width = int(lengths.max()) + extra
    x = torch.full((len(items), width, D), filler)
    for place, item in enumerate(items):
        x[place, : len(item)] = item
    return x, lengths_to_padding_mask(lengths, width)


def test_the_mask_is_true_behind_the_end() -> None:
    mask = lengths_to_padding_mask(torch.tensor([2, 0, 3]), 3)
    assert mask.tolist() == [[False, False, True], [True, True, True], [False, False, False]]


@pytest.mark.parametrize("filler", [0.0, 7.0, float("nan")])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_a_track_alone_what_it_gives_in_a_batch(name: str, filler: float) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS[name]()
    items = frames_of([5, 1, 9, 4])
    encoder.train()
    encoder(*padded(frames_of([6, 7, 8], seed=1)))  # moves running statistics away from 0 and 1
    encoder.eval()
    with torch.no_grad():
        x, mask = padded(items, extra=3, filler=filler)
        together = encoder(x, mask)
        for place, item in enumerate(items):
            alone = encoder(*padded([item]))[0]
            length = len(alone) if name == "queries" else len(item)
            torch.testing.assert_close(together[place, :length], alone[:length], rtol=1e-5, atol=1e-5)
        if name != "queries":
            assert together.shape[:2] == x.shape[:2]
            assert not together[mask].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_in_training_too_padding_changes_neither_answers_nor_gradients_nor_statistics(name: str) -> None:
    results = []
    for extra, filler in ((0, 0.0), (6, 100.0)):
        torch.manual_seed(0)
        encoder = ENCODERS[name]().train()
        x, mask = padded(frames_of([5, 2, 9]), extra, filler)
        out = encoder(x, mask)
        real = out if name == "queries" else out[~mask]
        (real * torch.linspace(-1, 1, real.numel()).reshape(real.shape)).sum().backward()
        gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
        results.append((real.detach(), gradients, dict(encoder.named_buffers())))
    (real, gradients, buffers), (real_padded, gradients_padded, buffers_padded) = results
    torch.testing.assert_close(real_padded, real, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients_padded, gradients, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(buffers_padded, buffers, rtol=1e-5, atol=1e-6)
    assert len(gradients) > 3


def test_answers_depend_on_the_frames_beside() -> None:
    """Else the tests above would pass for encoders that look at nothing."""
    for name, make in ENCODERS.items():
        torch.manual_seed(0)
        encoder = make().eval()
        x, mask = padded(frames_of([6]))
        changed = x.clone()
        changed[0, 3, 0] += 1  # one channel: LayerNorm takes away what all have in common
        difference = (encoder(x, mask) - encoder(changed, mask)).abs().amax(-1)[0]
        assert difference[2] > 1e-4, name


@pytest.mark.parametrize("filler", [0.0, 50.0, float("nan")])
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_is_exact_under_padding(name: str, filler: float) -> None:
    torch.manual_seed(0)
    pool = POOLINGS[name]()
    items = frames_of([4, 1, 7])
    together = pool(*padded(items, extra=2, filler=filler))
    for place, item in enumerate(items):
        torch.testing.assert_close(together[place], pool(*padded([item]))[0], rtol=1e-5, atol=1e-6)


def test_pooling_equals_numpy() -> None:
    items = frames_of([4, 7])
    x, mask = padded(items, extra=2, filler=9.0)
    arrays = [item.numpy() for item in items]
    for pool, reference in ((masked_mean, np.mean), (masked_max, np.max), (masked_std, np.std)):
        expected = np.stack([reference(array, axis=0) for array in arrays])
        np.testing.assert_allclose(pool(x, mask), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(MeanMax()(x, mask)[:, D:], masked_max(x, mask))
    powers = GeM(p=2.0)(x, mask).detach()
    np.testing.assert_allclose(powers, [np.sqrt(np.mean(a.clip(1e-6) ** 2, 0)) for a in arrays], rtol=1e-4, atol=1e-5)


def test_attention_weights_are_a_distribution_over_real_frames() -> None:
    pool = AttentionPooling(D, 4)
    x, mask = padded(frames_of([3, 6]), extra=1)
    weights = pool.weights(x, mask)
    assert weights.shape == (2, 7, 4)
    assert not weights[mask].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 4))
    by_hand = (weights[0, :3, 1:2] * x[0, :3, 2:4]).sum(0)
    torch.testing.assert_close(pool(x, mask)[0, 2:4], by_hand)
    with pytest.raises(ValueError, match="heads: found 3"):
        AttentionPooling(D, 3)


def test_std_of_one_frame_has_a_finite_gradient() -> None:
    x, mask = padded(frames_of([1]))
    x.requires_grad_()
    masked_std(x, mask).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_masked_batch_norm_equals_torch_on_the_real_frames() -> None:
    ours, reference = MaskedBatchNorm(D), nn.BatchNorm1d(D)
    x, mask = padded(frames_of([3, 6]), extra=4, filler=1000.0)
    torch.testing.assert_close(ours(x, mask)[~mask], reference(x[~mask]))
    torch.testing.assert_close(ours.running_var, reference.running_var)
    single = ours(*padded(frames_of([1])))  # torch refuses one value a channel
    assert torch.isfinite(single).all()


def test_without_padding_the_conformer_is_torchaudios() -> None:
    torch.manual_seed(0)
    reference = Conformer(input_dim=D, num_heads=2, ffn_dim=16, num_layers=2, depthwise_conv_kernel_size=5)
    ours = MaskedConformer(D, 2, 2, 16, 5)
    names = {
        "ffn1": "first", "ffn2": "second", "self_attn_layer_norm": "attention_norm", "self_attn": "attention",
        "final_layer_norm": "final_norm", "conv_module.layer_norm": "convolution_norm",
        "conv_module.sequential.0": "expand.0", "conv_module.sequential.2": "depthwise",
        "conv_module.sequential.3": "norm", "conv_module.sequential.5": "project",
    }  # fmt: skip
    state = {}
    for key, value in reference.state_dict().items():
        _, layer, rest = key.split(".", 2)
        [theirs] = [name for name in names if rest.startswith(name + ".")]
        state[f"blocks.{layer}.{names[theirs]}{rest[len(theirs) :]}"] = value
    ours.load_state_dict(state)
    x = torch.stack(frames_of([6, 6]))
    expected, _ = reference.eval()(x, torch.tensor([6, 6]))
    torch.testing.assert_close(ours.eval()(x, torch.zeros(2, 6, dtype=torch.bool)), expected)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel: found 4"):
        MaskedConformer(D, 1, 2, 16, 4)
    with pytest.raises(ValueError, match="kernels: found"):
        ResNet1d(D, (4,), (3, 2))


def test_positions_tell_frames_apart_and_learned_ones_end() -> None:
    x = torch.zeros(1, 6, D)
    assert torch.unique(Positions(D, "sinusoidal")(x)[0], dim=0).shape[0] == 6
    learned = Positions(D, "learned", longest=3)(x)[0]
    assert torch.equal(learned[2], learned[5])
    assert not torch.equal(learned[1], learned[2])


def test_query_weights_are_a_distribution_over_real_frames() -> None:
    queries = CrossAttention(D, 5, 2, dropout=0.0).eval()
    x, mask = padded(frames_of([2, 4]))
    vectors, weights = queries.attend(x, mask, need_weights=True)
    assert weights is not None
    assert (vectors.shape, weights.shape) == ((2, 5, D), (2, 5, 4))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    assert not weights[0, :, 2:].any()


def test_zero_padding_takes_nan_away() -> None:
    x, mask = padded(frames_of([1, 3]), filler=float("nan"))
    assert torch.isfinite(zero_padding(x, mask)).all()


def test_weight_average_follows_and_resumes() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(module, decay=0.9)
    expected = module[0].weight.detach().clone()
    assert not average.module.training
    for step in range(30):
        with torch.no_grad():
            module[0].weight += 1
        module(torch.randn(4, 2))
        average.update(module)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module[0].weight.detach()
        if step == 10:
            resumed = WeightAverage(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), decay=0.9)
            resumed.load_state_dict(average.state_dict())
            average = resumed
    torch.testing.assert_close(average.module[0].weight, expected)
    assert average.module[1].num_batches_tracked == 30
    with pytest.raises(ValueError, match="decay: found 1"):
        WeightAverage(module, 1.0)


def test_mean_of_weights() -> None:
    states = [{"w": torch.full((2,), float(i)), "n": torch.tensor(i)} for i in range(4)]
    found = mean_of_weights(states)
    assert (found["w"].tolist(), found["w"].dtype, int(found["n"])) == ([1.5, 1.5], torch.float32, 3)
    with pytest.raises(ValueError, match="same names"):
        mean_of_weights([states[0], {"w": states[0]["w"]}])
    with pytest.raises(ValueError, match="one or more"):
        mean_of_weights([])


@pytest.mark.parametrize(
    ("build", "n_places"),
    [
        (lambda rate: TransformerEncoder(D, 2, 2, 16, rate), 2 * 4),  # attention weights, after it, twice in the MLP
        (lambda rate: MaskedConformer(D, 2, 2, 16, 5, rate), 2 * 7),
        (lambda rate: ResNet1d(D, (6, 6), (5, 3), rate), 2),
        (lambda rate: CrossAttention(D, 3, 2, layers=2, ff=16, dropout=rate), 2 * 3 + 1),
    ],
)
def test_the_dropout_rate_reaches_every_layer_and_acts_in_training_alone(
    build: Callable[[float], nn.Module], n_places: int
) -> None:
    torch.manual_seed(0)
    encoder = build(0.37)
    rates = [
        module.p if isinstance(module, nn.Dropout) else module.dropout
        for module in encoder.modules()
        if isinstance(module, nn.Dropout | nn.MultiheadAttention)
    ]
    assert rates == [0.37] * n_places
    x, mask = padded(frames_of([5, 9]))
    assert not torch.equal(encoder.train()(x, mask), encoder(x, mask))
    assert torch.equal(encoder.eval()(x, mask), encoder(x, mask))
    without = build(0.0).train()
    assert torch.equal(without(x, mask), without(x, mask))
