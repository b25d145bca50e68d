"""Runs and results as pandas DataFrames, for notebooks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import parquet

from kit_core.errors import DataError
from kit_report.results import read_results
from kit_report.runs import read_run


@dataclass(frozen=True)
class RunFrames:
    """A run folder in memory.

    Attributes:
        preset: the name of its preset.
        config: all settings, nested as in config.json.
        summary: the figures of the finished run; empty while it is unfinished.
        metrics: one row for each line of metrics.jsonl, in its order; a key that a line lacks is missing there.
        oof: out-of-fold predictions, one row an item, from oof.parquet; whole-number ids become texts. None where the
            run has no such file: it is unfinished, or its solution keeps other files (russian_art, yandex_artists).
    """

    preset: str
    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: pd.DataFrame
    oof: pd.DataFrame | None


def load_run(folder: Path | str) -> RunFrames:
    """Return the run in a folder.

    Raises:
        DataError: there is no run, or a file of it is damaged.
    """
    path, problems = Path(folder), list[str]()
    run = read_run(path, problems)
    if run is None or problems:
        found = "; ".join(problems) or f"{path}: no preset and config"
        raise DataError(f"{path}: found no whole run folder: {found}\n  do: name a folder that `train --run` wrote")
    answers = path / "oof.parquet"
    oof = _with_text_ids(parquet.read_table(answers).to_pandas()) if answers.exists() else None
    return RunFrames(run.preset, run.config, run.summary, pd.DataFrame(run.metrics), oof)


def load_results(root: Path | str = ".") -> pd.DataFrame:
    """Return the rows of all solutions/*/RESULTS.csv of a repository, with a first column `solution`.

    Raises:
        DataError: there is no such file, or one is damaged.
    """
    tables = sorted(Path(root).glob("solutions/*/RESULTS.csv"))
    problems = list[str]()
    rows = [
        {"solution": path.parent.name, **vars(measurement)}
        for path in tables
        for measurement in read_results(path, problems)
    ]
    if problems or not tables:
        found = "; ".join(problems) or "no solutions/*/RESULTS.csv"
        raise DataError(f"{root}: found {found}\n  do: name the folder of the repository")
    return pd.DataFrame(rows)


def _with_text_ids(frame: pd.DataFrame) -> pd.DataFrame:
    first = frame.columns[frame.columns.isin(["id", "track"])]
    return frame.astype(dict.fromkeys(first, str))
