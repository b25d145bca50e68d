import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from kit_metrics import Orderings, ordering_report


def pack(notebooks, groups=None, gap_scores=None):
    """Orderings of notebooks given as lists of (true rank, is markdown) in predicted order."""
    cells = [cell for notebook in notebooks for cell in notebook]
    return Orderings(
        true_rank=np.array([rank for rank, _ in cells], dtype=np.int64),
        is_markdown=np.array([markdown for _, markdown in cells], dtype=np.bool_),
        offsets=np.concatenate([[0], np.cumsum([len(notebook) for notebook in notebooks])]).astype(np.int64),
        groups=np.array(groups if groups is not None else [f"g{k}" for k in range(len(notebooks))]),
        gap_scores=gap_scores,
    )


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def places_of_true_gaps(notebook, scores):
    """1-based place of the true gap of each markdown cell, in true order, by sorting all candidates."""
    in_true_order = sorted(notebook)
    n_code = sum(not markdown for _, markdown in notebook)
    places, row = [], 0
    for rank, markdown in in_true_order:
        if not markdown:
            continue
        true_gap = sum(not m for r, m in in_true_order if r < rank)
        at = notebook.index((rank, True))
        predicted_gap = sum(not m for _, m in notebook[:at])
        if scores is None:
            candidates = sorted(range(n_code + 1), key=lambda gap: (abs(gap - predicted_gap), gap))
        else:
            candidates = sorted(range(n_code + 1), key=lambda gap: (-scores[row][gap], gap))
        places.append(1 + candidates.index(true_gap))
        row += 1
    return places


def slow_report(notebooks, gap_scores=None):
    """Every metric by its definition, pair by pair and cell by cell."""
    lost = {"all": 0, "markdown_code": 0, "markdown_markdown": 0}
    possible = dict(lost)
    taus, sizes, errors, next_code, places, exact, rhos, footrules, rising = [], [], [], [], [], [], [], [], 0
    for k, notebook in enumerate(notebooks):
        n = len(notebook)
        inversions = 0
        for (rank_a, a), (rank_b, b) in combinations(notebook, 2):
            kind = "markdown_markdown" if a and b else "markdown_code" if a or b else None
            for key in ("all", kind) if kind else ("all",):
                possible[key] += 1
                lost[key] += rank_a > rank_b
            inversions += rank_a > rank_b
        exact.append(inversions == 0)
        if n > 1:
            ranks = [rank for rank, _ in notebook]
            taus.append(1 - 4 * inversions / (n * (n - 1)))
            sizes.append((n, inversions))
            rhos.append(spearmanr(range(n), ranks).statistic)
            footrules.append(1 - sum(abs(i - rank) for i, rank in enumerate(ranks)) / (n * n // 2))
        best = []
        for i, (rank, _) in enumerate(notebook):
            best.append(1 + max((best[j] for j in range(i) if notebook[j][0] < rank), default=0))
        rising += max(best, default=0)
        for i, (rank, markdown) in enumerate(notebook):
            if markdown:
                predicted_gap = sum(not m for _, m in notebook[:i])
                true_gap = sum(not m for r, m in notebook if r < rank)
                errors.append(abs(predicted_gap - true_gap))
                follower = next((r for r, m in notebook[i:] if not m), "end")
                true_follower = next((r for r, m in sorted(notebook) if r > rank and not m), "end")
                next_code.append(follower == true_follower)
        places += places_of_true_gaps(notebook, None if gap_scores is None else gap_scores[k])
    bounds = {"2-10": (2, 10), "11-30": (11, 30), "31-60": (31, 60), "61-100": (61, 100), ">100": (101, 10**9)}
    by_size = {}
    for name, (low, high) in bounds.items():
        inside = [(n, s) for n, s in sizes if low <= n <= high]
        tau = 1 - 4 * sum(s for _, s in inside) / sum(n * (n - 1) for n, _ in inside) if inside else None
        by_size[name] = {"n": len(inside), "tau": tau}
    with_markdown = possible["markdown_code"] + possible["markdown_markdown"]
    lost_with_markdown = lost["markdown_code"] + lost["markdown_markdown"]
    return {
        "n_notebooks": len(notebooks),
        "n_cells": sum(map(len, notebooks)),
        "n_markdown": len(errors),
        "tau": 1 - 2 * lost["all"] / possible["all"],
        "tau_interval": None,
        "macro_tau": mean(taus),
        "tau_by_size": by_size,
        "markdown_code_lost": lost["markdown_code"] / possible["markdown_code"] if possible["markdown_code"] else None,
        "markdown_markdown_lost": (
            lost["markdown_markdown"] / possible["markdown_markdown"] if possible["markdown_markdown"] else None
        ),
        "pair_accuracy": 1 - lost_with_markdown / with_markdown if with_markdown else None,
        "gap_accuracy": mean(error == 0 for error in errors),
        "gap_within_1": mean(error <= 1 for error in errors),
        "mean_absolute_gap_error": mean(errors),
        "next_code_accuracy": mean(next_code),
        "mrr": mean(1 / place for place in places),
        **{f"ndcg@{k}": mean(1 / math.log2(1 + place) if place <= k else 0 for place in places) for k in (1, 3, 5)},
        "exact_match": mean(exact),
        "spearman": mean(rhos),
        "footrule": mean(footrules),
        "lis_share": rising / sum(map(len, notebooks)),
    }


def assert_equal_reports(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_equal_reports(found[key], value)
        else:
            assert found[key] == (value if value is None else pytest.approx(value, abs=1e-9)), key


@st.composite
def predicted_notebooks(draw, given_code_order=False, max_cells=14):
    """Notebooks in predicted order; `given_code_order`: code cells in their true order, as models keep them."""
    notebooks = []
    for _ in range(draw(st.integers(1, 6))):
        markdown = draw(st.lists(st.booleans(), min_size=0, max_size=max_cells))
        ranks = draw(st.permutations(range(len(markdown))))
        notebook = [(rank, markdown[rank]) for rank in ranks]
        if given_code_order:
            code = iter(sorted(rank for rank, is_markdown in notebook if not is_markdown))
            notebook = [cell if cell[1] else (next(code), False) for cell in notebook]
        notebooks.append(notebook)
    if max(map(len, notebooks)) < 2:
        notebooks.append([(1, True), (0, False)])
    return notebooks


def random_notebook(generator, n, markdown_share=0.4, shuffled=True):
    markdown = generator.random(n) < markdown_share
    ranks = generator.permutation(n) if shuffled else np.arange(n)
    return [(int(rank), bool(markdown[rank])) for rank in ranks]


def random_gap_scores(generator, notebooks):
    matrices = []
    for notebook in notebooks:
        n_markdown = sum(markdown for _, markdown in notebook)
        # Few distinct values, so that ties are frequent.
        matrices.append(generator.integers(0, 3, (n_markdown, len(notebook) - n_markdown + 1)).astype(float))
    return matrices


@given(predicted_notebooks())
def test_equals_the_definitions(notebooks):
    assert_equal_reports(ordering_report(pack(notebooks), bootstrap=0), slow_report(notebooks))


@given(predicted_notebooks(given_code_order=True))
def test_equals_the_definitions_with_the_given_code_order(notebooks):
    report = ordering_report(pack(notebooks), bootstrap=0)
    assert_equal_reports(report, slow_report(notebooks))
    assert report["next_code_accuracy"] == report["gap_accuracy"] == report["ndcg@1"]


@given(predicted_notebooks(), st.integers(0, 2**32 - 1))
def test_equals_the_definitions_with_gap_scores(notebooks, seed):
    scores = random_gap_scores(np.random.default_rng(seed), notebooks)
    report = ordering_report(pack(notebooks, gap_scores=scores), bootstrap=0)
    assert_equal_reports(report, slow_report(notebooks, scores))


def test_equals_the_definitions_in_every_size_class():
    generator = np.random.default_rng(0)
    notebooks = [random_notebook(generator, n) for n in (1, 2, 10, 11, 30, 31, 60, 61, 100, 101, 150)]
    assert_equal_reports(ordering_report(pack(notebooks), bootstrap=0), slow_report(notebooks))


def test_a_notebook_too_long_for_the_tables():
    notebook = random_notebook(np.random.default_rng(1), 1100)
    report = ordering_report(pack([notebook]), bootstrap=0)
    ranks = [rank for rank, _ in notebook]
    assert report["tau"] == pytest.approx(kendalltau(range(1100), ranks).statistic, abs=1e-12)
    assert report["spearman"] == pytest.approx(spearmanr(range(1100), ranks).statistic, abs=1e-12)
    best = []
    for i, rank in enumerate(ranks):
        best.append(1 + max((best[j] for j in range(i) if ranks[j] < rank), default=0))
    assert report["lis_share"] == max(best) / 1100


@given(predicted_notebooks())
def test_the_true_order_is_best_in_everything(notebooks):
    report = ordering_report(pack([sorted(notebook) for notebook in notebooks]), bootstrap=20)
    assert report["tau"] == report["macro_tau"] == report["exact_match"] == report["lis_share"] == 1
    assert report["spearman"] == report["footrule"] == 1
    assert report["tau_interval"] == [1, 1]
    best = {"gap_accuracy": 1, "gap_within_1": 1, "next_code_accuracy": 1, "mrr": 1, "ndcg@1": 1, "ndcg@5": 1}
    best |= {"pair_accuracy": 1, "markdown_code_lost": 0, "markdown_markdown_lost": 0, "mean_absolute_gap_error": 0}
    for key, value in best.items():
        assert report[key] in (value, None)


@given(predicted_notebooks())
def test_the_reversed_order_is_worst(notebooks):
    report = ordering_report(pack([sorted(notebook, reverse=True) for notebook in notebooks]), bootstrap=20)
    assert report["tau"] == report["macro_tau"] == report["spearman"] == -1
    assert report["tau_interval"] == [-1, -1]
    assert report["footrule"] == pytest.approx(0, abs=1e-12)
    assert report["markdown_code_lost"] in (1, None)


@given(predicted_notebooks())
def test_a_constant_model_scores_what_moving_nothing_scores(notebooks):
    """Markdown after all code, shuffled, is how notebooks are given; equal scores must leave it like that."""
    as_given, by_model = [], []
    for notebook in notebooks:
        code = sorted(cell for cell in notebook if not cell[1])
        as_given.append(code + [cell for cell in notebook if cell[1]])
        # Code cell k stands at k; the model says of every markdown cell that it follows the last one.
        position = [min(k, len(code)) for k in range(len(notebook))]
        by_model.append([as_given[-1][k] for k in np.argsort(position, kind="stable")])
    assert_equal_reports(ordering_report(pack(by_model), bootstrap=0), slow_report(as_given))


def test_random_orders_are_near_zero():
    generator = np.random.default_rng(2)
    report = ordering_report(pack([random_notebook(generator, 40) for _ in range(400)]))
    assert abs(report["tau"]) < 0.02
    low, high = report["tau_interval"]
    assert low < 0 < high
    assert report["pair_accuracy"] == pytest.approx(0.5, abs=0.01)


def test_edges_one_cell_no_markdown_no_code_one_code_cell_and_an_empty_notebook():
    one_cell, no_markdown = [(0, True)], [(1, False), (0, False)]
    no_code, one_code, empty = [(1, True), (0, True)], [(2, True), (1, False), (0, True)], []
    notebooks = [one_cell, no_markdown, no_code, one_code, empty]
    assert_equal_reports(ordering_report(pack(notebooks), bootstrap=0), slow_report(notebooks))


def test_without_markdown_there_is_nothing_to_say_about_gaps():
    report = ordering_report(pack([[(0, False), (1, False)]]), bootstrap=5)
    assert report["tau"] == 1
    for key in ("gap_accuracy", "mrr", "ndcg@3", "next_code_accuracy", "markdown_code_lost", "pair_accuracy"):
        assert report[key] is None


@pytest.mark.parametrize("notebooks", [[], [[(0, True)]], [[(0, True)], [(0, False)]], [[]]])
def test_a_set_without_pairs_is_refused(notebooks):
    with pytest.raises(ValueError, match="no pair"):
        ordering_report(pack(notebooks))


def test_gap_scores_of_minus_infinity_and_ties_go_to_the_earlier_gap():
    notebook = [(0, False), (1, True), (2, False)]  # the true gap is 1
    cases = {(0.0, 1.0, 0.0): 1, (1.0, 1.0, 0.0): 2, (0.0, 0.0, 0.0): 2, (1.0, -np.inf, 0.0): 3, (-np.inf, 0.0, 0.0): 1}
    for scores, place in cases.items():
        report = ordering_report(pack([notebook], gap_scores=[np.array([scores])]), bootstrap=0)
        assert report["mrr"] == pytest.approx(1 / place)


def test_the_interval_resamples_groups_not_notebooks():
    generator = np.random.default_rng(3)
    notebooks = [random_notebook(generator, 12) for _ in range(30)]
    alone = ordering_report(pack(notebooks))
    forks = ordering_report(
        pack([n for n in notebooks for _ in range(8)], groups=[k for k in range(30) for _ in range(8)])
    )
    # Eight copies of each notebook in one group carry no more information than one.
    assert forks["tau"] == pytest.approx(alone["tau"])
    assert forks["tau_interval"] == pytest.approx(alone["tau_interval"], abs=0.02)


def test_seeds_repeat_and_the_report_is_plain_json():
    generator = np.random.default_rng(4)
    orderings = pack([random_notebook(generator, 20) for _ in range(20)])
    first, again = ordering_report(orderings, seed=7), ordering_report(orderings, seed=7)
    assert first == again
    assert first["tau_interval"] != ordering_report(orderings, seed=8)["tau_interval"]
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_integers_of_any_width_are_accepted():
    orderings = pack([random_notebook(np.random.default_rng(5), 200)])
    narrow = Orderings(
        orderings.true_rank.astype(np.uint8), orderings.is_markdown, orderings.offsets.astype(np.int32), ["a"]
    )
    assert ordering_report(narrow, bootstrap=3) == ordering_report(orderings, bootstrap=3)


def test_negative_bootstrap_is_refused():
    with pytest.raises(ValueError, match="bootstrap"):
        ordering_report(pack([[(0, False), (1, True)]]), bootstrap=-1)


GOOD = {
    "true_rank": np.array([0, 2, 1, 0]),
    "is_markdown": np.array([False, True, False, True]),
    "offsets": np.array([0, 3, 4]),
    "groups": np.array(["a", "b"]),
    "gap_scores": None,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"true_rank": np.array([0.0, 2.0, 1.0, 0.0])}, "true_rank must be one-dimensional integers"),
        ({"true_rank": np.array([[0, 2, 1, 0]])}, "true_rank must be one-dimensional integers"),
        ({"true_rank": np.array([0, 2, 2, 0])}, r"1 notebook\(s\), first at \[0\]"),
        ({"true_rank": np.array([0, 2, 1, 1])}, r"1 notebook\(s\), first at \[1\]"),
        ({"true_rank": np.array([0, 2, -1, 0])}, r"first at \[0\]"),
        ({"is_markdown": np.array([0, 1, 0, 1])}, "is_markdown must be bool"),
        ({"is_markdown": np.array([True])}, "is_markdown must be bool"),
        ({"offsets": np.array([0, 3])}, "offsets must rise from 0 to 4"),
        ({"groups": np.array(["a"])}, "each of 2 notebooks"),
        ({"gap_scores": [np.zeros((1, 3))]}, "each of 2 notebooks"),
        ({"gap_scores": [np.zeros((1, 2)), np.zeros((1, 1))]}, r"gap_scores\[0\] must have shape \(1, 3\)"),
        ({"gap_scores": [np.zeros((1, 3)), np.full((1, 1), np.nan)]}, r"gap_scores\[1\] must not hold NaN"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, words):
    Orderings(**GOOD)
    with pytest.raises(ValueError, match=words):
        Orderings(**(GOOD | change))


def test_the_readme_names_every_key() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    report = ordering_report(pack([[(0, False), (1, True)]]), bootstrap=0)
    assert [key for key in report if f"`{key}`" not in readme] == []
