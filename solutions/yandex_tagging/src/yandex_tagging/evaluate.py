"""A submission against the truth: the competition's macro average precision, and where it comes from."""

from pathlib import Path
from typing import Any

import numpy as np

from kit_core.console import render_table
from kit_core.errors import DataError
from kit_metrics.multilabel import average_precision_per_tag, bootstrap_macro_average_precision
from yandex_tagging.data import read_truth
from yandex_tagging.groups import read_groups
from yandex_tagging.submission import align_submission

BUCKETS = (1, 10, 30, 100, 300, 1000, 3000)  # tracks with a tag: where a new bucket begins


def evaluate_submission(
    submission: Path, truth: Path, groups: Path | None = None, *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Score a submission by macro average precision over all tags, with its interval, as plain Python values.

    A tag without a track in the truth counts as 0 in `macro_ap`, as scikit-learn and the judge count it; `_present`
    is the mean over the other tags. The interval resamples tracks, or whole groups.

    Args:
        truth: a csv track,tags with the tracks of the submission, in any order.
        groups: a .csv or .tsv that names the group of every track.

    Raises:
        DataError: the submission or the truth is not as it must be, or they disagree.
    """
    ids, tags = read_truth(truth)
    scores = align_submission(submission, ids)
    n_tags = scores.shape[1]
    if tags.shape[1] > n_tags:
        raise DataError(
            f"{submission}: 1 problem\n  every row: found {n_tags} probabilities\n"
            f"  expected: at least {tags.shape[1]}, since {truth} has the tag {tags.shape[1] - 1}\n"
            "  do: answer all tags of the training data"
        )
    tags = np.pad(tags, ((0, 0), (0, n_tags - tags.shape[1])))
    unit = None if groups is None else read_groups(groups, ids)
    counts = tags.sum(axis=0)
    per_tag = average_precision_per_tag(tags, scores)
    present = counts > 0

    def interval(present_only: bool) -> list[float] | None:
        if not bootstrap:
            return None
        return list(
            bootstrap_macro_average_precision(tags, scores, unit, n=bootstrap, seed=seed, present_only=present_only)
        )

    return {
        "macro_ap": float(per_tag.mean()),
        "macro_ap_interval": interval(False),
        "macro_ap_present": float(per_tag[present].mean()),
        "macro_ap_present_interval": interval(True),
        "n": len(ids),
        "n_tags": n_tags,
        "n_tags_present": int(present.sum()),
        "chance": float(tags.mean()),
        "by_frequency": _by_frequency(counts, per_tag, len(ids)),
    }


def _by_frequency(counts: np.ndarray, per_tag: np.ndarray, n: int) -> dict[str, dict[str, float]]:
    """Mean average precision of the tags that so many tracks have, and what chance would give."""
    table = {}
    for low, high in zip(BUCKETS, [*BUCKETS[1:], None], strict=True):
        inside = (counts >= low) & (counts < high if high is not None else True)
        if inside.any():
            name = f"{low:,} or more" if high is None else f"{low:,} to {high - 1:,}"
            table[name] = {
                "tags": int(inside.sum()),
                "mean_ap": float(per_tag[inside].mean()),
                "chance": float(counts[inside].mean() / n),
            }
    return table


def report_text(report: dict[str, Any]) -> str:
    """Render a report as two tables: the scores, and how well tags are told apart by their frequency."""
    rows = [
        ("macro AP over all tags, empty ones as 0", _score(report["macro_ap"], report["macro_ap_interval"])),
        ("macro AP over the tags present", _score(report["macro_ap_present"], report["macro_ap_present_interval"])),
        ("by chance", f"{report['chance']:.4f}"),
        ("tracks", str(report["n"])),
        ("tags", f"{report['n_tags']}, of which {report['n_tags_present']} present"),
    ]
    buckets = [
        (name, one["tags"], f"{one['mean_ap']:.4f}", f"{one['chance']:.4f}")
        for name, one in report["by_frequency"].items()
    ]
    return (
        render_table(["metric", "value"], rows)
        + "\n\n"
        + render_table(["tracks with the tag", "tags", "mean AP", "by chance"], buckets)
    )


def _score(value: float, interval: list[float] | None) -> str:
    return f"{value:.4f}" + ("" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f}, 95 %)")
