"""The training loop against a plain PyTorch loop written here, each feature of a stage switched on alone."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_train.config import FabricConfig
from kit_train.state import mixed_seed
from yandex_artists.config import AugmentConfig, Config, DataConfig, MemberConfig, ModelConfig, StageConfig
from yandex_artists.data import Tracks
from yandex_artists.model import build_model
from yandex_artists.train import train

CHANNELS, FRAMES, OUT = 5, 4, 8
TRACKS_OF_ARTIST = (3, 3, 1, 4, 3, 2, 3, 1)  # artists 0, 2, ... are held out; 1, 3, 5, 7 are the classes 0 to 3
SEED, FOLD = 7, 0
MODEL = ModelConfig(architecture="attention", ff=4, out=OUT)
# Ten tracks are fitted, so that an epoch has three batches.
BASE = StageConfig(
    epochs=2, loss="arcface", batch=4, learning_rate=0.02, margin=0.3, margin_from=0.0, scale=8.0, keep="last"
)
Weights = dict[str, Tensor]


def make_tracks() -> Tracks:
    rng = np.random.default_rng(3)
    artists = np.arange(len(TRACKS_OF_ARTIST)).repeat(TRACKS_OF_ARTIST)
    voices = rng.standard_normal((len(TRACKS_OF_ARTIST), CHANNELS))
    items = [(voices[a] + 1.5 * rng.standard_normal((FRAMES, CHANNELS))).astype(np.float32) for a in artists]
    order = rng.permutation(len(items))
    pack = RaggedPack.from_items([items[i] for i in order])
    folds = artists % 2
    names = list(range(len(TRACKS_OF_ARTIST)))
    return Tracks("train", list(range(len(items))), pack, np.argsort(order), artists, names, folds, "made")


def trained(path: Path, *stages: StageConfig, accumulate: int = 1, model: ModelConfig = MODEL) -> Path:
    """A finished run of one network on the artists of odd number."""
    config = Config(
        seed=SEED,
        data=DataConfig(n_folds=2, fold=FOLD),
        members=(MemberConfig("net", model, stages),),
        fabric=FabricConfig(accumulate=accumulate),
    )
    with RunFolder.create(path, config=config, preset="made", data_hashes={}, seed=SEED) as run:
        train(config, make_tracks(), run)
    return path


def weights_of(run: Path) -> Weights:
    return load_file(run / "models" / f"fold{FOLD}" / "net.safetensors")


def scores_of(run: Path) -> list[tuple[int, int, float]]:
    """Stage, epoch and nDCG@100 of every scored epoch."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["stage"], line["epoch"], line["ndcg@100"]) for line in lines if "epoch" in line and "ndcg@100" in line
    ]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The network before the first step: one epoch at a rate that moves nothing."""
    run = trained(tmp_path_factory.mktemp("start") / "run", replace(BASE, epochs=1, learning_rate=1e-30))
    return weights_of(run)


# ---------------------------------------------------------------------------------------------------------------------
# The plain loop


@dataclass
class Made:
    """What the plain loop leaves: the weights to keep, and what each epoch scored on the held-out tracks."""

    weights: Weights
    scores: list[float]
    steps: int


def embedding(x: Tensor, weights: Weights) -> Tensor:
    """Frames [b, T, channels] to vectors [b, OUT]: the mean weighted by a network of one hidden layer, a linear map."""
    hidden = x @ weights["body.pooled.hidden.weight"].T + weights["body.pooled.hidden.bias"]
    scores = (hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))) @ weights["body.pooled.last.weight"][0]
    shares = scores.exp() / scores.exp().sum(1, keepdim=True)
    pooled = torch.einsum("bt,btc->bc", shares, x)
    return pooled @ weights["body.head.weight"].T + weights["body.head.bias"]


def arcface(z: Tensor, classes: Tensor, centres: Tensor, stage: StageConfig, margin: float) -> Tensor:
    cosines = (z / z.norm(dim=1, keepdim=True)) @ (centres / centres.norm(dim=1, keepdim=True)).T
    cosines = cosines.reshape(len(z), -1, stage.sub_centers).max(dim=2).values
    losses = []
    for row, label in zip(cosines, classes.tolist(), strict=True):
        angle = torch.arccos(row[label])
        moved = torch.cos(angle + margin) if angle < math.pi - margin else row[label] - margin * math.sin(margin)
        logits = stage.scale * torch.stack([moved if i == label else cosine for i, cosine in enumerate(row)])
        log_shares = logits - logits.logsumexp(0)
        smoothing = stage.label_smoothing
        losses.append(-(1 - smoothing) * log_shares[label] - smoothing * log_shares.mean())
    return torch.stack(losses).mean()


def of_pairs(z: Tensor, classes: Tensor, stage: StageConfig) -> Tensor:
    """SupCon: all others below the line, mean over anchors; NT-Xent: the pair and the negatives, mean over pairs."""
    s = (z / z.norm(dim=1, keepdim=True)) @ (z / z.norm(dim=1, keepdim=True)).T / stage.temperature
    labels, anchors, pairs = classes.tolist(), [], []
    for i, own in enumerate(labels):
        positive = [j for j, label in enumerate(labels) if label == own and j != i]
        negative = [j for j, label in enumerate(labels) if label != own]
        others = positive + negative
        if positive:
            anchors.append(torch.stack([s[i, others].logsumexp(0) - s[i, j] for j in positive]).mean())
        pairs += [s[i, [j, *negative]].logsumexp(0) - s[i, j] for j in positive]
    if not pairs:
        return 0.0 * z.sum()
    return torch.stack(anchors if stage.loss == "supcon" else pairs).mean()


def rate_at(stage: StageConfig, step: int, steps: int) -> float:
    """The learning rate as a share of its peak."""

    def fall(share: float) -> float:
        return stage.floor + (1 - stage.floor) * (1 + math.cos(math.pi * share)) / 2

    if stage.schedule == "constant":
        return 1.0
    if stage.schedule == "cyclic":
        return fall(step % stage.cycle / stage.cycle)
    rise = stage.warmup * steps
    if stage.schedule == "one-cycle":
        rise = 0.3 * steps if not stage.warmup else rise
        if step < rise:
            return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * step / rise)) / 2
    elif step < rise:
        return (step + 1) / (rise + 1)
    return fall((step - rise) / (steps - rise))


def ndcg(vectors: np.ndarray, artists: np.ndarray) -> float:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    values = []
    for i, own in enumerate(artists):
        wanted = int((artists == own).sum()) - 1
        if wanted:
            order = [j for j in np.argsort(-cosines[i], kind="stable") if j != i]
            found = sum(1 / math.log2(place + 2) for place, j in enumerate(order) if artists[j] == own)
            values.append(found / sum(1 / math.log2(place + 2) for place in range(wanted)))
    return float(np.mean(values))


def plain_stage(encoder: Weights, stage: StageConfig, number: int = 0, accumulate: int = 1) -> Made:
    """One stage of training from the weights `encoder`, as the settings of a stage say in words."""
    tracks = make_tracks()
    frames = torch.from_numpy(np.stack([tracks.pack.item(int(row)) for row in tracks.rows]).astype(np.float32))
    odd = tracks.artists % 2 == 1
    x_fitted, labels = frames[odd], tracks.artists[odd] // 2
    seed = [SEED, FOLD + 1, 0]

    torch.manual_seed(mixed_seed(*seed, 3, number))
    more: list[nn.Parameter] = []
    if stage.loss == "arcface":
        more = [nn.Parameter(torch.empty(4 * stage.sub_centers, OUT).normal_(std=OUT**-0.5))]
    elif stage.loss == "nt-xent" and stage.projector:
        more = [nn.Linear(OUT, OUT, bias=False).weight, nn.Linear(OUT, OUT // 2, bias=False).weight]
    weights = {name: nn.Parameter(tensor.clone()) for name, tensor in encoder.items()}
    peaks = [stage.learning_rate] * len(weights) + [stage.learning_rate * stage.head_factor] * len(more)
    parameters = [*weights.values(), *more]
    gradients = [torch.zeros_like(p) for p in parameters]
    first, second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    average, minima, scores = {name: p.detach().clone() for name, p in weights.items()}, [], []
    best: tuple[float, Weights] = (-1.0, {})
    updates, step, waited = 0, 0, 0

    counts = np.bincount(labels)
    usable = np.flatnonzero(counts[labels] >= stage.smallest_artist)
    n_batches = math.ceil(len(usable) / stage.batch)
    steps = stage.epochs * n_batches
    for epoch in range(stage.epochs):
        epoch_seed = mixed_seed(*seed, 4, number, epoch)
        torch.manual_seed(epoch_seed)
        order = usable[np.random.default_rng(epoch_seed).permutation(len(usable))]
        for batch_idx in range(n_batches):
            batch = order[batch_idx * stage.batch : (batch_idx + 1) * stage.batch].repeat(stage.views)
            x = x_fitted[batch]
            if stage.crop:
                rng = np.random.default_rng(mixed_seed(epoch_seed, batch_idx))
                starts = rng.integers(0, FRAMES - stage.crop + 1, size=len(batch))
                x = torch.stack([track[begin : begin + stage.crop] for track, begin in zip(x, starts, strict=True)])
            if stage.augment.noise:
                x = x + stage.augment.noise * x.std() * torch.randn(x.shape)
            z, classes = embedding(x, weights), torch.from_numpy(labels[batch])
            if stage.loss == "arcface":
                rise = stage.margin_from * steps
                margin = stage.margin * (min(step / rise, 1.0) if rise else 1.0)
                loss = arcface(z, classes, more[0], stage, margin)
            else:
                seen = functional.relu(z @ more[0].T) @ more[1].T if more else z
                loss = of_pairs(seen, classes, stage)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            for total, gradient in zip(gradients, found, strict=True):
                total += 0.0 if gradient is None else gradient / accumulate
            if (batch_idx + 1) % accumulate == 0 or batch_idx + 1 == n_batches:
                norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
                shrink = min(1.0, stage.clip / norm) if stage.clip else 1.0
                updates += 1
                for i, p in enumerate(parameters):
                    g, lr = gradients[i] * shrink, peaks[i] * rate_at(stage, step, steps)
                    first[i] = 0.9 * first[i] + 0.1 * g
                    second[i] = 0.999 * second[i] + 0.001 * g * g
                    moment, spread = first[i] / (1 - 0.9**updates), second[i] / (1 - 0.999**updates)
                    p.data = p.data * (1 - lr * stage.weight_decay) - lr * moment / (spread.sqrt() + 1e-8)
                gradients = [torch.zeros_like(p) for p in parameters]
                decay = min(stage.ema, updates / (9 + updates))
                for name, p in weights.items():
                    average[name] = decay * average[name] + (1 - decay) * p.detach()
            step += 1
            now = average if stage.ema else weights
            if stage.keep == "average" and step % stage.cycle == 0:
                minima.append({name: tensor.detach().clone() for name, tensor in now.items()})
        if (epoch + 1) % stage.score_every and epoch + 1 < stage.epochs:
            continue
        now = {name: tensor.detach().clone() for name, tensor in (average if stage.ema else weights).items()}
        scores.append(ndcg(embedding(frames[~odd], now).numpy(), tracks.artists[~odd]))
        waited = 0 if scores[-1] > best[0] else waited + 1
        if scores[-1] > best[0]:
            best = scores[-1], now
        if stage.patience and waited == stage.patience:
            break
    last = {name: tensor.detach().clone() for name, tensor in (average if stage.ema else weights).items()}
    if stage.keep == "average" and minima:
        kept = {name: torch.stack([state[name] for state in minima]).mean(0) for name in last}
    else:
        kept = best[1] if stage.keep == "best" else last
    return Made(kept, scores, step)


def difference(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# ---------------------------------------------------------------------------------------------------------------------
# Each feature alone

TOLERANCE = 2e-4  # of weights that a step moves by 0.02

NOISE = AugmentConfig(noise=0.5)
SUPCON = replace(BASE, loss="supcon", temperature=0.5)
NT_XENT = replace(BASE, loss="nt-xent", temperature=0.5)
CYCLIC = replace(BASE, schedule="cyclic", cycle=2, floor=0.1)
ALONE: dict[str, tuple[StageConfig, dict[str, Any]]] = {
    "weight decay": (BASE, {"weight_decay": 2.0}),
    "clipping": (BASE, {"clip": 9.0}),  # of some steps: AdamW does not see a factor that all gradients have
    "cosine": (BASE, {"schedule": "cosine"}),
    "cosine with warm-up": (replace(BASE, schedule="cosine"), {"warmup": 0.5}),
    "floor of the schedule": (replace(BASE, schedule="cosine"), {"floor": 0.5}),
    "one-cycle": (BASE, {"schedule": "one-cycle"}),
    "warm-up of one-cycle": (replace(BASE, schedule="one-cycle"), {"warmup": 0.5}),
    "cyclic": (BASE, {"schedule": "cyclic", "cycle": 2}),
    "mean of minima": (CYCLIC, {"keep": "average"}),
    "margin": (BASE, {"margin": 0.6}),
    "margin ramp": (BASE, {"margin_from": 0.5}),
    "margin ramp to the last step": (BASE, {"margin_from": 1.0}),
    "scale": (BASE, {"scale": 20.0}),
    "sub-centres": (BASE, {"sub_centers": 2}),
    "label smoothing": (BASE, {"label_smoothing": 0.2}),
    "head factor": (BASE, {"head_factor": 5.0}),
    "head factor of the projector": (NT_XENT, {"head_factor": 5.0}),
    "projector": (replace(NT_XENT, projector=False), {"projector": True}),
    "temperature": (SUPCON, {"temperature": 0.2}),
    "EMA": (BASE, {"ema": 0.5}),
    "EMA of the minima": (replace(CYCLIC, keep="average"), {"ema": 0.5}),
    "crop": (BASE, {"crop": 2}),
    "noise": (BASE, {"augment": NOISE}),
    "two views": (replace(SUPCON, augment=NOISE), {"views": 2}),
    "artists with enough tracks": (BASE, {"smallest_artist": 3}),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_feature_alone_gives_the_weights_of_a_plain_loop(name: str, start: Weights, tmp_path: Path) -> None:
    before, changes = ALONE[name]
    stage = replace(before, **changes)
    found, expected = weights_of(trained(tmp_path / "run", stage)), plain_stage(start, stage)
    assert difference(found, expected.weights) < TOLERANCE
    assert difference(found, plain_stage(start, before).weights) > 10 * TOLERANCE  # without the feature


def test_without_any_feature_the_steps_are_those_of_adamw(start: Weights, tmp_path: Path) -> None:
    found = weights_of(trained(tmp_path / "run", BASE))
    expected = plain_stage(start, BASE)
    assert expected.steps == 6
    assert difference(found, expected.weights) < TOLERANCE
    assert difference(found, start) > 0.03


def test_gradients_of_several_batches_make_one_step(start: Weights, tmp_path: Path) -> None:
    """Of three batches an epoch, two and the one that is left make a step each; the rate is that of the last batch."""
    stage = replace(BASE, schedule="cosine")
    found = weights_of(trained(tmp_path / "run", stage, accumulate=2))
    assert difference(found, plain_stage(start, stage, accumulate=2).weights) < TOLERANCE
    assert difference(found, plain_stage(start, stage).weights) > 10 * TOLERANCE
    # The gradient that is clipped is the mean of the batches: AdamW alone would not see the difference to their sum.
    clipped = replace(stage, clip=7.0, ema=0.5)
    found = weights_of(trained(tmp_path / "clipped", clipped, accumulate=2))
    assert difference(found, plain_stage(start, clipped, accumulate=2).weights) < TOLERANCE
    assert difference(found, plain_stage(start, replace(clipped, clip=3.5), accumulate=2).weights) > 5 * TOLERANCE


def test_a_second_stage_begins_with_the_weights_of_the_first(start: Weights, tmp_path: Path) -> None:
    """It has a head, an optimizer and a schedule of its own, and epochs that are drawn anew."""
    first, second = replace(BASE, epochs=1, ema=0.5), replace(BASE, schedule="cosine", margin_from=1.0)
    found = weights_of(trained(tmp_path / "run", first, second))
    kept = plain_stage(start, first).weights
    assert difference(found, plain_stage(kept, second, number=1).weights) < TOLERANCE
    assert difference(found, plain_stage(start, second, number=1).weights) > 10 * TOLERANCE
    assert difference(found, plain_stage(kept, second, number=0).weights) > 10 * TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Which epoch is kept

RESTLESS = replace(BASE, epochs=6, learning_rate=0.3)


def test_every_epoch_is_scored_on_the_held_out_tracks(start: Weights, tmp_path: Path) -> None:
    """In the log stand the start of the first stage and every epoch; with an average of the weights, that is scored."""
    stage = replace(RESTLESS, epochs=2, ema=0.5)
    scores = scores_of(trained(tmp_path / "run", stage, replace(BASE, epochs=1)))
    assert [(number, epoch) for number, epoch, _ in scores] == [(0, 0), (0, 1), (0, 2), (1, 1)]
    before = replace(stage, epochs=1, learning_rate=1e-30)
    first = plain_stage(start, stage)
    expected = [*plain_stage(start, before).scores, *first.scores]
    expected += plain_stage(first.weights, replace(BASE, epochs=1), number=1).scores
    assert [score for _, _, score in scores] == pytest.approx(expected, abs=1e-6)
    assert plain_stage(start, replace(stage, ema=0.0)).scores != pytest.approx(first.scores, abs=1e-3)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_epoch_with_the_best_score_is_kept(ema: float, start: Weights, tmp_path: Path) -> None:
    stage = replace(RESTLESS, keep="best", ema=ema)
    expected = plain_stage(start, stage)
    best = int(np.argmax(expected.scores))
    assert 0 < best < 5, expected.scores
    found = weights_of(trained(tmp_path / "run", stage))
    assert difference(found, expected.weights) < TOLERANCE
    assert difference(found, plain_stage(start, replace(stage, keep="last")).weights) > 10 * TOLERANCE


def test_only_scored_epochs_can_be_kept(start: Weights, tmp_path: Path) -> None:
    stage = replace(RESTLESS, keep="best", score_every=4)
    run = trained(tmp_path / "run", stage)
    assert [epoch for _, epoch, _ in scores_of(run)] == [0, 4, 6]
    expected = plain_stage(start, stage)
    assert difference(weights_of(run), expected.weights) < TOLERANCE
    assert difference(weights_of(run), plain_stage(start, replace(stage, score_every=1)).weights) > 10 * TOLERANCE


def test_a_stage_ends_when_patience_is_exhausted(start: Weights, tmp_path: Path) -> None:
    stage = replace(RESTLESS, patience=2)
    expected = plain_stage(start, stage)
    assert 3 < len(expected.scores) < 6, expected.scores
    run = trained(tmp_path / "run", stage)
    assert [epoch for _, epoch, _ in scores_of(run)] == list(range(len(expected.scores) + 1))
    assert difference(weights_of(run), expected.weights) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Settings of a network


def test_a_codebook_is_fitted_to_all_batches_of_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(architecture="codebook", landmarks=5)
    whole = weights_of(trained(tmp_path / "whole", model=model))
    monkeypatch.setattr("yandex_artists.train.TRACKS_PER_BATCH", 3)
    assert difference(whole, weights_of(trained(tmp_path / "parts", model=model))) < 1e-4


@pytest.mark.parametrize("architecture", ["transformer", "conformer", "set", "mean-map", "codebook"])
def test_dropout_reaches_every_layer_that_drops(architecture: str) -> None:
    model = ModelConfig(
        architecture=architecture, channels=8, heads=2, ff=8, kernel=3, landmarks=5, correction=4, dropout=0.37
    )
    modules = list(build_model(model, 8, 0).modules())
    rates = [module.p for module in modules if isinstance(module, nn.Dropout)]
    rates += [module.dropout for module in modules if isinstance(module, nn.MultiheadAttention)]
    assert rates
    assert set(rates) == {0.37}
