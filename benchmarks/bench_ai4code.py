"""AI4Code, classical half: the whole of `tfidf-lightgbm`, and its similarities beside scipy's sparse products.

    python benchmarks/run.py ai4code

takes about two minutes. The first row has a limit in place of a peer: prepare, train on
five folds and infer, each through the command line in a process of its own, as a user starts them; once, since nothing
in it is short. The second times `similarity_maps` and the same five definitions written with `scipy.sparse`, in turn
over the same notebooks, after their results were found equal.
"""

import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits
from timing import in_turn, seconds

from ai4code.data import Notebooks, load
from ai4code.features import View, describe
from ai4code.sample import write_sample
from ai4code.similarity import similarity_maps
from ai4code.text import fit_text_model, unit_rows
from ai4code.words import word_source

REPEATS = 5
CORPUS = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "ai4code-mini" / "ai4code-mini.zip"
SAMPLE_NOTEBOOKS = 2000  # about as many, where the corpus is absent
LIMIT_SECONDS = 90.0
NOTEBOOKS = 300
TOLERANCE = 2e-5  # ours are rounded to five places


def run() -> list[dict[str, Any]]:
    """Two rows, with the keys that benchmarks/run.py asks for."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, name = CORPUS, "ai4code-mini"
        if not corpus.exists():
            corpus, name = Path(folder) / "sample", "the generated sample"
            write_sample(corpus, SAMPLE_NOTEBOOKS)
        return [_pipeline(corpus, name, Path(folder)), _similarities(load(corpus, "train"), name)]


def _pipeline(corpus: Path, name: str, folder: Path) -> dict[str, Any]:
    commands = (
        ("prepare", "--data", corpus, "--out", folder / "prepared"),
        ("train", "tfidf-lightgbm", "--data", folder / "prepared", "--run", folder / "run"),
        ("infer", "--run", folder / "run", "--data", folder / "prepared", "--out", folder / "orders.csv"),
    )
    program = Path(sys.executable).with_name("ai4code")
    took = sum(
        seconds(partial(subprocess.run, [program, *map(str, command)], check=True, stderr=subprocess.DEVNULL))
        for command in commands
    )
    return {
        "name": f"prepare + train (5 folds) + infer of tfidf-lightgbm, {name}; limit {LIMIT_SECONDS:.0f} s",
        "ours_seconds": took,
        "peer": "",
        "peer_seconds": None,
        "ratio": LIMIT_SECONDS / took,
        "spread": 0.0,
        "required_ratio": 1.0,
        "memory_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def _similarities(notebooks: Notebooks, name: str) -> dict[str, Any]:
    notebooks = notebooks.select(np.arange(min(NOTEBOOKS, len(notebooks))))
    table = describe(notebooks, word_source(None))
    text = fit_text_model(table.counts, table.words.vocabulary, np.arange(len(notebooks.is_markdown)))
    tables = (View.of(table, text).tfidf, table.used, table.defined)
    places = [
        (int(start), int(n_code), int(stop))
        for start, n_code, stop in zip(notebooks.offsets[:-1], notebooks.n_code, notebooks.offsets[1:], strict=True)
        if n_code
    ]
    with threadpool_limits(1, user_api="blas"):  # scipy's sparse products have one thread as well
        for place in places:
            np.testing.assert_allclose(similarity_maps(*tables, *place), _by_scipy(*tables, *place), atol=TOLERANCE)
        return in_turn(
            f"five similarities of every cell with every code cell, {len(places)} notebooks of {name}",
            lambda: [similarity_maps(*tables, *place) for place in places],
            "scipy.sparse products",
            lambda: [_by_scipy(*tables, *place) for place in places],
            required=None,
            repeats=REPEATS,
        )


def _by_scipy(
    tfidf: sp.csr_matrix, used: sp.csr_matrix, defined: sp.csr_matrix, start: int, n_code: int, stop: int
) -> np.ndarray:
    """The peer: every definition as one product of sparse tables over all words."""
    cells, code = tfidf[start:stop], tfidf[start : start + n_code]
    rarity = 1.0 / np.maximum(np.bincount(used[start : start + n_code].indices, minlength=used.shape[1]), 1)
    names = unit_rows(_scaled(used[start:stop], rarity))
    rare = _scaled(cells, 1.0 / np.maximum(np.bincount(code.indices, minlength=code.shape[1]), 1))
    first_bound = _first_only(defined[start : start + n_code])
    first_bound.data[:] = 1.0
    return np.stack(
        [
            (cells @ code.T).toarray(),
            (cells @ _first_only(code).T).toarray(),
            (rare @ code.T).toarray(),
            (names @ names[:n_code].T).toarray(),
            (names @ first_bound.T).toarray(),
        ]
    )


def _scaled(matrix: sp.csr_matrix, scale: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix(
        (matrix.data * scale[matrix.indices].astype(np.float32), matrix.indices, matrix.indptr), matrix.shape
    )


def _first_only(code: sp.csr_matrix) -> sp.csr_matrix:
    """Keep of every column only the first non-zero row."""
    first = np.unique(code.indices, return_index=True)[1]  # a CSR lists its rows in order
    row = np.repeat(np.arange(code.shape[0]), np.diff(code.indptr))[first]
    return sp.csr_matrix((code.data[first], (row, code.indices[first])), code.shape)


if __name__ == "__main__":
    from run import render_rows

    print(render_rows(run()))
