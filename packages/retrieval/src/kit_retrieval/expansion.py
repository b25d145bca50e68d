"""Query expansion: vectors or queries that take in their nearest neighbours, before another search.

Each function needs all vectors of a gallery at once, and so makes the answer to one query depend on the others: fine
where the whole test set is given, and to be left out where queries come alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kit_retrieval.search import Neighbours, top_k
from kit_retrieval.vectors import l2_normalise

Floats = NDArray[np.float32]
ROWS_AT_ONCE = 4096  # of sums over neighbours; with 10 neighbours of 512 dimensions 80 MB


def smooth(x: Floats, neighbours: Neighbours, weights: Sequence[float] = (25.0, 8.0, 5.0, 3.0, 2.0, 1.0)) -> Floats:
    """Every vector as the weighted mean of itself and its nearest neighbours, float32[n, d], then at length 1.

    Done to queries and gallery alike, as here, it gains several times what it gains on queries alone.

    Args:
        x: float32[n, d].
        neighbours: of the rows of `x` among themselves, themselves excluded.
        weights: of the row itself and of its first, second, ... neighbour. The default is that of the first place.

    Raises:
        ValueError: fewer neighbours than weights, or weights below 0.

    Source: neighbour smoothing of the first place of the Yandex Cup 2022; Arandjelović and Zisserman, Three things
    everyone should know to improve object retrieval, CVPR 2012 (averaging on the side of the database).
    """
    array = l2_normalise(x)
    shares = np.asarray(weights, dtype=np.float32)
    if not len(shares) or (shares < 0).any() or neighbours.k < len(shares) - 1:
        raise ValueError(f"weights: found {list(weights)} for {neighbours.k} neighbours, expected one more than those")
    count = len(shares) - 1
    of_neighbours = np.broadcast_to(shares[1:], (len(array), count))
    return _mixed(array, neighbours.indices[:, :count], of_neighbours, float(shares[0]))


def alpha_expansion(
    x: Floats, neighbours: Neighbours, count: int = 6, alpha: float = 3.0, *, reciprocal: bool = False
) -> Floats:
    """Every vector plus its `count` nearest neighbours, each weighted with its cosine to the power `alpha`; length 1.

    Args:
        x: float32[n, d].
        neighbours: of the rows of `x` among themselves; scores are cosines. Negative ones weigh nothing.
        alpha: 0 weighs all alike, a large one hardly any but the nearest.
        reciprocal: only neighbours that have the row among their own `count` nearest.

    Raises:
        ValueError: fewer neighbours than `count`, or an `alpha` below 0.

    Source: Radenović, Tolias and Chum, Fine-tuning CNN image retrieval with no human annotation, TPAMI 2019.
    """
    if not 1 <= count <= neighbours.k or alpha < 0:
        raise ValueError(f"found count {count} of {neighbours.k} neighbours and alpha {alpha}")
    indices, cosines = neighbours.indices[:, :count], neighbours.scores[:, :count]
    shares = np.maximum(cosines, 0) ** np.float32(alpha) * (cosines > 0)
    if reciprocal:
        shares = shares * mutual(indices)
    return _mixed(l2_normalise(x), indices, shares, 1.0)


def mutual(indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of neighbours int64[n, k] of rows among themselves, which have the row among their own k: bool[n, k]."""
    n, k = indices.shape
    rows = np.repeat(np.arange(n), k)
    there = rows * n + indices.reshape(-1)
    back = indices.reshape(-1) * n + rows
    return np.isin(back, there).reshape(n, k)


def threshold_expansion(
    x: Floats, k: int = 100, threshold: float = 0.85, *, device: str | torch.device = "cpu"
) -> Neighbours:
    """The `k` neighbours of each row: first those above a cosine, as found; then those of a second query, their mean.

    S is the row and those of its `k` nearest with a cosine above `threshold`. The plain mean of the vectors of S, as
    they are and not brought to length 1, asks again; its answers without S follow until there are `k`. Scores are the
    cosines with the query that found them, so that they are not sorted across the two parts.

    Args:
        x: float32[n, d], vectors of any length.

    Raises:
        ValueError: as `kit_retrieval.search.top_k`.

    Source: re-ranking of the solution by G. Shanshin (11th place, Yandex Cup 2022).
    """
    array = np.asarray(x, dtype=np.float32)
    unit = l2_normalise(array)
    first = top_k(unit, k=k, device=device)
    near = first.scores > np.float32(threshold)
    size = near.sum(axis=1)
    again = np.flatnonzero((size > 0) & (size < k))  # alone, the mean is the row itself; with k there is nothing to add
    if not len(again):
        return first
    means = _sums(array, first.indices[again], near[again].astype(np.float32)) + array[again]
    wanted = min(len(array) - 1, k + int(size[again].max()))
    second = top_k(l2_normalise(means), unit, wanted, own=again, device=device)
    indices, scores = first.indices.copy(), first.scores.copy()
    for place, row in enumerate(again.tolist()):
        taken = size[row]
        # Scores fall along a row, so S is the beginning of the first list.
        fresh = ~np.isin(second.indices[place], first.indices[row, :taken])
        indices[row, taken:] = second.indices[place][fresh][: k - taken]
        scores[row, taken:] = second.scores[place][fresh][: k - taken]
    return Neighbours(indices, scores)


def _mixed(x: Floats, indices: NDArray[np.int64], shares: Floats, own_share: float) -> Floats:
    return l2_normalise(_sums(x, indices, shares) + np.float32(own_share) * x)


def _sums(x: Floats, indices: NDArray[np.int64], shares: Floats) -> Floats:
    """Weighted sums of rows of `x`, float32[n, d]."""
    out = np.empty((len(indices), x.shape[1]), dtype=np.float32)
    for start in range(0, len(indices), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        out[part] = np.einsum("nk,nkd->nd", shares[part], x[indices[part]])
    return out
