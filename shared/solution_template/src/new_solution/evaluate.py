"""A submission against the truth, for machines and for people."""

from pathlib import Path
from typing import Any

import numpy as np

from kit_core.console import render_table
from kit_metrics import bootstrap_macro_f1, macro_f1
from new_solution.data import check_submission, read_labels


def evaluate_submission(submission: Path, truth: Path) -> dict[str, Any]:
    """Return macro F1 with its 95 % interval, and the number of rows.

    Raises:
        DataError: one of the files is not as it must be, or they name different ids.
    """
    true = read_labels(truth)
    predicted = check_submission(submission, list(true))
    labels = np.array(list(true.values()), dtype=np.int64)
    n_labels = int(max(labels.max(), predicted.max())) + 1
    return {
        "macro_f1": macro_f1(labels, predicted, n_labels),
        "macro_f1_interval": list(bootstrap_macro_f1(labels, predicted, n_labels)),
        "n": len(labels),
    }


def report_text(report: dict[str, Any]) -> str:
    """Render a report for a person."""
    low, high = report["macro_f1_interval"]
    rows = [
        ("macro F1", f"{report['macro_f1']:.4f}"),
        ("95 % interval", f"{low:.4f} to {high:.4f}"),
        ("rows", str(report["n"])),
    ]
    return render_table(["metric", "value"], rows)
