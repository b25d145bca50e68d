"""From clips to a run folder, in order: clips → folds → models, fold by fold → blend → report.

Start policy of a network: (1) a state file of the same fold and unit, where `--resume` finds one, continues after its
last whole epoch; (2) with `transfer` the backbone and the standardisation come from another run (`--start`), the heads
are random; (3) otherwise all weights are random, and with `warm_up` the backbone first learns without labels. Every
epoch draws from a seed of its own, so that on a CPU a resumed run ends with the same bits as an unbroken one.

Several processes (`--fabric.devices 2`) each compute their share of every batch of a network; all of them walk through
this file. What is not shared, statistics and the models on them, rank 0 makes for all.

What a fold leaves in `models/foldK/` (or `models/whole/`) is what `infer` needs: one file for each unit.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn

from kit_core.atomic import atomic_path, write_json
from kit_core.console import render_table, say
from kit_core.errors import ConfigError
from kit_core.interrupt import Interrupted
from kit_core.run import RunFolder
from kit_core.seeding import seed_everything
from kit_nn.averaging import WeightAverage
from kit_splits.folds import GroupCounts, assert_groups_whole, count_groups, group_folds
from kit_train.batches import bucketed_batches, random_batches
from kit_train.fabric import launch
from kit_train.ranks import (
    Ranks,
    agreement,
    batches_of_rank,
    environment_ranks,
    gather_rows,
    gather_with_gradient,
    seed_of_rank,
    share_buffers,
    share_of_batch,
    stop_asked,
)
from kit_train.schedules import cosine, set_learning_rate
from kit_train.state import load_state, mixed_seed, save_state
from kit_train.stopping import Patience
from kit_train.track import Tracker
from ntua_lab import baseline
from ntua_lab.answers import Blend, Unit, load_network, network_answers, pooled_answers, save_network, units_of
from ntua_lab.config import AXES, Config, DataConfig, Task
from ntua_lab.data import MEL_ROWS, Clips, Set
from ntua_lab.evaluation import emotion_report, genre_report
from ntua_lab.features import statistics_for
from ntua_lab.inputs import Inputs, augment, mix, targets_of
from ntua_lab.losses import MultitaskLoss, scales_of
from ntua_lab.model import Network, build_network
from ntua_lab.warmup import warm_up

INNER_FOLDS = 5  # one of them is the inner validation part
LEAST_BATCH = 2  # batch normalisation has no variance of one clip
Floats = NDArray[np.float64]
Int64 = NDArray[np.int64]
T = TypeVar("T")


def train(config: Config, clips: Clips, run: RunFolder, start: Path | None = None) -> dict[str, Any]:
    """Fit every unit on every fold asked for, blend them, and finish the run.

    Args:
        run: an open run folder.
        start: for `transfer`, the run whose backbone is taken over.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        ConfigError: too few clips, groups or classes, or `transfer` without a run to start from.
        DataError: clips without the version that a model sees, or a run to start from that does not fit.
    """
    started = time.monotonic()
    seed_everything(config.seed)
    if config.transfer != (start is not None):
        raise ConfigError(f"--start: {'expected' if config.transfer else 'found'} a run; it goes with transfer = true")

    # 1. Clips that have an answer, and their folds.
    chosen = _clips_of(config, clips)
    groups = [clips.groups[config.data.group][i] for i in chosen]
    counts = count_groups(groups, grouping_of(clips, chosen, config.data.group))
    say(str(counts))
    folds = assign_folds(groups, config.data)
    left_out = list(range(config.data.folds)) if config.data.fold == "all" else [config.data.fold]
    units = units_of(config, len(clips.classes))
    if config.train.overfit_batch:
        return _overfit(config, clips, chosen, counts, units[0], run, started)

    # 2. What models see.
    ranks = environment_ranks()
    table = _by_rank_0(ranks, "statistics over time", partial(statistics_for, config, clips, chosen))
    inputs = Inputs.of(clips, chosen, config.input) if "network" in config.members else None

    # 3. Units, fold by fold.
    columns = len(clips.classes) + len(AXES)
    said = [np.full((len(chosen), columns), np.nan) for _ in units]
    for fold in left_out:
        fitted, held = split_fold(folds, fold, config.data)
        folder = _fold_folder(run, fold)
        for unit, answers in zip(units, said, strict=True):
            since = time.monotonic()
            if unit.member == "network":
                assert inputs is not None
                of_fitted = [groups[place] for place in fitted]
                network = fit_network(
                    config, unit, clips, inputs, chosen[fitted], of_fitted, run, str(fold), folder, start
                )
                answers[held] = network_answers(network, inputs, chosen[held], len(clips.classes), ranks)
            else:
                assert table is not None
                fit = partial(_fit_pooled, config, unit, clips, chosen, table, fitted, held, folder)
                answers[held] = _by_rank_0(ranks, unit.name, fit)
            run.log(unit=unit.name, fold=fold, seconds=round(time.monotonic() - since, 2))
            say(f"{unit.name}: fold {fold}, {len(fitted)} clips fitted, {time.monotonic() - since:.1f} s")

    # 4. Blend; what is reported was said of clips that the models had not seen.
    scored = np.flatnonzero(np.isin(folds, [fold for fold in left_out if fold != "none"]))
    emotion = clips.emotion[chosen]
    blend = Blend.fit([answers[scored] for answers in said], emotion, len(clips.classes))
    write_json(run.file("models", "blend.json"), {"places": blend.places, "targets": blend.targets})
    write_json(run.file("models", "classes.json"), list(clips.classes))

    # 5. Report.
    summary: dict[str, Any] = {
        "metric": "spearman" if config.task == "emotion" else "accuracy",
        "score": None,
        "interval": None,
        "task": config.task,
        "units": [unit.name for unit in units],
        "folds": _folds_text(config.data),
        **vars(counts),
        "n": len(scored),
        "parameters": count_parameters(_fold_folder(run, left_out[0])),
    }
    if len(scored):
        blended = np.full((len(scored), columns), np.nan)
        for fold in left_out:
            fitted, _ = split_fold(folds, fold, config.data)
            rows = np.flatnonzero(folds[scored] == fold)
            # The values of an axis come from clips that the fold was fitted on; places need no answers.
            without = Blend.fit([answers[scored] for answers in said], emotion[fitted], len(clips.classes))
            blended[rows] = without.apply([answers[scored[rows]] for answers in said], len(clips.classes))
        summary |= _reports(config, clips, chosen[scored], blended)
        named = [groups[place] for place in scored]
        _write_answers(run.file("oof.parquet"), clips, chosen[scored], folds[scored], named, blended)
        if len(units) > 1 and not config.separate:
            summary["score_of_units"] = {
                unit.name: _reports(config, clips, chosen[scored], answers[scored])["score"]
                for unit, answers in zip(units, said, strict=True)
            }
    summary["seconds"] = round(time.monotonic() - started, 1)
    run.finish(summary)
    return summary


def fit_network(
    config: Config,
    unit: Unit,
    clips: Clips,
    inputs: Inputs,
    fitted: Int64,
    groups: Sequence[str],
    run: RunFolder,
    fold: str,
    folder: Path,
    start: Path | None = None,
) -> Network:
    """Train one network on the clips `fitted`, whose groups an inner validation part keeps whole, and return it.

    With `patience` the epoch of the lowest loss on the inner part is kept, else the last one. The weights are left in
    `folder`; a file that is there already is read back.
    """
    path = folder / f"{unit.name}.safetensors"
    if path.exists():
        return load_network(path)[0]
    settings = config.train
    fabric, ranks = launch(config.fabric), environment_ranks()
    seed = mixed_seed(config.seed, *unit.name.encode(), *fold.encode())
    torch.manual_seed(seed)
    learnt, inner = _inner_split(fitted, groups, settings.patience, config.data.seed)
    targets = targets_of(clips, unit.heads)
    network = build_network(config.network, config.input, unit.heads)
    if start is None:
        mean, scale = inputs.statistics(learnt)
        network.mean.copy_(mean)
        network.scale.copy_(scale)
    else:
        _take_over(network, config, start, run)
    criterion = MultitaskLoss(
        scales_of({name: target[learnt] for name, target in targets.items()}),
        kind=settings.emotion_loss,
        uncertainty=settings.uncertainty,
        smoothing=settings.label_smoothing,
    )
    network, criterion = network.to(fabric.device), criterion.to(fabric.device)
    optimizer = torch.optim.AdamW(
        [
            {"params": [*network.parameters()], "weight_decay": settings.weight_decay},
            {"params": [*criterion.parameters()], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    module, optimizer = fabric.setup(network, optimizer)
    average = WeightAverage(network, settings.ema) if settings.ema else None
    judged = average.module if average is not None else network
    patience = Patience(max(settings.patience, 1), "min")
    bands = 0 if config.input.features == "chroma" else MEL_ROWS
    least = LEAST_BATCH
    if ranks.size > 1 and any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        least *= ranks.size  # each rank takes the statistics of its own clips
        if min(settings.batch, len(learnt)) < least:
            raise ConfigError(
                f"train.batch: found {settings.batch} clips of {len(learnt)}, expected {least} or more: batch "
                f"normalisation takes statistics of {LEAST_BATCH} clips on each of {ranks.size} ranks"
            )

    def batches_of(epoch: int) -> list[Int64]:
        batches = _batches(inputs, learnt, settings.batch, mixed_seed(seed, epoch))
        return [rows for rows in batches if len(rows) >= min(least, len(learnt))]

    # Batches of near-equal length are not as many in every epoch.
    n_steps = sum(len(batches_of(epoch)) for epoch in range(settings.epochs))
    first, step = 0, 0
    state_path = run.file("state", f"{fold}-{unit.name}.pt")
    if state_path.exists():
        state = load_state(state_path, fabric.device)
        network.load_state_dict(state["network"])
        criterion.load_state_dict(state["criterion"])
        optimizer.load_state_dict(state["optimizer"])
        patience.load_state_dict(state["patience"])
        if average is not None:
            average.load_state_dict(state["average"])
        first, step = state["epoch"], state["step"]
    elif settings.warm_up:
        learn = partial(warm_up, network, inputs, learnt, settings, bands, mixed_seed(seed, settings.warm_up))
        losses = _by_rank_0(ranks, "warm-up", learn)
        if ranks.size > 1:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)
        run.log(unit=unit.name, fold=fold, warm_up_loss=losses)

    with Tracker(run, prefix=f"{fold}-{unit.name}") as tracker:
        for epoch in range(first, settings.epochs):
            if settings.patience and patience.exhausted:
                break
            epoch_seed = mixed_seed(seed, epoch)
            torch.manual_seed(epoch_seed)
            generator, draws = np.random.default_rng(epoch_seed), torch.Generator().manual_seed(epoch_seed)
            network.train()
            losses, answered = [], set[str]()
            batches = batches_of(epoch)
            for number, rows in enumerate(batches):
                factor = cosine(step, n_steps, warmup=0.1) if settings.schedule == "cosine" else 1.0
                set_learning_rate(optimizer, factor)
                seed_of_rank(fabric, mixed_seed(epoch_seed, number))
                # Every rank reads and augments the whole batch, 4 % of the time of a step: windows, masks and
                # partners are then those of one process.
                x, mask = inputs.random(rows, generator)
                wanted = {name: target[rows] for name, target in targets.items()}
                x, mask = x.to(fabric.device), mask.to(fabric.device)
                x = augment(network.standardise(x, mask), settings, bands, draws)
                if settings.mixup:
                    x, mask, wanted = mix(x, mask, wanted, settings.mixup, generator)
                accumulating = (number + 1) % config.fabric.accumulate != 0 and number + 1 < len(batches)
                with fabric.no_backward_sync(module, enabled=accumulating):
                    logits = _logits_of_batch(module, x, mask, fabric)
                    loss, parts = criterion(logits, {name: t.to(fabric.device) for name, t in wanted.items()})
                    fabric.backward(loss / config.fabric.accumulate)
                answered |= parts.keys()
                if not accumulating:
                    _forget_unanswered(network, answered)
                    nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    answered = set()
                    if average is not None:
                        average.update(network)
                step += 1
                losses.append(float(loss.detach()))
            share_buffers(fabric, network, *([] if average is None else [average.module]))
            facts: dict[str, object] = {"train_loss": float(np.mean(losses))}
            best = not settings.patience
            if settings.patience:
                facts["inner_loss"] = _loss_of(judged, criterion, inputs, inner, targets, ranks)
                best = patience.update(float(facts["inner_loss"]))  # type: ignore[arg-type]  # a float, from the line above
            tracker.log(epoch + 1, **facts)
            if best:
                kept = run.file("state", f"{fold}-{unit.name}.safetensors")
                save_network(kept, judged, config, unit.heads, clips.classes)  # type: ignore[arg-type]  # a copy of the network
            save_state(
                state_path,
                {
                    "network": network.state_dict(),
                    "criterion": criterion.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "patience": patience.state_dict(),
                    "average": average.state_dict() if average is not None else None,
                    "epoch": epoch + 1,
                    "step": step,
                },
            )
            if stop_asked(fabric, 0):
                raise Interrupted(f"{state_path}: stopped after epoch {epoch + 1}; continue with --resume")
    run.file("state", f"{fold}-{unit.name}.safetensors").replace(path)
    state_path.unlink()
    return load_network(path)[0].to(fabric.device)


def assign_folds(groups: Sequence[str], config: DataConfig) -> Int64:
    """Give each clip a fold, groups whole: int64[clips]."""
    folds = group_folds(list(groups), config.folds, seed=config.seed)
    assert_groups_whole(folds, list(groups))
    return folds


def grouping_of(clips: Clips, chosen: Int64, group: str) -> str:
    """Return what the groups of these clips really are: "clip" where the data names no track or artist of any."""
    return group if any(clips.groups[group][i] != clips.ids[i] for i in chosen) else "clip"


def split_fold(folds: Int64, fold: int | str, config: DataConfig) -> tuple[Int64, Int64]:
    """Return the places of the clips to fit on (at most `limit`, drawn by the seed) and of those held out."""
    if fold == "none":
        fitted, held = np.arange(len(folds)), np.zeros(0, np.int64)
    else:
        fitted, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
    if config.limit is not None and config.limit < len(fitted):
        fitted = np.sort(np.random.default_rng(config.seed).permutation(fitted)[: config.limit])
    return fitted, held


def summary_text(preset: str, summary: dict[str, Any]) -> str:
    """Render the summary of a run for a person."""
    if summary["metric"] == "overfit_loss":
        return f"{preset}: loss {summary['score']:.4f} on {summary['n']} clips learnt by heart, {summary['seconds']} s"
    if summary["score"] is None:
        return f"{preset}: fitted on every clip in {summary['seconds']} s; no clip was held out, so no score"
    rows = []
    for task in ("genre", "emotion"):
        report = summary.get(task)
        for name in ("accuracy", "macro_f1", "spearman"):
            if report is not None and name in report:
                low, high = report[f"{name}_interval"]
                rows.append((name, f"{report[name]:.4f}", f"{low:.4f} to {high:.4f}"))
        if report is not None and task == "emotion":
            rows += [
                (axis, f"{one:.4f}", "") for axis, one in zip(report["axes"], report["spearman_of_axes"], strict=True)
            ]
    rows += [(f"unit {name}", f"{score:.4f}", "") for name, score in summary.get("score_of_units", {}).items()]
    head = f"{preset}: {summary['n']} clips held out ({summary['folds']}), {summary['seconds']} s\n"
    return head + render_table(["", "score", "95 % interval"], rows)


def _clips_of(config: Config, clips: Clips) -> Int64:
    """The clips with an answer to what is asked, of the train split or of both."""
    parts: dict[Task, tuple[Set, ...]] = {"genre": ("genre",), "emotion": ("emotion",), "joint": ("genre", "emotion")}
    tasks = parts[config.task]
    answered = np.unique(np.concatenate([clips.with_answers(task) for task in tasks]))
    if config.data.clips == "train":
        answered = answered[np.isin(answered, clips.where(split="train"))]
    for task in tasks:
        found = len(np.intersect1d(answered, clips.with_answers(task)))
        if found < config.data.folds:
            raise ConfigError(
                f"task {config.task}: found {found} clips with an answer for {task}, expected {config.data.folds} at "
                "least; give data with the lists of that task, or another task"
            )
    present = np.unique(clips.label[answered][clips.label[answered] >= 0])
    if "genre" in tasks and len(present) < 2:
        raise ConfigError(
            f"task {config.task}: every clip is of the class {clips.classes[present[0]]!r}, expected two or more"
        )
    return answered


def _folds_text(config: DataConfig) -> str:
    if config.fold == "none":
        return "none"
    whole = f"{config.folds} by {config.group}"
    return whole if config.fold == "all" else f"fold {config.fold} of {whole}"


def _batches(inputs: Inputs, indices: Int64, size: int, seed: int) -> list[Int64]:
    """Batches of clips: at random for windows of one length, of near-equal length for whole clips."""
    if inputs.chunk:
        return [indices[rows] for rows in random_batches(len(indices), size, seed)]
    lengths = inputs.pack.lengths[inputs.rows[indices]]
    return [indices[rows] for rows in bucketed_batches(lengths, size, seed)]


def _inner_split(fitted: Int64, groups: Sequence[str], patience: int, seed: int) -> tuple[Int64, Int64]:
    """Split the fitted clips into those that are learnt from and an inner validation part, groups whole."""
    if not patience:
        return fitted, fitted[:0]
    if len(set(groups)) < INNER_FOLDS:
        raise ConfigError(f"train.patience: {len(set(groups))} groups are too few for a validation part; set it to 0")
    inner = group_folds(list(groups), INNER_FOLDS, seed=seed) == 0
    return fitted[~inner], fitted[inner]


def _logits_of_batch(module: nn.Module, x: Tensor, mask: Tensor, fabric: Fabric) -> dict[str, Tensor]:
    """Logits of a whole batch on every rank, each of which computes its share; those of the others carry no gradient.

    The loss is then that of the batch, also where it compares clips (the order of targets) or where clips have answers
    for some heads only.
    """
    if fabric.world_size == 1:
        found: dict[str, Tensor] = module(x, mask)
        return found
    part = share_of_batch(np.arange(len(x)), fabric.global_rank, fabric.world_size)
    places = torch.from_numpy(part.rows).to(x.device)
    own = {name: logits.float() for name, logits in module(x[places], mask[places]).items()}
    widths = [logits.shape[1] if logits.dim() == 2 else 1 for logits in own.values()]
    table = torch.cat([logits.reshape(len(places), -1) for logits in own.values()], dim=1)
    columns = zip(own.items(), gather_with_gradient(fabric, table, len(x)).split(widths, dim=1), strict=True)
    return {name: column if logits.dim() == 2 else column[:, 0] for (name, logits), column in columns}


def _forget_unanswered(network: Network, answered: set[str]) -> None:
    """Take its gradient from a head that no clip of a step had an answer for: one process has none, DDP leaves 0.

    The optimizer passes over a head without gradient, but decays the weights of one whose gradient is 0.
    """
    for name, head in network.heads.items():
        if name not in answered:
            for parameter in head.parameters():
                parameter.grad = None


def _by_rank_0(ranks: Ranks, what: str, make: Callable[[], T]) -> T:
    """Let rank 0 do what is not shared, while the others wait, and return its result on every rank."""
    if ranks.size == 1:
        return make()
    found: list[Any] = [None]
    with agreement(what):
        if ranks.rank == 0:
            found = [make()]
    dist.broadcast_object_list(found, src=0)
    made: T = found[0]
    return made


def _loss_of(
    network: nn.Module,
    criterion: MultitaskLoss,
    inputs: Inputs,
    indices: Int64,
    targets: dict[str, Tensor],
    ranks: Ranks,
) -> float:
    """The loss on clips as they are, windows counted alike; without smoothing and learnt weights."""
    device = next(network.parameters()).device
    plain = MultitaskLoss(criterion.scales, kind=criterion.kind)
    network.eval()
    windows = inputs.windows(indices)
    of_clip = np.split(np.arange(windows.sum()), np.cumsum(windows)[:-1])
    batches = [np.arange(begin, min(begin + 8, len(indices))) for begin in range(0, len(indices), 8)]
    logits: dict[str, list[NDArray[np.float32]]] = {name: [] for name in targets}
    read = [np.zeros(0, np.int64)]  # windows, in the order of `logits`
    with torch.inference_mode():
        for places in batches_of_rank(batches, ranks.rank, ranks.size):
            x, mask, _ = inputs.covering(indices[places])
            x, mask = x.to(device), mask.to(device)
            for name, output in network(network.standardise(x, mask), mask).items():  # type: ignore[operator]  # a Network
                logits[name].append(output.float().cpu().numpy())
            read += [of_clip[place] for place in places.tolist()]
        seen = np.concatenate(read)
        gathered = {
            name: torch.from_numpy(gather_rows(np.concatenate(parts) if parts else seen, seen, int(windows.sum())))
            for name, parts in logits.items()
        }
        owner = np.repeat(indices, windows)
        return float(plain(gathered, {name: target[owner] for name, target in targets.items()})[0])


def _take_over(network: Network, config: Config, start: Path, run: RunFolder) -> None:
    """Copy backbone and standardisation from the first network of another run; the heads stay random."""
    source = RunFolder.open(start)
    files = sorted((source.path / "models").glob("*/network-*.safetensors"))
    if not files:
        raise ConfigError(f"{start}: found no network, expected a run with the member 'network'")
    whole = [file for file in files if file.parent.name == "whole"]
    path = (whole or files)[0]
    other, input_, header = load_network(path)
    if input_ != config.input or header["network"] != _plain(config.network):
        raise ConfigError(
            f"{start}: found another network or input, expected the same as here; give --network and --input flags "
            "as in that run's config.json"
        )
    network.backbone.load_state_dict(other.backbone.state_dict())
    network.mean.copy_(other.mean)
    network.scale.copy_(other.scale)
    run.log(start=str(path.relative_to(source.path)), of=source.preset)


def _plain(settings: Any) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()}


def _fit_pooled(
    config: Config,
    unit: Unit,
    clips: Clips,
    chosen: Int64,
    table: NDArray[np.float32],
    fitted: Int64,
    held: Int64,
    folder: Path,
) -> Floats:
    """Fit one model on statistics, keep it, and answer the clips held out."""
    classes = len(clips.classes)
    if "genre" in unit.heads:
        model = baseline.fit(
            unit.member, table[fitted], clips.label[chosen[fitted]], classes, config.pooled, config.seed
        )
    else:
        columns = [AXES.index(axis) for axis in unit.heads]
        values = clips.emotion[chosen[fitted]][:, columns].astype(np.float64)
        model = baseline.fit(unit.member, table[fitted], values, 0, config.pooled, config.seed)
    model.save(folder / unit.name)
    return pooled_answers(model, unit, table[held], classes)


def _overfit(
    config: Config, clips: Clips, chosen: Int64, counts: GroupCounts, unit: Unit, run: RunFolder, started: float
) -> dict[str, Any]:
    """Learn a few fixed batches by heart: a loop, a loss and a model that are right bring the loss to nearly 0."""
    settings = config.train
    torch.manual_seed(config.seed)
    inputs = Inputs.of(clips, chosen, config.input)
    drawn = np.random.default_rng(config.seed).permutation(chosen)[: settings.overfit_batch * settings.batch]
    heads = unit.heads
    targets = targets_of(clips, heads)
    network = build_network(replace(config.network, dropout=0.0), config.input, heads)
    mean, scale = inputs.statistics(drawn)
    network.mean.copy_(mean)
    network.scale.copy_(scale)
    criterion = MultitaskLoss(dict.fromkeys(heads, 1.0))
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    generator = np.random.default_rng(config.seed)
    batches = [drawn[i : i + settings.batch] for i in range(0, len(drawn), settings.batch)]
    fixed = [(*inputs.random(rows, generator), {name: t[rows] for name, t in targets.items()}) for rows in batches]
    with Tracker(run, prefix="overfit") as tracker:
        for epoch in range(settings.epochs):
            network.train()
            losses = []
            for x, mask, wanted in fixed:
                loss, _ = criterion(network(network.standardise(x, mask), mask), wanted)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
                optimizer.step()
                losses.append(float(loss.detach()))
            tracker.log(epoch + 1, train_loss=float(np.mean(losses)))
    network.eval()
    with torch.inference_mode():
        final = [float(criterion(network(network.standardise(x, mask), mask), wanted)[0]) for x, mask, wanted in fixed]
    summary = {
        "metric": "overfit_loss",
        "score": float(np.mean(final)),
        "interval": None,
        "task": config.task,
        "units": [unit.name],
        "folds": "none",
        **vars(counts),
        "n": len(drawn),
        "seconds": round(time.monotonic() - started, 1),
    }
    run.finish(summary)
    return summary


def count_parameters(folder: Path) -> int:
    """Count the fitted numbers of one fold: weights, support vectors, leaves of all trees."""
    total = 0
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            total += sum(array.size for array in load_file(path).values())
        elif path.suffix == ".txt":
            total += sum(map(int, re.findall(r"^num_leaves=(\d+)$", path.read_text(encoding="utf-8"), flags=re.M)))
    return total


def _fold_folder(run: RunFolder, fold: int | str) -> Path:
    return run.file("models", "whole" if fold == "none" else f"fold{fold}", "x").parent


def _reports(config: Config, clips: Clips, indices: Int64, answers: Floats) -> dict[str, Any]:
    """Scores of answers to clips, for what the run is asked; `score` and `interval` are those of its metric."""
    found: dict[str, Any] = {}
    group = clips.groups[config.data.group]
    classes = len(clips.classes)
    if config.task != "emotion":
        known = np.flatnonzero(clips.label[indices] >= 0)
        predicted = answers[known, :classes].argmax(axis=1)
        groups = [group[i] for i in indices[known]]
        found["genre"] = genre_report(clips.label[indices[known]], predicted, clips.classes, groups)
        found |= {"score": found["genre"]["accuracy"], "interval": found["genre"]["accuracy_interval"]}
    if config.task != "genre":
        columns = [AXES.index(axis) for axis in config.axes]
        truth = clips.emotion[indices][:, columns]
        known = np.flatnonzero(np.isfinite(truth).all(axis=1))
        groups = [group[i] for i in indices[known]]
        values = answers[known][:, [classes + column for column in columns]]
        found["emotion"] = emotion_report(truth[known], values, config.axes, groups)
        if config.task == "emotion":
            found |= {"score": found["emotion"]["spearman"], "interval": found["emotion"]["spearman_interval"]}
    return found


def _write_answers(
    path: Path, clips: Clips, indices: Int64, folds: Int64, groups: Sequence[str], answers: Floats
) -> None:
    """Keep the out-of-fold answers: a row for every clip, with the group that its fold keeps whole."""
    columns: dict[str, Any] = {
        "id": [clips.ids[i] for i in indices],
        "set": [clips.sets[i] for i in indices],
        "artist": [clips.artist[i] for i in indices],
        "track": [clips.track[i] for i in indices],
        "group": list(groups),
        "fold": folds,
        "class": [clips.classes[k] if k >= 0 else None for k in clips.label[indices]],
    }
    for number, axis in enumerate(AXES):
        columns[f"true_{axis}"] = clips.emotion[indices, number]
    for number, name in enumerate((*clips.classes, *AXES)):
        columns[name if name in AXES else f"p_{name}"] = answers[:, number]
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
