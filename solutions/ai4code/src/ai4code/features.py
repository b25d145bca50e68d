"""Numbers for the models: how a cell resembles each code cell of its notebook, and what follows for its place.

Two tables are made of the same parts. `View.cell_features` has a row for every cell (regressors, ranker, MLP);
`View.gap_block` has one for every pair of a markdown cell and a gap (the gap models), made notebook by notebook, so
that memory stays flat. A `CellTable` holds what no fold can change; what is fitted (document frequencies, singular
vectors) comes in as a `TextModel`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from ai4code.data import Notebooks
from ai4code.decode import true_gaps
from ai4code.similarity import SIMILARITIES, similarity_maps
from ai4code.structure import (
    CODE_FEATURES,
    MARKDOWN_FEATURES,
    Heading,
    code_features,
    defined_names,
    heading,
    markdown_features,
)
from ai4code.text import TextModel, Words, WordSource, analyze, character_counts, count_matrix, word_ngrams

NOT_A_NAME = r"[^A-Za-z0-9_]+"
SHARPNESS = 20.0  # of the softmax over cosines; 20 was the best of 5, 10, 20 for placing by similarity alone
PROFILE_BINS = 10


@dataclass(frozen=True, eq=False)
class CellTable:
    """The cells of `notebooks` before any fitting; what costs time is computed when it is first asked for.

    `words` are those of every cell, in the way the run counts them.
    """

    notebooks: Notebooks
    words: Words

    @cached_property
    def counts(self) -> sp.csr_matrix:
        """Word counts, float32 CSR [cells, words]."""
        return count_matrix(self.words)

    @cached_property
    def characters(self) -> tuple[sp.csr_matrix, pa.Array]:
        """Counts of 3- to 5-character runs inside words, float32 CSR [cells, runs], and the runs themselves."""
        return character_counts(self.words, self.counts)

    @cached_property
    def used(self) -> sp.csr_matrix:
        """1 where a cell's text holds an identifier, float32 CSR [cells, identifiers]."""
        used = count_matrix(self._names)
        used.data[:] = 1.0
        return used

    @cached_property
    def defined(self) -> sp.csr_matrix:
        """1 where a code cell binds a name, float32 CSR [cells, identifiers]."""
        place = {name: column for column, name in enumerate(self._names.vocabulary.to_pylist())}
        rows, columns = [], []
        for row in np.flatnonzero(~self.notebooks.is_markdown):
            known = [place[name] for name in defined_names(self.notebooks.sources[row].as_py()) if name in place]
            rows += [row] * len(known)
            columns += known
        return sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=self.used.shape)

    @cached_property
    def markdown(self) -> np.ndarray:
        """`MARKDOWN_FEATURES` of every cell, zero for code cells: float32 [cells, features]."""
        return self._of_type(markdown_features, len(MARKDOWN_FEATURES), self.notebooks.is_markdown)

    @cached_property
    def code(self) -> np.ndarray:
        """`CODE_FEATURES` of every cell, zero for markdown cells: float32 [cells, features]."""
        return self._of_type(code_features, len(CODE_FEATURES), ~self.notebooks.is_markdown)

    @cached_property
    def headings(self) -> list[Heading]:
        """First line of every cell, read as a heading; code cells have none."""
        none = Heading(0, ())
        pairs = zip(self.notebooks.is_markdown, self.notebooks.sources, strict=True)
        return [heading(text.as_py()) if is_markdown else none for is_markdown, text in pairs]

    @cached_property
    def cell_rows(self) -> list[np.ndarray]:
        """The rows of every notebook."""
        return [np.arange(*pair) for pair in zip(self.notebooks.offsets[:-1], self.notebooks.offsets[1:], strict=True)]

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """The rows of some notebooks, one after the other: int64 [cells]."""
        parts = [self.cell_rows[i] for i in indices]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @cached_property
    def _names(self) -> Words:
        return analyze(self.notebooks.sources, split_identifiers)

    def _of_type(self, describe_cell: Callable[[str], np.ndarray], width: int, chosen: np.ndarray) -> np.ndarray:
        features = np.zeros((len(chosen), width), np.float32)
        for row in np.flatnonzero(chosen):
            features[row] = describe_cell(self.notebooks.sources[row].as_py())
        return features


def describe(notebooks: Notebooks, words_of: WordSource, longest: int = 1) -> CellTable:
    """Split the texts of all cells by `words_of` and count runs of up to `longest` words."""
    return CellTable(notebooks, word_ngrams(words_of(notebooks.sources), longest))


def split_identifiers(texts: pa.Array) -> pa.Array:
    """Split at everything that cannot stand in an identifier; case and underscores are kept."""
    blanks = pc.replace_substring_regex(texts, NOT_A_NAME, " ")
    return pc.ascii_split_whitespace(pc.ascii_trim_whitespace(blanks))


def _maps(table: CellTable, tfidf: sp.csr_matrix, index: int, first: int = 0) -> np.ndarray:
    """Compare the cells of a notebook, from the `first` on, with its code cells: float32 [5, cells, n_code]."""
    start, stop = table.notebooks.offsets[index : index + 2].tolist()
    n_code = int(table.notebooks.n_code[index])
    return similarity_maps(tfidf, table.used, table.defined, start, n_code, stop, first)


# --- One row a cell ---

_PLACE_NAMES = ("best_at", "best", "second_at", "margin", "soft_at", "soft_spread", "mean")
CELL_FEATURES: tuple[str, ...] = (
    "is_markdown", "n_code", "n_markdown", "markdown_share", "own_place",
    *(f"{kind}_{name}" for kind in SIMILARITIES for name in _PLACE_NAMES),
    *(f"words_profile_{bin_}" for bin_ in range(PROFILE_BINS)),
    *MARKDOWN_FEATURES, *CODE_FEATURES,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class View:
    """Some notebooks of a table seen through a fitted text model: all that a model is given, to fit or to answer."""

    table: CellTable
    text: TextModel
    tfidf: sp.csr_matrix  # of the whole table, shared by the views of one text model
    indices: np.ndarray  # int64, the notebooks meant

    @classmethod
    def of(cls, table: CellTable, text: TextModel, indices: np.ndarray | None = None) -> "View":
        """Look at the given notebooks, all by default."""
        chosen = np.arange(len(table.notebooks)) if indices is None else indices
        return cls(table, text, text.transform(table.counts, table.words.vocabulary), chosen)

    def select(self, indices: np.ndarray) -> "View":
        """Look at other notebooks of the same table."""
        return View(self.table, self.text, self.tfidf, indices)

    def n_code(self, index: int) -> int:
        """Code cells of a notebook."""
        return int(self.table.notebooks.n_code[index])

    @cached_property
    def rows(self) -> np.ndarray:
        """The cells of these notebooks as rows of the table, notebook by notebook: int64 [cells]."""
        return self.table.rows_of(self.indices)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each notebook begins among `rows`: int64 [notebooks + 1]."""
        return np.concatenate([[0], np.cumsum(self.table.notebooks.lengths[self.indices])]).astype(np.int64)

    @cached_property
    def is_markdown(self) -> np.ndarray:
        """Type of every cell of `rows`: bool [cells]."""
        return self.table.notebooks.is_markdown[self.rows]

    @cached_property
    def true_gap(self) -> np.ndarray:
        """True gap of every cell of `rows`, a code cell's being its own index: int64 [cells]."""
        notebooks = self.table.notebooks
        if notebooks.true_rank is None:
            raise ValueError("these notebooks have no true order")
        gaps = []
        for index in self.indices:
            rank = notebooks.true_rank[self.table.cell_rows[index]]
            gaps.append(np.concatenate([np.arange(self.n_code(index)), true_gaps(rank, self.n_code(index))]))
        return np.concatenate(gaps) if gaps else np.zeros(0, np.int64)

    @cached_property
    def cell_features(self) -> np.ndarray:
        """Describe every cell: float32 [cells, len(CELL_FEATURES) + singular vectors].

        All places are relative, (index of the code cell + ½) / n_code. A code cell knows its own place; a markdown cell
        has −1 there. The singular coordinates of the text stand behind `CELL_FEATURES`.
        """
        return self._features(self.rows, markdown_only=False)

    @cached_property
    def markdown_features(self) -> np.ndarray:
        """The rows of `cell_features` that are markdown cells, at half the cost: float32 [markdown cells, features]."""
        return self._features(self.rows[self.is_markdown], markdown_only=True)

    def _features(self, rows: np.ndarray, markdown_only: bool) -> np.ndarray:
        with threadpool_limits(1, user_api="blas"):  # its threads cost more to wake than such small products take
            blocks = [_cell_block(self.table, self.tfidf, int(i), markdown_only) for i in self.indices]
        relations = np.concatenate([np.zeros((0, _CELL_BLOCK_WIDTH), np.float32), *blocks])
        singular = self.text.project(self.tfidf[rows], self.table.words.vocabulary)
        return np.concatenate([relations, self.table.markdown[rows], self.table.code[rows], singular], axis=1)

    def gap_block(self, index: int) -> np.ndarray:
        """Describe the pairs of one notebook: float32 [n_markdown, n_code + 1, len(GAP_FEATURES)]."""
        return _gap_block(self.table, self.tfidf, index)


_CELL_BLOCK_WIDTH = 5 + len(_PLACE_NAMES) * len(SIMILARITIES) + PROFILE_BINS


def _cell_block(table: CellTable, tfidf: sp.csr_matrix, index: int, markdown_only: bool) -> np.ndarray:
    """Relations of the cells of one notebook: float32 [cells, _CELL_BLOCK_WIDTH]; if asked, of markdown cells only."""
    n_code, n_markdown = int(table.notebooks.n_code[index]), int(table.notebooks.n_markdown[index])
    first = n_code if markdown_only else 0
    n_cells = n_code + n_markdown - first
    is_markdown = np.arange(first, n_code + n_markdown) >= n_code
    own = np.where(is_markdown, -1.0, (np.arange(n_cells) + 0.5) / max(n_code, 1))
    size = [np.full(n_cells, value) for value in (n_code, n_markdown, n_markdown / max(n_code + n_markdown, 1))]
    parts = [is_markdown, *size, own]
    if n_code == 0:
        empty = np.full((n_cells, _CELL_BLOCK_WIDTH - len(parts)), -1.0)
        return np.concatenate([np.stack(parts, axis=1), empty], axis=1).astype(np.float32)
    maps = _maps(table, tfidf, index, first)
    place = (np.arange(n_code) + 0.5) / n_code
    best = maps.argmax(axis=2)
    highest = maps.max(axis=2)
    others = maps.copy()
    np.put_along_axis(others, best[:, :, None], -1.0, axis=2)
    second = others.argmax(axis=2)
    weight = np.exp(SHARPNESS * (maps - highest[:, :, None]))
    weight /= weight.sum(axis=2, keepdims=True)
    soft = weight @ place
    spread = np.sqrt(np.maximum(weight @ place**2 - soft**2, 0.0))
    margin = highest - np.maximum(others.max(axis=2), 0.0)
    # Row by row of `_PLACE_NAMES` within each similarity.
    found = np.stack([place[best], highest, place[second], margin, soft, spread, maps.mean(axis=2)], axis=1)
    parts += list(found.reshape(len(maps) * len(_PLACE_NAMES), n_cells))
    bins = (np.arange(n_code) * PROFILE_BINS) // n_code
    profile = np.full((n_cells, PROFILE_BINS), -1.0)
    for bin_ in np.unique(bins):
        profile[:, bin_] = maps[0][:, bins == bin_].max(axis=1)
    return np.concatenate([np.stack(parts, axis=1), profile], axis=1).astype(np.float32)


# --- One row a pair of markdown cell and gap ---

_PAIR_NAMES = (
    "next", "previous", "next_share", "previous_share", "next_z", "next_rank", "previous_rank", "next_rival_rank",
    "previous_rival_rank", "rise", "smooth_next",
)  # fmt: skip
_PREVIOUS_CODE = ("code_characters", "code_lines", "code_has_import", "code_has_def", "code_has_plt.", "code_has_%")
GAP_FEATURES: tuple[str, ...] = (
    *(f"{kind}_{name}" for kind in SIMILARITIES for name in _PAIR_NAMES),
    "words_cdf", "new_words_cdf", "names_cdf", "place", "gap", "gaps_after", "code_continues",
    *(f"next_{name}" for name in CODE_FEATURES), *(f"previous_{name}" for name in _PREVIOUS_CODE),
    *MARKDOWN_FEATURES, "n_code", "n_markdown", "best", "mean", "second",
)  # fmt: skip
_PREVIOUS_COLUMNS = [CODE_FEATURES.index(name) for name in _PREVIOUS_CODE]


def _gap_block(table: CellTable, tfidf: sp.csr_matrix, index: int) -> np.ndarray:
    """Features of every pair of a markdown cell and a gap; there must be code cells.

    `next` is the code cell behind the gap, `previous` the one before it; ranks count from 0, `rival` ranks are taken
    among the markdown cells of the notebook; −1 (99 for ranks) stands where there is no such cell.
    """
    start = int(table.notebooks.offsets[index])
    n_code, n_markdown = int(table.notebooks.n_code[index]), int(table.notebooks.n_markdown[index])
    shape = (n_markdown, n_code + 1)
    maps = _maps(table, tfidf, index, n_code)
    parts: list[np.ndarray] = []
    for similarity in maps:
        highest = similarity.max(axis=1, keepdims=True)
        z = (similarity - similarity.mean(axis=1, keepdims=True)) / (similarity.std(axis=1, keepdims=True) + 1e-6)
        share = similarity / (highest + 1e-6)
        smooth = _smooth(similarity)
        smooth = smooth / (smooth.max(axis=1, keepdims=True) + 1e-6)
        rank, rival = _ranks(similarity), _rival_ranks(similarity)
        parts += [_before(similarity), _after(similarity), _before(share), _after(share), _before(z)]
        parts += [_before(rank, 99.0), _after(rank, 99.0), _before(rival, 99.0), _after(rival, 99.0)]
        parts += [_before(smooth) - _after(smooth), _before(smooth)]
    for kind in ("words", "new_words", "names"):
        similarity = maps[SIMILARITIES.index(kind)]
        weight = np.exp(SHARPNESS * (similarity - similarity.max(axis=1, keepdims=True)))
        mass = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
        parts.append(np.concatenate([np.zeros((n_markdown, 1)), mass], axis=1))
    gap = np.arange(n_code + 1)
    code_rows = tfidf[start : start + n_code]
    neighbours = np.asarray(code_rows[:-1].multiply(code_rows[1:]).sum(axis=1)).ravel()
    continues = np.concatenate([[-1.0], neighbours, [-1.0]])
    parts += [_wide(row, shape) for row in (gap / n_code, gap, n_code - gap, continues)]
    code = table.code[start : start + n_code]
    absent = np.full((1, code.shape[1]), -1.0, np.float32)
    next_code, previous_code = np.concatenate([code, absent]), np.concatenate([absent, code])
    parts += [_wide(column, shape) for column in next_code.T]
    parts += [_wide(previous_code[:, column], shape) for column in _PREVIOUS_COLUMNS]
    markdown = table.markdown[start + n_code : start + n_code + n_markdown]
    parts += [_tall(column, shape) for column in markdown.T]
    ordered = np.sort(maps[0], axis=1)
    second = ordered[:, -2] if n_code > 1 else np.zeros(n_markdown)
    parts += [_wide(np.full(n_code + 1, value), shape) for value in (n_code, n_markdown)]
    parts += [_tall(column, shape) for column in (ordered[:, -1], maps[0].mean(axis=1), second)]
    return np.stack(parts, axis=-1).astype(np.float32)


def _before(values: np.ndarray, absent: float = 0.0) -> np.ndarray:
    """Column g holds what the code cell behind gap g shows; the last gap has none."""
    return np.concatenate([values, np.full((len(values), 1), absent, np.float32)], axis=1)


def _after(values: np.ndarray, absent: float = 0.0) -> np.ndarray:
    """Column g holds what the code cell before gap g shows; gap 0 has none."""
    return np.concatenate([np.full((len(values), 1), absent, np.float32), values], axis=1)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank along the code axis from 0 for the highest; equal values by position."""
    order = np.argsort(-values, axis=1, kind="stable")
    return np.argsort(order, axis=1, kind="stable").astype(np.float32)


def _rival_ranks(values: np.ndarray) -> np.ndarray:
    """Rank among the markdown cells from 0 for the highest; equal ones share a rank, for json order says nothing."""
    if not len(values):
        return np.zeros_like(values)
    rounded = np.round(values, 5)  # so that rounding errors do not part equal ones
    return (rankdata(-rounded, method="min", axis=0) - 1).astype(np.float32)


def _smooth(values: np.ndarray, width: float = 1.5) -> np.ndarray:
    """Average along the code axis with weights exp(−distance / width)."""
    n = values.shape[1]
    kernel = np.exp(-np.abs(np.arange(n)[:, None] - np.arange(n)[None, :]) / width)
    return values @ (kernel / kernel.sum(axis=0))


def _wide(row: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(row[None, :], shape)


def _tall(column: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(column[:, None], shape)
