"""Real targets without spectra: valence, energy and danceability of 13,129 FMA tracks from their other attributes.

The table `echonest_fma.csv` holds attributes that The Echo Nest computed from sound. The lab's targets are of this
kind, so this tells how far a handful of global attributes goes, and whether the three axes help one another.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from kit_core.atomic import atomic_dir, write_json
from kit_core.console import progress, render_table, say
from kit_core.errors import Problems
from kit_io.tables import read_csv, write_csv
from kit_splits.folds import count_groups, group_folds
from ntua_lab import baseline
from ntua_lab.config import AXES, PooledConfig
from ntua_lab.data import to_number
from ntua_lab.evaluation import emotion_report

COLUMNS = (
    "track_id", "genre", "acousticness", "danceability", "energy", "instrumentalness", "liveness", "speechiness",
    "tempo", "valence",
)  # fmt: skip
INPUTS = ("acousticness", "instrumentalness", "liveness", "speechiness", "tempo")
FOLDS, ROUNDS = 5, 200
MODELS = ("mean", "ridge", "lightgbm", "lightgbm, with the other axes predicted out of fold")

Floats = NDArray[np.float64]


def cross_validate(table: Path, run: Path, seed: int = 0) -> str:
    """Fit four models on five folds of tracks, and write their out-of-fold values and scores into a new folder.

    The last model sees, beside the attributes, what the third one says of all axes (out of fold inside the fitted
    part): the multi-target answer, a regressor stack.

    Raises:
        DataError: the table has other columns, or values that are no numbers or outside 0..1.
        ConfigError: `run` exists and is not empty.
    """
    ids, X, Y = read_attributes(table)
    counts = count_groups(ids, "track")
    say(str(counts))
    folds = group_folds(ids, FOLDS, seed=seed)
    said = {name: np.zeros_like(Y) for name in MODELS}
    settings = PooledConfig(rounds=ROUNDS)
    for fold in progress(range(FOLDS), label="echonest, folds"):
        fitted, held = folds != fold, folds == fold
        mean, scale = X[fitted].mean(axis=0), X[fitted].std(axis=0)
        said["mean"][held] = Y[fitted].mean(axis=0)
        ridge = Ridge(1.0).fit((X[fitted] - mean) / scale, Y[fitted])
        said["ridge"][held] = ridge.predict((X[held] - mean) / scale)
        trees = baseline.fit("lightgbm", X[fitted], Y[fitted], 0, settings, seed)
        first = trees.answer(X[held])
        said["lightgbm"][held] = first
        inner = group_folds([id_ for id_, one in zip(ids, fitted, strict=True) if one], FOLDS, seed=seed)
        inside = np.zeros_like(Y[fitted])
        for part in range(FOLDS):
            model = baseline.fit("lightgbm", X[fitted][inner != part], Y[fitted][inner != part], 0, settings, seed)
            inside[inner == part] = model.answer(X[fitted][inner == part])
        stacked = baseline.fit("lightgbm", np.hstack([X[fitted], inside]), Y[fitted], 0, settings, seed)
        said[MODELS[3]][held] = stacked.answer(np.hstack([X[held], first]))
    reports: dict[str, Any] = {name: emotion_report(Y, values) for name, values in said.items()}
    with atomic_dir(run) as folder:
        facts = {"metric": "spearman", "n": len(ids), "folds": FOLDS, **vars(counts)}
        write_json(folder / "summary.json", facts | {"models": reports})
        rows = ((id_, *map("{:.5f}".format, row)) for id_, row in zip(ids, said["lightgbm"].tolist(), strict=True))
        write_csv(folder / "oof.csv", ("track_id", *AXES), rows)
    shown = []
    for name, report in reports.items():
        low, high = report["spearman_interval"]
        shown.append(
            (
                name,
                f"{report['spearman']:.4f}",
                f"{low:.4f} to {high:.4f}",
                *map("{:.4f}".format, report["spearman_of_axes"]),
            )
        )
    return f"{len(ids)} tracks, {FOLDS} folds\n" + render_table(
        ["model", "mean Spearman", "95 % interval", *AXES], shown
    )


def read_attributes(table: Path) -> tuple[list[str], Floats, Floats]:
    """Return track ids, inputs [n, 5] and targets [n, 3].

    Raises:
        DataError: other columns, or values that are no numbers; targets outside 0..1.
    """
    columns = read_csv(table, None, COLUMNS)
    problems = Problems(
        table, "finite numbers; valence, energy and danceability in 0..1", "repair or remove these rows"
    )
    arrays = {}
    for name in (*INPUTS, *AXES):
        values = np.array([to_number(text) for text in columns[name]])
        wrong = ~np.isfinite(values) if name in INPUTS else ~((values >= 0) & (values <= 1))
        for row in np.flatnonzero(wrong).tolist():
            problems.add(f"line {row + 2}, track {columns['track_id'][row]}", f"{name} {columns[name][row]!r}")
        arrays[name] = values
    problems.raise_if_any()
    X, Y = (np.stack([arrays[name] for name in names], axis=1) for names in (INPUTS, AXES))
    return columns["track_id"], X, Y
