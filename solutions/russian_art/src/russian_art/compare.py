"""Two models on the same pictures: the difference of their macro F1 with its paired interval.

    russian-art compare runs/best runs/probe-concat
    russian-art compare best.csv probe.csv --truth test.csv

Runs are compared by their out-of-fold answers and resampled by the groups that made their folds; submissions are
compared on a table of the truth and resampled by picture, as `evaluate` does.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kit_core.comparison import Comparison
from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from kit_io.source import shown
from kit_metrics import bootstrap_paired_macro_f1, macro_f1
from russian_art.data import check_submission, read_label_ids, read_labels
from russian_art.evaluate import find_labels
from russian_art.groups import FOUND

Int64 = NDArray[np.int64]
RESAMPLES = 2000


@dataclass(frozen=True)
class _Answers:
    """Out-of-fold answers of one run: names, and label, group and predicted label int64[n] of each picture."""

    names: str
    label: Int64
    group: Int64
    predicted: Int64
    n_labels: int
    group_by: str
    fingerprint: str


def compare(a: Path, b: Path, truth: Path | None = None, labels: Path | None = None) -> Comparison:
    """Compare two finished runs, or two submissions on a `truth` (image_name, label_id).

    Raises:
        ConfigError: runs with --truth, or submissions without.
        DataError: the runs scored different pictures or groups, or a file is not as it must be.
    """
    if truth is not None:
        return compare_submissions(a, b, truth, labels)
    for path in (a, b):
        if path.is_file():
            raise ConfigError(f"{path}: is a file; two submissions need --truth, two runs are folders")
    return compare_runs(a, b)


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare two finished runs on the pictures that both scored.

    Raises:
        DataError: a run is unfinished or damaged, or the two have other data, pictures or groups.
    """
    first, second = _answers(a), _answers(b)
    same = {
        "data": first.fingerprint == second.fingerprint,
        "pictures scored": first.names == second.names and np.array_equal(first.label, second.label),
        "groups": np.array_equal(first.group, second.group),
    }
    if not all(same.values()):
        other = ", ".join(what for what, equal in same.items() if not equal)
        raise DataError(
            f"{a}, {b}: cannot be compared\n  found: other {other}\n"
            "  expected: two runs on the same data with the same groups, that scored the same pictures\n"
            "  do: train both on one prepared folder, with the same data.fold, data.folds and data.seed"
        )
    return _comparison(
        a, b, first.label, first.predicted, second.predicted, first.n_labels, first.group, first.group_by
    )


def compare_submissions(a: Path, b: Path, truth: Path, labels_file: Path | None = None) -> Comparison:
    """Compare two submissions on the truth; every picture is a group of its own.

    Raises:
        DataError: a submission, the truth or the list of labels is not as it must be.
    """
    for path in (a, b):
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; with --truth, give two submissions")
    labels = read_labels(find_labels(truth, labels_file))
    true = read_label_ids(truth, labels=labels)
    if not true:
        raise DataError(f"{truth}: found a header and no rows, expected a label for each picture; give the whole table")
    label = np.array(list(true.values()), dtype=np.int64)
    of_a, of_b = (check_submission(path, list(true), labels) for path in (a, b))
    return _comparison(a, b, label, of_a, of_b, len(labels), np.arange(len(label)), "picture")


def _comparison(
    a: Path, b: Path, label: Int64, of_a: Int64, of_b: Int64, n_labels: int, group: Int64, group_by: str
) -> Comparison:
    difference, low, high = bootstrap_paired_macro_f1(label, of_a, of_b, n_labels, group, n=RESAMPLES)
    return Comparison(
        metric="macro_f1",
        a=str(a),
        b=str(b),
        score_a=macro_f1(label, of_a, n_labels),
        score_b=macro_f1(label, of_b, n_labels),
        difference=difference,
        interval=(low, high),
        n=len(label),
        group_by=group_by,
        n_groups=len(np.unique(group)),
    )


def _answers(path: Path) -> _Answers:
    run = RunFolder.open(path)
    file = path / "oof.safetensors"
    try:
        with safe_open(file, "numpy") as stored:
            names = str((stored.metadata() or {})["names"])
            arrays = {name: stored.get_tensor(name) for name in ("probabilities", "label", "group")}
    except (OSError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{shown(str(file))}: found no out-of-fold answers with names, labels and groups ({error})\n"
            "  expected: what `russian-art train` writes\n  do: train again with this version of the program"
        ) from None
    return _Answers(
        names,
        arrays["label"],
        arrays["group"],
        arrays["probabilities"].argmax(axis=1),
        arrays["probabilities"].shape[1],
        str(run.summary.get("group_by", FOUND)),
        str(run.manifest["data"].get("train", "")),
    )
