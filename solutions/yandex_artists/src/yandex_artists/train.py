"""From tracks to a run folder, in order: folds → members, stage by stage → embeddings → galleries → summary.

Start policy: a run begins from nothing. With `--resume`, (1) networks that the stopped run finished are read back,
(2) the one that was stopped goes on after its last whole epoch, in whichever stage that was, (3) all others are fitted
from the seed, so that on a CPU the result has the same bits as that of a run that was never stopped: every epoch seeds
the generators anew, from the seed, the fold, the member, the stage and its own number.

Several processes (`--fabric.devices 2`) each encode their share of every batch, gather all embeddings, and compute the
same loss of them; all of them walk through this file.

What a fold leaves in `models/foldK/` is what `infer` needs: for each network its weights and its cohort.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from kit_core.console import render_table, say
from kit_core.errors import ConfigError
from kit_core.interrupt import Interrupted
from kit_core.run import RunFolder
from kit_core.seeding import seed_everything
from kit_io.tables import write_csv
from kit_metrics.bootstrap import bootstrap_ratio
from kit_metrics.retrieval import ndcg_per_query
from kit_nn.averaging import WeightAverage, mean_of_weights
from kit_nn.pooling import lengths_to_padding_mask
from kit_retrieval.search import top_k
from kit_retrieval.vectors import l2_normalise
from kit_splits.folds import assert_groups_whole, count_groups
from kit_train.fabric import launch
from kit_train.ranks import share_buffers, share_of_batch, stop_asked
from kit_train.schedules import cosine, cyclic_cosine, one_cycle, set_learning_rate
from kit_train.state import load_state, mixed_seed, save_state
from kit_train.stopping import Patience
from kit_train.track import Tracker
from yandex_artists.augment import augment
from yandex_artists.batches import Frames, Rows, epoch_batches, random_windows
from yandex_artists.compare import GROUP_BY, QUERIES
from yandex_artists.config import Config, DataConfig, MemberConfig, StageConfig
from yandex_artists.data import Tracks, validation_folds
from yandex_artists.embed import TRACKS_PER_BATCH, Embedded, embed, join, make_cohort
from yandex_artists.infer import fold_folder, load_unit, save_unit, unit_names
from yandex_artists.model import Criterion, Encoder, Trainee, build_model
from yandex_artists.post import rank
from yandex_artists.vectors import Vectors, save_vectors

METRIC_K = 100
FoldParts = dict[int, dict[str, Embedded]]  # by fold and network


@dataclass(frozen=True)
class Unit:
    """One network of a run: a copy of a member on a fold."""

    member: MemberConfig
    number: int
    """Of all networks of a fold, from 0; enters the seed."""
    name: str
    fold: int | None

    def seed(self, config: Config, *more: int) -> int:
        """A seed for this network, and for what `more` numbers."""
        return mixed_seed(config.seed, 0 if self.fold is None else self.fold + 1, self.number, *more)


@dataclass(frozen=True)
class Split:
    """Rows of the tracks to fit on and of those held out, int64, and the artists of the first as classes 0..k-1."""

    fitted: Rows
    held: Rows
    classes: Rows

    @property
    def n_classes(self) -> int:
        """Artists to fit on."""
        return int(self.classes.max()) + 1


def train(config: Config, tracks: Tracks, run: RunFolder, distractors: Tracks | None = None) -> dict[str, Any]:
    """Fit every member on every fold asked for, rank every left-out fold, and finish the run.

    Args:
        tracks: a train split.
        run: an open run folder.
        distractors: tracks that join the gallery of every left-out fold, under artists that nobody asks for.

    Returns:
        The summary, as written to `summary.json`: nDCG@100 with its interval, gallery sizes, members, seconds.

    Raises:
        ConfigError: no artists, fewer artists than folds, distractors of other features, or no artist of two tracks
            in any left-out fold, or in one whose score is to choose an epoch.
    """
    started = time.monotonic()
    seed_everything(config.seed)
    if tracks.artists is None:
        raise ConfigError("training needs a train split, with artistid in its meta file")
    require_same_channels(tracks, distractors)
    fabric = launch(config.fabric)
    folds = assign_folds(tracks, config.data)
    counts = count_groups(tracks.artists, GROUP_BY)
    say(str(counts))
    splits = {fold: split_fold(tracks.artists, folds, fold) for fold in folds_to_fit(config.data)}
    _require_answers(config, tracks.artists, splits)
    frames = Frames(tracks.pack, fabric.device)
    more_frames = None if distractors is None else Frames(distractors.pack, fabric.device)
    members = dict(unit_names(config))
    galleries: list[Gallery] = []
    held_rows: dict[int, Rows] = {}
    held_parts: FoldParts = {}
    parameters: dict[str, int] = {}

    for fold, split in splits.items():
        say(f"fold {fold}: {len(split.fitted)} tracks of {split.n_classes} artists to fit, {len(split.held)} held out")
        parts: dict[str, Embedded] = {}
        for number, (name, member) in enumerate(members.items()):
            unit = Unit(member, number, name, fold)
            since = time.monotonic()
            if not (fold_folder(run.path, fold) / f"{name}.safetensors").exists():
                with Tracker(run, config.tensorboard, prefix=f"fold{fold}/{name}") as tracker:
                    encoder = fit(unit, config, tracks, split, frames, fabric, run, tracker)
                everyone = np.arange(len(tracks.ids))
                everything = embed(
                    encoder, frames, *of_rows(tracks, everyone), member, unit.seed(config, 0), fabric.device, fabric
                )
                is_fitted = np.isin(everyone, split.fitted)
                cohort = make_cohort(everything, tracks.artists, is_fitted, config.post.whitening)
                save_unit(fold_folder(run.path, fold), name, encoder, cohort, member, tracks.pack.dim)
                state_path(run, unit).unlink(missing_ok=True)
                run.log(part=f"fold{fold}/{name}", seconds=round(time.monotonic() - since, 2))
            encoder, cohort = load_unit(fold_folder(run.path, fold), name, fabric.device)
            parameters[name] = sum(tensor.numel() for tensor in encoder.state_dict().values())
            if fold is None:
                continue
            vectors = [
                embed(
                    encoder, frames, *of_rows(tracks, split.held), member, unit.seed(config, 0), fabric.device, fabric
                )
            ]
            if distractors is not None and more_frames is not None:
                everyone = np.arange(len(distractors.ids))
                vectors.append(
                    embed(
                        encoder, more_frames, *of_rows(distractors, everyone), member, unit.seed(config, 0),
                        fabric.device, fabric,
                    )
                )  # fmt: skip
            parts[name] = Embedded(np.concatenate(vectors), cohort)
        if fold is not None:
            labels = np.full(len(next(iter(parts.values())).vectors), tracks.artists.max() + 1)
            labels[: len(split.held)] = tracks.artists[split.held]
            galleries.append(score_fold(config, parts, labels, len(split.held)))
            held_rows[fold], held_parts[fold] = split.held, parts
            found = {name: round(mean_score(scores), 4) for name, scores in galleries[-1].scores.items()}
            run.log(fold=fold, gallery=len(labels), **{"ndcg@100": found})
            say(f"fold {fold}: gallery of {len(labels)} tracks, nDCG@100 {found}")

    if held_parts:
        keep_vectors(run, config, tracks, held_rows, held_parts)
        keep_scores(run, tracks, held_rows, galleries)
    summary = (
        summarise(config, galleries)
        | vars(counts)
        | {
            "selected_on_scored_fold": bool(galleries) and selects_on_scored_fold(config),
            "parameters": sum(parameters.values()),
            "seconds": round(time.monotonic() - started, 1),
        }
    )
    run.finish(summary)
    return summary


def fit(
    unit: Unit,
    config: Config,
    tracks: Tracks,
    split: Split,
    frames: Frames,
    fabric: Fabric,
    run: RunFolder,
    tracker: Tracker,
) -> Encoder:
    """Train one network through its stages; goes on after the last whole epoch of a stopped run."""
    encoder = build_model(unit.member.model, tracks.pack.dim, unit.seed(config, 1)).to(fabric.device)
    encoder.fit_start(
        lambda: _in_order(frames, tracks, split.fitted), split.classes, unit.member.model, unit.seed(config, 2)
    )
    path = state_path(run, unit)
    saved: dict[str, Any] = load_state(path, fabric.device) if path.exists() else {"stage": 0}
    if "encoder" in saved:
        encoder.load_state_dict(saved["encoder"])
    for number in range(int(saved["stage"]), len(unit.member.stages)):
        begun = saved if "optimizer" in saved else None
        fit_stage(unit, number, config, tracks, split, frames, fabric, path, tracker, encoder, begun)
        saved = {}
    return encoder


def fit_stage(
    unit: Unit,
    number: int,
    config: Config,
    tracks: Tracks,
    split: Split,
    frames: Frames,
    fabric: Fabric,
    path: Path,
    tracker: Tracker,
    encoder: Encoder,
    saved: dict[str, Any] | None,
) -> None:
    """Train `encoder` in place through one stage, and leave in it what the stage says to keep.

    What a stage is given (of the first: the untrained network) is scored for the log, and is never what it keeps.
    """
    stage = unit.member.stages[number]
    torch.manual_seed(unit.seed(config, 3, number))
    criterion = Criterion(stage, encoder.d, split.n_classes).to(fabric.device)
    groups = [
        {"params": list(encoder.parameters()), "lr": stage.learning_rate},
        {"params": list(criterion.parameters()), "lr": stage.learning_rate * stage.head_factor},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=stage.weight_decay)
    set_learning_rate(optimizer, 1.0)
    average = WeightAverage(encoder, stage.ema) if stage.ema else None
    patience = Patience(stage.patience or stage.epochs)
    minima: list[dict[str, Tensor]] = []
    best: dict[str, Tensor] | None = None
    epoch, step = 0, 0
    if saved is not None:
        criterion.load_state_dict(saved["criterion"])
        optimizer.load_state_dict(saved["optimizer"])
        patience.load_state_dict(saved["patience"])
        minima, best, epoch, step = saved["minima"], saved["best"], int(saved["epoch"]), int(saved["step"])
        if average is not None:
            average.load_state_dict(saved["average"])
    elif len(split.held) and number == 0:
        score = held_score(encoder, unit, config, tracks, split, frames, fabric)
        tracker.log(0, stage=number, epoch=0, **{"ndcg@100": score})

    model, optimizer = fabric.setup(Trainee(encoder, criterion, fabric), optimizer)
    per_epoch = len(epoch_batches(split.classes, stage, 0))
    if not per_epoch:
        raise ConfigError(f"member {unit.name!r}, stage {number}: no artist has {stage.smallest_artist} tracks")
    steps = stage.epochs * per_epoch

    while epoch < stage.epochs and not patience.exhausted:
        since = time.monotonic()
        epoch_seed = unit.seed(config, 4, number, epoch)
        torch.manual_seed(epoch_seed)
        encoder.train()
        totals: dict[str, float] = {}
        lonely_batches, seen = 0, 0
        batches = [np.repeat(batch, stage.views) for batch in epoch_batches(split.classes, stage, epoch_seed)]
        for place, batch in enumerate(batches):
            set_learning_rate(optimizer, learning_rate_factor(stage, step, steps))
            if criterion.head is not None:
                criterion.head.margin = margin_at(stage, step, steps)
            rows, lengths = of_rows(tracks, split.fitted[batch])
            start, taken = random_windows(lengths, stage.crop, mixed_seed(epoch_seed, place))
            x, counts = frames.gather(rows, start, taken)
            classes = torch.from_numpy(split.classes[batch]).to(fabric.device)
            x, counts = augment(x, counts, classes, stage.augment)  # the whole batch: its tracks lend each other frames
            part = share_of_batch(np.arange(len(batch)), fabric.global_rank, fabric.world_size)
            if len(part.rows) < len(batch):
                x, counts = x[part.rows], counts[part.rows]
            accumulating = (place + 1) % config.fabric.accumulate != 0 and place + 1 < len(batches)
            with fabric.no_backward_sync(model, enabled=accumulating):
                mask = lengths_to_padding_mask(counts, x.shape[1])
                learned = model(x, mask, classes, mixed_seed(epoch_seed, place))
                fabric.backward(learned.loss / config.fabric.accumulate)
            lonely_batches += learned.positive_pairs == 0
            seen += len(batch)
            for name, value in learned.parts.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            if not accumulating:
                if stage.clip:
                    fabric.clip_gradients(model, optimizer, max_norm=stage.clip)
                optimizer.step()
                optimizer.zero_grad()
                if average is not None:
                    average.update(encoder)
            step += 1
            if stage.keep == "average" and step % stage.cycle == 0:
                share_buffers(fabric, encoder, *([] if average is None else [average.module]))
                minima.append(_copy(encoder if average is None else average.module))
        share_buffers(fabric, encoder, *([] if average is None else [average.module]))
        epoch += 1

        values: dict[str, Any] = {f"loss_{name}": total / per_epoch for name, total in totals.items()}
        if epoch % stage.score_every == 0 or epoch == stage.epochs:
            scored = encoder if average is None else average.module
            assert isinstance(scored, Encoder)
            if len(split.held):
                values["ndcg@100"] = held_score(scored, unit, config, tracks, split, frames, fabric)
                if patience.update(values["ndcg@100"]) and stage.keep == "best":
                    best = _copy(scored)
        if lonely_batches:
            say(
                f"{unit.name}: {lonely_batches} of {per_epoch} batches held no two tracks of one artist: nothing learnt"
            )
        tracker.log(
            step, stage=number, epoch=epoch, tracks=seen, lonely_batches=lonely_batches,
            learning_rate=optimizer.param_groups[0]["lr"], seconds=round(time.monotonic() - since, 3), **values,
        )  # fmt: skip
        if epoch < stage.epochs and not patience.exhausted:
            save_state(
                path,
                {
                    "stage": number, "epoch": epoch, "step": step, "minima": minima, "best": best,
                    "encoder": encoder.state_dict(), "criterion": criterion.state_dict(),
                    "optimizer": optimizer.state_dict(), "patience": patience.state_dict(),
                    "average": None if average is None else average.state_dict(),
                },
            )  # fmt: skip
            if stop_asked(fabric, 0):
                raise Interrupted(f"{path}: stopped after epoch {epoch} of stage {number}; continue with --resume")
    if stage.keep == "best" and best is not None:
        encoder.load_state_dict(best)
    elif stage.keep == "average":
        encoder.load_state_dict(mean_of_weights(minima or [_copy(encoder)]))
    elif average is not None:
        encoder.load_state_dict(average.module.state_dict())
    save_state(path, {"stage": number + 1, "encoder": encoder.state_dict()})


def selects_on_scored_fold(config: Config) -> bool:
    """Whether the score of a left-out fold chooses an epoch, or ends a stage, of what that fold scores."""
    return any(stage.keep == "best" or stage.patience > 0 for member in config.members for stage in member.stages)


def learning_rate_factor(stage: StageConfig, step: int, steps: int) -> float:
    """The rate at a step of a stage, as a share of its peak."""
    if stage.schedule == "cosine":
        return cosine(step, steps, warmup=stage.warmup, floor=stage.floor)
    if stage.schedule == "one-cycle":
        return one_cycle(step, steps, warmup=stage.warmup or 0.3, floor=stage.floor)
    if stage.schedule == "cyclic":
        return cyclic_cosine(step, stage.cycle, stage.floor)
    return 1.0


def margin_at(stage: StageConfig, step: int, steps: int) -> float:
    """ArcFace's margin at a step: it rises from 0 and is complete at the share `margin_from` of the run.

    A margin that is complete only after the last step, as in the third place's code, never becomes what it is set to.
    """
    ramp = stage.margin_from * steps
    return stage.margin * min(1.0, step / ramp) if ramp >= 1 else stage.margin


def held_score(
    encoder: Encoder, unit: Unit, config: Config, tracks: Tracks, split: Split, frames: Frames, fabric: Fabric
) -> float:
    """nDCG@100 of the held-out tracks among themselves, by cosine."""
    assert tracks.artists is not None
    was_training = encoder.training
    rows, lengths = of_rows(tracks, split.held)
    vectors = embed(encoder, frames, rows, lengths, unit.member, unit.seed(config, 0), fabric.device, fabric)
    encoder.train(was_training)
    k = min(METRIC_K, len(vectors) - 1)
    near = top_k(l2_normalise(vectors), k=k, device=fabric.device).indices
    return mean_score(ndcg_per_query(near, tracks.artists[split.held], k=METRIC_K))


def mean_score(scores: NDArray[np.float64]) -> float:
    """Mean over the queries that can be asked for, those that are not NaN; NaN where there is none."""
    return math.nan if np.isnan(scores).all() else float(np.nanmean(scores))


@dataclass(frozen=True)
class Gallery:
    """What one left-out fold gave: by way of ranking, the nDCG@100 of every held-out track (NaN: not asked for)."""

    scores: dict[str, NDArray[np.float64]]
    labels: Rows
    """Artists of the held-out tracks."""
    size: int
    """Tracks in the gallery, with distractors."""


def score_fold(config: Config, parts: dict[str, Embedded], labels: Rows, n_held: int) -> Gallery:
    """Rank the gallery of one fold: by all members and the post-processing, by all without it, and by each alone."""
    ways = {"score": (list(parts.values()), config.post)}
    if config.post.steps:
        ways["without post-processing"] = list(parts.values()), replace(config.post, steps=())
    if len(parts) > 1:
        ways |= {name: ([part], replace(config.post, steps=())) for name, part in parts.items()}
    queries = np.arange(n_held)
    scores = {}
    for way, (of_members, post) in ways.items():
        gallery, centres = join(of_members, post)
        # AS-norm would see in their own centres to whom the left-out tracks belong.
        foreign = np.delete(centres, np.unique(labels[:n_held]), axis=0)
        near = rank(gallery, foreign, post, k=min(METRIC_K, len(labels) - 1))
        scores[way] = ndcg_per_query(near[:n_held], labels, queries=queries, k=METRIC_K)
    return Gallery(scores, labels[:n_held], len(labels))


def summarise(config: Config, galleries: list[Gallery]) -> dict[str, Any]:
    """Mean over the queries of all left-out folds, with an interval by bootstrap over artists."""
    summary: dict[str, Any] = {
        "metric": f"ndcg@{METRIC_K}",
        "score": None,
        "folds": config.data.n_folds if config.data.fold == "all" else config.data.fold,
        "n": 0,
    }
    if not galleries:
        return summary
    found = {way: np.concatenate([gallery.scores[way] for gallery in galleries]) for way in galleries[0].scores}
    artists = np.concatenate([gallery.labels for gallery in galleries])
    asked = ~np.isnan(found["score"])
    if not asked.any():
        raise ConfigError("no left-out fold holds two tracks of one artist: nothing can be scored; take other folds")

    def report(way: str) -> dict[str, Any]:
        values = found[way][asked]
        interval = bootstrap_ratio(values, np.ones_like(values), artists[asked])
        return {"score": float(values.mean()), "interval": list(interval)}

    others = [way for way in found if way != "score"]
    return (
        summary
        | report("score")
        | {
            "n": int(asked.sum()),
            "without_answer": int((~asked).sum()),
            "artists": len(np.unique(artists[asked])),
            "gallery": [gallery.size for gallery in galleries],
            "others": {way: report(way) for way in others},
        }
    )


def summary_text(preset: str, summary: dict[str, Any]) -> str:
    """Render the summary of a run: nDCG@100 with its interval and the sizes of the galleries."""
    if summary["score"] is None:
        return f"{preset}: trained on all tracks in {summary['seconds']} s; none was held out, so no score"
    low, high = summary["interval"]
    sizes = summary["gallery"]
    gallery = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else str(sizes[0])
    lines = [
        f"{preset}: nDCG@100 {summary['score']:.4f} ({low:.4f} to {high:.4f}, 95 %) on {summary['n']} queries, "
        f"galleries of {gallery} tracks, {summary['seconds']} s"
    ]
    if summary["others"]:
        rows = [(way, f"{report['score']:.4f}") for way, report in summary["others"].items()]
        lines.append(render_table(["without more", "nDCG@100"], rows))
    return "\n".join(lines)


def assign_folds(tracks: Tracks, config: DataConfig) -> Rows:
    """Give each track a fold, artists whole: int64[n]. Official folds are joined by their remainder."""
    assert tracks.artists is not None
    folds = validation_folds(tracks, config.n_folds, config.seed)
    assert_groups_whole(folds, tracks.artists)
    return folds


def folds_to_fit(config: DataConfig) -> list[int | None]:
    """Which folds are left out in turn; None stands for leaving nothing out."""
    if config.fold == "none":
        return [None]
    scored = list(range(config.n_folds)) if config.fold == "all" else [config.fold]
    return [*scored, None] if config.refit else [*scored]


def split_fold(artists: Rows, folds: Rows, fold: int | None) -> Split:
    """Fitted and held-out rows; the artists of the fitted ones are numbered without gaps.

    The original draws numbers below the count of training artists and looks them up among raw ids, so that a tenth of
    its artists is never seen; numbering them is what makes an epoch whole.
    """
    held = np.flatnonzero(folds == fold) if fold is not None else np.zeros(0, np.int64)
    fitted = np.flatnonzero(folds != fold) if fold is not None else np.arange(len(folds))
    if not len(fitted) or (fold is not None and not len(held)):
        raise ConfigError(f"fold {fold}: found {len(fitted)} tracks to fit and {len(held)} held out; take other folds")
    _, classes = np.unique(artists[fitted], return_inverse=True)
    if classes.max() < 1:
        raise ConfigError(f"fold {fold}: found one artist to fit, expected two or more")
    return Split(fitted, held, classes.astype(np.int64))


def require_same_channels(tracks: Tracks, distractors: Tracks | None) -> None:
    """Look at what can only fail after training otherwise.

    Raises:
        ConfigError: distractors of other features than the tracks.
    """
    if distractors is not None and distractors.channels != tracks.channels:
        raise ConfigError(f"distractors of {distractors.channels} channels for tracks of {tracks.channels}")


def _require_answers(config: Config, artists: Rows, splits: Mapping[int | None, Split]) -> None:
    """ConfigError where an epoch is to be chosen by the score of a fold that has none: none would ever be better."""
    if not selects_on_scored_fold(config):
        return
    for fold, split in splits.items():
        if len(split.held) and np.bincount(artists[split.held]).max() < 2:
            raise ConfigError(
                f"fold {fold}: no artist of the {len(split.held)} left-out tracks has two, so no score can choose an "
                "epoch; take fewer folds (data.n_folds), or keep 'last'"
            )


def of_rows(tracks: Tracks, chosen: Rows) -> tuple[Rows, Rows]:
    """Rows of the pack and their frames, int64[b] each, of the tracks `chosen`."""
    rows = tracks.rows[chosen]
    return rows, tracks.pack.lengths[rows]


def keep_vectors(run: RunFolder, config: Config, tracks: Tracks, held: dict[int, Rows], parts: FoldParts) -> None:
    """Keep the held-out tracks' vectors, of every network and of all together, for tuning what comes after them."""
    rows = np.concatenate(list(held.values()))
    folds = np.concatenate([np.full(len(of_fold), fold) for fold, of_fold in held.items()])
    ids = np.array(tracks.ids, np.int64)[rows]
    ways = {name: [of_fold[name].vectors for of_fold in parts.values()] for name in next(iter(parts.values()))}
    ways["joint"] = [join(list(of_fold.values()), config.post)[0] for of_fold in parts.values()]
    for name, of_folds in ways.items():
        vectors = np.concatenate([some[: len(held[fold])] for fold, some in zip(parts, of_folds, strict=True)])
        save_vectors(run.file("vectors", f"{name}.safetensors"), Vectors(ids, vectors, folds, tracks.fingerprint))


def keep_scores(run: RunFolder, tracks: Tracks, held: dict[int, Rows], galleries: list[Gallery]) -> None:
    """Write `queries.csv`: every held-out track with its nDCG@100 by each way of ranking, empty where not asked for."""
    ways = list(galleries[0].scores)
    rows = []
    for (fold, of_fold), gallery in zip(held.items(), galleries, strict=True):
        for place, row in enumerate(of_fold.tolist()):
            found = [gallery.scores[way][place] for way in ways]
            shown = ["" if np.isnan(score) else f"{score:.9f}" for score in found]
            rows.append([str(tracks.ids[row]), str(gallery.labels[place]), str(fold), *shown])
    write_csv(run.file(QUERIES), ["trackid", "artist", "fold", *ways], rows)


def state_path(run: RunFolder, unit: Unit) -> Path:
    """Where the state of a network in training lies."""
    return run.file("state", f"fold{unit.fold}-{unit.name}.pt")


def _in_order(frames: Frames, tracks: Tracks, rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(rows), TRACKS_PER_BATCH):
        yield frames.gather(tracks.rows[rows[start : start + TRACKS_PER_BATCH]])


def _copy(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
