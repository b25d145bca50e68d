"""Two runs, or two submissions, on the same queries: the difference of their nDCG@100, by a paired bootstrap."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kit_core.comparison import Comparison
from kit_core.errors import DataError
from kit_core.run import RunFolder
from kit_metrics import bootstrap_paired_ratio, ndcg_per_query
from yandex_artists.data import ANSWERS, check_submission, read_truth

QUERIES = "queries.csv"  # of a run: trackid, artist, fold and score of every held-out track; empty where not asked for
GROUP_BY = "artist"


def compare(a: Path, b: Path, truth: Path | None = None) -> Comparison:
    """Compare two finished runs by the queries of their left-out folds or, given the `truth`, two submissions.

    Raises:
        DataError: a run is unfinished or has no scores of its queries, a file is not as it must be, or the two did not
            score the same queries on the same data.
    """
    if truth is not None:
        columns = read_truth(truth)
        artists = np.unique(columns["artistid"], return_inverse=True)[1]
        score_a, score_b = (
            ndcg_per_query(check_submission(path, columns["trackid"]), artists, k=ANSWERS, repeated="count", own="drop")
            for path in (a, b)
        )
        if np.isnan(score_a).all():
            raise DataError(f"{truth}: found no artist with two tracks, so no query; expected the truth of a test set")
        return _comparison(a, b, score_a, score_b, artists)
    runs, tables = [RunFolder.open(path) for path in (a, b)], [_queries(path) for path in (a, b)]
    if runs[0].manifest["data"] != runs[1].manifest["data"]:
        raise DataError(
            f"{a} and {b}: found runs on different data, expected the same\n  do: train both on one data set"
        )
    if tables[0][0] != tables[1][0]:
        first, second = (len(table[0]) for table in tables)
        raise DataError(
            f"{a} and {b}: found {first} and {second} held-out tracks that differ in track, artist or fold; "
            "expected the same\n  do: train both with the same data.n_folds, data.fold and data.seed"
        )
    (keys, score_a), (_, score_b) = tables
    return _comparison(a, b, score_a, score_b, np.array([artist for _, artist, _ in keys]))


def _queries(run: Path) -> tuple[list[tuple[str, int, str]], NDArray[np.float64]]:
    """Track, artist and fold of every held-out track, and its nDCG@100; NaN where it was not asked for."""
    path = run / QUERIES
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        keys = [(row["trackid"], int(row["artist"]), row["fold"]) for row in rows]
        return keys, np.array([float(row["score"] or "nan") for row in rows])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: found no scores of queries ({error}); expected a run with left-out folds\n"
            "  do: train again; runs of older versions without a network have no such file"
        ) from None


def _comparison(
    a: Path, b: Path, score_a: NDArray[np.float64], score_b: NDArray[np.float64], artists: NDArray[np.generic]
) -> Comparison:
    asked = ~np.isnan(score_a)
    of_a, of_b, groups = score_a[asked], score_b[asked], artists[asked]
    difference, low, high = bootstrap_paired_ratio(of_a, of_b, np.ones_like(of_a), groups)
    return Comparison(
        metric=f"ndcg@{ANSWERS}",
        a=str(a),
        b=str(b),
        score_a=float(of_a.mean()),
        score_b=float(of_b.mean()),
        difference=difference,
        interval=(low, high),
        n=len(of_a),
        group_by=GROUP_BY,
        n_groups=len(np.unique(groups)),
    )
