"""A submission against the truth: every metric of the report, for machines and for people."""

from pathlib import Path
from typing import Any

import numpy as np

from ai4code.submission import PredictedRanks, submission_ranks
from kit_core.console import render_table
from kit_metrics.bootstrap import bootstrap_ratio
from kit_metrics.ordering import Orderings, inversions_per_segment, kendall_tau_pooled, ordering_report


def evaluate_submission(submission: Path, truth: Path, data: Path | None = None) -> dict[str, Any]:
    """Score a submission by the competition's metric and all others that the truth allows.

    Args:
        truth: the data (folder, zip or prepared folder) with its orders, or a csv `id,cell_order` alone; with a csv
            alone the types of the cells are unknown, and only tau is given, unless `data` names the notebooks.

    Raises:
        DataError: the submission or the truth is not as it must be, or they disagree.
    """
    ranks = submission_ranks(submission, truth, data)
    if ranks.is_markdown is None:
        return _tau_only(ranks)
    groups = np.array(ranks.groups)
    return ordering_report(Orderings(ranks.true_rank, ranks.is_markdown, ranks.offsets, groups))


def _tau_only(ranks: PredictedRanks) -> dict[str, Any]:
    lengths = np.diff(ranks.offsets)
    inversions = inversions_per_segment(ranks.true_rank, ranks.offsets)
    pairs = lengths * (lengths - 1)
    interval = bootstrap_ratio(
        4.0 * inversions, pairs, np.array(ranks.groups), transform=lambda lost: 1.0 - lost, limits=(-1.0, 1.0)
    )
    return {
        "n_notebooks": len(lengths),
        "n_cells": int(lengths.sum()),
        "tau": kendall_tau_pooled(inversions, lengths),
        "tau_interval": list(interval),
    }


def report_text(report: dict[str, Any]) -> str:
    """Render a report as a table for a person."""
    rows: list[tuple[str, str]] = []
    for name, value in report.items():
        if name == "tau_by_size":
            rows += [(f"tau, {size} cells (n = {one['n']})", _shown(one["tau"])) for size, one in value.items()]
        elif name == "tau_interval":
            rows.append(("tau, 95 % interval", f"{_shown(value[0])} to {_shown(value[1])}"))
        else:
            rows.append((name, _shown(value)))
    return render_table(["metric", "value"], rows)


def _shown(value: Any) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
