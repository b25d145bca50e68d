"""A submission against the truth, for machines and for people."""

from pathlib import Path
from typing import Any

import numpy as np

from kit_core.console import render_table
from kit_core.errors import DataError
from kit_metrics import two_level_report
from russian_art.data import Labels, check_submission, read_label_ids, read_labels


def evaluate_submission(
    submission: Path, truth: Path, labels_file: Path | None = None
) -> tuple[dict[str, Any], Labels]:
    """Score a submission by macro F1 over all labels, with its interval, and by both levels.

    Args:
        truth: a table image_name, label_id.
        labels_file: label_to_id.csv; by default the one beside the truth, or in the folder above.

    Raises:
        DataError: the submission or the truth is not as it must be, they disagree, or there is no list of labels.
    """
    labels = read_labels(find_labels(truth, labels_file))
    true = read_label_ids(truth, labels=labels)
    if not true:
        raise DataError(f"{truth}: found a header and no rows, expected a label for each picture; give the whole table")
    predicted = check_submission(submission, list(true), labels)
    report = two_level_report(np.array(list(true.values()), dtype=np.int64), predicted, labels.top_of)
    return report, labels


def find_labels(truth: Path, labels_file: Path | None = None) -> Path:
    """Return the label_to_id.csv that is given, or else the one beside the truth or in the folder above.

    Raises:
        DataError: there is none.
    """
    places = [labels_file] if labels_file else [folder / "label_to_id.csv" for folder in truth.resolve().parents[:2]]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(f"{places[0]}: absent; expected the list of labels; give --labels label_to_id.csv")
    return found


def report_text(report: dict[str, Any], labels: Labels) -> str:
    """Render a report as two tables: the scores, and F1 of every label, the worst first."""
    low, high = report["macro_f1_interval"]
    rows = [("macro F1, 95 % interval", f"{low:.4f} to {high:.4f}")]
    rows += [
        (name, "undefined" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value))
        for name, value in report.items()
        if name not in ("macro_f1_interval", "f1_per_label")
    ]
    per_label = sorted(zip(report["f1_per_label"], range(len(labels)), strict=True))
    worst = [(labels.shown(label), f"{f1:.4f}") for f1, label in per_label]
    return render_table(["metric", "value"], rows) + "\n\n" + render_table(["label", "F1"], worst)


def summary_text(preset: str, summary: dict[str, Any]) -> str:
    """Render the summary of a run for a person."""
    low, high = summary["interval"]
    rows = [
        (f"macro F1 of {preset}", f"{summary['score']:.4f}"),
        ("95 % interval", f"{low:.4f} to {high:.4f}"),
        ("accuracy", f"{summary['report']['accuracy']:.4f}"),
        ("accuracy of the top", f"{summary['report']['top_accuracy']:.4f}"),
        ("pictures", str(summary["n"])),
        ("seconds", str(summary["seconds"])),
    ]
    rows += [(f"member {name}", f"{score:.4f}") for name, score in summary["score_of_members"].items()]
    return render_table(["", "value"], rows)
