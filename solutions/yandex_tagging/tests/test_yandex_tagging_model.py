"""Networks: a track alone and in a padded batch has equal logits; heads, families and augmentations by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kit_core.config import load_preset, preset_names
from kit_core.errors import ConfigError
from kit_nn.pooling import lengths_to_padding_mask
from yandex_tagging import augment
from yandex_tagging.config import PRESETS, Config, DataConfig, NetworkConfig, OptimConfig
from yandex_tagging.model import FamilyHead, TagNet, fill_in_parents, find_parents

DIM, TAGS = 6, 5
SMALL = NetworkConfig(
    d=8, layers=1, heads=2, ff=16, kernel=3, channels=(8, 8), pooling_heads=2, head_hidden=8, input_hidden=8
)
NETWORKS = {
    "transformer": SMALL,
    "post-norm": replace(SMALL, norm_first=False, activation="relu", positions="sinusoidal", pooling="attention"),
    "conformer": replace(SMALL, encoder="conformer", pooling="mean", head="family", pooled_norm="batch"),
    "conformer-layer": replace(SMALL, encoder="conformer", conformer_norm="layer", pooling="gem", positions="learned"),
    "resnet1d": replace(SMALL, encoder="resnet1d", pooling="max", head="mlp", input="identity"),
    "queries": replace(SMALL, encoder="none", head="queries", query_layers=2, query_ff=8, input="mlp"),
    "frames": replace(SMALL, encoder="transformer", head="frames", input_norm=True),
    "independent": replace(
        SMALL, encoder="none", input="identity", pooling="mean-max", pooled_norm="none", head="independent"
    ),
    "official": replace(SMALL, encoder="none", pooling="mean", pooled_norm="layer", head="mlp"),
}
PARENTS = np.array([-1, 0, 0, 1, -1])


def tracks_of(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(len(lengths), max(lengths), DIM)
    for place, length in enumerate(lengths):
        x[place, :length] = torch.randn(length, DIM, generator=generator)
    return x, torch.tensor(lengths)


def net_of(config: NetworkConfig) -> TagNet:
    torch.manual_seed(0)
    net = TagNet(config, DIM, TAGS, PARENTS)
    net.standardise_by(np.full(DIM, 0.1, np.float32), np.full(DIM, 0.7, np.float32))
    x, lengths = tracks_of([7, 3, 9, 4])
    net(x, lengths_to_padding_mask(lengths, 9))  # running statistics of batch normalisation leave their start
    return net.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_track_alone_and_in_a_padded_batch_has_equal_logits(name: str) -> None:
    net = net_of(NETWORKS[name])
    x, lengths = tracks_of([5, 1, 12, 3])
    with torch.no_grad():
        wide = torch.nn.functional.pad(x, (0, 0, 0, 4), value=3.0)  # padding that is not zero must not matter either
        together = net(wide, lengths_to_padding_mask(lengths, 16))
        assert together.shape == (4, TAGS)
        for place, length in enumerate(lengths.tolist()):
            alone = net(x[place : place + 1, :length], torch.zeros(1, length, dtype=torch.bool))
            torch.testing.assert_close(together[place : place + 1], alone, rtol=1e-5, atol=1e-5)
        assert together.std(0).min() > 1e-4


def test_the_originals_pooling_does_depend_on_padding() -> None:
    """The flaw that `faithful` keeps; if this fails, the switch keeps nothing."""
    net = net_of(replace(SMALL, pooling="last", pooled_norm="none"))
    x, lengths = tracks_of([5])
    with torch.no_grad():
        alone = net(x, torch.zeros(1, 5, dtype=torch.bool))
        padded = net(torch.nn.functional.pad(x, (0, 0, 0, 4)), lengths_to_padding_mask(lengths, 9))
    assert (alone - padded).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_frame_weights_are_shares_of_real_frames(name: str) -> None:
    net = net_of(NETWORKS[name])
    x, lengths = tracks_of([5, 2])
    mask = lengths_to_padding_mask(lengths, 5)
    with torch.no_grad():
        weights = net.frame_weights(x, mask)
    assert weights.shape[:2] == (2, 5)
    assert weights.shape[2] == (TAGS if name in ("queries", "frames") else weights.shape[2])
    assert not weights[mask].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(2, weights.shape[2]))


def test_every_parameter_of_every_network_learns() -> None:
    for name, config in NETWORKS.items():
        net = net_of(config).train()
        x, lengths = tracks_of([5, 2, 8])
        logits = net(x, lengths_to_padding_mask(lengths, 8))
        (logits * torch.randn(logits.shape)).sum().backward()
        without = [key for key, p in net.named_parameters() if p.grad is None]
        assert not without, (name, without)


def test_strictly_independent_heads_share_nothing() -> None:
    net = net_of(NETWORKS["independent"])
    x, lengths = tracks_of([5, 2])
    net(x, lengths_to_padding_mask(lengths, 5))[:, 2].sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None
        others = [tag for tag in range(TAGS) if tag != 2]
        assert not parameter.grad[others].any(), key
        assert parameter.grad[2].any(), key


def test_family_head_adds_a_share_of_the_parent() -> None:
    head = FamilyHead(3, PARENTS)
    x = torch.randn(2, 3)
    own = head.linear(x)
    torch.testing.assert_close(head(x), own)  # at first nothing
    with torch.no_grad():
        head.share.copy_(torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0]))
    expected = own.clone()
    expected[:, 1] += 2 * own[:, 0]
    expected[:, 3] += 3 * own[:, 1]
    torch.testing.assert_close(head(x), expected)


def test_parents_are_found_and_filled_in() -> None:
    tags = np.zeros((40, 4), bool)
    tags[:30, 0] = True
    tags[:11, 1] = True
    tags[10, 0] = False  # one of 11 lacks its parent
    tags[:3, 2] = True  # child of 1, and with it of 0; 1 is rarer
    tags[25:40, 3] = True  # a third of it is outside 0
    assert find_parents(tags).tolist() == [-1, 0, 1, -1]
    filled = fill_in_parents(tags, find_parents(tags))
    assert filled[10, 0]
    assert filled.sum() == tags.sum() + 1
    assert not tags[10, 0]
    chain = np.zeros((1, 3), bool)
    chain[0, 2] = True
    assert fill_in_parents(chain, np.array([-1, 0, 1])).all()


def test_windows_stay_inside_and_obey_their_limits() -> None:
    lengths = np.array([1, 2, 10, 100] * 200)
    start, count = augment.draw_windows(lengths, np.random.default_rng(0), span=0.5, span_shortest=0.3, longest=40)
    assert (start >= 0).all()
    assert (count >= 1).all()
    assert (start + count <= lengths).all()
    assert count.max() == 40
    assert 0.35 < np.mean(count[2::4] < 10) < 0.65
    assert count[2::4].min() >= 3
    whole = augment.draw_windows(lengths, np.random.default_rng(0), span=0.0, span_shortest=0.3, longest=0)
    assert not whole[0].any()
    assert (whole[1] == lengths).all()


def test_dropped_frames_close_the_gap_and_one_stays() -> None:
    x = torch.arange(1.0, 201).reshape(1, 200, 1).repeat(3, 1, 1)
    lengths = torch.tensor([200, 50, 1])
    x[1, 50:], x[2, 1:] = 0, 0
    before = x.clone()
    kept, counts = augment.drop_frames(x, lengths, np.random.default_rng(0), 0.3)
    assert torch.equal(x, before)
    assert counts[2] == 1
    assert 110 < counts[0] < 170
    assert kept.shape[1] == counts.max()
    for place, count in enumerate(counts.tolist()):
        frames = kept[place, :count, 0]
        assert (frames.diff() > 0).all()  # in order, each once
        assert frames.min() > 0
        assert not kept[place, count:].any()
    nearly_all, counts = augment.drop_frames(x, lengths, np.random.default_rng(0), 0.999999)
    assert counts.tolist() == [1, 1, 1]
    assert nearly_all.min() > 0


def test_turning_time_round_leaves_padding_behind() -> None:
    x, lengths = tracks_of([4, 2])
    turned = augment.turn_round(x, lengths, np.random.default_rng(0), 1.0)
    assert torch.equal(turned[0], x[0].flip(0))
    assert torch.equal(turned[1, :2], x[1, :2].flip(0))
    assert not turned[1, 2:].any()
    assert torch.equal(augment.turn_round(x, lengths, np.random.default_rng(0), 0.0), x)


def test_noise_spares_padding() -> None:
    x, lengths = tracks_of([4, 2])
    noisy = augment.add_noise(x, lengths, np.random.default_rng(0), torch.full((DIM,), 0.1))
    assert not noisy[1, 2:].any()
    assert (noisy[0] != x[0]).all()
    assert (noisy - x).std() < 0.2


def test_mixup_keeps_values_and_labels_in_the_same_share() -> None:
    b = 64
    values = torch.arange(b, dtype=torch.float32)
    x = values[:, None, None].expand(b, 3, 1).clone()
    mixed, lengths, labels = augment.mixup(x, torch.full((b,), 3), torch.eye(b), np.random.default_rng(0))
    assert lengths.tolist() == [3] * b
    torch.testing.assert_close(mixed[:, 0, 0], labels @ values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(labels.sum(1), torch.ones(b))
    assert labels.diagonal().std() > 0.2


def test_mixup_goes_on_alone_behind_the_end_of_the_shorter() -> None:
    x, lengths = tracks_of([6, 2])
    for seed in range(20):
        mixed, counts, labels = augment.mixup(x, lengths, torch.eye(2), np.random.default_rng(seed))
        if labels[0, 1] > 0:
            assert counts.tolist() == [6, 6]
            torch.testing.assert_close(mixed[0, 2:], x[0, 2:])
            torch.testing.assert_close(mixed[1, 2:], x[0, 2:])
            torch.testing.assert_close(mixed[0, :2], labels[0, 0] * x[0, :2] + labels[0, 1] * x[1, :2])
            return
    pytest.fail("no draw mixed the two")


def test_cutmix_pastes_real_frames_of_the_track_whose_labels_join() -> None:
    b = 40
    lengths = torch.tensor([4, 9] * (b // 2))
    x = torch.zeros(b, 9, 1)
    for place, length in enumerate(lengths.tolist()):
        x[place, :length] = place + 1
    pasted, labels = augment.cutmix(x, lengths, torch.eye(b), np.random.default_rng(0), 1.0)
    changed = 0
    for place, length in enumerate(lengths.tolist()):
        assert not pasted[place, length:].any()
        others = {int(value) - 1 for value in pasted[place, :length].flatten().tolist()} - {place}
        assert -1 not in others  # never padding
        assert set(labels[place].nonzero().flatten().tolist()) >= others | {place}
        assert labels[place].sum() <= 2
        assert (pasted[place, :length] != place + 1).sum() <= length // 2
        changed += bool(others)
    assert changed > b // 2
    same, kept = augment.cutmix(x, lengths, torch.eye(b), np.random.default_rng(0), 0.0)
    assert torch.equal(same, x)
    assert torch.equal(kept, torch.eye(b))


@pytest.mark.parametrize("name", preset_names(PRESETS))
def test_every_preset_builds(name: str) -> None:
    config = load_preset(Config, PRESETS, name)
    assert all(member in preset_names(PRESETS) for member in config.members)
    if config.model == "network":
        with torch.device("meta"):  # no memory, however large
            TagNet(config.network, 768, 256, np.full(256, -1))


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    for wrong, words in (
        (lambda: Config(data=DataConfig(fold=5)), "data.fold: found 5, expected 0..4"),
        (lambda: Config(model="ensemble"), "members"),
        (lambda: Config(members=("knn",)), "members"),
        (lambda: Config(faithful=True), "faithful"),
        (lambda: Config(network=NetworkConfig(pooling="last")), "faithful"),
        (lambda: Config(network=NetworkConfig(d=10, heads=4)), "multiple of heads"),
        (lambda: Config(optim=OptimConfig(swa=3, ema=0.9)), "swa"),
        (lambda: Config(copies=0), "expected 1 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()
    (tmp_path / "typo.toml").write_text("[network]\nencoder = 'transfomer'\n")
    with pytest.raises(ConfigError, match="transformer"):
        load_preset(Config, tmp_path, "typo")
