"""Training loops against plain ones written here: the weights of a run are those of a few steps by hand."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from kit_splits.folds import group_folds
from kit_train.batches import bucketed_batches, random_batches
from kit_train.state import mixed_seed
from ntua_lab import data as official
from ntua_lab.answers import Unit, units_of
from ntua_lab.cli import main
from ntua_lab.config import AXES, Config, InputConfig, NetworkConfig, TrainConfig
from ntua_lab.data import Clips
from ntua_lab.inputs import augment
from ntua_lab.model import Network, build_network

PLAIN = TrainConfig(
    epochs=2, batch=8, learning_rate=0.03, weight_decay=0.0, patience=0, clip=1e6
)  # no feature is switched on
LSTM = NetworkConfig(kind="lstm", hidden=3, layers=1, dropout=0.0)
CNN = NetworkConfig(kind="cnn", channels=(2, 3), pooling="mean", dropout=0.0)
BEAT = InputConfig(version="beat")
WINDOWS = InputConfig(version="beat", chunk=4)
OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What a case trains, as flags of the command and as settings of the loop written here."""

    train: TrainConfig = PLAIN
    task: str = "genre"
    network: NetworkConfig = LSTM
    input: InputConfig = BEAT
    accumulate: int = 1
    seed: int = 0
    copies: int = 1
    separate: bool = False

    def flags(self) -> list[str]:
        found = ["--task", self.task, "--seed", str(self.seed), "--copies", str(self.copies)]
        found += ["--fabric.accumulate", str(self.accumulate), *(["--separate"] if self.separate else [])]
        for section in ("train", "network", "input"):
            for name, value in vars(getattr(self, section)).items():
                flag = f"--{section}.{name.replace('_', '-')}"
                if isinstance(value, bool):
                    found += [flag] if value else []
                else:
                    found += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
        return found

    def units(self, classes: int) -> list[Unit]:
        config = Config(task=self.task, copies=self.copies, separate=self.separate)
        return units_of(config, classes)


@dataclass
class Result:
    """Weights that are kept, and the losses of every epoch."""

    weights: Weights
    train_losses: list[float] = field(default_factory=list)
    inner_losses: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def clips(packed: Path) -> Clips:
    return official.load(packed)


@pytest.fixture
def optimizer_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The optimizer of both loops; under SGD the size of a gradient counts, which Adam divides out."""
    name: str = request.param
    if name == "sgd":
        monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    return name


def run(recipe: Recipe, data: Path, folder: Path, *flags: str) -> Path:
    words = ["train", "lstm-mel", "--data", str(data), "--run", str(folder), "--data.fold", "none", *recipe.flags()]
    assert main([*words, *flags]) == 0
    return folder


def result_of(folder: Path, unit: str, fold: str = "none") -> Result:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line.get("part") == f"{fold}-{unit}"]
    weights = load_file(folder / "models" / ("whole" if fold == "none" else f"fold{fold}") / f"{unit}.safetensors")
    return Result(
        weights,
        [line["train_loss"] for line in lines],
        [line["inner_loss"] for line in lines if "inner_loss" in line],
    )


# --- the loop by hand


def answered(clips: Clips, task: str) -> list[int]:
    """The train clips with an answer to the task."""
    known = {
        "genre": clips.label >= 0,
        "emotion": np.isfinite(clips.emotion).all(axis=1),
        "joint": (clips.label >= 0) | np.isfinite(clips.emotion).all(axis=1),
    }[task]
    return [i for i in range(len(clips)) if clips.splits[i] == "train" and known[i]]


def spectra(clips: Clips, index: int, settings: InputConfig) -> Tensor:
    """One clip, [T, rows]."""
    rows = {"mel": slice(0, 128), "chroma": slice(128, 140), "fused": slice(0, 140)}[settings.features]
    return torch.from_numpy(np.ascontiguousarray(clips.spectra(index, settings.version)[rows].T))


def batch_of(parts: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    x = torch.zeros(len(parts), length, parts[0].shape[1])
    mask = torch.ones(len(parts), length, dtype=torch.bool)
    for row, part in enumerate(parts):
        x[row, : len(part)], mask[row, : len(part)] = part, False
    return x, mask


def read(clips: Clips, rows: Sequence[int], settings: InputConfig, generator: np.random.Generator) -> Any:
    """Whole clips, or a random window of each."""
    parts = [spectra(clips, row, settings) for row in rows]
    if settings.chunk:
        spare = np.array([max(0, len(part) - settings.chunk) for part in parts])
        starts = generator.integers(0, spare + 1)
        parts = [part[start : start + settings.chunk] for part, start in zip(parts, starts, strict=True)]
    return batch_of(parts, settings.chunk or max(map(len, parts)))


def windows(clips: Clips, row: int, settings: InputConfig) -> list[Tensor]:
    """Windows that cover one clip, or the whole clip."""
    whole = spectra(clips, row, settings)
    if not settings.chunk:
        return [whole]
    count = max(1, math.ceil(len(whole) / settings.chunk))
    starts = np.round(np.linspace(0, max(0, len(whole) - settings.chunk), count)).astype(int)
    return [whole[start : start + settings.chunk] for start in starts]


def statistics(clips: Clips, rows: Sequence[int], settings: InputConfig) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every row, over each 7th frame."""
    frames = torch.cat([spectra(clips, row, settings)[::7] for row in rows]).double()
    return frames.mean(dim=0).float(), frames.std(dim=0, correction=0).float()


def targets_of(clips: Clips, rows: Sequence[int], heads: dict[str, int]) -> dict[str, Tensor]:
    found = {}
    for name in heads:
        if name == "genre":
            shares = [[float(clips.label[row] == k) for k in range(len(clips.classes))] for row in rows]
            found[name] = torch.tensor(shares)
        else:
            found[name] = torch.tensor([float(clips.emotion[row, AXES.index(name)]) for row in rows])
    return found


def scales_of(clips: Clips, rows: Sequence[int], heads: dict[str, int]) -> dict[str, float]:
    """What guessing costs."""
    values = targets_of(clips, rows, heads)
    return {
        name: math.log(len(clips.classes)) if name == "genre" else float(np.nanvar(values[name].numpy()))
        for name in heads
    }


def parts_of_loss(
    logits: dict[str, Tensor], wanted: dict[str, Tensor], scales: dict[str, float], kind: str, smoothing: float
) -> dict[str, Tensor]:
    parts = {}
    for name, target in wanted.items():
        known = target.sum(dim=1) > 0 if name == "genre" else torch.isfinite(target)
        if not known.any():
            continue
        given, target = logits[name][known], target[known]
        if name == "genre":
            loss = functional.cross_entropy(given, target, label_smoothing=smoothing)
        else:
            squared = functional.mse_loss(given.sigmoid(), target)
            order = given.sum() * 0
            if len(target) > 2 and len(target.unique()) > 1:
                ranks = target.argsort().argsort().float()
                order = (1 - torch.corrcoef(torch.stack([given, ranks]))[0, 1]) * target.var(correction=0)
            loss = {"mse": squared, "rank": order, "both": (squared + order) / 2}[kind]
        parts[name] = loss / scales[name]
    return parts


def rate_at(step: int, steps: int, schedule: str) -> float:
    """The factor of the learning rate: a tenth of the steps up, then half a cosine."""
    if schedule == "constant":
        return 1.0
    rise = 0.1 * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def inner_loss(
    network: Network, clips: Clips, rows: Sequence[int], recipe: Recipe, heads: dict[str, int], scales: dict[str, float]
) -> float:
    """The loss on windows of clips that are not learnt from, one after another."""
    logits: dict[str, list[Tensor]] = {name: [] for name in heads}
    owner = []
    training = network.training
    network.eval()
    with torch.no_grad():
        for row in rows:
            for window in windows(clips, row, recipe.input):
                x, mask = batch_of([window], recipe.input.chunk or len(window))
                for name, output in network(network.standardise(x, mask), mask).items():
                    logits[name].append(output[0])
                owner.append(row)
    network.train(training)
    stacked = {name: torch.stack(parts) for name, parts in logits.items()}
    parts = parts_of_loss(stacked, targets_of(clips, owner, heads), scales, recipe.train.emotion_loss, 0.0)
    return float(sum(parts.values()))


def warm_up_by_hand(
    network: Network, clips: Clips, rows: Sequence[int], recipe: Recipe, seed: int, make: Callable[..., Any]
) -> None:
    """Two windows of a clip nearer to one another than to those of other clips."""
    settings = recipe.train
    torch.manual_seed(seed)
    projection = nn.Sequential(nn.Linear(network.width, 64), nn.ReLU(), nn.Linear(64, 64))
    parameters = [*network.backbone.parameters(), *projection.parameters()]
    optimizer = make(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    per_epoch, step = len(rows) // settings.batch, 0
    network.train()
    for epoch in range(settings.warm_up):
        epoch_seed = mixed_seed(seed, epoch)
        generator = np.random.default_rng(epoch_seed)
        order = np.random.default_rng(epoch_seed).permutation(len(rows))
        for number in range(per_epoch):
            batch = [rows[i] for i in order[number * settings.batch :][: settings.batch]]
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_at(step, settings.warm_up * per_epoch, "cosine")
            views = []
            for _ in range(2):
                x, mask = read(clips, batch, recipe.input, generator)
                views.append(projection(network.backbone(network.standardise(x, mask), mask)))
            z = functional.normalize(torch.cat(views))
            similar = (z @ z.T / 0.2).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
            partner = torch.arange(len(z)).roll(len(batch))
            optimizer.zero_grad()
            functional.cross_entropy(similar, partner).backward()
            nn.utils.clip_grad_norm_(network.backbone.parameters(), settings.clip)
            optimizer.step()
            step += 1


def batches_of(clips: Clips, rows: Sequence[int], recipe: Recipe, seed: int) -> list[Any]:
    """Places among the rows: random for windows, of near-equal length for whole clips; none of one clip."""
    if recipe.input.chunk:
        batches = random_batches(len(rows), recipe.train.batch, seed)
    else:
        lengths = np.array([len(spectra(clips, row, recipe.input)) for row in rows])
        batches = bucketed_batches(lengths, recipe.train.batch, seed)
    return [places for places in batches if len(places) > 1]


def by_hand(recipe: Recipe, clips: Clips, optimizer_name: str, unit: Unit | None = None) -> Result:
    """Train the first network of a recipe, or another one, on all clips."""
    settings, unit = recipe.train, unit or recipe.units(len(clips.classes))[0]
    fitted = answered(clips, recipe.task)
    learnt, inner = fitted, list[int]()
    if settings.patience:
        part = group_folds([clips.ids[i] for i in fitted], 5, seed=420) == 0
        learnt, inner = ([i for i, one in zip(fitted, part, strict=True) if one == wanted] for wanted in (False, True))
    seed = mixed_seed(recipe.seed, *unit.name.encode(), *b"none")
    torch.manual_seed(seed)
    network = build_network(recipe.network, recipe.input, unit.heads)
    mean, scale = statistics(clips, learnt, recipe.input)
    network.mean.copy_(mean)
    network.scale.copy_(scale)
    scales = scales_of(clips, learnt, unit.heads)
    log_weights = {name: torch.zeros((), requires_grad=True) for name in unit.heads if settings.uncertainty}
    make = OPTIMIZERS[optimizer_name]
    groups: list[dict[str, Any]] = [{"params": [*network.parameters()], "weight_decay": settings.weight_decay}]
    if log_weights:
        groups.append({"params": [*log_weights.values()], "weight_decay": 0.0})
    optimizer = make(groups, lr=settings.learning_rate)
    averaged = {name: value.clone() for name, value in network.state_dict().items()}
    if settings.warm_up:
        warm_up_by_hand(network, clips, learnt, recipe, mixed_seed(seed, settings.warm_up), make)
    seeds = [mixed_seed(seed, epoch) for epoch in range(settings.epochs)]
    steps = sum(len(batches_of(clips, learnt, recipe, one)) for one in seeds)
    step = updates = waited = 0
    found, best = Result({}), math.inf
    for epoch in range(settings.epochs):
        if settings.patience and waited == settings.patience:
            break
        epoch_seed = seeds[epoch]
        torch.manual_seed(epoch_seed)
        generator, draws = np.random.default_rng(epoch_seed), torch.Generator().manual_seed(epoch_seed)
        batches = batches_of(clips, learnt, recipe, epoch_seed)
        losses = []
        network.train()
        for number, places in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_at(step, steps, settings.schedule)
            rows = [learnt[place] for place in places]
            x, mask = read(clips, rows, recipe.input, generator)
            wanted = targets_of(clips, rows, unit.heads)
            x = network.standardise(x, mask)
            x = augment(x, settings, 0 if recipe.input.features == "chroma" else 128, draws)
            if settings.mixup:
                share = generator.beta(settings.mixup, settings.mixup)
                other = torch.from_numpy(generator.permutation(len(rows)))
                x, mask = share * x + (1 - share) * x[other], mask & mask[other]
                for name, target in wanted.items():
                    wanted[name] = share * target + (1 - share) * target[other]
                    if name == "genre":
                        wanted[name] *= ((target.sum(dim=1) > 0) & (target[other].sum(dim=1) > 0)).float()[:, None]
            parts = parts_of_loss(network(x, mask), wanted, scales, settings.emotion_loss, settings.label_smoothing)
            loss = sum(
                (part if name not in log_weights else (-log_weights[name]).exp() * part + log_weights[name])
                for name, part in parts.items()
            )
            if not isinstance(loss, Tensor):  # mixing left no answer: gradients of 0, and none in the heads
                loss = 0.0 * network.backbone(x, mask).sum()
            losses.append(float(loss.detach()))
            (loss / recipe.accumulate).backward()
            step += 1
            if (number + 1) % recipe.accumulate and number + 1 < len(batches):
                continue
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            if settings.ema:
                decay = min(settings.ema, (1 + updates) / (10 + updates))
                updates += 1
                for name, value in network.state_dict().items():
                    mixed = decay * averaged[name] + (1 - decay) * value
                    averaged[name] = mixed if value.is_floating_point() else value.clone()
        found.train_losses.append(float(np.mean(losses)))
        state = averaged if settings.ema else network.state_dict()
        improved = not settings.patience
        if settings.patience:
            judge = build_network(recipe.network, recipe.input, unit.heads)
            judge.load_state_dict(state)
            found.inner_losses.append(inner_loss(judge, clips, inner, recipe, unit.heads, scales))
            improved = found.inner_losses[-1] < best
            waited = 0 if improved else waited + 1
        if improved:
            best = min(best, *found.inner_losses, math.inf)
            found.weights = {name: value.clone() for name, value in state.items()}
    return found


def difference(first: Weights, second: Weights) -> float:
    """The largest one of any number."""
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def assert_same(found: Result, expected: Result) -> None:
    assert found.train_losses == pytest.approx(expected.train_losses, rel=1e-4)
    assert found.inner_losses == pytest.approx(expected.inner_losses, rel=1e-4)
    assert found.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        torch.testing.assert_close(
            found.weights[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


def on(**changes: Any) -> TrainConfig:
    return replace(PLAIN, **changes)


EMOTION = Recipe(task="emotion")
JOINT = Recipe(on(batch=3), task="joint")
MIXED = replace(JOINT.train, uncertainty=True)
# name -> with the feature, and without it
FEATURES: dict[str, tuple[Recipe, Recipe]] = {
    "accumulation": (Recipe(accumulate=2), Recipe()),
    "clipping": (Recipe(on(clip=0.02)), Recipe()),
    "weight decay": (Recipe(on(weight_decay=0.5)), Recipe()),
    "cosine schedule": (Recipe(on(schedule="cosine")), Recipe()),
    "label smoothing": (Recipe(on(label_smoothing=0.4)), Recipe()),
    "mixup": (Recipe(on(mixup=0.8)), Recipe()),
    "masked frames": (Recipe(on(time_mask=0.5)), Recipe()),
    "masked bands": (Recipe(on(band_mask=90)), Recipe()),
    "tilt": (Recipe(on(tilt=2.0)), Recipe()),
    "weight average": (Recipe(on(ema=0.5)), Recipe()),
    "dropout": (Recipe(network=replace(LSTM, dropout=0.5)), Recipe()),
    "windows": (Recipe(input=WINDOWS), Recipe()),
    "warm-up": (Recipe(on(warm_up=2), input=WINDOWS), Recipe(input=WINDOWS)),
    "seed": (Recipe(seed=1), Recipe()),
    "loss of order": (replace(EMOTION, train=on(emotion_loss="rank")), EMOTION),
    "loss of values and order": (replace(EMOTION, train=on(emotion_loss="both")), EMOTION),
    "learnt weights of the losses": (replace(JOINT, train=MIXED), JOINT),
    "weight decay spares the weights of the losses": (
        replace(JOINT, train=replace(MIXED, weight_decay=0.5)),
        replace(JOINT, train=MIXED),
    ),
    "batch normalisation and its average": (
        Recipe(on(ema=0.5), network=CNN, input=WINDOWS),
        Recipe(network=CNN, input=WINDOWS),
    ),
    "mixup of both tasks": (replace(JOINT, train=replace(JOINT.train, mixup=0.8)), JOINT),
}


# Where the size of a gradient or of a decay counts, under both optimizers.
BOTH = ("accumulation", "clipping", "weight decay", "learnt weights of the losses")
CASES = [(feature, "adamw") for feature in FEATURES] + [(feature, "sgd") for feature in BOTH]


@pytest.mark.parametrize(("feature", "optimizer_name"), CASES, indirect=["optimizer_name"])
def test_each_feature_alone_gives_the_weights_of_a_loop_by_hand(
    feature: str, optimizer_name: str, clips: Clips, packed: Path, tmp_path: Path
) -> None:
    recipe, without = FEATURES[feature]
    unit = recipe.units(len(clips.classes))[0]
    expected = by_hand(recipe, clips, optimizer_name)
    found = result_of(run(recipe, packed, tmp_path / "run"), unit.name)
    plain = by_hand(without, clips, optimizer_name)
    if feature == "loss of order":  # a bias does not change it: its gradient is rounding, which Adam makes large
        for result in (found, expected, plain):
            result.weights = {k: v for k, v in result.weights.items() if not re.fullmatch(r"heads\..*\.bias", k)}
    assert_same(found, expected)
    assert difference(expected.weights, plain.weights) > 1e-3


EARLY = on(epochs=12, patience=2, learning_rate=0.1)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(replace(EARLY, mixup=1.0, learning_rate=0.3)),
        Recipe(replace(EARLY, label_smoothing=0.3, ema=0.5), network=CNN, input=WINDOWS),
        Recipe(replace(EARLY, uncertainty=True, emotion_loss="both"), task="joint"),
    ],
    ids=["whole clips", "windows and an average", "both tasks"],
)
def test_early_stopping_keeps_the_epoch_of_the_lowest_inner_loss(
    recipe: Recipe, clips: Clips, packed: Path, tmp_path: Path
) -> None:
    unit = recipe.units(len(clips.classes))[0]
    expected = by_hand(recipe, clips, "adamw")
    losses = expected.inner_losses
    assert 2 < len(losses) < EARLY.epochs  # it stops
    assert int(np.argmin(losses)) == len(losses) - 1 - EARLY.patience
    assert_same(result_of(run(recipe, packed, tmp_path / "run"), unit.name), expected)


def test_every_copy_and_every_axis_has_a_network_of_its_own(clips: Clips, packed: Path, tmp_path: Path) -> None:
    recipe = Recipe(on(epochs=1), task="emotion", separate=True, copies=2)
    folder = run(recipe, packed, tmp_path / "run")
    units = recipe.units(len(clips.classes))
    assert [unit.name for unit in units] == [
        f"network-{axis}{copy}" for axis in ("valence", "energy", "danceability") for copy in ("", "-copy2")
    ]
    results = [result_of(folder, unit.name) for unit in units]
    for unit, result in zip(units, results, strict=True):
        assert_same(result, by_hand(recipe, clips, "adamw", unit))
    assert difference(results[0].weights, results[1].weights) > 1e-3


def test_chroma_rows_are_neither_tilted_nor_masked_as_bands(clips: Clips, packed: Path, tmp_path: Path) -> None:
    chroma = replace(BEAT, features="chroma")
    folder = run(Recipe(on(tilt=1.0, band_mask=9, epochs=1), input=chroma), packed, tmp_path / "run")
    assert_same(result_of(folder, "network-genre"), by_hand(Recipe(on(epochs=1), input=chroma), clips, "adamw"))


def test_a_limit_draws_clips_and_folds_leave_theirs_out(clips: Clips, packed: Path, tmp_path: Path) -> None:
    """The statistics that a network keeps are those of the clips that it learnt from."""
    fitted = np.array(answered(clips, "genre"))
    folds = group_folds([clips.ids[i] for i in fitted], 3, seed=5)
    learnt = fitted[folds != 1]
    flags = ("--data.fold", "1", "--data.folds", "3", "--data.seed", "5")
    for limit, rows in ((None, learnt), (7, np.random.default_rng(5).permutation(learnt)[:7])):
        folder = tmp_path / str(limit)
        chosen = [*flags, *(["--data.limit", str(limit)] if limit else [])]
        run(Recipe(on(epochs=1)), packed, folder, *chosen)
        kept = load_file(folder / "models/fold1/network-genre.safetensors")
        mean, scale = statistics(clips, sorted(rows.tolist()), BEAT)
        torch.testing.assert_close(kept["mean"], mean)
        torch.testing.assert_close(kept["scale"], scale)


def test_batches_learnt_by_heart_are_adam_on_fixed_batches(clips: Clips, packed: Path, tmp_path: Path) -> None:
    settings = on(epochs=3, batch=5, clip=0.5, overfit_batch=2, learning_rate=0.02)
    recipe = Recipe(settings, input=WINDOWS, network=replace(LSTM, dropout=0.5))
    folder = run(recipe, packed, tmp_path / "run")
    torch.manual_seed(0)
    network = build_network(LSTM, WINDOWS, {"genre": len(clips.classes)})
    rows = np.random.default_rng(0).permutation(answered(clips, "genre"))[:10].tolist()
    mean, scale = statistics(clips, rows, WINDOWS)
    network.mean.copy_(mean)
    network.scale.copy_(scale)
    generator = np.random.default_rng(0)
    batches = []
    for part in (rows[:5], rows[5:]):
        x, mask = read(clips, part, WINDOWS, generator)
        batches.append((network.standardise(x, mask), mask, torch.from_numpy(clips.label[part])))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(3):
        for x, mask, label in batches:
            loss = functional.cross_entropy(network(x, mask)["genre"], label)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
            losses.append(float(loss.detach()))
    with torch.no_grad():
        final = [float(functional.cross_entropy(network(x, mask)["genre"], label)) for x, mask, label in batches]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line["train_loss"] for line in lines if "train_loss" in line]
    assert logged == pytest.approx(np.reshape(losses, (3, 2)).mean(axis=1).tolist(), rel=1e-5)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["score"] == pytest.approx(np.mean(final), rel=1e-5)
    assert (summary["metric"], summary["n"], summary["folds"], summary["interval"]) == (
        "overfit_loss",
        10,
        "none",
        None,
    )


@pytest.mark.parametrize(
    ("network", "input_", "count"),
    [
        (NetworkConfig(kind="lstm", hidden=4, layers=2, dropout=0.37), BEAT, 2),  # between layers, before the heads
        (NetworkConfig(kind="cnn", channels=(2,), pooling="mean", dropout=0.37), WINDOWS, 1),
        (
            NetworkConfig(kind="ast", hidden=8, layers=2, heads=2, pooling="mean", dropout=0.37),
            InputConfig(chunk=16),
            1 + 2 * 3,  # after attention and twice in the perceptron of every block
        ),
    ],
    ids=["lstm", "cnn", "ast"],
)
def test_the_dropout_rate_reaches_the_layers(network: NetworkConfig, input_: InputConfig, count: int) -> None:
    built = build_network(network, input_, {"genre": 3})
    rates = [module.p for module in built.modules() if isinstance(module, nn.Dropout)]
    assert sum(rate == 0.37 for rate in rates) == count
