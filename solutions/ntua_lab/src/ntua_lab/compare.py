"""Two finished runs, or two files of answers, against one another: the paired difference and its interval."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kit_core.comparison import Comparison
from kit_core.errors import ConfigError, DataError, Problems
from kit_core.run import RunFolder
from kit_splits.folds import distinct_groups
from ntua_lab.evaluation import Metric, align_answers, paired_difference, score_of

RETRAIN = "train the run again with this version, which keeps the group of each clip"


@dataclass(frozen=True, eq=False)
class Scored:
    """What one run answered to the clips that it was scored on by a metric, sorted by id.

    true, answer  int64[n] among `classes`, or float64[n, axes].
    """

    ids: list[str]
    true: NDArray[Any]
    answer: NDArray[Any]
    groups: list[str]
    classes: tuple[str, ...]
    axes: tuple[str, ...]
    """() for genre."""

    def of(self, ids: Sequence[str]) -> "Scored":
        """Return it with those clips alone."""
        wanted = set(ids)
        rows = [place for place, id_ in enumerate(self.ids) if id_ in wanted]
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            groups=[self.groups[i] for i in rows],
            true=self.true[rows],
            answer=self.answer[rows],
        )


def compare(a: Path, b: Path, truth: Path | None = None, metric: Metric | Literal["auto"] = "auto") -> Comparison:
    """Compare two run folders on their out-of-fold answers, or two files of answers on a truth.

    The interval is that of a paired bootstrap over the groups that made the folds of both runs; over clips for files.
    "auto" is the metric of run A; for files accuracy or Spearman, as the truth asks.

    Raises:
        ConfigError: a truth with runs or none with files, or a metric that one of the two was not scored by.
        DataError: runs on other data, clips or groups, runs that keep no groups, or files that the truth does not fit.
    """
    if truth is not None:
        return _compare_files(a, b, truth, metric)
    for path in (a, b):
        if path.is_file():
            raise ConfigError(f"{path}: is a file of answers; give --truth FILE with it, or name two run folders")
    runs = [RunFolder.open(path) for path in (a, b)]
    if runs[0].manifest["data"]["data"] != runs[1].manifest["data"]["data"]:
        raise DataError(
            f"{b}: found data of the fingerprint {runs[1].manifest['data']['data'][:12]}, expected that of {a}, "
            f"{runs[0].manifest['data']['data'][:12]}\n  do: compare runs on the same data"
        )
    for run in runs:
        if "group_by" not in run.summary:
            raise DataError(f"{run.path}: found no group_by in summary.json, expected it\n  do: {RETRAIN}")
    group_by = runs[0].summary["group_by"]
    if runs[1].summary["group_by"] != group_by:
        raise DataError(
            f"{b}: found folds by {runs[1].summary['group_by']}, expected folds by {group_by}, as in {a}\n"
            "  do: compare runs whose folds keep the same groups whole"
        )
    chosen: Metric = runs[0].summary["metric"] if metric == "auto" else metric
    first, second = (_scored(run, chosen) for run in runs)
    _same_clips(first, second, a, b)
    return _comparison(chosen, (a, b), first.true, (first.answer, second.answer), first.groups, group_by, first.classes)


def read_scored(run: RunFolder, metric: Metric) -> Scored | None:
    """Return what a run answered to the clips that it was scored on by a metric; None where it was not.

    Raises:
        DataError: its out-of-fold answers do not say the group of each clip.
    """
    path, summary = run.path / "oof.parquet", run.summary
    task: Literal["genre", "emotion"] = "emotion" if metric == "spearman" else "genre"
    if not path.exists() or not summary.get(task):
        return None
    table = pq.read_table(path).to_pylist()
    if "group" not in table[0]:
        raise DataError(f"{path}: found no column `group`, expected the group of each clip\n  do: {RETRAIN}")
    classes = tuple(summary["genre"]["classes"]) if task == "genre" else ()
    axes = tuple(summary["emotion"]["axes"]) if task == "emotion" else ()
    if task == "genre":
        rows = [row for row in table if row["class"] is not None]
    else:
        rows = [row for row in table if all(np.isfinite(row[f"true_{axis}"]) for axis in axes)]
    rows.sort(key=lambda row: str(row["id"]))
    ids, groups = [row["id"] for row in rows], [row["group"] for row in rows]
    if task == "emotion":
        true, answer = (np.array([[row[f"{kind}{axis}"] for axis in axes] for row in rows]) for kind in ("true_", ""))
        return Scored(ids, true, answer, groups, (), axes)
    shares = np.array([[row[f"p_{name}"] for name in classes] for row in rows])
    true = np.array([classes.index(row["class"]) for row in rows], np.int64)
    return Scored(ids, true, shares.argmax(axis=1), groups, classes, ())


def _scored(run: RunFolder, metric: Metric) -> Scored:
    found = read_scored(run, metric)
    if found is None:
        raise ConfigError(
            f"{run.path}: was not scored by {metric}, but by {run.summary['metric']}; "
            "name runs of one task, or another --metric"
        )
    return found


def _same_clips(first: Scored, second: Scored, a: Path, b: Path) -> None:
    """Check that two runs were scored on the same clips, classes or axes, in the same groups."""
    if first.classes != second.classes or first.axes != second.axes:
        raise DataError(
            f"{b}: found answers of {', '.join(second.classes or second.axes)}, expected of "
            f"{', '.join(first.classes or first.axes)}, as in {a}\n  do: compare runs of the same classes or axes"
        )
    problems = Problems(b, f"the clips that {a} was scored on, in the same groups", "compare runs of the same folds")
    group_of = dict(zip(first.ids, first.groups, strict=True))
    other = dict(zip(second.ids, second.groups, strict=True))
    for id_ in sorted(group_of.keys() | other.keys()):
        if id_ not in other:
            problems.add(f"clip {id_}", "no answer")
        elif id_ not in group_of:
            problems.add(f"clip {id_}", f"an answer, and none in {a}")
        elif group_of[id_] != other[id_]:
            problems.add(f"clip {id_}", f"the group {other[id_]!r}, and {group_of[id_]!r} in {a}")
    problems.raise_if_any()


def _compare_files(a: Path, b: Path, truth: Path, metric: Metric | Literal["auto"]) -> Comparison:
    for path in (a, b):
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; --truth goes with two files of answers, runs need none")
    first, second = align_answers(a, truth), align_answers(b, truth)
    possible: tuple[Metric, ...] = ("spearman",) if first.task == "emotion" else ("accuracy", "macro_f1")
    chosen = possible[0] if metric == "auto" else metric
    if chosen not in possible:
        raise ConfigError(f"--metric: found {metric}, expected {' or '.join(possible)} for the task {first.task}")
    return _comparison(chosen, (a, b), first.true, (first.answer, second.answer), first.ids, "clip", first.classes)


def _comparison(
    metric: Metric,
    names: tuple[Path, Path],
    true: NDArray[Any],
    answers: tuple[NDArray[Any], NDArray[Any]],
    groups: list[str],
    group_by: str,
    classes: tuple[str, ...],
) -> Comparison:
    difference, low, high = paired_difference(metric, true, *answers, len(classes), groups)
    score_a, score_b = (score_of(metric, true, answer, len(classes)) for answer in answers)
    return Comparison(
        metric=metric,
        a=str(names[0]),
        b=str(names[1]),
        score_a=score_a,
        score_b=score_b,
        difference=difference,
        interval=(low, high),
        n=len(true),
        group_by=group_by,
        n_groups=len(distinct_groups(groups)[0]),
    )
