"""Expansion, normalisation and re-ranking against plain loops, dense algebra and examples by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import kit_retrieval
from kit_retrieval import (
    CohortStatistics,
    Neighbours,
    Whitening,
    alpha_expansion,
    as_norm,
    cohort_statistics,
    concatenate,
    diffuse,
    k_reciprocal,
    l2_normalise,
    mutual,
    smooth,
    sweep,
    threshold_expansion,
    top_k,
)


def clustered(groups: int = 12, each: int = 6, d: int = 16, noise: float = 0.6, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, d)).repeat(each, axis=0)
    return l2_normalise((centres + noise * rng.standard_normal(centres.shape)).astype(np.float32))


# --- vectors


def test_rows_get_length_1_and_zeros_stay():
    x = l2_normalise(np.array([[3, 4], [0, 0], [1e-20, 0]], dtype=np.float32))
    np.testing.assert_allclose(x, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)


def test_concatenated_cosine_is_the_weighted_mean_of_cosines():
    rng = np.random.default_rng(0)
    a, b = (100 * rng.standard_normal((7, 5))).astype(np.float32), rng.standard_normal((7, 3)).astype(np.float32)
    both = concatenate([a, b], [3.0, 1.0])
    cosines = [l2_normalise(x) @ l2_normalise(x).T for x in (a, b)]
    np.testing.assert_allclose(both @ both.T, 0.75 * cosines[0] + 0.25 * cosines[1], atol=1e-6)
    with pytest.raises(ValueError, match="equally many"):
        concatenate([a, b[:3]])
    with pytest.raises(ValueError, match="weights"):
        concatenate([a, b], [1.0, -1.0])


def test_whitening_makes_the_covariance_the_identity():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 5).astype(np.float32)
    white = Whitening.fit(x, shrinkage=0.0).apply(x)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=2e-2)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-3)
    turned = Whitening.fit(x, power=0.0, shrinkage=0.0).apply(x)
    np.testing.assert_allclose(turned @ turned.T, (x - x.mean(0)) @ (x - x.mean(0)).T, rtol=1e-3, atol=1e-2)
    half = Whitening.fit(x, power=0.5, shrinkage=0.0).apply(x)
    np.testing.assert_allclose(half.var(axis=0, ddof=1), np.sqrt(turned.var(axis=0, ddof=1)), rtol=1e-3)
    assert Whitening.fit(x, dimensions=2).apply(x).shape == (500, 2)
    constant = np.ones((9, 3), dtype=np.float32)
    assert np.isfinite(Whitening.fit(constant).apply(constant)).all()
    for options in ({"power": 2.0}, {"shrinkage": -0.1}, {"dimensions": 7}):
        with pytest.raises(ValueError, match="must be in"):
            Whitening.fit(x, **options)
    with pytest.raises(ValueError, match="two or more rows"):
        Whitening.fit(x[:1])


# --- expansion


def test_smoothing_is_the_weighted_sum_that_it_says():
    x = clustered()
    near = top_k(x, k=8)
    weights = (25.0, 8.0, 5.0, 3.0, 2.0, 1.0)
    found = smooth(x, near)
    for row in (0, 17, 71):
        total = weights[0] * x[row] + sum(w * x[j] for w, j in zip(weights[1:], near.indices[row], strict=False))
        np.testing.assert_allclose(found[row], total / np.linalg.norm(total), atol=1e-6)
    np.testing.assert_allclose(smooth(x, near, (1.0,)), x, atol=1e-6)
    with pytest.raises(ValueError, match="one more than those"):
        smooth(x, near.cut(3))


def test_alpha_expansion_is_the_weighted_sum_that_it_says():
    x = clustered(noise=1.5)
    near = top_k(x, k=20)
    found = alpha_expansion(x, near, 15, alpha=2.0)
    for row in (3, 40):
        total = x[row] + sum(
            max(float(s), 0.0) ** 2 * x[j] for j, s in zip(near.indices[row, :15], near.scores[row], strict=False)
        )
        np.testing.assert_allclose(found[row], total / np.linalg.norm(total), atol=1e-5)
    mutual_only = alpha_expansion(x, near, 15, alpha=2.0, reciprocal=True)
    row = 5
    theirs = [row in near.indices[j, :15] for j in near.indices[row, :15]]
    shares = np.maximum(near.scores[row, :15], 0) ** 2 * theirs
    total = x[row] + shares @ x[near.indices[row, :15]]
    np.testing.assert_allclose(mutual_only[row], total / np.linalg.norm(total), atol=1e-5)
    with pytest.raises(ValueError, match="count 21"):
        alpha_expansion(x, near, 21)


def test_alpha_0_ignores_neighbours_on_the_other_side():
    x = np.array([[1, 0], [0.9, 0.1], [-1, 0]], dtype=np.float32)
    found = alpha_expansion(l2_normalise(x), top_k(l2_normalise(x), k=2), 2, alpha=0.0)
    assert found[0, 0] > 0.99


def test_mutual_neighbours():
    near = np.array([[1, 2], [0, 2], [3, 1], [2, 0]])
    expected = [[i in near[j] for j in row] for i, row in enumerate(near)]
    assert mutual(near).tolist() == expected


def seeds_reranking(x: NDArray[np.float32], k: int, threshold: float) -> list[list[int]]:
    """The original, query by query, in float64."""
    x = x.astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    out = []
    for q in range(len(x)):
        cosines = unit @ unit[q]
        order = [j for j in np.argsort(-cosines, kind="stable").tolist() if j != q]
        close = [j for j in order[:k] if cosines[j] > threshold]
        query = x[[q, *close]].mean(axis=0)
        again = unit @ (query / np.linalg.norm(query))
        rest = [j for j in np.argsort(-again, kind="stable").tolist() if j != q and j not in close]
        out.append((close + rest)[:k])
    return out


def test_threshold_expansion_on_six_points_by_hand():
    # Directions in degrees; the vector at 28 is ten times as long as the others.
    #   query 0: cos 28 = .883 > .85, so S = {0, 28}. Only 28 passes; 60 (cos .5) and -40 (cos .766) do not.
    #   By cosine with 0 the order would be 28, -40, 60, 120, 180. The mean of S, (1 at 0) + (10 at 28), points to 25.5,
    #   from where 60 is 34.5 away and -40 is 65.5 away: the second query puts 60 before -40.
    degrees, lengths = np.radians([0, 28, 60, -40, 120, 180]), np.array([1, 10, 1, 1, 1, 1])
    x = (np.stack([np.cos(degrees), np.sin(degrees)], axis=1) * lengths[:, None]).astype(np.float32)
    assert top_k(l2_normalise(x), k=5).indices[0].tolist() == [1, 3, 2, 4, 5]
    found = threshold_expansion(x, k=5, threshold=0.85)
    assert found.indices[0].tolist() == [1, 2, 3, 4, 5]
    # 28: cos 28 = .883 and cos 32 = .848: only query 0 joins, and the mean stays near 28.
    assert found.indices[1].tolist() == [0, 2, 3, 4, 5]
    # -40 has nobody above .85: its list is the plain one.
    assert found.indices[3].tolist() == [0, 1, 2, 5, 4]
    assert math.isclose(found.scores[0, 0], math.cos(math.radians(28)), rel_tol=1e-5)


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 0.85, 1.0])
@pytest.mark.parametrize("k", [5, 30, 71])
def test_threshold_expansion_equals_the_original_query_by_query(threshold: float, k: int):
    rng = np.random.default_rng(3)
    x = clustered() * rng.uniform(0.5, 5, (72, 1)).astype(np.float32)
    assert threshold_expansion(x, k=k, threshold=threshold).indices.tolist() == seeds_reranking(x, k, threshold)


# --- score normalisation


def test_as_norm_equals_the_formula_pair_by_pair():
    rng = np.random.default_rng(0)
    x, cohort = clustered(noise=1.0), l2_normalise(rng.standard_normal((30, 16)).astype(np.float32))
    statistics = cohort_statistics(x, cohort, top=8)
    best = np.sort(x @ cohort.T, axis=1)[:, -8:]
    np.testing.assert_allclose(statistics.mean, best.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(statistics.deviation, best.std(axis=1), atol=1e-5)
    near, short = top_k(x, k=40), CohortStatistics(statistics.mean[:9], statistics.deviation[:9])
    found = as_norm(near, statistics, statistics)
    for row in (0, 33):
        s, j = near.scores[row], near.indices[row]
        value = (s - best[row].mean()) / best[row].std() + (s - best[j].mean(axis=1)) / best[j].std(axis=1)
        assert found.indices[row].tolist() == j[np.argsort(-value, kind="stable")].tolist()
    assert np.array_equal(as_norm(near, statistics, statistics, share=0.0).indices, near.indices)
    with pytest.raises(ValueError, match="share"):
        as_norm(near, statistics, statistics, share=2.0)
    with pytest.raises(ValueError, match="top: found 1"):
        cohort_statistics(x, cohort, top=1)
    with pytest.raises(ValueError, match="cohort: found 1 row"):
        cohort_statistics(x, cohort[:1])
    for queries, gallery in ((statistics, short), (short, statistics)):
        with pytest.raises(ValueError, match="statistics of"):
            as_norm(near, queries, gallery)


def test_as_norm_lowers_a_hub():
    near = Neighbours(np.array([[0, 1]]), np.array([[0.8, 0.7]], dtype=np.float32))
    one = CohortStatistics(np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32))
    gallery = CohortStatistics(np.array([0.6, 0.1], dtype=np.float32), np.array([0.1, 0.1], dtype=np.float32))
    assert as_norm(near, one, gallery).indices.tolist() == [[1, 0]]


# --- k-reciprocal


def dense_k_reciprocal(x: NDArray[np.float32], k1: int, k2: int, share: float) -> NDArray[np.float64]:
    """The paper, row by row, on whole tables; scores to be sorted."""
    n = len(x)
    cosine = (x @ x.T).astype(np.float64)
    np.fill_diagonal(cosine, np.inf)  # each row is its own first neighbour
    order = np.argsort(-cosine, axis=1, kind="stable")
    np.fill_diagonal(cosine, 1.0)

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i, : k + 1].tolist() if i in order[j, : k + 1]}

    V = np.zeros((n, n))
    for i in range(n):
        core = reciprocal(i, k1)
        members = set(core)
        for j in core:
            small = reciprocal(j, round(k1 / 2))
            if len(small & core) > 2 / 3 * len(small):
                members |= small
        chosen = sorted(members)
        weights = np.exp(-(2 - 2 * cosine[i, chosen]))
        V[i, chosen] = weights / weights.sum()
    if k2 > 1:
        V = np.stack([V[order[i, :k2]].mean(axis=0) for i in range(n)])
    jaccard = np.array([[np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in V] for a in V])
    return (1 - share) * cosine + share * jaccard


@pytest.mark.parametrize(("k1", "k2", "share"), [(10, 1, 1.0), (10, 4, 0.7), (7, 7, 0.3), (1, 1, 0.5)])
def test_k_reciprocal_equals_the_paper_on_whole_tables(k1: int, k2: int, share: float):
    x = clustered(noise=0.9)
    found = k_reciprocal(top_k(x, k=71), k1=k1, k2=k2, share=share)
    expected = dense_k_reciprocal(x, k1, k2, share)
    for row in range(72):
        np.testing.assert_allclose(found.scores[row], expected[row, found.indices[row]], atol=1e-5)
        assert (np.diff(found.scores[row]) <= 0).all()
        assert sorted(found.indices[row].tolist()) == [j for j in range(72) if j != row]


def test_k_reciprocal_helps_where_groups_overlap_and_leaves_the_candidates():
    x = clustered(groups=30, noise=1.1, seed=4)
    labels = np.repeat(np.arange(30), 6)
    near = top_k(x, k=40)
    found = k_reciprocal(near, k1=8, k2=3, share=0.7)
    assert [set(row) for row in found.indices.tolist()] == [set(row) for row in near.indices.tolist()]
    before, after = ((labels[t.indices[:, :5]] == labels[:, None]).mean() for t in (near, found))
    assert after > before + 0.02
    with pytest.raises(ValueError, match="k1 50"):
        k_reciprocal(near, k1=50)


# --- diffusion


def test_diffusion_equals_the_inverse_of_the_dense_system():
    x = clustered(noise=0.9)
    near = top_k(x, k=71)
    found = diffuse(near, 30, links=10, gamma=3.0, alpha=0.8, iterations=200)
    W = np.zeros((72, 72))
    for i in range(72):
        for place in range(10):
            j = near.indices[i, place]
            if i in near.indices[j, :10]:
                W[i, j] = max(float(near.scores[i, place]), 0) ** 3
    W = (W + W.T) / 2
    degree = W.sum(axis=1)
    degree[degree == 0] = 1
    F = np.linalg.inv(np.eye(72) - 0.8 * W / np.sqrt(np.outer(degree, degree)))
    np.fill_diagonal(F, 0)
    for row in range(72):
        reached = found.scores[row] > 0
        np.testing.assert_allclose(found.scores[row, reached], F[row, found.indices[row, reached]], atol=1e-4)
        assert found.scores[row, reached].tolist() == pytest.approx(np.sort(F[row])[::-1][: reached.sum()], abs=1e-4)
        assert len(set(found.indices[row].tolist())) == 30
        assert row not in found.indices[row]


def test_a_row_that_reaches_nobody_keeps_its_neighbours():
    x = l2_normalise(np.array([[1, 0], [0.99, 0.1], [0.98, 0.2], [-1, 0.05]], dtype=np.float32))
    near = top_k(x, k=3)
    found = diffuse(near, 3, links=1)
    assert found.indices[3].tolist() == near.indices[3].tolist()
    assert found.scores[3].tolist() == [0, 0, 0]
    for options in ({"alpha": 1.0}, {"gamma": -1.0}, {"links": 4}, {"iterations": 0}):
        with pytest.raises(ValueError, match="found"):
            diffuse(near, 3, **({"links": 1} | options))


# --- sweep


def test_a_sweep_tries_everything_and_puts_the_best_first():
    seen = []

    def rank(a: int, b: str) -> NDArray[np.int64]:
        seen.append((a, b))
        return np.array([[a, len(b)]])

    trials = sweep(rank, lambda found: float(found[0, 0] * 10 - found[0, 1]), {"a": [1, 2], "b": ["x", "yy"]})
    assert seen == [(1, "x"), (1, "yy"), (2, "x"), (2, "yy")]
    assert [trial.score for trial in trials] == [19, 18, 9, 8]
    assert trials[0].settings == {"a": 2, "b": "x"}
    with pytest.raises(ValueError, match="no values for b"):
        sweep(rank, lambda found: 0.0, {"a": [1], "b": []})


def test_the_readme_names_every_step() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    named = set(kit_retrieval.__all__) - {"CohortStatistics", "Trial", "mutual", "reorder"}
    assert [name for name in sorted(named) if f"`{name}`" not in readme] == []
