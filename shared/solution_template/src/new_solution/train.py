"""A run from its first step to its last: folds, fitting, out-of-fold answers, score."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit_core.atomic import atomic_path
from kit_core.console import progress, render_table, say
from kit_core.run import RunFolder
from kit_metrics import bootstrap_macro_f1, macro_f1
from kit_splits.folds import count_groups, group_folds
from new_solution.baseline import fit_majority
from new_solution.compare import OOF
from new_solution.config import Config, SoftmaxConfig
from new_solution.data import Rows
from new_solution.infer import scores_of

Arrays = dict[str, NDArray[np.float64]]


def train(config: Config, rows: Rows, run: RunFolder) -> dict[str, Any]:
    """Fit the model of every fold, write the run folder, and return its summary.

    A fold whose model lies in the folder already, of a run that was stopped, is not fitted again.
    """
    started = time.monotonic()
    # 1. Folds: groups stay whole.
    folds = group_folds(rows.groups, config.data.folds, seed=config.seed)
    counts = count_groups(rows.groups, "group")
    say(str(counts))
    left_out = range(config.data.folds) if config.data.fold == "all" else [config.data.fold]

    # 2. One model for each fold; its answers to the rows that it has not seen.
    predicted = np.full(len(rows.ids), -1, dtype=np.int64)
    parameters = 0
    for fold in progress(left_out, label="folds"):
        path = run.file("models", f"fold{fold}.npz")
        if not path.exists():
            fitted = folds != fold
            model = _fit(config, rows.features[fitted], rows.labels[fitted], rows.n_labels, run, fold)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **model)  # type: ignore[arg-type]  # numpy's stub takes the mapping for a flag
        with np.load(path, allow_pickle=False) as model:
            predicted[folds == fold] = scores_of(model, rows.features[folds == fold]).argmax(axis=1)
            parameters = model["weights"].size + model["bias"].size

    # 3. Score of the rows that were left out, with an interval over groups.
    scored = predicted >= 0
    true, groups = rows.labels[scored], np.array(rows.groups)[scored]
    with atomic_path(run.file(OOF)) as temporary, temporary.open("wb") as file:
        np.savez(file, ids=np.array(rows.ids)[scored], groups=groups, labels=true, predicted=predicted[scored])
    summary = {
        "metric": "macro_f1",
        "score": macro_f1(true, predicted[scored], rows.n_labels),
        "interval": list(bootstrap_macro_f1(true, predicted[scored], rows.n_labels, groups, seed=config.seed)),
        "n": int(scored.sum()),
        "parameters": parameters,
        "seconds": round(time.monotonic() - started, 1),
        **vars(counts),
    }
    run.finish(summary)
    return summary


def fit_softmax(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    n_labels: int,
    settings: SoftmaxConfig,
    log: Callable[..., None],
) -> Arrays:
    """Fit a linear softmax classifier to features [n, width] by gradient descent with momentum on all rows at once.

    Returns mean and scale of the columns [width], weights [width, labels] and bias [labels], float64.
    """
    x = features.astype(np.float64)
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    x = (x - mean) / scale
    wanted = np.eye(n_labels)[labels]
    weights, bias = np.zeros((x.shape[1], n_labels)), np.zeros(n_labels)
    speed_of_weights, speed_of_bias = np.zeros_like(weights), np.zeros_like(bias)
    for epoch in range(settings.epochs):
        logits = x @ weights + bias
        logits -= logits.max(axis=1, keepdims=True)
        likelihood = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss = -float(np.log(likelihood[np.arange(len(labels)), labels] + 1e-12).mean())
        error = (likelihood - wanted) / len(labels)
        speed_of_weights = settings.momentum * speed_of_weights - settings.learning_rate * (
            x.T @ error + settings.weight_decay * weights
        )
        speed_of_bias = settings.momentum * speed_of_bias - settings.learning_rate * error.sum(axis=0)
        weights, bias = weights + speed_of_weights, bias + speed_of_bias
        if epoch % 10 == 0 or epoch == settings.epochs - 1:
            log(epoch=epoch, loss=loss)
    return {"mean": mean, "scale": scale, "weights": weights, "bias": bias}


def summary_text(preset: str, summary: dict[str, Any]) -> str:
    """Render the summary of a run for a person."""
    low, high = summary["interval"]
    rows = [
        (f"macro F1 of {preset}", f"{summary['score']:.4f}"),
        ("95 % interval", f"{low:.4f} to {high:.4f}"),
        ("rows", str(summary["n"])),
        ("seconds", str(summary["seconds"])),
    ]
    return render_table(["", "value"], rows)


def _fit(
    config: Config, features: NDArray[np.float32], labels: NDArray[np.int64], n_labels: int, run: RunFolder, fold: int
) -> Arrays:
    if config.model == "majority":
        return fit_majority(labels, n_labels, features.shape[1])
    return fit_softmax(features, labels, n_labels, config.softmax, lambda **values: run.log(fold=fold, **values))
