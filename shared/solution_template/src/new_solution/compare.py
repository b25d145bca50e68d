"""Two runs, or two submissions, on the same rows: the difference of their scores, by a paired bootstrap over groups."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kit_core.comparison import Comparison
from kit_core.errors import DataError
from kit_core.run import RunFolder
from kit_metrics import bootstrap_paired_macro_f1, macro_f1
from new_solution.data import check_submission, read_labels

OOF = "oof.npz"  # in a run folder: ids, groups, labels and predicted labels of the rows that were held out


def compare(a: Path, b: Path, truth: Path | None = None) -> Comparison:
    """Compare the out-of-fold predictions of two finished runs or, given the `truth`, two submissions.

    Raises:
        DataError: a run is unfinished, a file is not as it must be, or the two did not score the same rows.
    """
    if truth is not None:
        labels = read_labels(truth)
        submissions = [check_submission(path, list(labels)) for path in (a, b)]
        return _comparison(a, b, np.array(list(labels.values())), submissions, np.array(list(labels)), "row")
    runs, predictions = [RunFolder.open(path) for path in (a, b)], [_held_out(path) for path in (a, b)]
    same_data = runs[0].manifest["data"] == runs[1].manifest["data"]
    if not same_data or any(
        not np.array_equal(predictions[0][name], predictions[1][name]) for name in ("ids", "groups", "labels")
    ):
        raise DataError(
            f"{a} and {b}: found other data, rows or groups; expected two runs that scored the same rows\n"
            "  do: train both on the same data with the same data.fold"
        )
    labels_of_rows, groups = predictions[0]["labels"], predictions[0]["groups"]
    predicted = [one["predicted"] for one in predictions]
    return _comparison(a, b, labels_of_rows, predicted, groups, str(runs[0].summary["group_by"]))


def _held_out(run: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(run / OOF, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError) as error:
        raise DataError(f"{run / OOF}: cannot be read: {error}; train again") from error


def _comparison(
    a: Path,
    b: Path,
    labels: NDArray[np.generic],
    predicted: list[NDArray[np.generic]],
    groups: NDArray[np.generic],
    group_by: str,
) -> Comparison:
    n_labels = 1 + max(int(np.max(values)) for values in (labels, *predicted))
    difference, low, high = bootstrap_paired_macro_f1(labels, *predicted, n_labels, groups)
    score_a, score_b = (macro_f1(labels, one, n_labels) for one in predicted)
    return Comparison(
        metric="macro_f1",
        a=str(a),
        b=str(b),
        score_a=score_a,
        score_b=score_b,
        difference=difference,
        interval=(low, high),
        n=len(labels),
        group_by=group_by,
        n_groups=len(np.unique(groups)),
    )
