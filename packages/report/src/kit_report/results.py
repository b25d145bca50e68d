"""Rows of `RESULTS.csv`, read with warnings in place of errors: one bad row must not hide all others."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

COLUMNS = (
    "preset", "data", "folds", "group_by", "metric", "score", "low", "high", "n", "seconds", "threads", "parameters",
    "revision", "remarks",
)  # fmt: skip
SELECTED = "selected on the scored fold"  # in the remarks


@dataclass(frozen=True)
class Measurement:
    """One row: a preset measured on some data; `low` to `high` is the 95 % interval of `score`."""

    preset: str
    data: str
    folds: str
    group_by: str
    metric: str
    score: float
    low: float
    high: float
    n: int
    seconds: float
    threads: int
    parameters: int
    revision: str
    remarks: str

    @property
    def selected_on_scored_fold(self) -> bool:
        """Whether the epoch was chosen on the fold that the score is of, as some published recipes do."""
        return SELECTED in self.remarks


def read_results(path: Path, warnings: list[str]) -> list[Measurement]:
    """Return the rows of a results table; what cannot be read is left out and named in `warnings`."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = tuple(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        warnings.append(f"{path}: left out: {error}")
        return []
    if columns != COLUMNS:
        warnings.append(f"{path}: left out: found the columns {', '.join(columns)}, expected {', '.join(COLUMNS)}")
        return []
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            found.append(_measurement(row))
        except (TypeError, ValueError) as error:  # a short row has None in place of text
            warnings.append(f"{path}: row {number} left out: {error}")
    return found


def _measurement(row: dict[str, str]) -> Measurement:
    if len(row) > len(COLUMNS):
        raise ValueError("more values than columns; a text with commas stands in quotes")
    score, low, high, seconds = (float(row[key]) for key in ("score", "low", "high", "seconds"))
    if not all(map(math.isfinite, (score, low, high, seconds))) or not low <= score <= high:
        raise ValueError(f"found score {score}, interval {low} to {high}, seconds {seconds}")
    texts = {key: row[key].strip() for key in ("preset", "data", "folds", "group_by", "metric", "revision", "remarks")}
    return Measurement(
        **texts,
        score=score,
        low=low,
        high=high,
        n=int(row["n"]),
        seconds=seconds,
        threads=int(row["threads"]),
        parameters=int(row["parameters"]),
    )
