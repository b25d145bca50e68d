"""Counting words and pairs of words: `ai4code.text` beside scikit-learn's `CountVectorizer`.

    python benchmarks/bench_text.py

takes about a minute and prints a Markdown table.  Both sides turn the same cells into a sparse matrix of counts;
scikit-learn is given an analyser that splits as ours does, and equal counts are asserted before anything is timed.  The
two are timed in turn.
"""

import re
import sys
import tempfile
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer
from timing import in_turn

from ai4code.data import load
from ai4code.sample import write_sample
from ai4code.text import Words, analyze, count_matrix, word_ngrams

REPEATS = 7
CELLS = 10_000
CORPUS = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "ai4code-mini" / "ai4code-mini.zip"
SAMPLE_NOTEBOOKS = 700  # about as many cells, where the corpus is absent
REQUIRED_RATIO = 3.0


def _class_of(*categories: str) -> str:
    """The characters of some Unicode categories, for a character class of `re`, which has no names for them."""
    return re.escape("".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in categories))


HUMP = re.compile(f"([{_class_of('Ll', 'Nd', 'Nl', 'No')}])([{_class_of('Lu')}])")
WORD = re.compile(r"[^\W_]+")


def run() -> list[dict[str, Any]]:
    """One row: `name`, `ours_seconds`, `peer`, `peer_seconds`, `ratio`, `spread`, `required_ratio`."""
    texts, corpus = _texts()
    plain = texts.to_pylist()
    _assert_equal(texts, plain)
    return [
        in_turn(
            f"Counts of words and pairs, {len(plain):,} cells of {corpus}",
            lambda: _ours(texts),
            "sklearn CountVectorizer",
            lambda: _peer(plain),
            required=REQUIRED_RATIO,
            repeats=REPEATS,
        )
    ]


def _texts() -> tuple[pa.Array, str]:
    """The cells, and what they are from."""
    if CORPUS.exists():
        return load(CORPUS, "train").sources[:CELLS], "ai4code-mini"
    with tempfile.TemporaryDirectory() as folder:
        write_sample(Path(folder) / "sample", SAMPLE_NOTEBOOKS)
        return load(Path(folder) / "sample", "train").sources[:CELLS], "the generated sample"


def _ours(texts: pa.Array) -> tuple[sp.csr_matrix, Words]:
    words = word_ngrams(analyze(texts), 2)
    return count_matrix(words), words


def _peer(texts: list[str]) -> tuple[sp.csr_matrix, CountVectorizer]:
    vectorizer = CountVectorizer(analyzer=_words_and_pairs, dtype=np.float32)
    return vectorizer.fit_transform(texts), vectorizer


def _words_and_pairs(text: str) -> list[str]:
    words = WORD.findall(HUMP.sub(r"\1 \2", text).lower())
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def _assert_equal(texts: pa.Array, plain: list[str]) -> None:
    """Same words, same counts, after the columns are sorted by word."""
    ours, words = _ours(texts)
    peer, vectorizer = _peer(plain)
    names, peer_names = np.array(words.vocabulary.to_pylist()), np.array(vectorizer.get_feature_names_out())
    order, peer_order = np.argsort(names), np.argsort(peer_names)
    assert names[order].tolist() == peer_names[peer_order].tolist(), "the two found different words"
    assert abs(ours[:, order] - peer[:, peer_order]).sum() == 0, "the two counted differently"


if __name__ == "__main__":
    from run import render_rows

    print(render_rows(run()))
