import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_ensemble import coordinate_search, greedy_selection

SIMPLEX_POINTS = ([1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.34, 0.33, 0.33])


def minus_distance(optimum):
    """A concave score with a known best blend."""
    return lambda weights: -float(np.sum((weights - np.array(optimum)) ** 2))


def minus_squared_error(seed, n_models=5, rows=200):
    """The score of noisy models blended for a target, and their predictions."""
    generator = np.random.default_rng(seed)
    target = generator.normal(size=rows)
    predictions = target + generator.normal(size=(n_models, rows)) * generator.uniform(0.2, 2, (n_models, 1))
    return (lambda weights: -float(np.mean((weights @ predictions - target) ** 2))), predictions, target


def best_on_the_simplex(predictions, target):
    """Minimum of the squared error over the simplex by projected gradient descent, an independent method."""
    weights = np.full(len(predictions), 1 / len(predictions))
    rate = len(target) / (2 * np.linalg.norm(predictions, 2) ** 2)
    for _ in range(5000):
        moved = weights - rate * 2 * predictions @ (weights @ predictions - target) / len(target)
        falling = np.sort(moved)[::-1]
        excess = (np.cumsum(falling) - 1) / np.arange(1, len(moved) + 1)
        weights = np.maximum(moved - excess[np.flatnonzero(falling > excess)[-1]], 0)
    return weights


def assert_on_the_simplex(weights):
    assert weights.dtype == np.float64
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("optimum", SIMPLEX_POINTS)
def test_greedy_comes_near_a_known_optimum(optimum):
    weights, best = greedy_selection(3, minus_distance(optimum), rounds=100, patience=100)
    assert_on_the_simplex(weights)
    assert weights == pytest.approx(optimum, abs=0.02)
    assert best == minus_distance(optimum)(weights)


@pytest.mark.parametrize("optimum", SIMPLEX_POINTS)
@pytest.mark.parametrize("start", [[1, 1, 1], [1, 0, 0], [0, 0, 5]])
def test_coordinate_search_comes_near_a_known_optimum(optimum, start):
    weights, best = coordinate_search(start, minus_distance(optimum))
    assert_on_the_simplex(weights)
    assert weights == pytest.approx(optimum, abs=0.03)
    assert best == minus_distance(optimum)(weights)


@pytest.mark.parametrize("seed", range(5))
def test_both_come_near_the_best_blend_of_noisy_models(seed):
    score, predictions, target = minus_squared_error(seed)
    optimum = score(best_on_the_simplex(predictions, target))
    greedy_weights, greedy = greedy_selection(5, score, rounds=200, patience=50)
    _, refined = coordinate_search(greedy_weights, score, steps=(0.05, 0.01, 0.002))
    _, from_uniform = coordinate_search(np.ones(5), score, steps=(0.1, 0.02, 0.002))
    assert greedy <= refined <= optimum + 1e-12
    assert greedy == pytest.approx(optimum, rel=0.01)
    assert refined == pytest.approx(optimum, rel=0.001)
    assert from_uniform == pytest.approx(optimum, rel=0.001)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12))
def test_greedy_is_as_good_as_the_best_single_model_and_a_multiple_of_a_round(seed, n_models, rounds):
    score, *_ = minus_squared_error(seed, n_models, rows=20)
    weights, best = greedy_selection(n_models, score, rounds=rounds)
    assert_on_the_simplex(weights)
    assert best >= max(score(single) for single in np.eye(n_models))
    assert any(np.allclose(weights * size, np.round(weights * size)) for size in range(1, rounds + 1))


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(0, 10), min_size=4, max_size=4).filter(lambda w: sum(w) > 0.01))
def test_coordinate_search_is_never_worse_than_its_start(seed, start):
    score, *_ = minus_squared_error(seed, 4, rows=20)
    weights, best = coordinate_search(start, score)
    assert_on_the_simplex(weights)
    assert best >= score(np.array(start) / sum(start))


@given(st.permutations(range(5)))
def test_the_order_of_the_models_has_no_effect_on_greedy(order):
    score, predictions, target = minus_squared_error(3)
    weights, best = greedy_selection(5, score)
    shuffled = predictions[list(order)]
    again, best_again = greedy_selection(5, lambda w: -float(np.mean((w @ shuffled - target) ** 2)))
    assert again == pytest.approx(weights[list(order)])
    assert best_again == pytest.approx(best)


def test_runs_repeat():
    score, *_ = minus_squared_error(4)
    for search in (lambda: greedy_selection(5, score), lambda: coordinate_search(np.ones(5), score)):
        (first_weights, first), (again_weights, again) = search(), search()
        assert first_weights.tolist() == again_weights.tolist()
        assert first == again


def test_ties_go_to_the_first_model():
    weights, best = greedy_selection(3, lambda weights: 0.5)
    assert (weights.tolist(), best) == ([1, 0, 0], 0.5)
    assert coordinate_search([1, 2, 1], lambda weights: 0.5)[0].tolist() == [0.25, 0.5, 0.25]


def test_patience_and_rounds_bound_the_calls():
    calls = []

    def count(weights):
        calls.append(weights)
        return 0.0

    greedy_selection(4, count, rounds=50, patience=5)
    assert len(calls) == 4 * 6  # the first round is the best, five more bring nothing
    calls.clear()
    greedy_selection(4, count, rounds=3, patience=5)
    assert len(calls) == 4 * 3


def test_a_plateau_shorter_than_patience_is_crossed():
    def score(weights):
        return 1.0 if abs(weights[0] - 0.25) < 1e-9 else float(weights[1])

    weights, best = greedy_selection(2, score, rounds=10, patience=4)
    assert (weights.tolist(), best) == ([0, 1], 1)
    assert greedy_selection(2, lambda w: -abs(w[0] - 0.3), rounds=10, patience=10)[0] == pytest.approx([0.3, 0.7])
    assert greedy_selection(2, lambda w: -abs(w[0] - 0.3), rounds=10, patience=1)[0] == pytest.approx([1 / 3, 2 / 3])


def test_one_model():
    assert greedy_selection(1, lambda weights: 2.0)[0].tolist() == [1]
    assert coordinate_search([3], lambda weights: 2.0, steps=(1.5,))[0].tolist() == [1]


def test_a_score_that_changes_its_argument_does_no_harm():
    def score(weights):
        found = -abs(weights[0] - 0.5)
        weights[:] = 7
        return found

    assert greedy_selection(2, score)[0].tolist() == [0.5, 0.5]
    start = np.array([1.0, 0.0])
    assert coordinate_search(start, score)[0] == pytest.approx([0.5, 0.5], abs=0.02)
    assert start.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((0, len), {}, "n_models must be at least 1"),
        ((2, len), {"rounds": 0}, "rounds must be at least 1"),
        ((2, len), {"patience": 0}, "patience must be at least 1"),
        ((2, lambda weights: np.nan), {}, "finite number, found nan"),
        ((2, lambda weights: np.inf), {}, "finite number, found inf"),
    ],
)
def test_greedy_misuse_is_refused(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        greedy_selection(*arguments, **options)


@pytest.mark.parametrize(
    ("weights", "score", "steps", "words"),
    [
        ([0, 0], len, (0.1,), "not all zero"),
        ([], len, (0.1,), "not all zero"),
        ([1, -1], len, (0.1,), "non-negative"),
        ([1, np.nan], len, (0.1,), "non-negative"),
        ([[1]], len, (0.1,), "one-dimensional"),
        ([1, 1], len, (), "at least one"),
        ([1, 1], len, (0.1, 0), "positive numbers"),
        ([1, 1], len, (np.nan,), "positive numbers"),
        ([1, 1], lambda weights: np.nan, (0.1,), "finite number"),
    ],
)
def test_coordinate_misuse_is_refused(weights, score, steps, words):
    with pytest.raises(ValueError, match=words):
        coordinate_search(weights, score, steps=steps)
