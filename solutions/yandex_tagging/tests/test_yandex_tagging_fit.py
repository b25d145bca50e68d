"""The training loop against a plain PyTorch loop, with each of its features switched on alone.

The network is one linear layer on the mean frame, so that its gradients, averages and schedules can be followed.
"""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional

from kit_losses.multilabel import DistributionBalancedLoss, asymmetric_loss
from kit_train.batches import bucketed_batches, random_batches
from kit_train.config import FabricConfig
from kit_train.state import mixed_seed
from kit_train.weights import load_weights
from yandex_tagging import augment
from yandex_tagging.baseline import load_classic
from yandex_tagging.config import (
    AugmentConfig,
    ClassicConfig,
    Config,
    DataConfig,
    LossConfig,
    NetworkConfig,
    OptimConfig,
    TeacherConfig,
)
from yandex_tagging.data import Tracks
from yandex_tagging.model import TagNet

Fit = Callable[..., dict[str, Any]]
ALL, LABELLED = 40, 32
CPU = FabricConfig(accelerator="cpu")
LINEAR = NetworkConfig(
    encoder="none", input="identity", pooling="mean", pooled_norm="none", head="linear", dropout=0.0, head_dropout=0.0
)
OPTIM = OptimConfig(
    epochs=3, batch=8, learning_rate=0.05, weight_decay=0.0, schedule="constant", batches="random", clip=0.0
)
DATA = DataConfig(n_folds=3, fold=0)
PLAIN = Config(data=DATA, network=LINEAR, optim=OPTIM, fabric=CPU)


def optim(**changes: Any) -> Config:
    return replace(PLAIN, optim=replace(OPTIM, **changes))


def network(**changes: Any) -> Config:
    return replace(PLAIN, network=replace(LINEAR, **changes))


def fabric(**changes: Any) -> Config:
    return replace(PLAIN, fabric=replace(CPU, **changes))


# With L2 regularisation in the gradient the steps of Adam depend on the scale of the loss.
SCALED = optim(optimizer="adam", weight_decay=0.3)

# Each feature alone, and the settings without it.
FEATURES: dict[str, tuple[Config, Config | None]] = {
    "AdamW": (PLAIN, None),
    "another seed": (replace(PLAIN, seed=5), PLAIN),
    "Adam": (optim(optimizer="adam", weight_decay=0.3), optim(weight_decay=0.3)),
    "learning rate": (optim(learning_rate=0.01), PLAIN),
    "accumulation": (replace(SCALED, fabric=replace(CPU, accumulate=2)), SCALED),
    "accumulation over the end of an epoch": (replace(SCALED, fabric=replace(CPU, accumulate=9)), SCALED),
    "clipping": (optim(clip=0.05, optimizer="adam"), PLAIN),
    "clipping of accumulated gradients": (
        replace(optim(clip=0.05), fabric=replace(CPU, accumulate=2)),
        fabric(accumulate=2),
    ),
    "weight decay": (optim(weight_decay=0.5), PLAIN),
    "weight decay of Adam": (optim(weight_decay=0.5, optimizer="adam"), optim(optimizer="adam")),
    "cosine": (optim(schedule="cosine", warmup=0.0), PLAIN),
    "cosine after a warm-up": (optim(schedule="cosine", warmup=0.5), optim(schedule="cosine", warmup=0.0)),
    "one cycle": (optim(schedule="one-cycle", warmup=0.4), PLAIN),
    "cyclic cosine": (optim(schedule="cyclic-cosine", epochs=4, cycle_epochs=2), optim(schedule="cosine", epochs=4)),
    "plateau": (optim(schedule="plateau", plateau_patience=1, epochs=6, learning_rate=0.1), optim(epochs=6)),
    "plateau after two epochs": (
        optim(schedule="plateau", plateau_patience=2, epochs=6, learning_rate=0.1),
        optim(schedule="plateau", plateau_patience=1, epochs=6, learning_rate=0.1),
    ),
    "best epoch": (optim(keep="best", epochs=5, learning_rate=0.1), optim(epochs=5, learning_rate=0.1)),
    "best of every second epoch": (
        optim(keep="best", epochs=5, learning_rate=0.1, evaluate_every=2),
        optim(keep="best", epochs=5, learning_rate=0.1),
    ),
    "patience": (optim(patience=2, epochs=7, learning_rate=0.1), optim(epochs=7, learning_rate=0.1)),
    "EMA": (optim(ema=0.2), PLAIN),
    "EMA with its slow start": (optim(ema=0.99), optim(ema=0.2)),
    "best epoch of the EMA": (
        optim(ema=0.2, keep="best", epochs=5, learning_rate=0.1),
        optim(ema=0.2, epochs=5, learning_rate=0.1),
    ),
    "SWA": (optim(swa=2), PLAIN),
    "SWA of all epochs": (optim(swa=3), optim(swa=2)),
    "batches of like lengths": (optim(batches="bucketed"), PLAIN),
    "label smoothing": (replace(PLAIN, loss=LossConfig(smoothing=0.3)), PLAIN),
    "sum over tracks": (replace(SCALED, loss=LossConfig(sum_over_tracks=True)), SCALED),
    "focal": (replace(SCALED, loss=LossConfig(name="focal", gamma=3.0)), SCALED),
    "class alpha": (
        replace(SCALED, loss=LossConfig(name="focal", gamma=3.0, class_alpha=True)),
        replace(SCALED, loss=LossConfig(name="focal", gamma=3.0)),
    ),
    "asymmetric": (
        replace(PLAIN, loss=LossConfig(name="asymmetric", gamma_negative=3.0, gamma_positive=1.0, clip=0.2)),
        replace(PLAIN, loss=LossConfig(name="asymmetric", gamma_negative=1.0, gamma_positive=3.0, clip=0.2)),
    ),
    "distribution balanced": (replace(PLAIN, loss=LossConfig(name="distribution-balanced", gamma=1.0)), PLAIN),
    "parents filled in": (replace(PLAIN, data=replace(DATA, fill_parents=True)), PLAIN),
    "noise": (replace(PLAIN, augment=AugmentConfig(noise=0.5)), PLAIN),
    "mixup": (replace(PLAIN, augment=AugmentConfig(mixup=1.0)), PLAIN),
    "mixup of some batches": (
        replace(PLAIN, augment=AugmentConfig(mixup=0.5)),
        replace(PLAIN, augment=AugmentConfig(mixup=1.0)),
    ),
    "spans": (replace(PLAIN, augment=AugmentConfig(span=0.7, span_shortest=0.2)), PLAIN),
    "longest window": (replace(PLAIN, augment=AugmentConfig(longest=5)), PLAIN),
    "frame drop": (replace(PLAIN, augment=AugmentConfig(frame_drop=0.4)), PLAIN),
    "flip": (
        replace(PLAIN, network=replace(LINEAR, pooling="last"), faithful=True, augment=AugmentConfig(flip=0.5)),
        replace(PLAIN, network=replace(LINEAR, pooling="last"), faithful=True),
    ),
    "cutmix": (replace(PLAIN, augment=AugmentConfig(cutmix=0.8)), PLAIN),
    "all augmentations": (
        replace(PLAIN, augment=AugmentConfig(span=0.5, longest=6, frame_drop=0.2, noise=0.2, mixup=0.5, cutmix=0.5)),
        PLAIN,
    ),
    "no standardisation": (network(standardise=False), PLAIN),
    "one deviation for all dimensions": (network(common_scale=True), PLAIN),
    "dropout of the pooled vector": (network(head_dropout=1.0), PLAIN),
}


@dataclass
class Result:
    """What a loop leaves: the weights it keeps, and facts of each epoch."""

    weights: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def small(make_tracks: Callable[..., Tracks]) -> tuple[Tracks, Tracks]:
    """Tracks with labels, and others of the same pack without, in another order than the pack's."""
    whole = make_tracks(seed=4, n=ALL)
    assert whole.tags is not None
    tags = whole.tags.copy()
    tags[:, 3] = np.arange(ALL) % 5 < 3
    tags[:, 0] |= tags[:, 3]  # the parent of tag 3, but one track lacks it
    tags[1, 0] = False
    rows = np.random.default_rng(8).permutation(ALL)
    labelled = replace(whole, ids=whole.ids[:LABELLED], rows=rows[:LABELLED], tags=tags[rows[:LABELLED]])
    return labelled, replace(whole, ids=whole.ids[LABELLED:], rows=rows[LABELLED:], tags=None)


@pytest.fixture(scope="module")
def initial(
    small: tuple[Tracks, Tracks], fit: Fit, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Config], Path]:
    """A run with the learning rate 0, which keeps the weights that its seed gives, for each network and seed."""
    runs: dict[tuple[NetworkConfig, int], Path] = {}

    def run_of(config: Config) -> Path:
        net = replace(config.network, head_dropout=0.0, standardise=True, common_scale=False)
        if (net, config.seed) not in runs:
            path = tmp_path_factory.mktemp("initial") / "run"
            still = replace(OPTIM, epochs=1, learning_rate=0.0)
            fit(Config(seed=config.seed, copies=2, data=DATA, network=net, faithful=config.faithful, optim=still,
                       fabric=CPU), small[0], path)  # fmt: skip
            runs[net, config.seed] = path
        return runs[net, config.seed]

    return run_of


def checkpoint(run: Path, copy_: int = 0) -> dict[str, Tensor]:
    return load_weights(run / "checkpoints" / f"fold0-copy{copy_}.safetensors")[0]


def held_out(run: Path, tracks: Tracks) -> np.ndarray:
    """Places of the tracks that the run scored."""
    scored = set(pq.read_table(run / "oof.parquet")["track"].to_pylist())
    return np.array([place for place, track in enumerate(tracks.ids) if track in scored])


def filled(tags: np.ndarray) -> np.ndarray:
    """Labels with the parent of each tag: a more frequent tag that comes with over 90 % of its tracks."""
    n, result = tags.shape[1], tags.copy()
    parents = {}
    for tag in range(n):
        found = [
            (tags[:, other].sum(), other)
            for other in range(n)
            if tags[:, other].sum() > tags[:, tag].sum() and tags[tags[:, tag], other].mean() > 0.9
        ]
        if found:
            parents[tag] = min(found)[1]
    for _ in range(n):
        for tag, parent in parents.items():
            result[:, parent] |= result[:, tag]
    return result


def factor(config: OptimConfig, share: float) -> float:
    """The learning rate after a share of all steps, as a share of its peak."""
    if config.schedule == "cosine":
        if share < config.warmup:
            return share / config.warmup
        return (1 + math.cos(math.pi * (share - config.warmup) / (1 - config.warmup))) / 2
    if config.schedule == "one-cycle":
        if share < config.warmup:
            return 1 / 25 + 24 / 25 * (1 - math.cos(math.pi * share / config.warmup)) / 2
        return (1 + math.cos(math.pi * (share - config.warmup) / (1 - config.warmup))) / 2
    if config.schedule == "cyclic-cosine":
        position = share * config.epochs / config.cycle_epochs
        return (1 + math.cos(math.pi * (position - math.floor(position + 1e-9)))) / 2
    return 1.0


def losses_of(config: LossConfig, tags: np.ndarray, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each pair of track and tag, [b, tags], or for some losses its sum."""
    counts = torch.from_numpy(tags.sum(0)).float()
    if config.name == "asymmetric":
        return asymmetric_loss(
            logits, targets, gamma_negative=config.gamma_negative, gamma_positive=config.gamma_positive,
            clip=config.clip, reduction="none",
        )  # fmt: skip
    if config.name == "distribution-balanced":
        return DistributionBalancedLoss(counts, len(tags), gamma=config.gamma, reduction="none")(logits, targets)
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if config.name == "focal":
        p = torch.sigmoid(logits)
        entropy = entropy * (targets * (1 - p) + (1 - targets) * p) ** config.gamma
    return entropy * (1 - counts / counts.sum()) if config.class_alpha else entropy


def augmented(
    config: AugmentConfig, items: list[np.ndarray], targets: Tensor, draws: np.random.Generator, deviation: np.ndarray
) -> tuple[list[np.ndarray], Tensor]:
    """The frames of each track after augmentation; noise and mixup by hand, the rest is tested on its own."""
    lengths = np.array([len(item) for item in items])
    start, kept = augment.draw_windows(
        lengths, draws, span=config.span, span_shortest=config.span_shortest, longest=config.longest
    )
    items = [item[s : s + n] for item, s, n in zip(items, start, kept, strict=True)]
    if config.frame_drop or config.flip:
        x, counts = padded(items)
        if config.frame_drop:
            x, counts = augment.drop_frames(x, counts, draws, config.frame_drop)
        if config.flip:
            x = augment.turn_round(x, counts, draws, config.flip)
        items = [one[:n].numpy() for one, n in zip(x, counts.tolist(), strict=True)]
    if config.noise:
        longest = max(len(item) for item in items)
        noise = draws.standard_normal((len(items), longest, len(deviation)), np.float32)
        items = [item + noise[i, : len(item)] * config.noise * deviation for i, item in enumerate(items)]
    if config.cutmix:
        x, counts = padded(items)
        x, targets = augment.cutmix(x, counts, targets, draws, config.cutmix)
        items = [one[:n].numpy() for one, n in zip(x, counts.tolist(), strict=True)]
    if draws.random() < config.mixup:
        other = draws.permutation(len(items))
        share = draws.random(len(items), np.float32)
        mixed = []
        for i, item in enumerate(items):
            second = items[other[i]]
            both = min(len(item), len(second))
            longer = item if len(item) > both else second
            mixed.append(np.concatenate([share[i] * item[:both] + (1 - share[i]) * second[:both], longer[both:]]))
        weight = torch.from_numpy(share)[:, None]
        items, targets = mixed, weight * targets + (1 - weight) * targets[torch.from_numpy(other)]
    return items, targets


def padded(items: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    x = torch.zeros(len(items), max(len(item) for item in items), items[0].shape[1])
    for i, item in enumerate(items):
        x[i, : len(item)] = torch.from_numpy(item)
    return x, torch.tensor([len(item) for item in items])


def vectors(items: list[np.ndarray], mean: np.ndarray, deviation: np.ndarray, *, last: bool = False) -> Tensor:
    """What the linear layer gets: the mean of the standardised frames, or the one at the last place of the batch."""
    scaled = [(item - mean) / deviation for item in items]
    if last:
        longest = max(len(item) for item in items)
        scaled = [item[-1:] if len(item) == longest else np.zeros_like(item[:1]) for item in scaled]
    return torch.from_numpy(np.stack([item.mean(0) for item in scaled])).float()


def train_by_hand(
    config: Config,
    tracks: Tracks,
    held: np.ndarray,
    start: dict[str, Tensor],
    *,
    copy_: int = 0,
    lesson: tuple[np.ndarray, np.ndarray] | None = None,
) -> Result:
    """Train one linear layer on the fold that is not held out.

    `lesson`: rows of the pack and their targets, where they are not the labels of the fold.
    """
    assert tracks.tags is not None
    settings = config.optim
    fitted = np.setdiff1d(np.arange(len(tracks.ids)), held)
    tags = filled(tracks.tags[fitted]) if config.data.fill_parents else tracks.tags[fitted]
    rows, labels = lesson or (tracks.rows[fitted], tags.astype(np.float32))
    items = [tracks.pack.item(int(row)) for row in rows]
    frames = np.concatenate(items).astype(np.float64)
    mean, spread = frames.mean(0), frames.std(0)
    scale = np.full_like(spread, math.sqrt((spread**2).mean())) if config.network.common_scale else spread
    if not config.network.standardise:
        mean, scale = np.zeros_like(mean), np.ones_like(scale)
    of_held = vectors([tracks.pack.item(int(row)) for row in tracks.rows[held]], mean, scale)

    linear = nn.Linear(tracks.pack.dim, tracks.n_tags)
    linear.load_state_dict({"weight": start["head.weight"], "bias": start["head.bias"]})
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(
        [
            {"params": [linear.weight], "weight_decay": settings.weight_decay},
            {"params": [linear.bias], "weight_decay": 0.0},
        ]
    )
    average, updates = copy.deepcopy(linear.state_dict()), 0
    seed = mixed_seed(config.seed, copy_, *map(ord, f"fold0-copy{copy_}"))
    result = Result({})
    best, best_score, waited, halved, ends = (linear.state_dict(), optimizer.state_dict()), -1.0, 0, 0, []
    for epoch in range(settings.epochs):
        if settings.batches == "bucketed":
            batches = bucketed_batches(np.array([len(i) for i in items]), settings.batch, mixed_seed(seed, epoch))
        else:
            batches = random_batches(len(items), settings.batch, mixed_seed(seed, epoch))
        losses, summed = [], []
        for place, batch in enumerate(batches):
            draws = np.random.default_rng(mixed_seed(seed, epoch, place))
            targets = torch.from_numpy(labels[batch])
            taken, targets = augmented(config.augment, [items[i] for i in batch], targets, draws, spread)
            x = vectors(taken, mean, scale, last=config.network.pooling == "last") * (1 - config.network.head_dropout)
            targets = targets * (1 - config.loss.smoothing) + config.loss.smoothing / 2
            total = losses_of(config.loss, tags, linear(x), targets).sum()
            losses.append(float(total.detach()) / len(batch))
            summed.append(total if config.loss.sum_over_tracks else total / len(batch))
            if len(summed) < config.fabric.accumulate and place + 1 < len(batches):
                continue
            linear.zero_grad()
            (sum(summed) / config.fabric.accumulate).backward()  # type: ignore[union-attr]  # never the empty sum
            summed = []
            if settings.clip:
                gradients = torch.cat([linear.weight.grad.flatten(), linear.bias.grad])
                for parameter in (linear.weight, linear.bias):
                    parameter.grad *= min(1.0, settings.clip / float(gradients.norm()))
            for group in optimizer.param_groups:
                at = (epoch + place / len(batches)) / settings.epochs
                group["lr"] = settings.learning_rate * factor(settings, at) * 0.5**halved
            optimizer.step()
            decay = min(settings.ema, (1 + updates) / (10 + updates))
            updates += 1
            average = {name: decay * average[name] + (1 - decay) * w for name, w in linear.state_dict().items()}
        ends.append(copy.deepcopy(linear.state_dict()))
        kept = average if settings.ema else ends[-1]
        result.losses.append(float(np.mean(losses)))
        result.rates.append(optimizer.param_groups[0]["lr"])
        result.scores.append(None)
        if (epoch + 1) % settings.evaluate_every == 0 or epoch + 1 == settings.epochs:
            logits = of_held @ kept["weight"].T + kept["bias"]
            score = float(average_precision_score(tracks.tags[held], logits.numpy(), average="macro"))
            result.scores[-1] = score
            if score > best_score:
                best, best_score, waited = copy.deepcopy((kept, optimizer.state_dict())), score, 0
            else:
                waited += 1
            if settings.schedule == "plateau" and waited == settings.plateau_patience:
                halved, waited = halved + 1, 0
                linear.load_state_dict(best[0])
                optimizer.load_state_dict(copy.deepcopy(best[1]))
        result.weights = best[0] if settings.keep == "best" else copy.deepcopy(kept)
        if settings.schedule == "plateau" and settings.keep == "last":
            result.weights = copy.deepcopy(linear.state_dict())
        if settings.patience and waited == settings.patience:
            break
    if settings.swa:
        result.weights = {name: sum(end[name] for end in ends[-settings.swa :]) / settings.swa for name in ends[0]}
    return result


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(float((found[f"head.{name}"] - value).abs().max()) for name, value in expected.items())


@pytest.mark.parametrize("name", FEATURES)
def test_the_loop_is_a_plain_loop_with_one_feature(
    name: str, small: tuple[Tracks, Tracks], initial: Callable[[Config], Path], fit: Fit, tmp_path: Path
) -> None:
    config, without = FEATURES[name]
    tracks = small[0]
    fit(config, tracks, tmp_path / "run")
    held = held_out(tmp_path / "run", tracks)
    start = checkpoint(initial(config))
    expected = train_by_hand(config, tracks, held, start)
    found = checkpoint(tmp_path / "run")
    assert difference(found, expected.weights) < 2e-5
    assert difference(found, {name.removeprefix("head."): w for name, w in start.items() if "head" in name}) > 1e-3
    if without is not None:
        plain = train_by_hand(without, tracks, held, checkpoint(initial(without)))
        assert difference(found, plain.weights) > 1e-3

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["part"] == "fold0-copy0"]
    assert [line["step"] for line in epochs] == list(range(1, len(expected.losses) + 1))
    np.testing.assert_allclose([line["loss"] for line in epochs], expected.losses, rtol=1e-4)
    np.testing.assert_allclose([line["learning_rate"] for line in epochs], expected.rates, rtol=1e-4, atol=1e-8)
    if not config.faithful:
        assert [line.get("score") for line in epochs] == pytest.approx(expected.scores, abs=1e-6)


def test_copies_of_a_network_have_seeds_of_their_own(
    small: tuple[Tracks, Tracks], initial: Callable[[Config], Path], fit: Fit, tmp_path: Path
) -> None:
    fit(replace(PLAIN, copies=2), small[0], tmp_path / "run")
    held = held_out(tmp_path / "run", small[0])
    for copy_ in (0, 1):
        expected = train_by_hand(PLAIN, small[0], held, checkpoint(initial(PLAIN), copy_), copy_=copy_)
        assert difference(checkpoint(tmp_path / "run", copy_), expected.weights) < 2e-5
    assert (checkpoint(tmp_path / "run", 0)["head.weight"] - checkpoint(tmp_path / "run", 1)["head.weight"]).std() > 0.1


@pytest.mark.parametrize(
    ("weight", "pseudo_labels"), [(0.3, False), (0.3, True), (0.0, True)], ids=["labels", "both", "pseudo-labels"]
)
def test_a_student_learns_the_answers_of_its_teacher(
    weight: float,
    pseudo_labels: bool,
    small: tuple[Tracks, Tracks],
    initial: Callable[[Config], Path],
    fit: Fit,
    tmp_path: Path,
) -> None:
    tracks, unlabelled = small
    assert tracks.tags is not None
    classic = ClassicConfig(statistics=("mean",), neighbours=5)
    fit(Config(model="knn", classic=classic, data=DATA, fabric=CPU), tracks, tmp_path / "teacher")
    teacher = TeacherConfig(run=tmp_path / "teacher", weight=weight, pseudo_labels=pseudo_labels)
    fit(replace(PLAIN, teacher=teacher), tracks, tmp_path / "run", unlabelled=unlabelled)

    held = held_out(tmp_path / "run", tracks)
    fitted = np.setdiff1d(np.arange(LABELLED), held)
    model = load_classic(tmp_path / "teacher" / "checkpoints" / "fold0.safetensors")
    rows = [*tracks.rows[fitted], *tracks.rows[held], *unlabelled.rows]
    logits = model.logits(np.stack([tracks.pack.item(int(row)).mean(0) for row in rows]))
    answers = 1 / (1 + np.exp(-logits.astype(np.float64)))
    targets = answers.copy()
    targets[: len(fitted)] = (1 - weight) * tracks.tags[fitted] + weight * answers[: len(fitted)]
    n = len(rows) if pseudo_labels else len(fitted)
    lesson = np.array(rows[:n]), targets[:n].astype(np.float32)
    expected = train_by_hand(PLAIN, tracks, held, checkpoint(initial(PLAIN)), lesson=lesson)
    assert difference(checkpoint(tmp_path / "run"), expected.weights) < 2e-5
    plain = train_by_hand(PLAIN, tracks, held, checkpoint(initial(PLAIN)))
    assert difference(checkpoint(tmp_path / "run"), plain.weights) > 1e-3


def test_batch_normalisation_never_gets_a_single_track(small: tuple[Tracks, Tracks], fit: Fit, tmp_path: Path) -> None:
    """Its statistics after each epoch are those of the batches with two tracks or more, by the formula of PyTorch."""
    tracks = small[0]
    still = replace(OPTIM, batch=(LABELLED - 11) - 1, learning_rate=0.0, epochs=2)
    fit(replace(PLAIN, network=replace(LINEAR, pooled_norm="batch"), optim=still), tracks, tmp_path / "run")
    held = held_out(tmp_path / "run", tracks)
    assert len(held) == 11  # so the last batch has one track
    fitted = np.setdiff1d(np.arange(LABELLED), held)
    items = [tracks.pack.item(int(row)) for row in tracks.rows[fitted]]
    frames = np.concatenate(items)
    x = vectors(items, frames.mean(0), frames.std(0)).numpy()
    mean, variance = np.zeros(x.shape[1]), np.ones(x.shape[1])
    seed = mixed_seed(0, 0, *map(ord, "fold0-copy0"))
    for epoch in range(2):
        batch = random_batches(len(fitted), still.batch, mixed_seed(seed, epoch))[0]
        mean, variance = 0.9 * mean + 0.1 * x[batch].mean(0), 0.9 * variance + 0.1 * x[batch].var(0, ddof=1)
    found = checkpoint(tmp_path / "run")
    np.testing.assert_allclose(found["pooled_norm.running_mean"], mean, atol=1e-5)
    np.testing.assert_allclose(found["pooled_norm.running_var"], variance, rtol=1e-4)


def test_the_faithful_score_is_the_mean_of_the_batches(small: tuple[Tracks, Tracks], fit: Fit, tmp_path: Path) -> None:
    tracks = small[0]
    assert tracks.tags is not None
    config = replace(
        PLAIN, faithful=True, network=replace(LINEAR, pooling="last"), optim=replace(OPTIM, epochs=1, batch=5)
    )
    fit(config, tracks, tmp_path / "run")
    held, weights = held_out(tmp_path / "run", tracks), checkpoint(tmp_path / "run")
    scores = []
    for batch in random_batches(len(held), 5, mixed_seed(0, 0, *map(ord, "fold0-copy0"))):
        items = [tracks.pack.item(int(row)) for row in tracks.rows[held[batch]]]
        x = vectors(items, weights["mean"].numpy(), weights["deviation"].numpy(), last=True)
        logits = (x @ weights["head.weight"].T + weights["head.bias"]).numpy()
        of_tags = [
            average_precision_score(truth, score) if truth.any() else 0.0
            for truth, score in zip(tracks.tags[held[batch]].T, logits.T, strict=True)
        ]
        scores.append(np.mean(of_tags))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["score"] == pytest.approx(np.mean(scores), abs=1e-6)


def test_dropout_of_the_configuration_reaches_the_layers() -> None:
    for encoder in ("transformer", "conformer", "resnet1d"):
        config = NetworkConfig(encoder=encoder, d=8, heads=2, ff=8, channels=(8,), input="mlp", input_hidden=8,
                               dropout=0.123, head_dropout=0.456, head="mlp", head_hidden=8)  # type: ignore[arg-type]  # fmt: skip
        net = TagNet(config, 4, 3)
        inner = [m.p for part in (net.input, net.encoder) for m in part.modules() if isinstance(m, nn.Dropout)]
        assert inner
        assert set(inner) == {0.123}
        assert [m.p for part in (net.head_dropout, net.head) for m in part.modules() if isinstance(m, nn.Dropout)] == [
            0.456,
            0.456,
        ]
    queries = TagNet(replace(LINEAR, head="queries", input="linear", d=8, heads=2, dropout=0.3), 4, 3)
    assert queries.queries is not None
    assert {m.p for m in queries.queries.modules() if isinstance(m, nn.Dropout)} | {
        m.dropout for m in queries.queries.modules() if isinstance(m, nn.MultiheadAttention)
    } == {0.3}
    assert TagNet(replace(LINEAR, head="independent", head_dropout=0.4), 4, 3).head.dropout.p == 0.4
