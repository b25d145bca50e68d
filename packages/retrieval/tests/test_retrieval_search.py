"""The exact search against brute force, with ties, duplicates and odd sizes, and FAISS behind the same call."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kit_core.errors import ConfigError
from kit_retrieval import Neighbours, l2_normalise, search, top_k


def brute(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], k: int, own: NDArray[np.int64]
) -> tuple[list[list[int]], list[list[float]]]:
    """One pair after the other, in float64, sorted by score and then by index."""
    found, scores = [], []
    for q, mine in zip(queries, own.tolist(), strict=True):
        pairs = [
            (-float(np.float32(np.sum(q.astype(np.float64) * g.astype(np.float64)))), j)
            for j, g in enumerate(gallery)
            if j != mine
        ]
        pairs.sort()
        found.append([j for _, j in pairs[:k]])
        scores.append([-s for s, _ in pairs[:k]])
    return found, scores


def vectors(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16, so that a few rows make many of them."""
    monkeypatch.setattr(search, "CPU_TILE", 16)
    monkeypatch.setattr(search, "SLACK", 3)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("n", "d", "k"), [(2, 3, 1), (17, 5, 16), (50, 8, 7), (65, 1, 10), (90, 40, 33)])
def test_rows_among_themselves_equal_brute_force(n: int, d: int, k: int):
    x = vectors(n, d)
    expected, scores = brute(x, x, k, np.arange(n))
    found = top_k(x, k=k)
    assert found.indices.tolist() == expected
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5, atol=1e-5)
    assert found.indices.dtype == np.int64
    assert found.scores.dtype == np.float32


@pytest.mark.usefixtures("small_tiles")
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40), m=st.integers(2, 60), d=st.integers(1, 6), seed=st.integers(0, 99), data=st.data()
)  # fmt: skip
def test_queries_against_a_gallery_of_small_integers_with_many_ties(
    n: int, m: int, d: int, seed: int, data: st.DataObject
):
    rng = np.random.default_rng(seed)
    queries = rng.integers(-2, 3, (n, d)).astype(np.float32)
    gallery = rng.integers(-2, 3, (m, d)).astype(np.float32)
    own = rng.integers(-1, m, n)
    k = data.draw(st.integers(1, m - 1))
    expected, scores = brute(queries, gallery, k, own)
    found = top_k(queries, gallery, k, own=own)
    assert found.indices.tolist() == expected
    assert found.scores.tolist() == scores


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("copies", [2, 5, 40])
def test_copies_of_a_row_come_in_the_order_of_their_index_wherever_they_stand(copies: int):
    # A matrix product may round equal rows differently at the edge of a tile; 40 copies are more than k and the slack.
    x = l2_normalise(np.repeat(vectors(90 // copies + 1, 33), copies, axis=0)[:90])
    order = np.random.default_rng(1).permutation(90)
    x = x[order]
    expected, _ = brute(x, x, 9, np.arange(90))
    found = top_k(x, k=9)
    assert found.indices.tolist() == expected


@pytest.mark.usefixtures("small_tiles")
def test_ties_at_the_border_where_only_some_queries_are_in_the_gallery():
    # 12 of 13 rows are kept: all for the query that is row 4, one too few for the other.
    gallery = np.ones((13, 2), dtype=np.float32)
    found = top_k(gallery[:2], gallery, 9, own=np.array([-1, 4]))
    assert found.indices.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 5, 6, 7, 8, 9]]


def test_all_rows_equal_and_rows_of_zeros():
    assert top_k(np.ones((7, 4), dtype=np.float32), k=3).indices.tolist()[:4] == [
        [1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]
    ]  # fmt: skip
    assert top_k(np.zeros((5, 2), dtype=np.float32), k=2).indices.tolist()[0] == [1, 2]


def test_the_size_of_the_tiles_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    x = l2_normalise(vectors(300, 24))
    whole = top_k(x, k=40)
    for tile in (7, 64, 299, 300):
        monkeypatch.setattr(search, "CPU_TILE", tile)
        again = top_k(x, k=40)
        assert np.array_equal(again.indices, whole.indices)
        np.testing.assert_allclose(again.scores, whole.scores, atol=1e-6)


def test_a_gallery_that_holds_the_queries_gives_the_same_as_the_rows_among_themselves():
    x = l2_normalise(vectors(150, 16))
    rows = np.array([3, 149, 0, 77])
    assert np.array_equal(top_k(x[rows], x, 20, own=rows).indices, top_k(x, k=20).indices[rows])


def test_every_row_of_a_small_gallery_can_be_asked_for():
    x = vectors(6, 3)
    assert sorted(top_k(x, k=5).indices[0].tolist()) == [1, 2, 3, 4, 5]
    assert sorted(top_k(x, x, 6).indices[0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert top_k(x[:0], x, 2).indices.shape == (0, 2)


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "words"),
    [
        (np.zeros((3, 2)), None, 3, "expected 1 .. 2"),
        (np.zeros((3, 2)), None, 0, "expected 1 .. 2"),
        (np.zeros((3, 2)), np.zeros((4, 3)), 1, "2 dimensions"),
        (np.zeros(3), None, 1, "found shape"),
        (np.full((3, 2), np.nan), None, 1, "not finite in 3 rows"),
    ],
)
def test_misuse_is_refused(queries: NDArray[np.float32], gallery: NDArray[np.float32] | None, k: int, words: str):
    with pytest.raises(ValueError, match=words):
        top_k(queries, gallery, k)


def test_own_rows_are_checked():
    x = np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="own"):
        top_k(x, x, 1, own=np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="own"):
        top_k(x, x, 1, own=np.array([0.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match="give the gallery"):
        top_k(x, k=1, own=np.arange(3))
    with pytest.raises(ValueError, match="two equal tables"):
        Neighbours(np.zeros((2, 3), dtype=np.int64), np.zeros((2, 2), dtype=np.float32))


def test_the_precision_of_the_matrix_product_is_full_inside_and_restored():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        x = l2_normalise(vectors(40, 8))
        expected, _ = brute(x, x, 5, np.arange(40))
        assert top_k(x, k=5).indices.tolist() == expected
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("engine", ["hnsw", "ivf"])
def test_an_index_of_faiss_finds_nearly_the_same(engine: search.Engine):
    pytest.importorskip("faiss")
    centres = vectors(60, 32, seed=1)
    x = l2_normalise(np.repeat(centres, 40, axis=0) + vectors(2400, 32, seed=2))
    exact = top_k(x, k=10)
    found = top_k(x, k=10, engine=engine)
    same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.indices, found.indices, strict=True)])
    assert same > 0.95
    assert not (found.indices == np.arange(len(x))[:, None]).any()
    assert all(len(set(row)) == 10 for row in found.indices.tolist())
    np.testing.assert_allclose(found.scores[:, 0], np.einsum("nd,nd->n", x, x[found.indices[:, 0]]), atol=1e-5)


def test_an_index_that_finds_too_few_is_completed_exactly():
    pytest.importorskip("faiss")
    x = vectors(30, 4)
    assert np.array_equal(top_k(x, k=29, engine="ivf").indices, top_k(x, k=29).indices)


def test_without_faiss_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"kit-retrieval\[faiss\]"):
        top_k(vectors(5, 2), k=1, engine="hnsw")


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    x = l2_normalise(np.repeat(vectors(3000, 64), 2, axis=0))
    on_cpu, on_gpu = top_k(x, k=50), top_k(x, k=50, device="cuda")
    assert np.array_equal(on_cpu.indices, on_gpu.indices)
    np.testing.assert_allclose(on_cpu.scores, on_gpu.scores, atol=1e-6)
