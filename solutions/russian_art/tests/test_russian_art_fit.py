"""What the training loop of a network computes, against a plain PyTorch loop that shares no code with it."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from torch import Tensor, nn

from kit_train.ranks import Share
from russian_art import finetune
from russian_art.backbones import Normalisation, Weights, to_images
from russian_art.config import NetworkConfig, StageConfig
from russian_art.finetune import Images, Maps, fit_network, make_inputs, make_network, random_crops, score_rows
from russian_art.model import ArtNetwork, build_head

TINY = "test_efficientnet"
SCRATCH = Weights(None, "scratch", "scratch")
TOPS, GENRES = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
N, N_FITTED, BATCH = 18, 13, 4  # three batches an epoch; the thirteenth row is left out
FITTED, HELD = np.arange(N_FITTED) + 5, np.arange(5)
LABEL = (np.arange(N) * 7 % 11 % 4).astype(np.int64)
# Distance of every parameter from the head: the layers of `Backbone`, as its `group_matcher` names them.
DEPTH = {"head": 0, "backbone.block": 1, "backbone.norm": 2, "backbone.stem": 2}


class Backbone(nn.Module):
    """The least that the loop takes for a backbone of timm: two linear layers around a batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 4, bias=False)  # a normalisation follows: the gradient of a bias would be noise
        self.norm, self.block = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward_features(self, rows: Tensor) -> Tensor:
        out: Tensor = self.block(self.norm(self.stem(rows)))
        return out

    def forward_head(self, rows: Tensor, pre_logits: bool) -> Tensor:
        return rows

    def group_matcher(self, coarse: bool) -> dict[str, str]:
        return {"stem": r"^stem|^norm", "block": r"^block"}


class Vectors:
    """Inputs of a network that are vectors; keeps the rows of every training batch."""

    def __init__(self) -> None:
        self.values = torch.randn(N, 5, generator=torch.Generator().manual_seed(1)) * 2
        self.batches: list[list[int]] = []

    def training(self, rows: np.ndarray, generator: torch.Generator, mine: Share | None = None) -> Tensor:
        self.batches.append(rows.tolist())
        return self.values[rows]

    def plain(self, rows: np.ndarray, mirrored: bool = False) -> Tensor:
        return self.values[rows].flip(1) if mirrored else self.values[rows]


def start() -> ArtNetwork:
    torch.manual_seed(5)
    network = ArtNetwork(Backbone(), build_head("linear", 3, TOPS, GENRES))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def fit(config: NetworkConfig, folder: Path, seed: int = 3) -> tuple[np.ndarray, Vectors, list[dict[str, Any]]]:
    inputs, lines = Vectors(), []
    logits = fit_network(
        config, start(), inputs, LABEL, TOPS, FITTED, HELD, C=0.1, seed=seed, state_path=folder / "state.pt",
        weights_path=folder / "weights.safetensors", log=lambda **values: lines.append(values),
    )  # fmt: skip
    return logits, inputs, lines


def forward(network: ArtNetwork, rows: Tensor) -> Tensor:
    backbone = network.backbone
    logits: Tensor = network.head.label(backbone.block(backbone.norm(backbone.stem(rows))))
    return logits


def loss_by_hand(logits: Tensor, label: Tensor, config: NetworkConfig) -> Tensor:
    """Cross-entropy with smoothed labels, plus that of the top."""
    share = logits.float().softmax(dim=1)
    wanted = torch.full_like(share, config.label_smoothing / 4)
    wanted[torch.arange(len(label)), label] += 1 - config.label_smoothing
    loss = -(wanted * share.log()).sum(dim=1).mean()
    of_tops = torch.stack([share[:, :2].sum(dim=1), share[:, 2:].sum(dim=1)], dim=1)
    return loss - config.hierarchy_weight * of_tops[torch.arange(len(label)), label // 2].log().mean()


def rates_by_hand(stage: StageConfig, n_steps: int) -> Iterator[float]:
    """Factors of the learning rate; the tests warm up over a whole number of steps."""
    n_warmup = round(stage.warmup_share * n_steps)
    for step in range(n_warmup):
        yield (step + 1) / (n_warmup + 1)
    for step in range(n_steps - n_warmup):
        yield 1.0 if stage.schedule == "constant" else 0.5 + 0.5 * math.cos(math.pi * step / (n_steps - n_warmup))


def train_by_hand(config: NetworkConfig, batches: list[list[int]]) -> tuple[dict[str, Tensor], list[float]]:
    """Weights after the batches, and the loss of each."""
    network, values = start(), Vectors().values
    mean = copy.deepcopy(network.state_dict())
    losses: list[float] = []
    remaining = iter(batches)
    for stage in (config.first, config.second):
        for group in network.parameters():
            group.requires_grad_(stage.trained == "all")
        network.head.requires_grad_(True)
        groups = []
        for name, parameter in network.named_parameters():
            depth = next(depth for layer, depth in DEPTH.items() if name.startswith(layer))
            groups.append(
                {
                    "params": [parameter],
                    "factor": stage.layer_decay**depth,
                    "weight_decay": stage.weight_decay if name.endswith("weight") and "norm" not in name else 0.0,
                }
            )
        if stage.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.0, momentum=stage.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, lr=0.0)
        network.train()
        if config.frozen_norm or stage.trained == "head":
            network.backbone.norm.eval()  # type: ignore[union-attr, operator]  # a module
        n_steps = stage.epochs * (N_FITTED // config.batch)
        for step, rate in enumerate(rates_by_hand(stage, n_steps), start=1):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * group["factor"] * rate
            rows = next(remaining)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                logits = forward(network, values[rows])
            loss = loss_by_hand(logits, torch.from_numpy(LABEL[rows]), config)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            if config.clip:
                gradients = [p.grad for p in network.parameters() if p.grad is not None]
                norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
                for gradient in gradients:
                    gradient.mul_(min(1.0, config.clip / norm))
            optimizer.step()
            if config.ema:
                decay = min(config.ema, (1 + step) / (10 + step))  # step counts from 1
                for name, value in network.state_dict().items():
                    moving = value.is_floating_point()
                    mean[name] = decay * mean[name] + (1 - decay) * value if moving else value.clone()
    assert next(remaining, None) is None
    return (mean if config.ema else network.state_dict()), losses


ADAMW = StageConfig(epochs=1, optimizer="adamw", learning_rate=0.05)
SGD = StageConfig(epochs=1, optimizer="sgd", learning_rate=0.1, momentum=0.0)
HEAD = StageConfig(epochs=1, trained="head", optimizer="sgd", learning_rate=0.2, momentum=0.0)
PLAIN = {"batch": BATCH, "frozen_norm": True, "keep": "last"}
OF_STAGE: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.8},
    "weight decay": {"weight_decay": 0.5},
    "layer decay": {"layer_decay": 0.5},
    "cosine": {"schedule": "cosine"},
    "warm-up": {"warmup_share": 2 / 3},
    "warm-up and cosine": {"warmup_share": 1 / 3, "schedule": "cosine"},
    "two epochs of a schedule": {"epochs": 2, "warmup_share": 1 / 3, "schedule": "cosine"},
}
OF_NETWORK: dict[str, dict[str, Any]] = {
    "batch": {"batch": 6},
    "learning batch normalisation": {"frozen_norm": False},
    "label smoothing": {"label_smoothing": 0.3},
    "loss of the top": {"hierarchy_weight": 0.7},
    "clipping": {"clip": 0.5},
    "running mean": {"ema": 0.2},  # two steps of its warm-up, then 0.2
    "running mean, warming up": {"ema": 0.9},
    "running mean of normalisation": {"ema": 0.2, "frozen_norm": False},
    "bfloat16": {"precision": "bfloat16"},
    "head first": {"first": HEAD},
    "head first, running mean": {"first": HEAD, "ema": 0.9},
    "head first, learning batch normalisation": {"first": HEAD, "frozen_norm": False},
}


@pytest.mark.parametrize("second", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("feature", ["plain", *OF_STAGE, *OF_NETWORK])
def test_three_steps_equal_a_plain_loop(feature: str, second: StageConfig, tmp_path: Path) -> None:
    stage = dataclasses.replace(second, **OF_STAGE.get(feature, {}))
    plain = NetworkConfig(**PLAIN, second=second)  # type: ignore[arg-type]  # settings of several types
    config = dataclasses.replace(plain, second=stage, **OF_NETWORK.get(feature, {}))
    logits, inputs, lines = fit(config, tmp_path)
    expected, losses = train_by_hand(config, inputs.batches)
    found = load_file(tmp_path / "weights.safetensors")
    assert set(found) == set(expected)
    tolerance = 1e-5 if config.precision == "bfloat16" else 2e-6
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    n_steps = N_FITTED // config.batch
    told = [line["train_loss"] for line in lines[1:]]
    assert told == pytest.approx([np.mean(losses[i : i + n_steps]) for i in range(0, len(losses), n_steps)], rel=2e-3)

    network = start()
    network.load_state_dict(expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
        answers = forward(network.eval(), inputs.values[HELD]).float()
    np.testing.assert_allclose(logits, answers, atol=20 * tolerance)
    if feature not in ("plain", "momentum") or (feature == "momentum" and stage.optimizer == "sgd"):
        without, _ = train_by_hand(plain, inputs.batches[:3]) if config.batch == BATCH else (start().state_dict(), 0)
        assert any(not torch.allclose(found[name], without[name], atol=10 * tolerance) for name in found)


def test_every_epoch_takes_whole_batches_of_the_fitted_rows_in_an_order_of_its_own(tmp_path: Path) -> None:
    config = NetworkConfig(**PLAIN, first=HEAD, second=dataclasses.replace(SGD, epochs=2))  # type: ignore[arg-type]  # settings of several types
    orders = []
    for seed in (3, 3, 4):
        _, inputs, _ = fit(config, tmp_path, seed)
        assert [len(batch) for batch in inputs.batches] == [BATCH] * 9
        epochs = [np.concatenate(inputs.batches[i : i + 3]).tolist() for i in range(0, 9, 3)]
        for epoch in epochs:
            assert len(set(epoch)) == 12
            assert set(epoch) <= set(FITTED)
            assert epoch != sorted(epoch)
        orders.append(epochs)
    assert orders[0] == orders[1]
    different = {tuple(epoch) for epoch in orders[0] + orders[2]}
    assert len(different) == 6  # of two stages, two epochs and two seeds


def test_fewer_rows_than_a_batch_are_one_batch(tmp_path: Path) -> None:
    _, inputs, _ = fit(NetworkConfig(batch=99, second=SGD), tmp_path)
    assert [sorted(batch) for batch in inputs.batches] == [FITTED.tolist()]


def test_the_log_tells_losses_and_scores_of_every_epoch(tmp_path: Path) -> None:
    """Of the weights that are validated: the running mean."""
    second = dataclasses.replace(SGD, epochs=2)
    config = NetworkConfig(**PLAIN, second=second, ema=0.5, label_smoothing=0.2, hierarchy_weight=0.3)  # type: ignore[arg-type]  # settings of several types
    _, inputs, lines = fit(config, tmp_path)
    assert [(line["stage"], line["epoch"]) for line in lines] == [(0, 0), (2, 1), (2, 2)]
    for line, n_batches in zip(lines, (0, 3, 6), strict=True):
        state = start().state_dict()
        if n_batches:  # a constant rate: the first epoch is what a stage of one epoch computes
            shorter = dataclasses.replace(config, second=dataclasses.replace(second, epochs=n_batches // 3))
            state, losses = train_by_hand(shorter, inputs.batches[:n_batches])
            assert line["train_loss"] == pytest.approx(np.mean(losses[-3:]), rel=1e-5)
        network = start()
        network.load_state_dict(state)
        with torch.no_grad():
            logits = forward(network.eval(), inputs.values[HELD])
        wanted = torch.from_numpy(LABEL[HELD])
        assert line["valid_loss"] == pytest.approx(float(loss_by_hand(logits, wanted, config)), rel=1e-5)
        score = f1_score(wanted, logits.argmax(dim=1), average="macro", labels=range(4), zero_division=0)
        assert line["valid_macro_f1"] == pytest.approx(score)


def test_the_training_score_is_that_of_the_answers_before_each_step(tmp_path: Path) -> None:
    still = dataclasses.replace(SGD, learning_rate=0.0)
    _, inputs, lines = fit(NetworkConfig(**PLAIN, second=still), tmp_path)  # type: ignore[arg-type]  # settings of several types
    rows = np.concatenate(inputs.batches)
    with torch.no_grad():
        predicted = forward(start().eval(), inputs.values[rows]).argmax(dim=1)
    expected = f1_score(LABEL[rows], predicted, average="macro", labels=range(4), zero_division=0)
    assert lines[1]["train_macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_weights_of_the_best_or_of_the_last_epoch_are_kept(
    keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.9, 0.9, 0.2, 0.8])
    monkeypatch.setattr(finetune, "macro_f1", lambda wanted, *_: next(scores) if len(wanted) == len(HELD) else 0.0)
    second = dataclasses.replace(SGD, epochs=4)
    config = NetworkConfig(**(PLAIN | {"keep": keep}), second=second)  # type: ignore[arg-type]  # settings of several types
    logits, inputs, _ = fit(config, tmp_path)
    n_epochs = 1 if keep == "best" else 4  # of equal scores the first
    shorter = dataclasses.replace(config, second=dataclasses.replace(second, epochs=n_epochs))
    expected, _ = train_by_hand(shorter, inputs.batches[: 3 * n_epochs])
    found = load_file(tmp_path / "weights.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=2e-6)
    network = start()
    network.load_state_dict(expected)
    with torch.no_grad():
        np.testing.assert_allclose(logits, forward(network.eval(), inputs.values[HELD]), atol=1e-5)


def test_scores_are_averaged_with_those_of_the_mirror_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "EVALUATION_BATCH", 2)  # a whole batch, and one of a single row
    inputs, rows, network = Vectors(), np.array([7, 2, 9]), start()
    with torch.no_grad():
        plain, mirrored = (forward(start().eval(), values[rows]) for values in (inputs.values, inputs.values.flip(1)))
    np.testing.assert_allclose(score_rows(network, inputs, rows, flip_test=False), plain, atol=1e-6)
    np.testing.assert_allclose(score_rows(network, inputs, rows, flip_test=True), (plain + mirrored) / 2, atol=1e-6)
    config = NetworkConfig(**PLAIN, second=dataclasses.replace(SGD, epochs=0), flip_test=True)  # type: ignore[arg-type]  # settings of several types
    logits, _, _ = fit(config, tmp_path)
    with torch.no_grad():
        pair = [forward(start().eval(), values[HELD]) for values in (inputs.values, inputs.values.flip(1))]
    np.testing.assert_allclose(logits, (pair[0] + pair[1]) / 2, atol=1e-6)


def test_dropout_and_drop_path_reach_the_layers_and_the_seed_the_weights() -> None:
    config = NetworkConfig(backbones=("test_convnext",), size=32, dropout=0.3, drop_path=0.2)
    network, again, other = (make_network(config, "test_convnext", SCRATCH, TOPS, GENRES, seed) for seed in (0, 0, 1))
    dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in dropouts if module.p] == [0.3]
    paths = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert max(paths) == pytest.approx(0.2)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(network.head.label.weight, other.head.label.weight)  # type: ignore[union-attr, arg-type]  # a module
    network.set_training(frozen_norm=True, trained="all")
    assert dropouts[0].training
    network.set_training(frozen_norm=True, trained="head")
    assert not dropouts[0].training


def test_half_of_the_images_are_mirrored_and_each_is_cropped_by_its_own_rectangle() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (400, 8, 8, 3)).astype(np.uint8)
    norm = Normalisation((0.5,) * 3, (0.25,) * 3)
    rows = np.arange(400)[::-1].copy()
    plain = to_images(pixels[rows], 8, norm)
    never, half = (Images(pixels, 8, norm, torch.device("cpu"), flip, 1.0) for flip in (False, True))
    torch.testing.assert_close(never.training(rows, torch.Generator().manual_seed(0)), plain)
    batch = half.training(rows, torch.Generator().manual_seed(0))
    mirrored = [not torch.equal(one, other) for one, other in zip(batch, plain, strict=True)]
    assert 150 < sum(mirrored) < 250
    for one, other, turned in zip(batch, plain, mirrored, strict=True):
        assert torch.equal(one, other.flip(2) if turned else other)
    cropped = dataclasses.replace(never, crop=0.5).training(rows, torch.Generator().manual_seed(0))
    torch.testing.assert_close(cropped, random_crops(plain, 0.5, torch.Generator().manual_seed(0)))


def test_frozen_parts_keep_the_image_its_mirror_image_and_crops_and_train_on_all_of_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
    config = NetworkConfig(backbones=(TINY,), size=32, frozen_parts=2, views=3, crop=0.6)
    network = make_network(config, TINY, SCRATCH, TOPS, GENRES, seed=0).eval()
    maps = make_inputs(config, network, pixels, seed=0)
    assert isinstance(maps, Maps)
    assert len(maps.maps) == 3
    images = make_inputs(dataclasses.replace(config, frozen_parts=0), network, pixels, seed=0)
    rows = np.array([4, 1])
    with torch.no_grad():
        for mirrored in (False, True):
            expected = network.lower(images.plain(rows, mirrored))
            torch.testing.assert_close(maps.plain(rows, mirrored), expected, atol=1e-5, rtol=1e-5)
    assert not any(torch.allclose(maps.maps[2], maps.maps[view]) for view in (0, 1))
    drawn = [maps.training(rows, torch.Generator().manual_seed(seed)) for seed in range(40)]
    views = {
        next(v for v in range(3) if torch.equal(batch[i], maps.maps[v][rows[i]])) for batch in drawn for i in (0, 1)
    }
    assert views == {0, 1, 2}
    only_itself = dataclasses.replace(config, views=1, flip_test=True)  # the mirror image is kept for the test alone
    single = make_inputs(only_itself, network, pixels, seed=0)
    for seed in range(10):
        batch = single.training(rows, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(batch, single.plain(rows))
