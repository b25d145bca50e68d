"""From pictures to a run folder, in order: folds → features → members, fold by fold → blend → refit → summary.

Start policy: a run begins from nothing. With `--resume`, (1) what a member said about a fold is read back where it was
finished, (2) a network that was stopped goes on after its last whole epoch, (3) all else is computed from the seed, so
that on a CPU the result has the same bits as that of a run that was never stopped.

Several processes (`--fabric.devices 2`) each compute their share of every batch of a network; all of them walk through
this file. Features and probes rank 0 makes for all.

What `infer` needs is in `models/`: the probes, fitted once more on all pictures for `data.fold = "all"`; a network for
each fold; the frozen backbones; and `blend.json`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from safetensors.torch import save as save_tensors

from kit_core.atomic import write_bytes, write_json
from kit_core.console import say
from kit_core.errors import ConfigError
from kit_core.run import RunFolder
from kit_core.seeding import seed_everything
from kit_metrics import macro_f1, two_level_report
from kit_splits.folds import assert_groups_whole, count_groups
from russian_art.backbones import Weights, create, find_weights, pick_device
from russian_art.baseline import (
    Probe,
    choose_strength,
    fit_discriminant,
    fit_kernel,
    fit_lightgbm,
    fit_logistic,
    fit_neighbours,
    fit_prior,
    fit_svc,
    rows_of,
    thumbnails,
    view_logits,
)
from russian_art.blend import cross_fitted, fit_blend, label_prior, plain_blend
from russian_art.config import PROBES, Config, Member
from russian_art.data import Art, stratified_folds
from russian_art.features import assemble, cached, views
from russian_art.plots import write_plots

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FloatArray = NDArray[np.float64]
Rows = NDArray[np.int64]
BLEND, LABELS = "blend.json", "labels.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """One model of a run: a probe, or the network on one backbone."""

    member: Member
    backbone: str | None = None

    @property
    def name(self) -> str:
        """Its name in file names and reports."""
        return self.member if self.backbone is None else f"network-{self.backbone}"


def units_of(config: Config) -> list[Unit]:
    """Return the models of a run in the order of their weights in the blend."""
    return [
        Unit(member, backbone)
        for member in config.members
        for backbone in (config.network.backbones if member == "network" else (None,))
    ]


def needed_backbones(config: Config) -> list[str]:
    """Return the timm names that a run uses, each once."""
    probes = config.features.backbones if any(member in PROBES for member in config.members) else ()
    networks = config.network.backbones if "network" in config.members else ()
    return list(dict.fromkeys((*probes, *networks)))


def find_all_weights(config: Config, place: Path | None) -> dict[str, Weights]:
    """Return the weights of every backbone of a run, found in `place` as `find_weights` does."""
    return {name: find_weights(name, place) for name in needed_backbones(config)}


def train(
    config: Config, art: Art, run: RunFolder, weights: dict[str, Weights], cache: Path | None = None
) -> dict[str, Any]:
    """Fit every member on every fold asked for, blend them out of fold, and finish the run.

    Args:
        art: a train split.
        run: an open run folder.
        weights: of `find_all_weights`.
        cache: folder of features; by default one in the run folder.

    Returns:
        The summary, as written to `summary.json`: macro F1 with its interval, the two-level report, members, seconds.

    Raises:
        ConfigError: a test split, or fewer groups than folds.
    """
    started = time.monotonic()
    seed_everything(config.seed)
    if art.label is None:
        raise ConfigError("training needs a train split, with train.csv")
    label, n_labels = art.label, len(art.labels)
    write_json(run.file("models", LABELS), list(art.labels.names))
    fabric = None
    if config.shares_batches:
        from kit_train.config import FabricConfig  # here: these load Lightning, of which probes have no use
        from kit_train.fabric import launch
        from russian_art.finetune import fit_network, make_inputs, make_network

        fabric = launch(FabricConfig(config.fabric.devices, config.fabric.accelerator))

    # 1. Folds: stratified, groups whole.
    counts = count_groups(art.group, art.group_by)
    say(str(counts))
    folds = stratified_folds(label, art.group, config.data.folds, config.data.seed)
    assert_groups_whole(folds, art.group)
    left_out = list(range(config.data.folds)) if config.data.fold == "all" else [config.data.fold]
    scored = np.flatnonzero(np.isin(folds, left_out))

    # 2. Features of the frozen backbones, from the cache where it has them; with several ranks only rank 0 has them.
    tables: dict[Member, NDArray[np.float32]] = {}

    def fill_tables() -> None:
        if "prior" in config.members:
            tables["prior"] = np.zeros((len(art), 1, 1), dtype=np.float32)
        if "pixels" in config.members:
            tables["pixels"] = thumbnails(art.pixels, config.probe.pixels)[:, None]
        if any(member in PROBES for member in config.members):
            features = _features(config, art, weights, cache or run.path / "cache", run)
            tables.update({member: features for member in config.members if member in PROBES})

    _on_rank_0(fabric, "features", fill_tables)

    # 3. Members, fold by fold.
    parameters: dict[str, int] = {}  # of one fold's model of every unit
    said: list[FloatArray] = []  # for every unit the logits [n, labels] of the pictures left out; others stay 0
    for unit in units_of(config):
        logits = np.zeros((len(art), n_labels))
        inputs = None
        for fold in left_out:
            fitted, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            path = run.file("oof", f"{unit.name}-fold{fold}.safetensors")
            since = time.monotonic()
            if path.exists():
                known = load_file(path)
                logits[held], parameters[unit.name] = known["logits"], int(known["parameters"][0])
                continue
            if unit.backbone is None:
                make = partial(_answer_by_probe, config, art, run, tables, unit, fitted, held, fold)
                logits[held], parameters[unit.name] = _on_rank_0(fabric, unit.name, make)
            else:
                assert fabric is not None
                network = make_network(
                    config.network, unit.backbone, weights[unit.backbone], art.labels.top_of, art.labels.genre_of,
                    config.seed,
                )  # fmt: skip
                parameters[unit.name] = network.parameters_learnt(config.network.first, config.network.second)
                inputs = inputs or make_inputs(config.network, network, art.pixels, config.seed, fabric)
                logits[held] = fit_network(
                    config.network, network, inputs, label, art.labels.top_of, fitted, held,
                    C=config.probe.C[0],
                    seed=config.seed * 1000 + fold,
                    state_path=run.file("state", f"{unit.name}-fold{fold}.pt"),
                    weights_path=run.file("models", f"{unit.name}-fold{fold}.safetensors"),
                    log=_logger(run, unit, fold),
                    fabric=fabric,
                )  # fmt: skip
            _save_arrays({"logits": logits[held], "parameters": np.array([parameters[unit.name]])}, path)
            seconds = time.monotonic() - since
            run.log(member=unit.name, fold=fold, seconds=round(seconds, 2))
            score = macro_f1(label[held], logits[held].argmax(axis=1), n_labels)
            say(f"{unit.name}: fold {fold}, {len(fitted)} pictures fitted, macro F1 {score:.4f}, {seconds:.1f} s")
        said.append(logits)

    # 4. Blend, cross-fitted over the folds; the settings that are kept are fitted on all of them.
    stacked = np.stack(said)[:, scored]
    if config.data.fold == "all":
        prior = label_prior(label, n_labels)
        mixing = (config.blend.weights, config.blend.taus)
        blend = fit_blend(stacked, label[scored], prior, *mixing)
        probabilities = cross_fitted(stacked, label[scored], folds[scored], n_labels, *mixing)
    else:  # the pictures that are scored tell nothing of the prior
        prior = label_prior(label[folds != config.data.fold], n_labels)
        blend = plain_blend(len(stacked), prior, config.blend.taus[0])
        probabilities = blend.probabilities(stacked)
    write_json(run.file("models", BLEND), blend.as_json())

    # 5. Probes once more, on every picture: inference then needs no folds of them.
    if config.data.fold == "all":
        for member, X in tables.items():
            path = run.file("models", f"{member}.safetensors")
            if not path.exists():
                whole = np.arange(len(art))
                unit_log = _logger(run, Unit(member), "whole")
                _save_probe(_fit_probe(config, member, X, label, art.group, whole, n_labels, unit_log), path)

    # 6. Summary, out-of-fold probabilities, plots.
    predicted = probabilities.argmax(axis=1)
    report = two_level_report(label[scored], predicted, art.labels.top_of, art.group[scored])
    names = json.dumps([art.names[row] for row in scored], ensure_ascii=False)
    _save_arrays(
        {
            "probabilities": probabilities,
            "label": label[scored],
            "group": art.group[scored],
            "fold": folds[scored],
            **{f"logits/{unit.name}": logits[scored] for unit, logits in zip(units_of(config), said, strict=True)},
        },
        run.file("oof.safetensors"),
        {"names": names},
    )
    if fabric is None or fabric.global_rank == 0:
        write_plots(run.file("plots", "index.html").parent, art, scored, probabilities, report)
    summary = {
        "metric": "macro_f1",
        "score": report["macro_f1"],
        "interval": report["macro_f1_interval"],
        "report": report,
        "folds": config.data.folds if config.data.fold == "all" else f"fold {config.data.fold} of {config.data.folds}",
        "n": len(scored),
        **vars(counts),
        "selected_on_scored_fold": config.selects_on_scored_fold,
        "score_of_members": {
            unit.name: macro_f1(label[scored], one.argmax(axis=1), n_labels)
            for unit, one in zip(units_of(config), stacked, strict=True)
        },
        "parameters": sum(parameters.values()),
        "blend": {"weights": list(blend.weights), "temperatures": list(blend.temperatures), "tau": blend.tau},
        "weights": {name: one.source for name, one in weights.items()},
        "seconds": round(time.monotonic() - started, 1),
    }
    run.finish(summary)
    return summary


def _on_rank_0(fabric: "Fabric | None", what: str, make: Callable[[], T]) -> T:
    """Let rank 0 do what is not shared, while the others wait, and return its result on every rank."""
    if fabric is None or fabric.world_size == 1:
        return make()
    from kit_train.ranks import agreement

    made: Any = None
    with agreement(what):
        if fabric.global_rank == 0:
            made = make()
    told: T = fabric.broadcast(made)
    return told


def _features(
    config: Config, art: Art, weights: dict[str, Weights], cache: Path, run: RunFolder
) -> NDArray[np.float32]:
    """Features float32[n, views, width] of every frozen backbone; the backbones are kept beside the probes."""
    wanted = config.features
    device = pick_device(config).type
    found = []
    for name in wanted.backbones:
        torch.manual_seed(config.seed)
        model = create(name, weights[name])
        path = run.file("models", f"backbone-{name}.safetensors")
        if not path.exists():
            write_bytes(path, save_tensors({key: value.contiguous() for key, value in model.state_dict().items()}))
        found.append(
            [
                cached(name, weights[name], model, art, view, cache, config.seed, device, wanted.precision)
                for view in views(wanted.sizes, wanted.flip, wanted.fit)
            ]
        )
    return assemble(found, wanted.levels, wanted.views == "mean", wanted.root)


def _answer_by_probe(
    config: Config,
    art: Art,
    run: RunFolder,
    tables: dict[Member, NDArray[np.float32]],
    unit: Unit,
    fitted: Rows,
    held: Rows,
    fold: int,
) -> tuple[FloatArray, int]:
    """Fit a probe on the rows `fitted`; returns the logits [held, labels] of the others, and how much it learnt."""
    assert art.label is not None
    X, log = tables[unit.member], _logger(run, unit, fold)
    probe = _fit_probe(config, unit.member, X, art.label, art.group, fitted, len(art.labels), log)
    if config.data.fold != "all":
        _save_probe(probe, run.file("models", f"{unit.name}.safetensors"))
    return view_logits(probe, X[held]), probe.parameters


def _fit_probe(
    config: Config,
    member: Member,
    X: NDArray[np.float32],
    label: Rows,
    group: Rows,
    fitted: Rows,
    n_labels: int,
    log: Callable[..., None],
) -> Probe:
    """Fit one classifier on the rows `fitted` of features [n, views, width]."""
    settings = config.probe
    if member == "prior":
        return fit_prior(label[fitted], n_labels)
    rows, labels = rows_of(X[fitted], label[fitted])
    if member in ("logistic", "pixels"):
        C = settings.C[0]
        if len(settings.C) > 1:
            C, scores = choose_strength(X[fitted], label[fitted], group[fitted], n_labels, settings.C, config.seed)
            log(chosen_C=C, scores={str(tried): score for tried, score in scores.items()})
        return fit_logistic(rows, labels, n_labels, C)
    if member == "svc":
        return fit_svc(rows, labels, n_labels, settings.svc_strength, config.seed)
    if member == "discriminant":
        return fit_discriminant(rows, labels, n_labels, settings.shrinkage)
    if member == "neighbours":
        return fit_neighbours(rows, labels, n_labels, settings.neighbours)
    if member == "kernel":
        return fit_kernel(rows, labels, n_labels, settings.kernel_gamma, settings.kernel_ridge)
    return fit_lightgbm(rows, labels, n_labels, settings.rounds, config.seed)


def _logger(run: RunFolder, unit: Unit, fold: int | str) -> Callable[..., None]:
    def log(**values: object) -> None:
        run.log(member=unit.name, fold=fold, **values)
        if "epoch" in values:
            facts = (f"{key.replace('_', ' ')} {one:.4f}" for key, one in values.items() if isinstance(one, float))
            say(f"{unit.name}: fold {fold}, stage {values['stage']}, epoch {values['epoch']}: {', '.join(facts)}")

    return log


def _save_probe(probe: Probe, path: Path) -> None:
    _save_arrays(probe.arrays(), path)


def _save_arrays(arrays: dict[str, NDArray[Any]], path: Path, metadata: dict[str, str] | None = None) -> None:
    write_bytes(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))
