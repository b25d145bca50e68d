"""How the cells of one notebook resemble its code cells, in five ways.

A notebook is small: its cells, and the words that its code cells hold, make a dense table that BLAS multiplies a
hundred times faster than a general sparse product sets itself up. Only the length of a row is taken over all words.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

SIMILARITIES = ("words", "new_words", "rare_words", "names", "new_names")
DENSE_NUMBERS = 20_000_000  # of one table (80 MB): a notebook with more is multiplied in blocks of words


@dataclass(frozen=True, eq=False)
class LocalRows:
    """The entries of a notebook's rows whose word some code cell of it holds.

    Shapes: row, column, value, first [entries]; holders [words of the code cells]. `row` counts from the notebook's
    first cell, `column` among those words; `first` marks a word in the first code cell that holds it; `holders` counts
    the code cells that do.
    """

    row: np.ndarray
    column: np.ndarray
    value: np.ndarray
    first: np.ndarray
    holders: np.ndarray

    @classmethod
    def of(cls, matrix: sp.csr_matrix, start: int, n_code: int, stop: int) -> "LocalRows":
        """Cut the rows `start` to `stop`, the code cells first, out of a table of all cells."""
        ends = matrix.indptr[start : stop + 1] - matrix.indptr[start]
        entries = slice(matrix.indptr[start], matrix.indptr[stop])
        words, value = matrix.indices[entries], matrix.data[entries]
        row = np.repeat(np.arange(stop - start), np.diff(ends))
        in_code = int(ends[n_code])
        known, first_at, holders = np.unique(words[:in_code], return_index=True, return_counts=True)
        first = np.zeros(len(words), bool)
        first[first_at] = True  # a CSR lists its rows in order
        column = np.searchsorted(known, words)
        shared = np.zeros(len(words), bool)
        inside = column < len(known)
        shared[inside] = known[column[inside]] == words[inside]
        return cls(row[shared], column[shared], value[shared], first[shared], holders)

    def times(self, right: "list[tuple[np.ndarray, np.ndarray, np.ndarray]]", shape: tuple[int, int]) -> np.ndarray:
        """Multiply these rows with those of other tables over the same words: float32 [tables, *shape].

        Args:
            right: row, column and value of the entries of each table; it has `shape[1]` rows.
            shape: (rows of this table, rows of each other one).
        """
        n_words = len(self.holders)
        width = max(1, DENSE_NUMBERS // max(shape[0], 1))
        products = np.zeros((len(right), *shape), np.float32)
        for low in range(0, n_words, width):
            high = min(low + width, n_words)
            left = _dense(self.row, self.column, self.value, shape[0], low, high)
            for product, entries in zip(products, right, strict=True):
                product += left @ _dense(*entries, shape[1], low, high).T
        return products


def similarity_maps(
    tfidf: sp.csr_matrix,
    used: sp.csr_matrix,
    defined: sp.csr_matrix,
    start: int,
    n_code: int,
    stop: int,
    first: int = 0,
) -> np.ndarray:
    """Compare cells of one notebook with its code cells in five ways: float32 [5, stop - start - first, n_code].

    In the order of `SIMILARITIES`: cosine of TF-IDF words; the same with only those words of a code cell that no
    earlier one has; words weighted by their rarity among the notebook's own code cells; identifiers so weighted;
    identifiers that the code cell is the first to bind.

    Args:
        tfidf: unit rows of all cells; used, defined: which identifiers a cell holds and binds (0 or 1).
        start, stop: the rows of the notebook, its `n_code` code cells first.
        first: leave out so many of its cells; their rows are not computed.
    """
    n_cells = stop - start
    words = LocalRows.of(tfidf, start, n_code, stop)
    in_code = words.row < n_code
    row, column, value = words.row[in_code], words.column[in_code], words.value[in_code]
    rarity = (1.0 / words.holders).astype(np.float32)
    by_word = _without_rows(words, first).times(
        [
            (row, column, value),
            (row, column, value * words.first[in_code]),
            (row, column, value * rarity[column]),
        ],
        (n_cells - first, n_code),
    )

    names = LocalRows.of(used, start, n_code, stop)
    weight = (names.value / names.holders[names.column]).astype(np.float32)
    # A name that no code cell holds weighs 1 and adds to the length of a row only.
    entries = np.diff(used.indptr[start : stop + 1])
    strangers = entries - np.bincount(names.row, minlength=n_cells)
    length = np.sqrt(np.bincount(names.row, weight**2, minlength=n_cells) + strangers)
    unit = (weight / length[names.row]).astype(np.float32)
    names = LocalRows(names.row, names.column, unit, names.first, names.holders)
    in_code = names.row < n_code
    bound = _first_bound(used, defined, start, n_code)
    by_name = _without_rows(names, first).times(
        [(names.row[in_code], names.column[in_code], unit[in_code]), bound], (n_cells - first, n_code)
    )
    # Rounding errors depend on where BLAS cuts its blocks; without them equal cells have equal similarities.
    return np.round(np.concatenate([by_word, by_name]), 5)


def _first_bound(
    used: sp.csr_matrix, defined: sp.csr_matrix, start: int, n_code: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The names that each code cell is the first to bind: row, column among the names of the code cells, and 1."""
    held = np.unique(used.indices[used.indptr[start] : used.indptr[start + n_code]])
    ends = defined.indptr[start : start + n_code + 1]
    bound, first_at = np.unique(defined.indices[ends[0] : ends[-1]], return_index=True)
    row = np.searchsorted(ends - ends[0], first_at, side="right") - 1
    known = np.isin(bound, held)  # a parsed name is normalised Unicode, and may differ from what the text holds
    return row[known], np.searchsorted(held, bound[known]), np.ones(int(known.sum()), np.float32)


def _without_rows(rows: LocalRows, first: int) -> LocalRows:
    if first == 0:
        return rows
    kept = rows.row >= first
    return LocalRows(rows.row[kept] - first, rows.column[kept], rows.value[kept], rows.first[kept], rows.holders)


def _dense(row: np.ndarray, column: np.ndarray, value: np.ndarray, rows: int, low: int, high: int) -> np.ndarray:
    """Write the entries of the columns `low` to `high` into a dense float32 table."""
    dense = np.zeros((rows, high - low), np.float32)
    inside = (low <= column) & (column < high)
    dense[row[inside], column[inside] - low] = value[inside]
    return dense
