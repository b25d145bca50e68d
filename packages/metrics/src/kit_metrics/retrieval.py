"""nDCG@k of ranked neighbours that share the query's label, with the edge rules of a judge or of a local check.

    score(q) = sum over places i of hit(i) / log2(i + 1)  /  the same sum for min(k, R) hits in front

A hit is a neighbour with the label of q; R is how many others in the gallery have it. Scripts that claim this metric
differ where it is not defined, and so the rules are arguments here: `singletons` for queries with R = 0, `missing` for
queries without any neighbour, `repeated` and `own` for lists that hold a neighbour twice or the query itself.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kit_metrics.bootstrap import bootstrap_paired_ratio, bootstrap_ratio

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Singletons = Literal["skip", "refuse"]
Missing = Literal["zero", "skip"]
Repeated = Literal["refuse", "count"]
Own = Literal["refuse", "drop"]

ROWS_AT_ONCE = 2048  # of neighbours; 100 of them each are 0.8 MB, which the cache holds from one step to the next


def ndcg_per_query(
    neighbours: ArrayLike,
    labels: ArrayLike,
    *,
    queries: ArrayLike | None = None,
    k: int = 100,
    singletons: Singletons = "skip",
    missing: Missing = "zero",
    repeated: Repeated = "refuse",
    own: Own = "refuse",
) -> FloatArray:
    """nDCG@k of every query, float64[n], NaN for a query that the rules leave out.

    Args:
        neighbours: integers[n, K], gallery rows, the best first; -1 fills the end of a row that has fewer. Places after
            the k-th do not count.
        labels: integers[m], the label of every gallery row.
        queries: integers[n], the gallery row of every query; by default query i is row i, and n = m.
        singletons: a query whose label nobody else has cannot be answered: leave it out, or refuse the whole.
        missing: a query without any neighbour counts as zero, or is left out.
        repeated: a neighbour that comes twice in a row is refused, or every appearance counts, as a judge without a
            check does; the score may then exceed 1.
        own: the query among its neighbours is refused, or dropped, and those behind it move up.

    Raises:
        ValueError: shapes or types that do not fit, rows outside of the gallery, -1 before a neighbour, or what the
            rules refuse.

    Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002, with binary gain.
    """
    found, label_of, rows = _checked(neighbours, labels, queries, k)
    others = np.bincount(label_of)[label_of[rows]] - 1
    if singletons == "refuse" and (others == 0).any():
        raise ValueError(f"{_first(np.flatnonzero(others == 0))} with a label that no other row has")
    discount = 1.0 / np.log2(np.arange(k) + 2)
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(others, k)]
    table = np.append(label_of, -1).astype(np.int32)  # the row -1 has a label of its own
    gain = np.empty(len(found))
    empty = np.empty(len(found), dtype=np.bool_)
    bad_own: list[IntArray] = []
    bad_repeated: list[IntArray] = []
    for start in range(0, len(found), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        mine = rows[part].astype(np.int32)[:, None]
        some = found[part].astype(np.int32)
        is_own = some == mine
        if is_own.any():
            bad_own.append(start + np.flatnonzero(is_own.any(axis=1)))
            some = _moved_up(some, is_own)
        some = some[:, :k]
        if repeated == "refuse":
            ordered = np.sort(some, axis=1)
            twice = ordered[:, 1:] == ordered[:, :-1]
            if ordered[:, 0].min() < 0:  # somewhere the end of a row is filled
                twice &= ordered[:, 1:] >= 0
            if twice.any():
                bad_repeated.append(start + np.flatnonzero(twice.any(axis=1)))
        hits = np.flatnonzero(table.take(some, mode="wrap") == table[mine])  # few, so that they are worth listing
        gain[part] = np.bincount(hits // some.shape[1], discount[hits % some.shape[1]], minlength=len(some))
        empty[part] = some[:, 0] < 0
    if bad_own and own == "refuse":
        raise ValueError(f"{_first(np.concatenate(bad_own))} among their own neighbours")
    if bad_repeated:
        raise ValueError(f"{_first(np.concatenate(bad_repeated))} with a neighbour that comes twice")
    score: FloatArray = np.divide(gain, ideal, out=np.full(len(found), np.nan), where=others > 0)
    if missing == "skip":
        score[empty] = np.nan
    return score


def ndcg_report(
    neighbours: ArrayLike,
    labels: ArrayLike,
    *,
    queries: ArrayLike | None = None,
    k: int = 100,
    singletons: Singletons = "skip",
    missing: Missing = "zero",
    repeated: Repeated = "refuse",
    own: Own = "refuse",
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean nDCG@k with its 95 % interval, whole labels resampled, and what it was measured on, as plain Python values.

    The arguments up to `own` are those of `ndcg_per_query`.

    Keys: `ndcg@K`, `interval` (None for `bootstrap=0`), `queries` (scored), `left_out` (by the rules), `labels` (of the
    scored queries), `gallery` (rows: nDCG of one model falls as the gallery grows, so that scores compare only at equal
    size), `hit@1` and `recall@K` (share of the R others that are found, at most K of them asked).

    Raises:
        ValueError: as `ndcg_per_query`, or no query is left.
    """
    score = ndcg_per_query(
        neighbours, labels, queries=queries, k=k, singletons=singletons, missing=missing, repeated=repeated, own=own
    )
    found, label_of, rows = _checked(neighbours, labels, queries, k)
    scored = ~np.isnan(score)
    if not scored.any():
        raise ValueError("no query is left: no label has two rows")
    values, groups = score[scored], label_of[rows[scored]]
    listed = found[scored].astype(np.int64)
    listed = _moved_up(listed, listed == rows[scored, None])
    hit = np.append(label_of, -1)[listed] == groups[:, None]
    others = np.minimum(np.bincount(label_of)[groups] - 1, k)
    return {
        f"ndcg@{k}": float(values.mean()),
        "interval": list(bootstrap_ratio(values, np.ones_like(values), groups, n=bootstrap, seed=seed))
        if bootstrap
        else None,
        "queries": len(values),
        "left_out": int((~scored).sum()),
        "labels": len(np.unique(groups)),
        "gallery": len(label_of),
        "hit@1": float(hit[:, 0].mean()),
        f"recall@{k}": float((np.minimum(hit[:, :k].sum(axis=1), others) / others).mean()),
    }


def paired_ndcg(
    neighbours_a: ArrayLike,
    neighbours_b: ArrayLike,
    labels: ArrayLike,
    *,
    queries: ArrayLike | None = None,
    k: int = 100,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Difference a - b of the mean nDCG@k of two rankings of the same queries, with its 95 % interval over the labels.

    Shapes: as `ndcg_per_query`. Queries that cannot be answered are left out; both sides see the same resamples.

    Raises:
        ValueError: as `ndcg_per_query`, or no query is left.
    """
    a, b = (ndcg_per_query(found, labels, queries=queries, k=k) for found in (neighbours_a, neighbours_b))
    if a.shape != b.shape:
        raise ValueError(f"the two rankings answer {len(a)} and {len(b)} queries")
    scored = ~np.isnan(a)
    if not scored.any():
        raise ValueError("no query is left: no label has two rows")
    rows = np.arange(len(a)) if queries is None else np.asarray(queries)
    groups = np.asarray(labels)[rows[scored]]
    return bootstrap_paired_ratio(a[scored], b[scored], np.ones(int(scored.sum())), groups, n=bootstrap, seed=seed)


def _moved_up(found: IntArray | NDArray[np.int32], is_own: NDArray[np.bool_]) -> NDArray[Any]:
    """Neighbours [n, K] without the query itself: those behind it move up, and -1 fills the end."""
    order = np.argsort(is_own, axis=1, kind="stable")
    return np.take_along_axis(np.where(is_own, -1, found), order, axis=1)


def _checked(
    neighbours: ArrayLike, labels: ArrayLike, queries: ArrayLike | None, k: int
) -> tuple[NDArray[np.integer], IntArray, IntArray]:
    """Neighbours, labels and query rows."""
    if k < 1:
        raise ValueError(f"k: found {k}, expected 1 or more")
    label_of, given = np.asarray(labels), np.asarray(neighbours)
    if label_of.ndim != 1 or not len(label_of) or not np.issubdtype(label_of.dtype, np.integer) or label_of.min() < 0:
        raise ValueError(f"labels: found {label_of.dtype}{list(label_of.shape)}, expected integers from 0, one a row")
    if given.ndim != 2 or not given.shape[1] or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"neighbours: found {given.dtype}{list(given.shape)}, expected integers [queries, K]")
    rows = np.arange(len(label_of)) if queries is None else np.asarray(queries)
    if rows.shape != (len(given),) or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"queries: found {rows.dtype}{list(rows.shape)}, expected an integer for each of {len(given)}")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(label_of)):
        raise ValueError(f"queries: found {rows.min()} .. {rows.max()}, expected gallery rows 0 .. {len(label_of) - 1}")
    lowest, highest = (int(given.min()), int(given.max())) if len(given) else (0, 0)
    if lowest < -1 or highest >= len(label_of):
        raise ValueError(
            f"neighbours: found {lowest} .. {highest}, expected gallery rows 0 .. {len(label_of) - 1}, or -1"
        )
    if lowest < 0:
        gaps = ((given[:, :-1] < 0) & (given[:, 1:] >= 0)).any(axis=1)
        if gaps.any():
            raise ValueError(f"{_first(np.flatnonzero(gaps))} with -1 before a neighbour")
    return given, label_of.astype(np.int64), rows.astype(np.int64)


def _first(rows: IntArray) -> str:
    return f"{len(rows)} queries (the first: {', '.join(map(str, rows[:5].tolist()))})"
