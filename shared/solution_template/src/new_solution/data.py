"""The official layout, read strictly, packed once, and the submission; every fault of the input is told here.

    train.csv   id,group,x0,...,x7,label        test.csv   id,x0,...,x7        submission   id,label

A folder or a zip. Folds keep groups whole. `prepare` packs the numbers as float32 arrays, which `load` maps.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kit_core.atomic import atomic_dir, write_json
from kit_core.errors import DataError, Problems
from kit_io.source import Source
from kit_io.tables import read_csv, write_csv

Split = Literal["train", "test"]

FEATURES = tuple(f"x{i}" for i in range(8))
COLUMNS: dict[Split, tuple[str, ...]] = {"train": ("id", "group", *FEATURES, "label"), "test": ("id", *FEATURES)}
SUBMISSION_COLUMNS = ("id", "label")
MOST_LABELS = 1000


@dataclass(frozen=True)
class Rows:
    """Rows of one split: n ids, features float32[n, 8], n groups, labels int64[n]; both last are empty for a test."""

    ids: list[str]
    features: NDArray[np.float32]
    groups: list[str]
    labels: NDArray[np.int64]
    fingerprint: str

    @property
    def n_labels(self) -> int:
        """Labels are 0 to this number less one."""
        return int(self.labels.max()) + 1


def load(data: Path, split: Split) -> Rows:
    """Read a split of the official folder or zip, or of what `prepare` made of it.

    Raises:
        DataError: a table is absent, or not as it must be.
    """
    if not (data / "manifest.json").is_file():
        source = Source.open_source(data)
        return _parse(source, split)
    try:
        manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))[split]
        with np.load(data / f"{split}.npz", allow_pickle=False) as arrays:
            features, labels = arrays["features"], arrays["labels"]
            ids, groups = arrays["ids"].tolist(), arrays["groups"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{data}: no whole {split} part: {error}; prepare the official data again") from error
    if features.shape != (manifest["rows"], len(FEATURES)) or len(ids) != manifest["rows"]:
        raise DataError(
            f"{data / split}.npz: found {features.shape[0]} rows, expected {manifest['rows']}; prepare again"
        )
    return Rows(ids, features, groups, labels, manifest["fingerprint"])


def prepare(data: Path, out: Path) -> str:
    """Check the official data and pack it into the new folder `out`; returns what was packed, in words.

    Raises:
        DataError: as `load`.
        ConfigError: `out` is not an empty or a new folder.
    """
    source = Source.open_source(data)
    splits: list[Split] = [split for split in COLUMNS if source.has(f"{split}.csv")]
    parts = {split: _parse(source, split) for split in splits or ["train"]}
    with atomic_dir(out) as folder:
        for split, rows in parts.items():
            ids, groups = np.array(rows.ids), np.array(rows.groups)
            np.savez(folder / f"{split}.npz", features=rows.features, labels=rows.labels, ids=ids, groups=groups)
        facts = {split: {"rows": len(rows.ids), "fingerprint": rows.fingerprint} for split, rows in parts.items()}
        write_json(folder / "manifest.json", facts)
    return f"{out}: " + ", ".join(f"{len(rows.ids)} rows of {split}" for split, rows in parts.items())


def write_submission(path: Path, ids: Sequence[str], labels: NDArray[np.int64]) -> None:
    """Write one row for each id, whole or not at all."""
    write_csv(path, SUBMISSION_COLUMNS, zip(ids, map(str, labels.tolist()), strict=True))


def read_labels(path: Path) -> dict[str, int]:
    """Read a submission or a truth: id -> label.

    Raises:
        DataError: another header, no rows, an id twice, or a label that is no whole number from 0.
    """
    table = read_csv(path, None, SUBMISSION_COLUMNS)
    problems = Problems(path, "each id once, with a label from 0", "write the file again")
    if not table["id"]:
        problems.add("the whole table", "no rows")
    found: dict[str, int] = {}
    for row, (name, text) in enumerate(zip(table["id"], table["label"], strict=True), start=2):
        if name in found:
            problems.add(f"row {row}", f"id {name!r} a second time")
        found[name] = _label(text, f"row {row}", problems)
    problems.raise_if_any()
    return found


def check_submission(path: Path, ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the labels of a submission in the order of the ids.

    Raises:
        DataError: as `read_labels`, and ids that are missing or unknown.
    """
    labels = read_labels(path)
    problems = Problems(path, f"one row for each of {len(ids)} ids", "write the submission again from the same data")
    for name in ids:
        if name not in labels:
            problems.add(f"id {name!r}", "no row")
    for name in labels.keys() - set(ids):
        problems.add(f"id {name!r}", "a row, but the data has no such id")
    problems.raise_if_any()
    return np.array([labels[name] for name in ids], dtype=np.int64)


def _parse(source: Source, split: Split) -> Rows:
    name = f"{split}.csv"
    table = read_csv(source, name, COLUMNS[split])
    problems = Problems(f"{name}", "unique ids, finite numbers, labels from 0", "mend the table, or download it again")
    seen: set[str] = set()
    features = np.zeros((len(table["id"]), len(FEATURES)), dtype=np.float32)
    labels = []
    for row, key in enumerate(table["id"]):
        where = f"row {row + 2}"
        if key in seen:
            problems.add(where, f"id {key!r} a second time")
        seen.add(key)
        for column, feature in enumerate(FEATURES):
            features[row, column] = _number(table[feature][row], f"{where}, {feature}", problems)
        if split == "train":
            labels.append(_label(table["label"][row], where, problems))
    if not seen:
        problems.add("the whole table", "no rows")
    problems.raise_if_any()
    digest = hashlib.sha256(features.tobytes() + repr((table["id"], table.get("group"), labels)).encode()).hexdigest()
    return Rows(table["id"], features, table.get("group", []), np.array(labels, dtype=np.int64), digest)


def _number(text: str, where: str, problems: Problems) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e30:  # NaN too: no comparison with it holds
        problems.add(where, repr(text))
        return 0.0
    return value


def _label(text: str, where: str, problems: Problems) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < MOST_LABELS):
        problems.add(where, f"label {text!r}")
        return 0
    return int(text)
