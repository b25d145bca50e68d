"""The k nearest neighbours by inner product, exact and in bounded memory; or approximate, by an index of FAISS.

Scores are computed tile by tile and never held as a whole. Among all rows of one set (`gallery=None`) each tile serves
its rows and its columns, so that only half of the products are computed.

Equal scores are ordered by index, and exactly so: a matrix product rounds the same pair differently in another place of
the tile, so pairs whose scores lie within its error bound of one another are computed again, alone and in float64.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from kit_core.errors import ConfigError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Engine = Literal["exact", "hnsw", "ivf"]

SLACK = 28  # candidates kept beyond k, so that near ties at the border are decided without another pass
CPU_TILE = 4096  # rows and columns of a tile: 64 MiB of scores
FEW_THREADS = 4  # more threads get tiles of a quarter of that each
GPU_QUERIES, GPU_GALLERY = 4096, 65536  # 1 GiB of scores
CERTAIN = 6.2  # 2 exp(-CERTAIN² / 2) is 10^-8
CPU_PAIR_VALUES, GPU_PAIR_VALUES = 1 << 17, 1 << 26  # of exact scores at once: 1 MiB in float64, the inner cache
CROWD = 2  # hits above this many times K a row are cut to the K best at once, without a list of them
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 256  # usual for recall above .95 at a million vectors
IVF_ROWS_PER_LIST, IVF_PROBE_SHARE = 1000, 0.05


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Of every query the neighbours, the best first: `indices` int64[n, k] into the gallery, `scores` float32[n, k]."""

    indices: Integers
    scores: Floats

    def __post_init__(self) -> None:
        if self.indices.ndim != 2 or self.indices.shape != self.scores.shape:
            raise ValueError(f"indices {self.indices.shape} and scores {self.scores.shape} must be two equal tables")

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.indices)

    @property
    def k(self) -> int:
        """Neighbours of each query."""
        return int(self.indices.shape[1])

    def cut(self, k: int) -> "Neighbours":
        """The first `k` of each query."""
        return Neighbours(self.indices[:, :k], self.scores[:, :k])


def top_k(
    queries: Floats,
    gallery: Floats | None = None,
    k: int = 100,
    *,
    own: Integers | None = None,
    engine: Engine = "exact",
    device: str | torch.device = "cpu",
) -> Neighbours:
    """The `k` gallery rows of largest inner product for each query, by score, equal scores by index.

    Args:
        queries: float32[n, d].
        gallery: float32[m, d]; None: the queries themselves, each without itself.
        k: any number up to the rows that there are.
        own: int64[n], the gallery row that is the query itself and never among its neighbours, or -1.
        engine: "exact", or an index of FAISS for sets that outgrow it: "hnsw" or "ivf". These find most neighbours, not
            all; a query for which they find fewer than k is searched exactly.
        device: of the exact search.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a `k` below 1 or above what the gallery has.
        ConfigError: an engine of FAISS without FAISS.

    Memory: a tile of scores for each thread (64 MiB; 1 GiB on a GPU) and 3 k pairs a query beside the vectors.
    """
    of_itself = gallery is None
    Q = _vectors(queries, "queries")
    G = Q if gallery is None else _vectors(gallery, "gallery")
    if of_itself and own is not None:
        raise ValueError("own: among one set of rows each row is its own; give the gallery too")
    if Q.shape[1] != G.shape[1]:
        raise ValueError(f"queries have {Q.shape[1]} dimensions, the gallery has {G.shape[1]}")
    mine = np.arange(len(Q)) if of_itself else _own_rows(own, len(Q), len(G))
    available = len(G) - int((mine >= 0).any())
    if not 1 <= k <= available:
        raise ValueError(f"k: found {k}, expected 1 .. {available}, the rows that there are for each query")
    if not len(Q):
        return Neighbours(np.zeros((0, k), dtype=np.int64), np.zeros((0, k), dtype=np.float32))
    if engine != "exact":
        return _faiss(Q, G, k, mine, engine)
    with torch.no_grad(), _full_precision():
        where = torch.device(device)
        q = torch.from_numpy(Q).to(where)
        g = q if of_itself else torch.from_numpy(G).to(where)
        blocks = _search(q, g, min(k + SLACK, available), mine, of_itself)
        parts = [_settle(block, q, g, mine, k) for block in blocks]
    return Neighbours(np.concatenate([p.indices for p in parts]), np.concatenate([p.scores for p in parts]))


def _vectors(x: Floats, name: str) -> Floats:
    array = np.ascontiguousarray(x, dtype=np.float32)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name}: found shape {array.shape}, expected [rows, dimensions]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: found values that are not finite in {int((~np.isfinite(array)).any(1).sum())} rows")
    # PyTorch would warn of a read-only array, such as a memory map
    return array if array.flags.writeable else array.copy()


def _own_rows(own: Integers | None, n: int, m: int) -> Integers:
    if own is None:
        return np.full(n, -1, dtype=np.int64)
    rows = np.asarray(own)
    if rows.shape != (n,) or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"own: found {rows.dtype}{list(rows.shape)}, expected an integer for each of {n} queries")
    if len(rows) and (rows.min() < -1 or rows.max() >= m):
        raise ValueError(f"own: found {rows.min()} .. {rows.max()}, expected -1 .. {m - 1}")
    return rows.astype(np.int64)


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32: its error is a thousand times the bound that decides what a near tie is."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Block:
    """The K best gallery rows so far of a block of queries, and hits that wait to be merged into them."""

    def __init__(self, start: int, stop: int, K: int, device: torch.device) -> None:
        self.start, self.stop, self.K = start, stop, K
        self.values = torch.full((stop - start, K), -torch.inf, device=device)
        self.indices = torch.full((stop - start, K), -1, dtype=torch.int64, device=device)
        self._bound = self.values[:, -1].contiguous()  # what a hit must exceed
        self._hits: list[tuple[NDArray[np.uint16], Integers, Floats]] = []
        self._waiting = 0

    def offer(self, scores: torch.Tensor, first: int) -> None:
        """Scores [rows of the block, columns] of the gallery rows from `first`; a GPU merges at once."""
        if scores.is_cuda:
            self._merge_best(scores, first)
            return
        mask = (scores > self._bound[:, None]).numpy()
        if np.count_nonzero(mask) > CROWD * self.K * len(mask):
            self._merge_best(scores, first)
        else:
            hits = _true_positions(mask)
            rows, columns = np.divmod(hits, scores.shape[1])
            self._wait(rows, columns + first, scores.numpy().reshape(-1)[hits])

    def offer_columns(self, scores: torch.Tensor, first: int) -> None:
        """The same for scores [columns, rows of the block], as another block has computed them."""
        if scores.is_cuda:
            self._merge_best(scores.T, first)
            return
        mask = (scores > self._bound).numpy()
        if np.count_nonzero(mask) > CROWD * self.K * mask.shape[1]:
            self._merge_best(scores.T.contiguous(), first)
        else:
            hits = _true_positions(mask)
            columns, rows = np.divmod(hits, scores.shape[1])
            self._wait(rows, columns + first, scores.numpy().reshape(-1)[hits])

    def _merge_best(self, scores: torch.Tensor, first: int) -> None:
        values, indices = torch.topk(scores, min(self.K, scores.shape[1]), dim=1)
        self._keep(torch.cat([self.values, values], 1), torch.cat([self.indices, indices + first], 1))

    def _wait(self, rows: Integers, columns: Integers, values: Floats) -> None:
        self._hits.append((rows.astype(np.uint16), columns, values))  # 16 bits, for CPU_TILE rows, sort by radix
        self._waiting += len(rows)
        if self._waiting > self.K * (self.stop - self.start):
            self.merge()

    def merge(self) -> None:
        """Bring the waiting hits in."""
        if not self._waiting:
            return
        rows, columns, values = (np.concatenate(parts) for parts in zip(*self._hits, strict=True))
        self._hits, self._waiting = [], 0
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        counts = np.bincount(rows, minlength=self.stop - self.start)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        wide = int(counts.max())
        found = np.full((len(counts), wide), -np.inf, dtype=np.float32)
        where = np.full((len(counts), wide), -1, dtype=np.int64)
        found[rows, place] = values[order]
        where[rows, place] = columns[order]
        self._keep(
            torch.cat([self.values, torch.from_numpy(found)], 1), torch.cat([self.indices, torch.from_numpy(where)], 1)
        )

    def _keep(self, values: torch.Tensor, indices: torch.Tensor) -> None:
        self.values, chosen = torch.topk(values, self.K, dim=1)
        self.indices = indices.gather(1, chosen)
        self._bound = self.values[:, -1].contiguous()


def _true_positions(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The flat positions of the true values of a C-ordered table; by eight at a time, since nearly all are false."""
    flat = mask.reshape(-1)
    whole = len(flat) // 8 * 8
    words = np.flatnonzero(flat[:whole].view(np.uint64))
    inside = np.flatnonzero(flat[:whole].reshape(-1, 8)[words])
    rest = np.flatnonzero(flat[whole:]) + whole
    return np.concatenate([words[inside >> 3] * 8 + (inside & 7), rest])


def _search(q: torch.Tensor, g: torch.Tensor, K: int, mine: Integers, of_itself: bool) -> list[_Block]:
    # In `_search_itself` each thread has a tile of its own.
    tile = CPU_TILE if torch.get_num_threads() <= FEW_THREADS else CPU_TILE // 2
    rows, columns = (GPU_QUERIES, GPU_GALLERY) if q.is_cuda else (tile, tile)
    blocks = [_Block(start, min(start + rows, len(q)), K, q.device) for start in range(0, len(q), rows)]
    own = torch.from_numpy(mine).to(q.device)
    if of_itself and not q.is_cuda:
        _search_itself(q, blocks)
        return blocks
    buffer = torch.empty(min(rows, len(q)) * min(columns, len(g)), device=q.device)
    for block in blocks:
        for first in range(0, len(g), columns):
            scores = _products(q[block.start : block.stop], g[first : first + columns], buffer)
            inside = own[block.start : block.stop] - first
            hit = torch.nonzero((inside >= 0) & (inside < scores.shape[1]))[:, 0]
            scores[hit, inside[hit]] = -torch.inf
            block.offer(scores, first)
        block.merge()
    return blocks


def _search_itself(q: torch.Tensor, blocks: list[_Block]) -> None:
    """Offer every pair of blocks its tile, on as many threads as PyTorch has, each with a tile of its own.

    A product on one thread and the selection after it, side by side on all threads, leave none of them idle; a product
    on all threads would wait for the selection, most of which runs on one.
    """
    size = blocks[0].stop - blocks[0].start
    own, locks = threading.local(), [threading.Lock() for _ in blocks]

    def work(pair: tuple[int, int]) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = torch.empty(size * size)
        block, other = (blocks[place] for place in pair)
        scores = _products(q[block.start : block.stop], q[other.start : other.stop], own.buffer)
        if other is block:
            scores.fill_diagonal_(-torch.inf)
        with locks[pair[0]]:
            block.offer(scores, other.start)
        if other is not block:
            with locks[pair[1]]:
                other.offer_columns(scores, block.start)

    n, threads = len(blocks), min(torch.get_num_threads(), len(blocks))
    pairs = [(i, i + step) for step in range(n) for i in range(n - step)]
    # Tiles of the same step whose blocks differ come one after the other: threads that meet at a lock are rare.
    pairs.sort(key=lambda pair: (pair[1] - pair[0], pair[0] // max(1, pair[1] - pair[0]) % 2, pair[0]))
    with threadpool_limits(1 if threads > 1 else None, "blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, pairs))
        list(pool.map(_Block.merge, blocks))


def _products(a: torch.Tensor, b: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """The inner products of two sets of rows, [len(a), len(b)], in the buffer."""
    out = buffer[: len(a) * len(b)].view(len(a), len(b))
    if out.is_cuda:
        return torch.mm(a, b.T, out=out)
    np.matmul(a.numpy(), b.numpy().T, out=out.numpy())  # NumPy's BLAS: by a third faster than PyTorch's on AMD
    return out


def _settle(block: _Block, q: torch.Tensor, g: torch.Tensor, mine: Integers, k: int) -> Neighbours:
    """The k best of a block in exact order: near ties are computed again, and crowds of them from the whole gallery."""
    values, indices = block.values, block.indices
    mine_here = torch.from_numpy(mine[block.start : block.stop]).to(q.device)
    queries = q[block.start : block.stop]
    # |error| of a sum of d rounded products is at most CERTAIN sqrt(d) u times the sum of their sizes, but for one in
    # 10^8 sums (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 2019);
    # that sum is at most the product of the norms, by Cauchy-Schwarz, and usually far below it.
    error = CERTAIN * q.shape[1] ** 0.5 * 2.0**-24 * queries.norm(dim=1) * g.norm(dim=1).max()
    near = values[:, :-1] - values[:, 1:] <= 2 * error[:, None]
    doubtful = torch.zeros_like(values, dtype=torch.bool)
    doubtful[:, :-1] |= near
    doubtful[:, 1:] |= near
    at_border = values >= values[:, k - 1 : k] - 2 * error[:, None]  # of those behind the k-th, what may come before it
    doubtful[:, k:] = at_border[:, k:]
    doubtful[:, k - 1] |= at_border[:, k:].any(dim=1)
    doubtful &= torch.isfinite(values)  # a query's own row, where others of the block have none
    rows, places = torch.nonzero(doubtful, as_tuple=True)
    values[rows, places] = _pair_scores(queries, g, rows, indices[rows, places])

    by_index = torch.argsort(indices, dim=1)
    values, indices = values.gather(1, by_index), indices.gather(1, by_index)
    by_value = torch.sort(values, dim=1, descending=True, stable=True)
    values, indices = by_value.values[:, :k], indices.gather(1, by_value.indices)[:, :k]

    # Where even the last one kept may come before the k-th, others that were dropped may too.
    if len(g) - int((mine >= 0).all()) > block.K:
        for row in torch.nonzero(at_border[:, -1])[:, 0].tolist():
            everything = torch.arange(len(g), device=q.device)
            scores = _pair_scores(queries, g, torch.full_like(everything, row), everything)
            if mine_here[row] >= 0:
                scores[mine_here[row]] = -torch.inf
            best = torch.sort(scores, descending=True, stable=True)
            values[row], indices[row] = best.values[:k], best.indices[:k]
    return Neighbours(indices.cpu().numpy(), values.cpu().numpy())


def _pair_scores(queries: torch.Tensor, g: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The inner products of pairs, each computed in float64 in the same way wherever it stands."""
    out = torch.empty(len(rows), device=queries.device)
    pairs = max(1, (GPU_PAIR_VALUES if queries.is_cuda else CPU_PAIR_VALUES) // queries.shape[1])
    if queries.is_cuda:
        for start in range(0, len(rows), pairs):
            part = slice(start, start + pairs)
            out[part] = (queries[rows[part]].double() * g[columns[part]].double()).sum(dim=1).float()
        return out
    Q, G, i, j, scores = (tensor.numpy() for tensor in (queries, g, rows, columns, out))
    for start in range(0, len(rows), pairs):  # NumPy: pieces this small are not worth waking PyTorch's threads
        part = slice(start, start + pairs)
        scores[part] = np.einsum("pd,pd->p", Q[i[part]].astype(np.float64), G[j[part]].astype(np.float64))
    return out


def _faiss(Q: Floats, G: Floats, k: int, mine: Integers, engine: Engine) -> Neighbours:
    try:
        import faiss  # here: only two engines need it
    except ImportError as error:
        raise ConfigError(
            f'engine "{engine}" needs FAISS, which is not installed; install the extra: kit-retrieval[faiss]'
        ) from error
    d = G.shape[1]
    index: Any
    if engine == "hnsw":
        index = faiss.IndexHNSWFlat(d, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD
        index.hnsw.efSearch = max(HNSW_SEARCH, 2 * (k + 1))
    elif engine == "ivf":
        lists = max(1, len(G) // IVF_ROWS_PER_LIST)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(8, round(IVF_PROBE_SHARE * lists))
        index.train(G)
    else:
        raise ValueError(f'engine: found {engine!r}, expected "exact", "hnsw" or "ivf"')
    index.add(G)
    scores, indices = index.search(Q, min(k + 1, len(G)))
    own = (indices == mine[:, None]) & (mine >= 0)[:, None]
    scores = np.where(own | (indices < 0), -np.inf, scores).astype(np.float32)
    order = np.lexsort((indices, -scores), axis=1)
    scores = np.take_along_axis(scores, order, axis=1)[:, :k]
    indices = np.take_along_axis(indices, order, axis=1)[:, :k].astype(np.int64)
    short = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(short):
        exact = top_k(Q[short], G, k, own=mine[short])
        scores[short], indices[short] = exact.scores, exact.indices
    return Neighbours(indices, scores)
