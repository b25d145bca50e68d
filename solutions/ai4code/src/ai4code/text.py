"""Words of cells: splitting at Arrow speed, n-grams, TF-IDF vectors and their singular vectors.

A word is a run of letters or digits; identifiers are split at `_` and at camelCase humps, everything is lower-cased.
The splitting is done by Arrow's compiled kernels over whole columns in threads, never cell by cell in Python.

Fitting touches training rows only. Words that training never saw still count when two cells of one notebook are
compared: they get the weight of a word that occurs in no document, since the rarest names tell most about a place.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from safetensors.numpy import load_file, save
from sklearn.utils.extmath import randomized_svd

from kit_core.atomic import write_bytes

CAMEL_HUMP = r"(\p{Ll}|\p{N})(\p{Lu})"
NOT_A_WORD = r"[^\pL\pN]+"
CHUNK_CELLS = 8192  # large enough for the compiled kernels, small enough to share between threads


@dataclass(frozen=True)
class Words:
    """The words of many cells: `codes[offsets[i]:offsets[i + 1]]` index `vocabulary` in reading order.

    Shapes: codes int64 [words], offsets int64 [cells + 1], vocabulary Arrow strings [distinct words].
    """

    codes: np.ndarray
    offsets: np.ndarray
    vocabulary: pa.Array

    @property
    def counts(self) -> np.ndarray:
        """Words in every cell, int64 [cells]."""
        return np.diff(self.offsets)


Analyzer = Callable[[pa.Array], pa.Array]  # texts -> lists of strings
WordSource = Callable[[pa.Array], Words]


def split_words(texts: pa.Array) -> pa.Array:
    """Split texts into lists of lower-case words: `parseHTTP_v2 (x)` gives parse, http, v2, x."""
    humps = pc.replace_substring_regex(texts, CAMEL_HUMP, r"\1 \2")
    blanks = pc.replace_substring_regex(pc.utf8_lower(humps), NOT_A_WORD, " ")
    return pc.ascii_split_whitespace(pc.ascii_trim_whitespace(blanks))


def analyze(texts: pa.Array, analyzer: Analyzer = split_words) -> Words:
    """Split every text by `analyzer` and number the distinct words by first appearance."""
    chunks = [texts.slice(start, CHUNK_CELLS) for start in range(0, len(texts), CHUNK_CELLS)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Arrow's kernels release the interpreter lock
        lists = list(threads.map(lambda chunk: _without_empty(analyzer(chunk)), chunks))
    if not any(len(words.flatten()) for words in lists):  # Arrow drops empty chunks, so there would be none to join
        return Words(np.zeros(0, np.int64), np.zeros(len(texts) + 1, np.int64), pa.array([], pa.string()))
    encoded = pa.chunked_array([words.flatten() for words in lists]).dictionary_encode().unify_dictionaries()
    codes = np.concatenate([np.asarray(chunk.indices) for chunk in encoded.chunks]).astype(np.int64)
    lengths = np.concatenate([np.asarray(pc.list_value_length(words)) for words in lists])
    vocabulary = encoded.chunk(0).dictionary.cast(pa.string())
    return Words(codes, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), vocabulary)


def _without_empty(lists: pa.Array) -> pa.Array:
    """An empty text splits into one empty word; take it out."""
    values = lists.flatten()
    empty = np.asarray(pc.equal(pc.binary_length(values), 0))
    if not empty.any():
        return lists
    lengths = np.asarray(pc.list_value_length(lists))
    row_of_value = np.repeat(np.arange(len(lists)), lengths)
    kept = np.bincount(row_of_value[~empty], minlength=len(lists))
    offsets = pa.array(np.concatenate([[0], np.cumsum(kept)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, values.filter(pa.array(~empty)).cast(pa.large_string()))


def word_ngrams(words: Words, longest: int) -> Words:
    """Add the runs of 2..`longest` words inside each cell, named by their words with a blank between.

    The order inside a cell is: all single words, then all pairs, and so on.
    """
    if longest == 1:
        return words
    cells = np.repeat(np.arange(len(words.counts)), words.counts)
    codes, rows, vocabularies = [words.codes], [cells], [words.vocabulary]
    known = len(words.vocabulary)
    previous, previous_names = words.codes, words.vocabulary  # the n-gram that starts at each word
    starts = np.arange(len(words.codes))
    for length in range(2, longest + 1):
        inside = starts + length - 1 < len(words.codes)
        starts, previous = starts[inside], previous[inside]
        same_cell = cells[starts] == cells[starts + length - 1]
        starts, previous = starts[same_cell], previous[same_cell]
        last = words.codes[starts + length - 1]
        pairs, numbered = np.unique(previous * len(words.vocabulary) + last, return_inverse=True)
        head, tail = np.divmod(pairs, max(len(words.vocabulary), 1))
        names = pc.binary_join_element_wise(previous_names.take(head), words.vocabulary.take(tail), " ")
        codes.append(numbered + known)
        rows.append(cells[starts])
        vocabularies.append(names)
        known += len(names)
        previous, previous_names = numbered, names
    all_codes, all_rows = np.concatenate(codes), np.concatenate(rows)
    order = np.argsort(all_rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(all_rows, minlength=len(words.counts)))])
    return Words(all_codes[order], offsets.astype(np.int64), pa.concat_arrays(vocabularies))


def count_matrix(words: Words) -> sp.csr_matrix:
    """Count every word in every cell: float32 CSR [cells, distinct words]."""
    shape = (len(words.counts), len(words.vocabulary))
    counts = sp.csr_matrix((np.ones(len(words.codes), np.float32), words.codes.copy(), words.offsets), shape=shape)
    counts.sum_duplicates()
    return counts


def character_counts(
    words: Words, counts: sp.csr_matrix, shortest: int = 3, longest: int = 5
) -> tuple[sp.csr_matrix, pa.Array]:
    """Count the character runs inside words, their ends marked by blanks: float32 CSR [cells, runs], and the runs.

    Every distinct word is cut once and multiplied by its counts, so the cost grows with the vocabulary, not the text.
    """
    place: dict[str, int] = {}
    rows, columns = [], []
    for row, word in enumerate(words.vocabulary.to_pylist()):
        marked = f" {word} "
        for length in range(shortest, longest + 1):
            for start in range(len(marked) - length + 1):
                rows.append(row)
                columns.append(place.setdefault(marked[start : start + length], len(place)))
    runs = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(counts.shape[1], len(place)))
    return (counts @ runs).tocsr(), pa.array(list(place), pa.string())


def unit_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Scale every row to Euclidean length 1; empty rows stay empty."""
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scaled = matrix.copy()
    scaled.data = scaled.data / np.repeat(np.where(lengths > 0, lengths, 1.0), np.diff(matrix.indptr))
    return scaled.astype(np.float32)


@dataclass(frozen=True)
class TextModel:
    """Inverse document frequencies of words, and the leading right singular vectors of the training TF-IDF matrix.

    Shapes: words Arrow strings [v], idf float32 [v], unseen_idf scalar for any other word, components float32 [k, v].
    `sublinear` damps counts to 1 + ln(count); `use_idf` False gives plain (bag-of-words) counts.
    """

    words: pa.Array
    idf: np.ndarray
    unseen_idf: float
    components: np.ndarray
    sublinear: bool

    @classmethod
    def empty(cls) -> "TextModel":
        """A model of no words, for a part that is switched off."""
        return cls(pa.array([], pa.string()), np.zeros(0, np.float32), 1.0, np.zeros((0, 0), np.float32), False)

    def lookup(self, vocabulary: pa.Array) -> np.ndarray:
        """Place of each word of another vocabulary in this one, −1 where it is unknown: int64 [words]."""
        found = pc.index_in(vocabulary, value_set=self.words)
        return np.asarray(pc.fill_null(found, -1)).astype(np.int64)

    def transform(self, counts: sp.csr_matrix, vocabulary: pa.Array) -> sp.csr_matrix:
        """Turn counts over any vocabulary into unit TF-IDF rows over the same columns."""
        place = self.lookup(vocabulary)
        idf = np.where(place >= 0, self.idf[np.maximum(place, 0)] if len(self.idf) else 0.0, self.unseen_idf)
        weighted = counts.copy()
        if self.sublinear:
            weighted.data = 1.0 + np.log(weighted.data)
        weighted.data = weighted.data * idf.astype(np.float32)[weighted.indices]
        return unit_rows(weighted)

    def project(self, tfidf: sp.csr_matrix, vocabulary: pa.Array) -> np.ndarray:
        """Coordinates of TF-IDF rows on the singular vectors: float32 [cells, k]; unknown words count nothing."""
        if not len(self.words):
            return np.zeros((tfidf.shape[0], len(self.components)), np.float32)
        place = self.lookup(vocabulary)
        columns = np.where((place >= 0)[:, None], self.components.T[np.maximum(place, 0)], 0.0).astype(np.float32)
        return np.asarray(tfidf @ columns, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write one safetensors file; the words travel as UTF-8 bytes with offsets."""
        joined = self.words.cast(pa.large_string())
        lengths = np.asarray(pc.binary_length(joined)).astype(np.int64)
        tensors: dict[str, np.ndarray] = {
            "idf": self.idf.astype(np.float32),
            "components": np.ascontiguousarray(self.components, dtype=np.float32),
            "word_lengths": lengths,
            "word_bytes": np.frombuffer("".join(joined.to_pylist()).encode(), dtype=np.uint8),
            "settings": np.array([self.unseen_idf, float(self.sublinear)], dtype=np.float64),
        }
        write_bytes(path, save(tensors))

    @classmethod
    def load(cls, path: Path) -> "TextModel":
        """Read what `save` wrote."""
        tensors = load_file(path)
        offsets = np.concatenate([[0], np.cumsum(tensors["word_lengths"])]).astype(np.int64)
        buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(tensors["word_bytes"].tobytes())]
        words = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers).cast(pa.string())
        unseen_idf, sublinear = tensors["settings"]
        return cls(words, tensors["idf"], float(unseen_idf), tensors["components"], bool(sublinear))


def fit_text_model(
    counts: sp.csr_matrix,
    vocabulary: pa.Array,
    train_rows: np.ndarray,
    *,
    use_idf: bool = True,
    sublinear: bool = True,
    components: int = 0,
    seed: int = 0,
) -> TextModel:
    """Fit document frequencies (smoothed as scikit-learn does) and singular vectors on the training rows alone.

    Args:
        counts: float32 CSR [cells, words] over `vocabulary`.
        train_rows: int64 rows that may be looked at.
        components: how many singular vectors to keep, fewer where rows or words are fewer; 0 for none.
    """
    train = counts[train_rows]
    document_frequency = np.bincount(train.indices, minlength=counts.shape[1])
    seen = np.flatnonzero(document_frequency)
    documents = train.shape[0]
    idf = np.log((1 + documents) / (1 + document_frequency[seen])) + 1.0
    unseen_idf = np.log(1 + documents) + 1.0
    if not use_idf:
        idf, unseen_idf = np.ones_like(idf), 1.0
    words = vocabulary.take(pa.array(seen))
    empty = np.zeros((0, len(seen)), np.float32)
    model = TextModel(words, idf.astype(np.float32), float(unseen_idf), empty, sublinear)
    kept = min(components, min(documents, len(seen)) - 1)
    if kept < 1:
        return model
    tfidf = model.transform(train[:, seen], words)
    _, _, right = randomized_svd(tfidf, n_components=kept, n_iter=2, random_state=seed)
    return TextModel(words, model.idf, model.unseen_idf, right.astype(np.float32), sublinear)
