"""Two models on the same tracks: the difference of their macro average precision, with its interval.

compare_runs(Path("runs/a"), Path("runs/b"))                     # by their out-of-fold logits
compare_submissions(Path("a.csv"), Path("b.csv"), Path("test_truth.csv"))
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kit_core.comparison import Comparison
from kit_core.errors import DataError
from kit_core.run import RunFolder
from kit_metrics.multilabel import bootstrap_paired_macro_average_precision, macro_average_precision
from yandex_tagging.data import read_truth
from yandex_tagging.groups import read_groups
from yandex_tagging.submission import align_submission

OUT_OF_FOLD = "oof.parquet"
COLUMNS = ("track", "group", "tags", "logits")


@dataclass(frozen=True)
class _Scored:
    """The tracks that a run scored, by track number: tags bool [n, k], logits float32 [n, k], group of each."""

    tracks: np.ndarray
    groups: np.ndarray
    tags: np.ndarray
    logits: np.ndarray
    group_by: str
    data: str


def compare_runs(a: Path, b: Path, *, n: int = 1000, seed: int = 0) -> Comparison:
    """Compare the out-of-fold logits of two finished runs by a paired bootstrap over the groups of their folds.

    Raises:
        DataError: a run is not finished, or is older than what is needed here; or the two were fitted on different
            data, scored different tracks or kept other groups whole.
    """
    first, second = _read(a), _read(b)
    if first.data != second.data:
        raise _unlike(a, b, "different data", f"fingerprints {first.data[:12]}… and {second.data[:12]}…")
    if not np.array_equal(first.tracks, second.tracks):
        only = np.setxor1d(first.tracks, second.tracks)
        shown = ", ".join(map(str, only[:5].tolist()))
        raise _unlike(a, b, "different tracks", f"{len(only)} tracks scored by one of them only ({shown})")
    pairs = np.unique(np.stack([first.groups, second.groups], 1), axis=0)
    if len(pairs) != len(np.unique(first.groups)) or len(pairs) != len(np.unique(second.groups)):
        raise _unlike(a, b, "folds by different groups", f"{first.group_by!r} and {second.group_by!r}")
    return _compare(a, b, first.tags, first.logits, second.logits, first.groups, first.group_by, n=n, seed=seed)


def compare_submissions(
    a: Path, b: Path, truth: Path, groups: Path | None = None, *, n: int = 1000, seed: int = 0
) -> Comparison:
    """Compare two submissions against a csv track,tags, resampling tracks or, with `groups`, whole groups.

    Raises:
        DataError: a file is not as it must be, or they disagree about tracks or tags.
    """
    ids, tags = read_truth(truth)
    scores = [align_submission(path, ids) for path in (a, b)]
    n_tags = scores[0].shape[1]
    if scores[1].shape[1] != n_tags or tags.shape[1] > n_tags:
        raise DataError(
            f"{b}: 1 problem\n  number of tags: found {scores[1].shape[1]}, in {a} {n_tags}, in {truth} "
            f"{tags.shape[1]}\n  expected: as many in both, and no fewer than in the truth\n"
            "  do: compare submissions for the same data"
        )
    tags = np.pad(tags, ((0, 0), (0, n_tags - tags.shape[1])))
    unit = np.arange(len(ids)) if groups is None else read_groups(groups, ids)
    group_by = "track" if groups is None else f"groups {groups.name}"
    return _compare(a, b, tags, scores[0], scores[1], unit, group_by, n=n, seed=seed)


def _compare(
    a: Path,
    b: Path,
    tags: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    groups: np.ndarray,
    group_by: str,
    *,
    n: int,
    seed: int,
) -> Comparison:
    difference, low, high = bootstrap_paired_macro_average_precision(tags, scores_a, scores_b, groups, n=n, seed=seed)
    return Comparison(
        metric="macro_ap",
        a=str(a),
        b=str(b),
        score_a=macro_average_precision(tags, scores_a),
        score_b=macro_average_precision(tags, scores_b),
        difference=difference,
        interval=(low, high),
        n=len(tags),
        group_by=group_by,
        n_groups=len(np.unique(groups)),
    )


def _read(path: Path) -> _Scored:
    run = RunFolder.open(path)
    try:
        table = pq.read_table(path / OUT_OF_FOLD)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path / OUT_OF_FOLD}: cannot be read ({error}); copy the run again or train again") from error
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing or "group_by" not in run.summary:
        raise DataError(
            f"{path / OUT_OF_FOLD}: 1 problem\n  columns: found no {', '.join(missing) or 'group_by in summary.json'}\n"
            f"  expected: {', '.join(COLUMNS)}, which runs keep since they can be compared\n  do: train again"
        )
    tracks = table["track"].to_numpy()
    order = np.argsort(tracks)
    logits = np.stack(table["logits"].to_numpy())[order]
    tags = np.zeros(logits.shape, dtype=bool)
    for row, numbers in enumerate(table["tags"].take(order).to_pylist()):
        tags[row, numbers] = True
    return _Scored(
        tracks=tracks[order],
        groups=table["group"].to_numpy()[order],
        tags=tags,
        logits=logits,
        group_by=str(run.summary["group_by"]),
        data=str(run.manifest["data"].get("train")),
    )


def _unlike(a: Path, b: Path, what: str, found: str) -> DataError:
    return DataError(
        f"{a} and {b}: 1 problem\n  {what}: found {found}\n  expected: the same data, tracks and groups in both runs\n"
        "  do: train both on the same data with the same data settings (groups, n_folds, fold, seed)"
    )
