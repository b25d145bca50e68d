"""The decoder: code cells never move, the median gap is the cheapest one, and distributions stay distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ai4code.data import Notebooks
from ai4code.decode import (
    Placement,
    average,
    decode,
    decode_jointly,
    expected_before,
    gap_of,
    median_gap,
    mix,
    spread,
    true_gaps,
)
from ai4code.train import report_placements
from kit_metrics.ordering import Orderings, ordering_report

UNHURRIED = settings(deadline=None)


@st.composite
def placements(draw: st.DrawFn) -> tuple[Placement, int]:
    """Any answer that a model might give, and the number of code cells."""
    n_code = draw(st.integers(0, 6))
    n_markdown = draw(st.integers(0, 6))
    position = draw(hnp.arrays(np.float64, n_markdown, elements=st.floats(-2, n_code + 2)))
    placement = Placement(position)
    if draw(st.booleans()):
        scores = draw(hnp.arrays(np.float64, (n_markdown, n_code + 1), elements=st.floats(0, 1)))
        placement = Placement.from_gap_scores(scores)
    if draw(st.booleans()):
        before = draw(hnp.arrays(np.float64, (n_markdown, n_markdown), elements=st.floats(0, 1)))
        placement = Placement(placement.position, placement.gap_probability, before)
    return placement, n_code


distributions = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=st.integers(0, 5).map(float)
).map(lambda scores: Placement.from_gap_scores(scores).gap_probability)


# --- orders ----------------------------------------------------------------------------------------------------------


@UNHURRIED
@given(placements())
def test_an_order_is_a_permutation_that_leaves_the_code_in_place(case: tuple[Placement, int]) -> None:
    placement, n_code = case
    order = decode(placement, n_code)
    assert sorted(order) == list(range(n_code + len(placement.position)))
    assert [cell for cell in order if cell < n_code] == list(range(n_code))


@UNHURRIED
@given(placements())
def test_every_markdown_cell_stands_in_its_gap(case: tuple[Placement, int]) -> None:
    placement, n_code = case
    order = decode(placement, n_code)
    gaps = gap_of(placement, n_code)
    code_before = np.cumsum(order < n_code)
    for markdown, gap in enumerate(gaps):
        assert code_before[np.flatnonzero(order == n_code + markdown)[0]] == gap
        assert 0 <= gap <= n_code


@UNHURRIED
@given(st.permutations(list("ccccmmmmm")))
def test_true_gaps_decode_to_the_true_order(kinds: list[str]) -> None:
    shown = sorted(range(len(kinds)), key=lambda rank: kinds[rank])  # code first, both in their true order
    rank = np.array(shown)
    gaps = true_gaps(rank, 4)
    assert rank[decode(Placement(gaps.astype(np.float64)), 4)].tolist() == list(range(9))


def test_no_markdown_and_no_code() -> None:
    nothing = Placement(np.zeros(0))
    assert decode(nothing, 0).tolist() == []
    assert decode(nothing, 3).tolist() == [0, 1, 2]
    assert decode(Placement(np.zeros((0,)), np.zeros((0, 4))), 3).tolist() == [0, 1, 2]
    assert decode(Placement(np.array([0.0, 0.0])), 0).tolist() == [0, 1]
    assert decode(Placement.from_gap_scores(np.ones((2, 1))), 0).tolist() == [0, 1]


def test_one_code_cell() -> None:
    assert decode(Placement(np.array([1.0, 0.0])), 1).tolist() == [2, 0, 1]
    assert decode(Placement.from_gap_scores(np.array([[0.2, 0.8], [0.9, 0.1]])), 1).tolist() == [2, 0, 1]


def test_positions_order_the_cells_of_one_gap() -> None:
    assert decode(Placement(np.array([1.3, 0.8, 1.1])), 2).tolist() == [0, 3, 4, 2, 1]


def test_pairs_order_the_cells_of_one_gap_and_overrule_positions() -> None:
    before = np.array([[0.5, 0.1, 0.2], [0.9, 0.5, 0.3], [0.8, 0.7, 0.5]])  # wins: 0.3, 1.2, 1.5
    placement = Placement(np.array([0.9, 1.0, 1.1]), None, before)
    assert decode(placement, 2).tolist() == [0, 4, 3, 2, 1]
    diagonal = before + np.diag([100.0, 0.0, 0.0])  # a cell against itself is no win
    assert decode(Placement(placement.position, None, diagonal), 2).tolist() == [0, 4, 3, 2, 1]


def test_pairs_never_move_a_cell_to_another_gap() -> None:
    before = np.array([[0.5, 1.0], [0.0, 0.5]])
    assert decode(Placement(np.array([2.0, 0.0]), None, before), 2).tolist() == [3, 0, 1, 2]


def test_a_constant_model_scores_what_the_order_as_given_scores(notebooks: Notebooks) -> None:
    assert notebooks.true_rank is not None
    assert notebooks.ancestors is not None
    scored = np.arange(len(notebooks))
    constant = [Placement(np.full(int(notebooks.n_markdown[i]), float(notebooks.n_code[i]))) for i in scored]
    as_given = Orderings(
        notebooks.true_rank, notebooks.is_markdown, notebooks.offsets, np.array(notebooks.ancestors), None
    )
    assert report_placements(notebooks, scored, constant) == ordering_report(as_given)


def test_a_constant_model_keeps_the_json_order_of_markdown(notebooks: Notebooks) -> None:
    for i, n_code in enumerate(notebooks.n_code.tolist()):
        n_markdown = int(notebooks.n_markdown[i])
        for gap in (0, n_code // 2, n_code):
            scores = np.zeros((n_markdown, n_code + 1))
            scores[:, gap] = 1.0
            order = decode(Placement.from_gap_scores(scores), n_code)
            assert [c for c in order if c >= n_code] == list(range(n_code, n_code + n_markdown))


def test_the_truth_loses_nothing_against_code(notebooks: Notebooks) -> None:
    assert notebooks.true_rank is not None
    perfect = []
    for i, n_code in enumerate(notebooks.n_code.tolist()):
        rank = notebooks.true_rank[notebooks.offsets[i] : notebooks.offsets[i + 1]]
        inside = rank[n_code:] / (100.0 * len(rank))  # a fraction that keeps the true order inside a gap
        perfect.append(Placement(true_gaps(rank, n_code) + inside))
    assert report_placements(notebooks, np.arange(len(notebooks)), perfect)["tau"] == 1.0


# --- gaps ------------------------------------------------------------------------------------------------------------


@UNHURRIED
@given(distributions)
def test_the_median_gap_has_the_least_expected_distance(probability: np.ndarray) -> None:
    gaps = np.arange(probability.shape[1])
    cost = probability @ np.abs(gaps[:, None] - gaps[None, :])
    chosen = median_gap(probability)
    assert chosen.min() >= 0
    assert chosen.max() < probability.shape[1]
    np.testing.assert_allclose(cost[np.arange(len(cost)), chosen], cost.min(axis=1), atol=1e-9)


def test_an_exact_half_takes_the_earlier_gap_whatever_the_rounding() -> None:
    assert median_gap(np.array([[0.5, 0.0, 0.5]])).tolist() == [0]
    assert median_gap(np.array([[0.1] * 10])).tolist() == [4]  # ten times 0.1 sums to a little less than 1


def test_positions_are_rounded_and_clipped() -> None:
    assert gap_of(Placement(np.array([-3.0, 0.4, 0.6, 99.0])), 2).tolist() == [0, 0, 1, 2]


def test_rows_without_mass_become_uniform() -> None:
    placement = Placement.from_gap_scores(np.array([[0.0, 0.0], [1.0, 3.0]]))
    assert placement.gap_probability is not None
    np.testing.assert_allclose(placement.gap_probability, [[0.5, 0.5], [0.25, 0.75]])
    np.testing.assert_allclose(placement.position, [0.5, 0.75])


# --- distributions ---------------------------------------------------------------------------------------------------


@UNHURRIED
@given(st.integers(0, 12), st.floats(0.01, 2.0), st.data())
def test_spreading_keeps_the_median_at_the_position(n_code: int, error: float, data: st.DataObject) -> None:
    inside = [data.draw(st.integers(0, n_code)) + data.draw(st.floats(-0.49, 0.49)) for _ in range(3)]
    position = np.array([0.0, n_code, *np.clip(inside, 0, n_code)])
    spread_out = spread(Placement(position), n_code, error)
    assert spread_out.gap_probability is not None
    assert spread_out.gap_probability.shape == (5, n_code + 1)
    assert (spread_out.gap_probability >= 0).all()
    np.testing.assert_allclose(spread_out.gap_probability.sum(axis=1), 1.0, atol=1e-12)
    assert gap_of(spread_out, n_code).tolist() == np.rint(position).astype(int).tolist()


def test_a_larger_error_spreads_further() -> None:
    narrow = spread(Placement(np.array([3.0])), 6, 0.05).gap_probability
    wide = spread(Placement(np.array([3.0])), 6, 0.3).gap_probability
    assert narrow is not None
    assert wide is not None
    assert narrow[0, 3] > wide[0, 3]
    np.testing.assert_allclose(wide[0], wide[0, ::-1], atol=1e-12)  # symmetric, ends included


def test_spreading_leaves_a_distribution_and_keeps_pairs() -> None:
    known = Placement.from_gap_scores(np.ones((1, 3)))
    assert spread(known, 2, 0.1) is known
    pairs = np.array([[0.5]])
    assert spread(Placement(np.array([1.0]), None, pairs), 2, 0.1).markdown_before is pairs


def test_mixing_is_the_weighted_mean() -> None:
    first, second = (Placement.from_gap_scores(np.array([row])) for row in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]))
    mixed = mix([first, second], [1.0, 3.0])
    assert mixed.gap_probability is not None
    np.testing.assert_allclose(mixed.gap_probability, [[0.25, 0.0, 0.75]])
    np.testing.assert_allclose(mixed.position, [1.5])


def test_mixing_refuses_positions() -> None:
    with pytest.raises(ValueError, match="spread the positions first"):
        mix([Placement(np.zeros(1))], [1.0])
    with pytest.raises(ValueError, match="zip"):
        mix([Placement.from_gap_scores(np.ones((1, 2)))], [1.0, 1.0])


def test_averaging_folds() -> None:
    positions = [Placement(np.array([value, 1.0])) for value in (0.0, 1.0, 10.0)]
    assert average(positions).position.tolist() == [1.0, 1.0]  # the median: one wild fold does not matter
    assert average(positions).gap_probability is None
    distributions_ = [Placement.from_gap_scores(np.array([row])) for row in ([1.0, 0.0], [0.0, 1.0], [0.0, 1.0])]
    averaged = average(distributions_).gap_probability
    assert averaged is not None
    np.testing.assert_allclose(averaged, [[1 / 3, 2 / 3]])


# --- jointly ---------------------------------------------------------------------------------------------------------


def expected_inversions(placement: Placement, n_code: int, order: np.ndarray) -> float:
    """Counted pair by pair, from what the placement says of each."""
    assert placement.gap_probability is not None
    p = placement.gap_probability
    total = 0.0
    for first in range(len(order)):
        for second in range(first + 1, len(order)):
            a, b = int(order[first]), int(order[second])
            if a >= n_code and b >= n_code:
                total += 1.0 - expected_before(placement)[a - n_code, b - n_code]
            elif a >= n_code:
                total += 1.0 - p[a - n_code, : b + 1].sum()
            elif b >= n_code:
                total += p[b - n_code, : a + 1].sum()
    return total


@UNHURRIED
@given(placements())
def test_joint_decoding_never_expects_more_inversions(case: tuple[Placement, int]) -> None:
    placement, n_code = case
    order = decode_jointly(placement, n_code)
    assert sorted(order.tolist()) == list(range(n_code + len(placement.position)))
    assert order[order < n_code].tolist() == list(range(n_code))
    if placement.gap_probability is not None:
        before = expected_inversions(placement, n_code, decode(placement, n_code))
        assert expected_inversions(placement, n_code, order) <= before + 1e-6


def test_probabilities_of_pairs_count_gaps_first() -> None:
    sure = Placement.from_gap_scores(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(expected_before(sure), [[0.5, 1.0, 0.5], [0.0, 0.5, 0.0], [0.5, 1.0, 0.5]])
    told = Placement(sure.position, sure.gap_probability, np.array([[0.5, 0.1, 0.2], [0.9, 0.5, 0.3], [0.8, 0.7, 0.5]]))
    np.testing.assert_allclose(expected_before(told)[0], [0.5, 1.0, 0.2])


def test_joint_decoding_lets_pairs_move_a_cell_that_is_in_doubt() -> None:
    """Both cells are nearly evenly torn between two gaps; a sure order between them parts them."""
    p = np.array([[0.49, 0.51], [0.51, 0.49]])
    before = np.array([[0.5, 1.0], [0.0, 0.5]])
    placement = Placement(p @ np.arange(2), p, before)
    assert decode(placement, 1).tolist() == [2, 0, 1]
    assert decode_jointly(placement, 1).tolist() in ([1, 0, 2], [1, 2, 0], [0, 1, 2])


def test_mixing_keeps_what_is_known_of_pairs() -> None:
    p = np.full((2, 3), 1 / 3)
    pairs = np.array([[0.5, 0.9], [0.1, 0.5]])
    mixed = mix([Placement(p @ np.arange(3), p), Placement(p @ np.arange(3), p, pairs)], [0.7, 0.3])
    assert mixed.markdown_before is not None
    np.testing.assert_allclose(mixed.markdown_before, pairs)
    assert mix([Placement(p @ np.arange(3), p)] * 2, [0.5, 0.5]).markdown_before is None
