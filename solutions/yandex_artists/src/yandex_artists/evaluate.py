"""A submission against the truth, for machines and for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kit_core.console import render_table
from kit_core.errors import DataError
from kit_metrics import ndcg_per_query, ndcg_report
from yandex_artists.data import ANSWERS, check_submission, read_truth


def evaluate_submission(submission: Path, truth: Path) -> dict[str, Any]:
    """Score a submission by nDCG@100, with its interval over artists; the keys are those of `kit_metrics.ndcg_report`.

    The gallery is the whole truth. Queries of an artist with one track cannot be answered: they are left out and
    counted, where the judge, whose test set has none, would refuse the file. As for the judge, the query itself is
    dropped, only the first 100 others count, an id twice counts twice, and a query without a line scores 0. Where the
    truth has a column `subset` (public, private), each gets its own `ndcg@100` under `subsets`.

    Args:
        truth: a TAB-separated table with trackid and artistid, such as a train_meta.tsv.

    Raises:
        DataError: the submission or the truth is not as it must be, they disagree, or no query can be answered.
    """
    columns = read_truth(truth)
    neighbours = check_submission(submission, columns["trackid"])
    artists = np.unique(columns["artistid"], return_inverse=True)[1]
    if np.bincount(artists).max() < 2:
        raise DataError(
            f"{truth}: no query can be answered\n  found: {len(artists)} tracks, each of an artist of its own\n"
            "  expected: artists with two tracks or more\n  do: give the truth of this test set"
        )
    report = ndcg_report(neighbours, artists, k=ANSWERS, repeated="count", own="drop")
    if "subset" in columns:
        score, subset = (
            ndcg_per_query(neighbours, artists, k=ANSWERS, repeated="count", own="drop"),
            np.array(columns["subset"]),
        )
        scored = ~np.isnan(score)
        report["subsets"] = {
            str(name): float(score[scored & (subset == name)].mean()) for name in np.unique(subset[scored])
        }
    return report


def report_text(report: Mapping[str, Any]) -> str:
    """Render a report as a table."""
    low, high = report["interval"]
    rows = [
        (f"ndcg@{ANSWERS}", f"{report[f'ndcg@{ANSWERS}']:.4f}"),
        ("95 % interval, by artist", f"{low:.4f} to {high:.4f}"),
        ("gallery, tracks", f"{report['gallery']:,}"),
        ("queries scored", f"{report['queries']:,}"),
        ("queries left out: the artist has one track", f"{report['left_out']:,}"),
        ("artists", f"{report['labels']:,}"),
        ("the first is right", f"{report['hit@1']:.4f}"),
        (f"recall@{ANSWERS}", f"{report[f'recall@{ANSWERS}']:.4f}"),
    ]
    rows += [(f"ndcg@{ANSWERS}, {name}", f"{score:.4f}") for name, score in report.get("subsets", {}).items()]
    return render_table(["metric", "value"], rows)
