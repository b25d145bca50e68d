"""Scores of genres and of emotion values, with intervals; a submission against the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from kit_core.console import render_table
from kit_core.errors import DataError, Problems
from kit_metrics import (
    bootstrap_interval,
    bootstrap_macro_f1,
    bootstrap_paired_macro_f1,
    bootstrap_paired_ratio,
    bootstrap_ratio,
    confusion_matrix,
    effective_groups,
    macro_f1,
)
from ntua_lab.config import AXES
from ntua_lab.data import Set, check_submission, classes_of, find_mapping, read_answers

Floats = NDArray[np.float64]
Metric = Literal["accuracy", "macro_f1", "spearman"]
RESAMPLES = 1000


def genre_report(
    true: ArrayLike, predicted: ArrayLike, classes: Sequence[str], groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return accuracy and macro F1 with 95 % intervals, macro, micro and weighted scores, and those of each class.

    `true` and `predicted` are int[n] among the classes; intervals resample `groups`. A class that is never predicted
    has precision 0, one that never occurs recall 0, as in scikit-learn with `zero_division=0`.
    """
    truth, answer = np.asarray(true), np.asarray(predicted)
    confusion = confusion_matrix(truth, answer, len(classes))
    right, support, given = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _share(right, given), _share(right, support)
    f1 = _share(2 * right, given + support)
    unit = np.arange(len(truth)) if groups is None else np.asarray(groups)
    accuracy = float(right.sum() / support.sum())
    low, high = bootstrap_ratio(truth == answer, np.ones(len(truth)), unit, n=RESAMPLES)
    return {
        "n": len(truth),
        "accuracy": accuracy,
        "accuracy_interval": [low, high],
        "macro_f1": float(f1.mean()),
        "macro_f1_interval": list(bootstrap_macro_f1(truth, answer, len(classes), unit, n=RESAMPLES)),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "micro_precision": accuracy,  # one label a clip: every wrong answer is a false positive and a false negative
        "micro_recall": accuracy,
        "micro_f1": accuracy,
        "weighted_f1": float((f1 * support).sum() / support.sum()),
        "classes": list(classes),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": support.tolist(),
        "confusion": confusion.tolist(),
    }


def emotion_report(
    true: ArrayLike, predicted: ArrayLike, axes: Sequence[str] = AXES, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the mean Spearman correlation over the axes with its 95 % interval, that of each axis, and mean errors.

    `true` and `predicted` are float[n, axes]; intervals resample `groups`.
    """
    truth, answer = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    each = spearman(truth, answer)
    low, high = spearman_interval(truth, answer, groups)
    return {
        "n": len(truth),
        "spearman": float(each.mean()),
        "spearman_interval": [low, high],
        "axes": list(axes),
        "spearman_of_axes": each.tolist(),
        "mean_absolute_error": np.abs(truth - answer).mean(axis=0).tolist(),
    }


def spearman(true: ArrayLike, predicted: ArrayLike) -> Floats:
    """Return Spearman's correlation of each column of float[n, k]; 0 where a column is constant and orders nothing."""
    x, y = (rankdata(np.asarray(values, np.float64), axis=0) for values in (true, predicted))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return _share((x * y).sum(axis=0), np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0)))


def spearman_interval(
    true: Floats, predicted: Floats, groups: Sequence[str] | None = None, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the mean Spearman correlation, whole groups resampled; the rule is of kit_metrics."""
    scores = [spearman(true[rows], predicted[rows]).mean() for rows in resamples(len(true), groups, seed)]
    score = float(spearman(true, predicted).mean())
    return bootstrap_interval(scores, score, _effective_groups(len(true), groups), limits=(-1.0, 1.0))


def paired_difference(
    metric: Metric,
    true: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    classes: int,
    groups: Sequence[str] | None = None,
) -> tuple[float, float, float]:
    """Return the difference a - b of two answers to the same clips and its 95 % interval: (difference, low, high).

    Both see the same 1,000 resamples of whole `groups` (None: each clip alone). `true`, `a` and `b` are int[n] among
    the classes for accuracy and macro F1, float[n, axes] for the mean Spearman correlation.
    """
    truth, first, second = np.asarray(true), np.asarray(a), np.asarray(b)
    names = np.arange(len(truth)) if groups is None else np.asarray(groups)
    if metric == "macro_f1":
        return bootstrap_paired_macro_f1(truth, first, second, classes, names, n=RESAMPLES)
    if metric == "accuracy":
        right = (truth == first, truth == second)
        return bootstrap_paired_ratio(*right, np.ones(len(truth)), names, n=RESAMPLES)

    def difference(rows: NDArray[np.int64] | slice) -> float:
        return float(spearman(truth[rows], first[rows]).mean() - spearman(truth[rows], second[rows]).mean())

    whole = difference(slice(None))
    resampled = [difference(rows) for rows in resamples(len(truth), groups)]
    effective = _effective_groups(len(truth), groups)
    return whole, *bootstrap_interval(resampled, whole, effective, limits=(-2.0, 2.0))


def score_of(metric: Metric, true: ArrayLike, answer: ArrayLike, classes: int) -> float:
    """Return one score; arrays as in `paired_difference`."""
    if metric == "macro_f1":
        return macro_f1(true, answer, classes)
    if metric == "accuracy":
        return float(np.mean(np.asarray(true) == np.asarray(answer)))
    return float(spearman(true, answer).mean())


def resamples(n: int, groups: Sequence[str] | None = None, seed: int = 0) -> list[NDArray[np.int64]]:
    """Return 1,000 draws of rows: as many groups as there are, with replacement."""
    generator = np.random.default_rng(seed)
    names = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    order = np.argsort(names, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(names[order])) + 1)
    draws = (generator.integers(len(members), size=len(members)) for _ in range(RESAMPLES))
    return [np.concatenate([members[i] for i in drawn]) for drawn in draws]


def _effective_groups(n: int, groups: Sequence[str] | None) -> float:
    return float(n) if groups is None else effective_groups(np.unique(np.asarray(groups), return_counts=True)[1])


@dataclass(frozen=True, eq=False)
class AlignedAnswers:
    """A file of answers beside the truth, on the clips that count.

    true, answer  int64[n] among `classes` for genre; float64[n, 3] for emotion.
    """

    task: Set
    ids: list[str]
    true: NDArray[Any]
    answer: NDArray[Any]
    classes: tuple[str, ...]


def evaluate_submission(submission: Path, truth: Path) -> dict[str, Any]:
    """Score a list of genres or a solution.txt against a list of the truth; the report has a key `task`.

    Raises:
        DataError: as `align_answers`.
    """
    aligned = align_answers(submission, truth)
    if aligned.task == "emotion":
        return {"task": "emotion"} | emotion_report(aligned.true, aligned.answer)
    return {"task": "genre"} | genre_report(aligned.true, aligned.answer, aligned.classes)


def align_answers(submission: Path, truth: Path) -> AlignedAnswers:
    """Read a list of genres or a solution.txt and lay it beside a list of the truth.

    Raw genres of the truth go through the class mapping that lies near it; clips of dropped genres are not scored.

    Raises:
        DataError: the two are not of one kind, not of the same clips, or no clip is left to score.
    """
    answers, true = read_answers(submission), read_answers(truth)
    if answers.task != true.task:
        raise DataError(
            f"{submission}: found answers of the task {answers.task}, expected {true.task}, as in {truth}\n"
            "  do: give the truth of the same task"
        )
    if true.task == "emotion":
        answers = check_submission(submission, true.ids, ())
        assert answers.values is not None
        assert true.values is not None
        return AlignedAnswers("emotion", true.ids, true.values, answers.values, ())
    mapping = find_mapping(truth)
    classes = classes_of(mapping)
    assert true.names is not None
    known = {**{name: name for name in classes}, **mapping}  # a truth may hold raw genres or classes
    problems = Problems(truth, f"genres of the class mapping: {', '.join(known)}", "put class_mapping.json beside it")
    for id_, name in zip(true.ids, true.names, strict=True):
        if name not in known:
            problems.add(f"clip {id_}", f"the genre {name!r}")
    problems.raise_if_any()
    label = {id_: known[name] for id_, name in zip(true.ids, true.names, strict=True)}
    scored_ids = [id_ for id_ in answers.ids if label.get(id_) is not None]
    wanted = [id_ for id_ in true.ids if label[id_] is not None]
    if not wanted:
        raise DataError(
            f"{truth}: found no clip of a class, expected some: every genre in it is dropped by the class mapping\n"
            "  do: put the right class_mapping.json beside it"
        )
    if set(scored_ids) != set(wanted) or set(answers.ids) - set(true.ids):
        check_submission(submission, wanted, classes)  # says which
    assert answers.names is not None
    number = {name: index for index, name in enumerate(classes)}
    given = dict(zip(answers.ids, answers.names, strict=True))
    foreign = sorted({name for name in given.values() if name not in number})
    if foreign:
        raise DataError(f"{submission}: found the classes {foreign[:5]}, expected {', '.join(classes)}; write it again")
    codes = np.array([(number[str(label[id_])], number[given[id_]]) for id_ in wanted])
    return AlignedAnswers("genre", wanted, codes[:, 0], codes[:, 1], classes)


def report_text(report: dict[str, Any]) -> str:
    """Render a report of `genre_report` or `emotion_report` for a person."""
    if "confusion" not in report:
        low, high = report["spearman_interval"]
        rows = [("mean", f"{report['spearman']:.4f}", f"{low:.4f} to {high:.4f}", "")]
        for axis, one, error in zip(
            report["axes"], report["spearman_of_axes"], report["mean_absolute_error"], strict=True
        ):
            rows.append((axis, f"{one:.4f}", "", f"{error:.4f}"))
        head = f"{report['n']} clips\n"
        return head + render_table(["axis", "Spearman", "95 % interval", "mean absolute error"], rows)
    scores = []
    for name in ("accuracy", "macro_f1"):
        low, high = report[f"{name}_interval"]
        scores.append((name, f"{report[name]:.4f}", f"{low:.4f} to {high:.4f}"))
    for name in ("macro_precision", "macro_recall", "micro_precision", "micro_recall", "micro_f1", "weighted_f1"):
        scores.append((name, f"{report[name]:.4f}", ""))
    each = [
        (name, *(f"{report[key][i]:.4f}" for key in ("precision", "recall", "f1")), report["support"][i])
        for i, name in enumerate(report["classes"])
    ]
    return (
        f"{report['n']} clips\n"
        + render_table(["score", "value", "95 % interval"], scores)
        + "\n\n"
        + render_table(["class", "precision", "recall", "F1", "clips"], each)
    )


def _share(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)
