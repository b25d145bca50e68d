"""k-reciprocal re-ranking: two rows are alike if their mutual neighbours are.

Each row is described by the rows that are mutual neighbours of it, weighted; two descriptions are compared by the
Jaccard distance. All in sparse tables, so that 41,000 rows need seconds and not 13 GB.
"""

import numpy as np
from numpy.typing import NDArray

from kit_retrieval.expansion import mutual
from kit_retrieval.score_norm import reorder
from kit_retrieval.search import Neighbours

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
ROWS_AT_ONCE = 256  # of dense descriptions; 41,000 rows of them are 42 MB


def k_reciprocal(candidates: Neighbours, *, k1: int = 20, k2: int = 6, share: float = 0.7) -> Neighbours:
    """Candidates in the order of (1 - share) · cosine + share · (1 - Jaccard distance of mutual neighbourhoods).

    Args:
        candidates: neighbours of the rows of one set among themselves, themselves excluded, by cosine; those behind the
            last one cannot move up.
        k1: neighbours that must be mutual; a neighbour's own mutual neighbours (of k1 / 2) join where more than two
            thirds of them are there already.
        k2: descriptions are averaged over a row and its k2 - 1 nearest neighbours; 1: not averaged.
        share: of the Jaccard part. The paper's lambda is 1 - share, 0.3.

    Raises:
        ValueError: fewer candidates than `k1`, a `k2` above `k1` or below 1, a share outside [0, 1].

    Source: Zhong, Zheng, Cao and Li, Re-ranking person re-identification with k-reciprocal encoding, CVPR 2017.
    """
    if not 1 <= k2 <= k1 <= candidates.k or not 0 <= share <= 1:
        raise ValueError(f"found k1 {k1}, k2 {k2}, share {share} for {candidates.k} candidates")
    n = len(candidates)
    keys, weights = _descriptions(candidates, k1)
    if k2 > 1:
        keys, weights = _averaged(keys, weights, candidates.indices[:, : k2 - 1])
    starts = np.searchsorted(keys, np.arange(n + 1) * n)
    columns = keys % n
    lengths = np.diff(starts)
    total = np.add.reduceat(np.append(weights, np.float32(0)), np.minimum(starts[:-1], len(weights))) * (lengths > 0)

    jaccard = np.empty(candidates.indices.shape, dtype=np.float32)
    dense = np.zeros((ROWS_AT_ONCE, n), dtype=np.float32)
    for first in range(0, n, ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, n))
        own = slice(starts[first], starts[rows[-1] + 1])
        local = keys[own] // n - first
        dense[local, columns[own]] = weights[own]
        of_pair = candidates.indices[rows].reshape(-1)
        pair, entry = _ragged(starts[of_pair], lengths[of_pair])
        smaller = np.minimum(dense[pair // candidates.k, columns[entry]], weights[entry])
        common = np.bincount(pair, smaller, minlength=len(of_pair))
        either = np.repeat(total[rows], candidates.k) + total[of_pair] - common
        jaccard[rows] = (common / np.maximum(either, 1e-12)).reshape(len(rows), -1)
        dense[local, columns[own]] = 0
    return reorder(candidates.indices, (1 - share) * candidates.scores + share * jaccard)


def _descriptions(candidates: Neighbours, k1: int) -> tuple[Integers, Floats]:
    """Sorted keys row * n + column and weights of the sparse descriptions; each row's weights have the sum 1."""
    n = len(candidates)
    near = candidates.indices[:, :k1]
    half = max(1, round(k1 / 2))
    is_mutual, is_mutual_half = mutual(near), mutual(near[:, :half])
    rows = np.arange(n)
    # Every row is its own mutual neighbour, as in the paper.
    own = _keys(rows, rows, n)
    core = np.union1d(own, _keys(np.repeat(rows, k1), near.reshape(-1), n)[is_mutual.reshape(-1)])
    small = np.union1d(own, _keys(np.repeat(rows, half), near[:, :half].reshape(-1), n)[is_mutual_half.reshape(-1)])

    # Of each mutual neighbour its smaller neighbourhood joins, where more than two thirds of it are in the row's own.
    small_starts = np.searchsorted(small, np.arange(n + 1) * n)
    small_sizes = np.diff(small_starts)
    to = core % n
    link, entry = _ragged(small_starts[to], small_sizes[to])
    proposed = (core // n)[link] * n + small[entry] % n
    inside = np.bincount(link, np.isin(proposed, core), minlength=len(core))
    joins = inside > 2 / 3 * small_sizes[to]
    keys = np.union1d(core, proposed[joins[link]])

    # The weight is exp(-squared distance), which is 2 - 2 cos. A pair that is not listed counts as the last listed one.
    listed = _keys(np.repeat(rows, candidates.k), candidates.indices.reshape(-1), n)
    order = np.argsort(listed, kind="stable")
    place = np.minimum(np.searchsorted(listed[order], keys), len(listed) - 1)
    known = listed[order][place] == keys
    cosine = np.where(known, candidates.scores.reshape(-1)[order][place], candidates.scores[keys // n, -1])
    cosine = np.where(keys // n == keys % n, 1.0, cosine)
    weights = np.exp(-(2 - 2 * cosine))
    total = np.bincount(keys // n, weights, minlength=n)
    return keys, (weights / total[keys // n]).astype(np.float32)


def _averaged(keys: Integers, weights: Floats, neighbours: Integers) -> tuple[Integers, Floats]:
    """Each description averaged with those of the row's neighbours."""
    n, count = neighbours.shape
    starts = np.searchsorted(keys, np.arange(n + 1) * n)
    members = np.concatenate([np.arange(n)[:, None], neighbours], axis=1).reshape(-1)
    member, entry = _ragged(starts[members], np.diff(starts)[members])
    spread = member // (count + 1) * n + keys[entry] % n
    merged, place = np.unique(spread, return_inverse=True)
    return merged, (np.bincount(place, weights[entry], minlength=len(merged)) / (count + 1)).astype(np.float32)


def _keys(rows: Integers, columns: Integers, n: int) -> Integers:
    return rows * n + columns


def _ragged(starts: Integers, lengths: Integers) -> tuple[Integers, Integers]:
    """For segments of a flat table: the number of its segment for each entry, and the place of the entry."""
    segment = np.repeat(np.arange(len(lengths)), lengths)
    inside = np.arange(len(segment)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return segment, starts[segment] + inside
