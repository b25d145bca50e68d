"""Notebooks as the neural models see them: cells with vectors and features, similarities, what is known, what is asked.

A `Sample` says which code cells stand in their known order and which cells are asked for a gap between them. In the
notebook as it is, the markdown cells are asked. In training it may be a piece of the notebook with some cells left out,
or one where code cells are asked as well: their order is known in every notebook, so they teach for nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ai4code.config import AugmentConfig
from ai4code.features import View
from ai4code.similarity import SIMILARITIES, similarity_maps
from ai4code.structure import CODE_FEATURES, MARKDOWN_FEATURES, precedes

CODE, MARKDOWN, HIDDEN_CODE = 0, 1, 2  # kinds of cells
N_FEATURES = len(MARKDOWN_FEATURES) + len(CODE_FEATURES)
# Which code cell is the first to hold a word tells the order of the code cells, so these are hidden when it is asked.
ORDER_TELLING = [SIMILARITIES.index(name) for name in ("new_words", "new_names")]


@dataclass(frozen=True, eq=False)
class Item:
    """One notebook, its cells in json order (code cells first).

    Shapes: vectors float16 [n, D] (D may be 0), features float32 [n, N_FEATURES], maps float32 [5, n, n_code],
    number_before int8 [n, n] (1 where the row's section number is smaller, −1 where it is larger),
    rank int64 [n], the true order, or None. `first_row` is the row of its first cell in the table.
    """

    vectors: np.ndarray
    features: np.ndarray
    maps: np.ndarray
    number_before: np.ndarray
    n_code: int
    rank: np.ndarray | None
    first_row: int = 0

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.features)


@dataclass(frozen=True, eq=False)
class Sample:
    """What is known and asked of an item: rows of known code cells in order, rows of asked cells, flags and targets.

    Shapes: code int64 [C], asked int64 [M], gap and rank int64 [M] or None; `tells_order` False hides the maps that
    would give away the order of asked code cells.
    """

    item: Item
    code: np.ndarray
    asked: np.ndarray
    gap: np.ndarray | None
    rank: np.ndarray | None
    tells_order: bool = True

    @property
    def size(self) -> int:
        """Cells of the sample."""
        return len(self.code) + len(self.asked)


def at_least_one(count: Tensor) -> Tensor:
    """What a loss is divided by that is a mean over so many."""
    return count.clamp(min=1)


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples side by side: C columns for known code cells, then M for asked cells; padding is zero.

    Shapes: vectors [B, C + M, D], features [B, C + M, F], kind int64 [B, C + M], padding bool [B, C + M],
    n_code int64 [B], code_maps [B, 5, C, C], maps [B, 5, M, C], number_before [B, M, M], gap int64 [B, M] (−1 for
    padding), rank float32 [B, M], rows: the rows of the cells in their items, in a list of samples. `divisor` makes of
    a count in these samples what a mean is divided by; where several ranks share a batch it counts in all of it.
    """

    vectors: Tensor
    features: Tensor
    kind: Tensor
    padding: Tensor
    n_code: Tensor
    code_maps: Tensor
    maps: Tensor
    number_before: Tensor
    gap: Tensor
    rank: Tensor
    samples: Sequence[Sample]
    divisor: Callable[[Tensor], Tensor] = at_least_one

    @property
    def width(self) -> int:
        """C: columns of known code cells."""
        return self.code_maps.shape[-1]

    @property
    def asked_padding(self) -> Tensor:
        """Padding among asked cells: bool [B, M]."""
        return self.padding[:, self.width :]

    @property
    def code_padding(self) -> Tensor:
        """Padding among known code cells: bool [B, C]."""
        return self.padding[:, : self.width]

    def to(self, device: torch.device) -> "Batch":
        """Move all tensors."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**moved, samples=self.samples, divisor=self.divisor)


def make_items(view: View, vectors: np.ndarray | None, *, with_maps: bool = True) -> list[Item]:
    """Collect the notebooks of a view; `vectors` float [cells of the table, D] or None.

    Without maps similarities are left zero, for models that have no use for them.
    """
    table = view.table
    rank = table.notebooks.true_rank
    features = np.concatenate([table.markdown, table.code], axis=1)
    items = []
    for index in view.indices.tolist():
        start, stop = table.notebooks.offsets[index : index + 2].tolist()
        n_code = view.n_code(index)
        maps = np.zeros((len(SIMILARITIES), stop - start, n_code), np.float32)
        if n_code and with_maps:
            maps = similarity_maps(view.tfidf, table.used, table.defined, start, n_code, stop)
        empty = np.zeros((stop - start, 0), np.float16)
        items.append(
            Item(
                vectors=empty if vectors is None else vectors[start:stop].astype(np.float16),
                features=features[start:stop],
                maps=maps.astype(np.float32),
                number_before=_number_before(view, start, stop),
                n_code=n_code,
                rank=None if rank is None else rank[start:stop],
                first_row=start,
            )
        )
    return items


def _number_before(view: View, start: int, stop: int) -> np.ndarray:
    headings = view.table.headings[start:stop]
    numbered = [i for i, one in enumerate(headings) if one.number]
    before = np.zeros((stop - start, stop - start), np.int8)
    for i in numbered:
        for j in numbered:
            if precedes(headings[i], headings[j]):
                before[i, j], before[j, i] = 1, -1
    return before


def whole(item: Item) -> Sample:
    """Ask all markdown cells of a notebook, all its code cells known."""
    code = np.arange(item.n_code)
    return _sample(item, code, np.arange(item.n_code, item.n_cells))


def thinned(item: Item, longest: int) -> list[Sample]:
    """Ask the markdown cells of a very long notebook in parts, over evenly spaced code cells with both ends.

    A sample has at most `longest` cells.
    """
    if item.n_cells <= longest:
        return [whole(item)]
    kept = np.unique(np.linspace(0, item.n_code - 1, min(item.n_code, longest // 2)).round().astype(np.int64))
    markdown = np.arange(item.n_code, item.n_cells)
    size = longest - len(kept)
    return [_sample(item, kept, markdown[first : first + size]) for first in range(0, len(markdown), size)]


def augmented(item: Item, config: AugmentConfig, rng: np.random.Generator, *, ask_code: bool) -> Sample:
    """Draw a sample of an item with a known order: perhaps a piece of it, some cells left out, code asked if wanted."""
    assert item.rank is not None
    n_code = item.n_code
    code, markdown = np.arange(n_code), np.arange(n_code, item.n_cells)
    if rng.random() < config.piece and n_code > 4:
        length = int(rng.integers(max(3, int(0.3 * n_code)), n_code + 1))
        first = int(rng.integers(0, n_code - length + 1))
        gaps = np.searchsorted(item.rank[:n_code], item.rank[markdown])
        # At an end of the notebook its outermost gap belongs to the piece, elsewhere it is shared with the neighbour.
        inside = (gaps >= first + (first > 0)) & (gaps <= first + length - (first + length < n_code))
        if inside.any():
            code, markdown = code[first : first + length], markdown[inside]
    if rng.random() < config.thin:
        code = _some(code, rng.random(len(code)) >= rng.uniform(0, 2 * config.drop_code), least=2)
        markdown = _some(markdown, rng.random(len(markdown)) >= rng.uniform(0, 2 * config.drop_markdown), least=1)
    if not ask_code:
        return _sample(item, code, markdown)
    hidden = rng.random(len(code)) < config.hide_code
    known = _some(code, ~hidden, least=2)
    asked_code = np.setdiff1d(code, known)
    return _sample(item, known, np.concatenate([asked_code, markdown]), tells_order=len(asked_code) == 0)


def _some(rows: np.ndarray, kept: np.ndarray, least: int) -> np.ndarray:
    """The rows kept, or all of them where too few would be left."""
    return rows[kept] if kept.sum() >= least else rows


def _sample(item: Item, code: np.ndarray, asked: np.ndarray, tells_order: bool = True) -> Sample:
    if item.rank is None:
        return Sample(item, code, asked, None, None, tells_order)
    gap = np.searchsorted(item.rank[code], item.rank[asked])
    return Sample(item, code, asked, gap, item.rank[asked], tells_order)


def make_batch(samples: Sequence[Sample]) -> Batch:
    """Put samples side by side."""
    b = len(samples)
    c = max(len(sample.code) for sample in samples)
    m = max(len(sample.asked) for sample in samples)
    dim = samples[0].item.vectors.shape[1]
    vectors = np.zeros((b, c + m, dim), np.float32)
    features = np.zeros((b, c + m, N_FEATURES), np.float32)
    kind = np.zeros((b, c + m), np.int64)
    padding = np.ones((b, c + m), bool)
    code_maps = np.zeros((b, len(SIMILARITIES), c, c), np.float32)
    maps = np.zeros((b, len(SIMILARITIES), m, c), np.float32)
    before = np.zeros((b, m, m), np.float32)
    gap = np.full((b, m), -1, np.int64)
    rank = np.zeros((b, m), np.float32)
    for i, sample in enumerate(samples):
        item, code, asked = sample.item, sample.code, sample.asked
        n, k = len(code), len(asked)
        for place, rows in ((slice(0, n), code), (slice(c, c + k), asked)):
            vectors[i, place] = item.vectors[rows]
            features[i, place] = item.features[rows]
            padding[i, place] = False
        kind[i, c : c + k] = np.where(asked < item.n_code, HIDDEN_CODE, MARKDOWN)
        known = item.maps[:, :, code] if len(code) < item.n_code else item.maps
        code_maps[i, :, :n, :n] = known[:, code]
        maps[i, :, :k, :n] = known[:, asked]
        if not sample.tells_order:
            code_maps[i, ORDER_TELLING] = 0.0
            maps[i, ORDER_TELLING] = 0.0
        before[i, :k, :k] = item.number_before[np.ix_(asked, asked)]
        if sample.gap is not None and sample.rank is not None:
            gap[i, :k], rank[i, :k] = sample.gap, sample.rank
    return Batch(
        vectors=torch.from_numpy(vectors),
        features=torch.from_numpy(features),
        kind=torch.from_numpy(kind),
        padding=torch.from_numpy(padding),
        n_code=torch.tensor([len(sample.code) for sample in samples]),
        code_maps=torch.from_numpy(code_maps),
        maps=torch.from_numpy(maps),
        number_before=torch.from_numpy(before),
        gap=torch.from_numpy(gap),
        rank=torch.from_numpy(rank),
        samples=samples,
    )
