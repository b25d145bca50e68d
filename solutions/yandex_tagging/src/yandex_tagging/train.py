"""From tracks to a run folder, in order: folds → a model for each fold → out-of-fold logits → blend → summary.

Start policy of each model: (1) finished weights in `checkpoints/` are read back; (2) a network that was stopped goes on
from what `state/` holds, its last whole epoch or the step at which it was asked to stop, with the same bits on a CPU as
an unbroken run; (3) else it starts from the seed.

Several processes (`--fabric.devices 2`) each compute their share of every batch; all of them walk through this file.
"""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from kit_core.atomic import atomic_path
from kit_core.config import config_to_dict, load_preset
from kit_core.console import progress, render_table, say
from kit_core.errors import ConfigError
from kit_core.interrupt import Interrupted
from kit_core.run import RunFolder
from kit_core.seeding import seed_everything
from kit_io.ragged import RaggedPack
from kit_losses.multilabel import DistributionBalancedLoss, asymmetric_loss, focal_loss
from kit_metrics.multilabel import (
    average_precision_per_tag,
    bootstrap_macro_average_precision,
    macro_average_precision,
)
from kit_nn.averaging import WeightAverage, mean_of_weights
from kit_nn.pooling import lengths_to_padding_mask
from kit_splits.folds import assert_groups_whole, count_groups
from kit_splits.multilabel import multilabel_folds
from kit_train.batches import bucketed_batches, random_batches
from kit_train.fabric import launch
from kit_train.ranks import mean_of_ranks, seed_of_rank, share_buffers, share_of_batch, stop_asked
from kit_train.schedules import Plateau, cosine, cyclic_cosine, one_cycle, set_learning_rate
from kit_train.state import load_state, mixed_seed, restore_rng, rng_state, save_state
from kit_train.stopping import Patience
from kit_train.track import Tracker
from kit_train.weights import load_weights, save_weights
from yandex_tagging import augment
from yandex_tagging.baseline import Boosting, Classic, Logistic, Neighbours, load_classic, pooled_statistics
from yandex_tagging.blend import Blend
from yandex_tagging.config import PRESETS, AugmentConfig, Config, DataConfig, LossConfig, OptimConfig
from yandex_tagging.data import GROUPS, Tracks
from yandex_tagging.groups import read_groups
from yandex_tagging.infer import Gather, load_network, network_logits, reader
from yandex_tagging.model import TagNet, fill_in_parents, find_parents
from yandex_tagging.teacher import Lesson, lesson_of, open_teacher

Loss = Callable[[Tensor, Tensor], Tensor]


def train(
    config: Config,
    tracks: Tracks,
    run: RunFolder,
    *,
    presets: Path = PRESETS,
    resume: bool = False,
    unlabelled: Tracks | None = None,
) -> dict[str, Any]:
    """Fit the model, or each member of an ensemble, on every fold asked for, and finish the run.

    Args:
        tracks: a train split, with tags.
        run: an open run folder.
        presets: where the members of an ensemble are described.
        resume: whether finished parts of members' runs may be used.
        unlabelled: tracks of the same pack to which a teacher gives pseudo-labels, beside the fold left out.

    Returns:
        The summary, as written to `summary.json`: macro AP with its interval, n, tags, seconds.

    Raises:
        ConfigError: the tracks have no tags, there are fewer groups than folds, or the teacher has seen other folds.
    """
    started = time.monotonic()
    if tracks.tags is None:
        raise ConfigError("training needs a train split, with tags")
    seed_everything(config.seed)
    folds, groups = assign_folds(tracks, config.data)
    counts = count_groups(groups, name_grouping(tracks, config.data))
    say(str(counts))
    if config.model == "ensemble":
        answers, details = _train_members(config, tracks, run, folds, presets, resume)
    else:
        answers = _train_folds(config, tracks, run, folds, unlabelled)
        details = {
            "parameters": count_parameters(run, folds_to_fit(config.data)[0]),
            "selected_on_scored_fold": selects_on_scored_fold(config),
        }
    scored = np.flatnonzero(np.isin(folds, folds_to_fit(config.data)))
    write_answers(run.file("oof.parquet"), tracks, folds, groups, answers, scored)
    truth = tracks.tags[scored]
    low, high = bootstrap_macro_average_precision(truth, answers[scored], groups[scored])
    summary = {
        "metric": "macro_ap",
        "score": macro_average_precision(truth, answers[scored]),
        "interval": [low, high],
        "folds": config.data.n_folds if config.data.fold == "all" else config.data.fold,
        **vars(counts),
        "score_of_folds": {
            str(fold): macro_average_precision(tracks.tags[folds == fold], answers[folds == fold])
            for fold in folds_to_fit(config.data)
        },
        "n": len(scored),
        "n_tags": tracks.n_tags,
        "dim": tracks.pack.dim,
        "tag_names": list(tracks.tag_names) if tracks.tag_names else None,
        **details,
        "seconds": round(time.monotonic() - started, 1),
    }
    run.finish(summary)
    return summary


def summary_text(preset: str, summary: dict[str, Any]) -> str:
    """Render the summary of a run: held-out macro AP with its interval, members, seconds."""
    low, high = summary["interval"]
    lines = [
        f"{preset}: macro AP {summary['score']:.4f} ({low:.4f} to {high:.4f}, 95 %) on {summary['n']} held-out tracks, "
        f"{summary['n_tags']} tags, {summary['seconds']} s"
    ]
    if "members" in summary:
        rows = [(name, f"{one['score']:.4f}", f"{one['mean_weight']:.3f}") for name, one in summary["members"].items()]
        lines.append(render_table(["member", "macro AP alone", "mean weight"], rows))
    return "\n".join(lines)


def assign_folds(tracks: Tracks, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Give each track a fold, stratified by tags, groups whole: (folds, groups), int64 [n]."""
    assert tracks.tags is not None
    groups = np.arange(len(tracks.ids)) if tracks.groups is None else tracks.groups
    if config.groups is not None:
        groups = read_groups(config.groups, tracks.ids)
    folds = multilabel_folds(tracks.tags, config.n_folds, groups=groups, seed=config.seed)
    assert_groups_whole(folds, groups)
    return folds, groups


def name_grouping(tracks: Tracks, config: DataConfig) -> str:
    """Say what the folds of a run keep whole: `groups FILE`, the data's own groups.csv, or each track alone."""
    if config.groups is not None:
        return f"groups {config.groups.name}"
    return "track" if tracks.groups is None else f"series ({GROUPS})"


def selects_on_scored_fold(config: Config) -> bool:
    """Return whether a network's epoch or learning rate is chosen by the score of the fold that it is scored on."""
    optim = config.optim
    return config.model == "network" and (optim.keep == "best" or optim.patience > 0 or optim.schedule == "plateau")


def folds_to_fit(config: DataConfig) -> list[int]:
    """Which folds are left out in turn."""
    return list(range(config.n_folds)) if config.fold == "all" else [config.fold]


def _train_members(
    config: Config, tracks: Tracks, run: RunFolder, folds: np.ndarray, presets: Path, resume: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train each member into its own run folder, find the blend, and return the blended out-of-fold logits.

    The blend that is kept is found on all tracks. The logits that are returned use, for each fold, a blend found on the
    other folds, so that no track helps to choose the weights of its own score.
    """
    assert tracks.tags is not None
    answers, scores, parameters, selected = [], {}, 0, False
    scored = np.flatnonzero(np.isin(folds, folds_to_fit(config.data)))
    for name in config.members:
        member = load_preset(Config, presets, name)
        member = dataclasses.replace(
            member,
            data=config.data,
            fabric=config.fabric,
            tensorboard=config.tensorboard,
            seed=config.seed + member.seed,
        )
        with RunFolder.create(
            run.path / "members" / name,
            config=member,
            preset=name,
            data_hashes=run.manifest["data"],
            seed=member.seed,
            resume=resume or (run.path / "members" / name).exists(),
        ) as folder:
            summary = folder.summary if folder.done else train(member, tracks, folder, presets=presets, resume=resume)
            answers.append(read_answers(folder.path / "oof.parquet", tracks.ids))
        scores[name] = summary["score"]
        parameters += summary["parameters"]
        selected |= summary.get("selected_on_scored_fold", False)
        say(summary_text(name, summary))
    settings = config.blend

    def fit(rows: np.ndarray) -> Blend:
        return Blend.fit(
            [answer[rows] for answer in answers],
            tracks.tags[rows],  # type: ignore[index]  # checked above
            scale=settings.scale,
            weights=settings.weights,
            shrinkage=settings.shrinkage,
            rounds=settings.rounds,
        )

    blend = fit(scored)
    blend.save(run.file("blend.safetensors"))
    mixed = np.full(answers[0].shape, np.nan, np.float32)
    for fold in progress(folds_to_fit(config.data), label="blends found"):
        inside = np.flatnonzero(folds == fold)
        others = scored[folds[scored] != fold]
        unseen = fit(others) if len(others) else blend
        unseen.save(run.file(f"blend-fold{fold}.safetensors"))
        mixed[inside] = unseen.mix([answer[inside] for answer in answers])
    equal = np.mean([(a - a[scored].mean(0)) / a[scored].std(0) for a in answers], axis=0)
    details = {
        "members": {
            name: {"score": scores[name], "mean_weight": float(weight)}
            for name, weight in zip(config.members, blend.weights.mean(1), strict=True)
        },
        "parameters": parameters + blend.weights.size,
        "selected_on_scored_fold": selected,
        "score_of_equal_weights": macro_average_precision(tracks.tags[scored], equal[scored]),
    }
    return mixed, details


def _train_folds(
    config: Config, tracks: Tracks, run: RunFolder, folds: np.ndarray, unlabelled: Tracks | None
) -> np.ndarray:
    """Fit a model for each fold and return the logits of tracks that it has not seen; NaN where not asked for."""
    assert tracks.tags is not None
    teacher = open_teacher(config.teacher, tracks, folds)
    answers = np.full(tracks.tags.shape, np.nan, np.float32)
    features = None
    if config.model != "network":
        features = pooled_statistics(tracks.pack, tracks.rows, config.classic.statistics)
    for fold in folds_to_fit(config.data):
        since = time.monotonic()
        fitted, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        tags = tracks.tags[fitted]
        if config.data.fill_parents:
            tags = fill_in_parents(tags, find_parents(tags))
        if features is not None:
            answers[held] = _fit_classic(config, features[fitted], tags, run, fold).logits(features[held])
        else:
            lesson = lesson_of(teacher, config.teacher, tracks, unlabelled, fitted, tags, held, fold)
            copies = [
                fit_network(config, tracks, lesson, tags, held, run, f"fold{fold}-copy{copy}", copy)
                for copy in range(config.copies)
            ]
            answers[held] = np.mean(copies, axis=0)
        score = macro_average_precision(tracks.tags[held], answers[held])
        seconds = round(time.monotonic() - since, 1)
        run.log(part=f"fold{fold}", score=score, n_fitted=len(fitted), n_held=len(held), seconds=seconds)
        say(f"fold {fold}: macro AP {score:.4f} on {len(held)} held-out tracks, {seconds} s")
    return answers


def _fit_classic(config: Config, features: np.ndarray, tags: np.ndarray, run: RunFolder, fold: int) -> Classic:
    path = run.file("checkpoints", f"fold{fold}.safetensors")
    if path.exists():
        return load_classic(path)
    settings = config.classic
    model: Classic
    if config.model == "lightgbm":
        model = Boosting.fit(
            features,
            tags,
            rounds=settings.rounds,
            leaves=settings.leaves,
            learning_rate=settings.learning_rate,
            feature_share=settings.feature_share,
            workers=settings.workers,
            seed=config.seed,
        )
    elif config.model == "knn":
        model = Neighbours.fit(features, tags, k=settings.neighbours)
    else:
        model = Logistic.fit(features, tags, C=settings.C, unit_norm=settings.unit_norm)
    model.save(path)
    return model


def fit_network(
    config: Config,
    tracks: Tracks,
    lesson: Lesson,
    tags: np.ndarray,
    held: np.ndarray,
    run: RunFolder,
    name: str,
    copy: int,
) -> np.ndarray:
    """Train one network on a lesson; returns logits of the tracks `held`, float32 [n, n_tags].

    Args:
        tags: the labels known, bool [n, n_tags], for the counts that a loss needs and the parents of tags.
    """
    assert tracks.tags is not None
    optim, pack, rows = config.optim, tracks.pack, tracks.rows
    fabric = launch(config.fabric)
    gather = reader(pack, fabric.device)
    checkpoint, state_path = run.file("checkpoints", f"{name}.safetensors"), run.file("state", f"{name}.pt")
    if checkpoint.exists():
        net = load_network(checkpoint).to(fabric.device)
        return network_logits(net, gather, pack.lengths, rows[held], config, fabric.device, fabric)

    # 1. Everything that learns, from the seed of this fold and copy.
    seed = mixed_seed(config.seed, copy, *(ord(letter) for letter in name))
    seed_everything(seed)
    net = TagNet(config.network, pack.dim, tracks.n_tags, find_parents(tags))
    mean, deviation = frame_statistics(pack, lesson.rows)
    if config.network.standardise:
        common = np.full_like(deviation, np.sqrt(np.square(deviation).mean()))
        net.standardise_by(mean, common if config.network.common_scale else deviation)
    noise_scale = torch.from_numpy(deviation * config.augment.noise).to(fabric.device)
    fastest = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[optim.optimizer]
    optimizer = fastest(_decayed_groups(net, optim.weight_decay), lr=optim.learning_rate)
    model, optimizer = fabric.setup(net, optimizer)
    loss_of = build_loss(config.loss, tags).to(fabric.device)
    average = WeightAverage(net, optim.ema) if optim.ema else None
    plateau = Plateau(patience=optim.plateau_patience)
    patience = Patience(optim.patience or optim.epochs + 1)
    labels = torch.from_numpy(lesson.targets).to(fabric.device)
    best: dict[str, Any] = {}
    last_states: list[dict[str, Tensor]] = []  # of the epochs that `swa` averages
    total, frames = torch.zeros((), device=fabric.device), 0  # of the epoch under way: loss of batches, frames read
    lengths = pack.lengths[lesson.rows]
    alone = fabric.world_size == 1

    # 2. What a stopped run left, and how to leave it.
    first, first_place = 0, 0
    if state_path.exists():
        state = load_state(state_path, fabric.device)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        plateau.load_state_dict(state["plateau"])
        patience.load_state_dict(state["patience"])
        if average is not None:
            average.load_state_dict(state["average"])
        best, last_states, first = state["best"], state["last_states"], state["epoch"]
        first_place, total, frames = state["place"], state["total"], state["frames"]
        restore_rng(state["rng"])

    def keep(epoch: int, place: int) -> None:
        """Save everything, to go on with batch `place` of an epoch."""
        state = {
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "plateau": plateau.state_dict(),
            "patience": patience.state_dict(),
            "average": average.state_dict() if average is not None else {},
            "best": best,
            "last_states": last_states,
            "epoch": epoch,
            "place": place,
            "total": total,
            "frames": frames,
            "rng": rng_state(),
        }
        save_state(state_path, state)

    # 3. The epochs.
    with Tracker(run, config.tensorboard, prefix=name) as tracker:
        for epoch in progress(range(first, optim.epochs), label=f"{name}, epochs"):
            if patience.exhausted:
                break
            since = time.monotonic()
            if optim.batches == "bucketed":
                batches = bucketed_batches(lengths, optim.batch, mixed_seed(seed, epoch))
            else:
                batches = random_batches(len(lesson.rows), optim.batch, mixed_seed(seed, epoch))
            if config.network.pooled_norm == "batch":  # one track has no variance
                batches = [batch for batch in batches if len(batch) >= 2 * fabric.world_size]
            model.train()
            for place, batch in enumerate(batches):
                if epoch == first and place < first_place:
                    continue  # learnt before the run was stopped
                part = share_of_batch(batch, fabric.global_rank, fabric.world_size)
                share = (epoch + place / len(batches)) / optim.epochs
                set_learning_rate(optimizer, rate_factor(optim, share, plateau.value))
                draws = np.random.default_rng(mixed_seed(seed, epoch, place, *([] if alone else [fabric.global_rank])))
                seed_of_rank(fabric, mixed_seed(seed, epoch, place))
                x, counts, targets = draw_batch(
                    gather,
                    lesson.rows[part.rows],
                    lengths[part.rows],
                    labels[part.rows],
                    draws,
                    config.augment,
                    noise_scale,
                )
                accumulating = (place + 1) % config.fabric.accumulate != 0 and place + 1 < len(batches)
                with fabric.no_backward_sync(model, enabled=accumulating):
                    logits = model(x, lengths_to_padding_mask(counts, x.shape[1]))
                    targets = targets * (1 - config.loss.smoothing) + config.loss.smoothing / 2
                    loss = loss_of(logits, targets) * (
                        part.weight_of_sum if config.loss.sum_over_tracks else part.weight
                    )
                    fabric.backward(loss / config.fabric.accumulate)
                if not accumulating:
                    if optim.clip:
                        fabric.clip_gradients(model, optimizer, max_norm=optim.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                    if average is not None:
                        average.update(net)
                total += loss.detach() / (len(batch) if config.loss.sum_over_tracks else 1)
                frames += int(counts.sum())
                if not accumulating and place + 1 < len(batches) and stop_asked(fabric, place):
                    keep(epoch, place + 1)
                    raise Interrupted(f"{run.path}: stopped in epoch {epoch + 1} of {name}; continue with --resume")
            share_buffers(fabric, net, *([] if average is None else [average.module]))
            done = epoch + 1
            if done > optim.epochs - optim.swa:
                last_states.append({key: value.clone() for key, value in net.state_dict().items()})

            # 4. The score on the held-out fold, and what follows from it.
            rate = optimizer.param_groups[0]["lr"]  # of the last step; a plateau may load another
            values: dict[str, float] = {"loss": mean_of_ranks(fabric, float(total)) / len(batches)}
            if done % optim.evaluate_every == 0 or done == optim.epochs:
                judged = net if average is None else average.module
                values["score"] = _validate(judged, gather, tracks, held, config, fabric, seed)
                if patience.update(values["score"]):
                    kept = {"net": judged.state_dict(), "optimizer": optimizer.state_dict(), "epoch": done}
                    best = _cloned(kept) if optim.keep == "best" or optim.schedule == "plateau" else {}
                if optim.schedule == "plateau":
                    plateau.step(values["score"])
                    if plateau.reduced:
                        net.load_state_dict(best["net"])
                        optimizer.load_state_dict(_cloned(best["optimizer"]))  # torch takes the tensors as they are
            seconds = time.monotonic() - since
            tracker.log(done, **values, learning_rate=rate, frames_per_second=frames / seconds, seconds=seconds)
            total, frames = torch.zeros_like(total), 0
            keep(done, 0)

    # 5. The weights to keep.
    weights = net.state_dict() if average is None else average.module.state_dict()
    if optim.swa:
        weights = mean_of_weights(last_states)
    elif optim.keep == "best":
        weights = best["net"]
    header = {"network": config_to_dict(config.network), "dim": pack.dim, "n_tags": tracks.n_tags}
    save_weights(checkpoint, weights, header)
    state_path.unlink()
    net = load_network(checkpoint).to(fabric.device)
    return network_logits(net, gather, pack.lengths, rows[held], config, fabric.device, fabric)


def count_parameters(run: RunFolder, fold: int) -> int:
    """Count the fitted numbers of one fold: weights, leaves of all trees, what a neighbour search remembers."""
    total = 0
    for path in sorted(run.file("checkpoints", "x").parent.glob(f"fold{fold}*.safetensors")):
        tensors, header = load_weights(path)
        if header.get("kind") == "lightgbm":
            total += sum(map(int, re.findall(rb"^num_leaves=(\d+)$", tensors["texts"].numpy().tobytes(), flags=re.M)))
        else:
            total += sum(tensor.numel() for tensor in tensors.values())
    return total


def draw_batch(
    gather: Gather,
    rows: np.ndarray,
    lengths: np.ndarray,
    targets: Tensor,
    draws: np.random.Generator,
    config: AugmentConfig,
    noise_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Read a batch and augment it: (frames [b, T, dim], lengths [b], targets [b, n_tags])."""
    start, count = augment.draw_windows(
        lengths, draws, span=config.span, span_shortest=config.span_shortest, longest=config.longest
    )
    x, counts = gather(rows, start=start, length=count)
    if config.frame_drop:
        x, counts = augment.drop_frames(x, counts, draws, config.frame_drop)
    if config.flip:
        x = augment.turn_round(x, counts, draws, config.flip)
    if config.noise:
        x = augment.add_noise(x, counts, draws, noise_scale)
    if config.cutmix:
        x, targets = augment.cutmix(x, counts, targets, draws, config.cutmix)
    if draws.random() < config.mixup:
        x, counts, targets = augment.mixup(x, counts, targets, draws)
    return x, counts, targets


def rate_factor(optim: OptimConfig, share: float, plateau: float) -> float:
    """Return the factor of the learning rate after a share of all steps, 0..1."""
    grain = 1_000_000  # the schedules count whole steps
    step = round(share * grain)
    if optim.schedule == "one-cycle":
        return one_cycle(step, grain, warmup=optim.warmup)
    if optim.schedule == "cosine":
        return cosine(step, grain, warmup=optim.warmup)
    if optim.schedule == "cyclic-cosine":
        return cyclic_cosine(step, max(1, round(grain * optim.cycle_epochs / optim.epochs)))
    return plateau


class _Summed(nn.Module):
    """A loss of [b, tags] as the sum over tags, and the mean or the sum over tracks."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], sum_over_tracks: bool) -> None:
        super().__init__()
        self.loss, self.sum_over_tracks = loss, sum_over_tracks

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        total = self.loss(logits, targets)
        return total if self.sum_over_tracks else total / len(logits)


def build_loss(config: LossConfig, tags: np.ndarray) -> nn.Module:
    """Return the loss that the configuration names; what it needs to know of tags comes from the fitted part alone."""
    counts = torch.from_numpy(tags.sum(0).astype(np.float32))
    if config.name == "distribution-balanced":
        loss: Any = DistributionBalancedLoss(counts, len(tags), gamma=config.gamma, reduction="sum")
    elif config.name == "asymmetric":

        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            return asymmetric_loss(
                logits, targets, config.gamma_negative, config.gamma_positive, config.clip, reduction="sum"
            )

    else:
        weights = 1 - counts / counts.sum() if config.class_alpha else None
        gamma = config.gamma if config.name == "focal" else 0.0

        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            return focal_loss(logits, targets, gamma, tag_weights=weights, reduction="sum")

    return _Summed(loss, config.sum_over_tracks)


def frame_statistics(pack: RaggedPack, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of each dimension over all frames of some tracks, float32 [dim]; deviation 0 as 1."""
    total, squares, count = np.zeros(pack.dim), np.zeros(pack.dim), 0
    for row in np.sort(rows).tolist():
        frames = pack.item(row)
        total += frames.sum(0, dtype=np.float64)
        squares += np.einsum("td,td->d", frames, frames, dtype=np.float64)
        count += len(frames)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)


def write_answers(
    path: Path, tracks: Tracks, folds: np.ndarray, groups: np.ndarray, logits: np.ndarray, scored: np.ndarray
) -> None:
    """Keep the out-of-fold logits: one row for each scored track, with its fold, its group and its tags."""
    assert tracks.tags is not None
    table = {
        "track": pa.array([tracks.ids[i] for i in scored], pa.int64()),
        "fold": pa.array(folds[scored], pa.int32()),
        "group": pa.array(groups[scored], pa.int64()),
        "tags": pa.array([np.flatnonzero(row) for row in tracks.tags[scored]], pa.list_(pa.int32())),
        "logits": pa.array(list(logits[scored].astype(np.float32)), pa.list_(pa.float32())),
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(table), temporary, compression="zstd")


def read_answers(path: Path, ids: list[int]) -> np.ndarray:
    """Return the out-of-fold logits in the order of `ids`, float32 [n, n_tags]; NaN for tracks that were not scored."""
    table = pq.read_table(path)
    place = {track: i for i, track in enumerate(ids)}
    logits = np.stack(table["logits"].to_numpy())
    answers = np.full((len(ids), logits.shape[1]), np.nan, np.float32)
    answers[[place[track] for track in table["track"].to_pylist()]] = logits
    return answers


def _validate(
    net: nn.Module,
    gather: Gather,
    tracks: Tracks,
    held: np.ndarray,
    config: Config,
    fabric: Fabric,
    seed: int,
) -> float:
    """Return macro AP over the whole held-out fold; `faithful`: the mean of its batches', as the original had it."""
    assert tracks.tags is not None
    if not config.faithful:
        logits = network_logits(net, gather, tracks.pack.lengths, tracks.rows[held], config, fabric.device, fabric)
        return macro_average_precision(tracks.tags[held], logits)
    scores = []
    net.eval()
    with torch.no_grad():
        for batch in random_batches(len(held), config.optim.batch, seed):
            x, lengths = gather(tracks.rows[held[batch]])
            logits = net(x, lengths_to_padding_mask(lengths, x.shape[1])).float().cpu().numpy()
            scores.append(average_precision_per_tag(tracks.tags[held[batch]], logits).mean())
    return float(np.mean(scores))


def _decayed_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for biases, normalisations and other vectors."""
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _cloned(value: Any) -> Any:
    """Copy nested tensors, so that training does not change what was kept."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return [_cloned(item) for item in value] if isinstance(value, list) else value
