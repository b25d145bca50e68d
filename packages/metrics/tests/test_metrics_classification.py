import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_metrics import (
    bootstrap_macro_f1,
    bootstrap_paired_macro_f1,
    confusion_matrix,
    f1_per_label,
    macro_f1,
    two_level_report,
)

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


def slow_macro_f1(true, predicted, n_labels):
    """The definition, one label at a time."""
    scores = []
    for label in range(n_labels):
        right = sum(t == p == label for t, p in zip(true, predicted, strict=True))
        wrong = sum((t == label) != (p == label) for t, p in zip(true, predicted, strict=True))
        scores.append(2 * right / (2 * right + wrong) if right + wrong else 0.0)
    return sum(scores) / n_labels


@given(pairs)
def test_macro_f1_equals_the_definition_also_with_absent_labels(rows):
    true, predicted = map(list, zip(*rows, strict=True))
    assert macro_f1(true, predicted, 7) == pytest.approx(slow_macro_f1(true, predicted, 7))


@given(pairs)
def test_the_two_level_report_agrees_with_counting(rows):
    true, predicted = (np.array(column) for column in zip(*rows, strict=True))
    top_of = np.array([0, 0, 1, 2, 1, 2, 2])
    report = two_level_report(true, predicted, top_of, bootstrap=0)
    assert report["accuracy"] == pytest.approx(np.mean(true == predicted))
    top_right = top_of[true] == top_of[predicted]
    assert report["top_accuracy"] == pytest.approx(top_right.mean())
    assert report["top_macro_f1"] == pytest.approx(slow_macro_f1(top_of[true], top_of[predicted], 3))
    if top_right.any():
        assert report["within_top_accuracy"] == pytest.approx((true == predicted)[top_right].mean())
    else:
        assert report["within_top_accuracy"] is None
    assert np.mean(report["f1_per_label"]) == pytest.approx(report["macro_f1"])


def test_confusion_matrix_has_true_labels_in_rows():
    assert confusion_matrix([0, 0, 1], [1, 1, 1], 2).tolist() == [[0, 2], [0, 1]]
    assert f1_per_label([[0, 2], [0, 1]]).tolist() == [0.0, 0.5]


def noisy(seed, n=400, share=0.7):
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 5, n)
    predicted = np.where(generator.random(n) < share, true, generator.integers(0, 5, n))
    return true, predicted


def test_the_interval_covers_the_score_and_narrows_with_rows():
    true, predicted = noisy(0)
    low, high = bootstrap_macro_f1(true, predicted, 5)
    assert low < macro_f1(true, predicted, 5) < high
    many_low, many_high = bootstrap_macro_f1(*noisy(0, n=6400), 5)
    assert (many_high - many_low) == pytest.approx((high - low) / 4, rel=0.35)


@pytest.mark.parametrize("n_labels", [5, 8])
def test_the_interval_equals_a_slow_bootstrap_by_group(n_labels, slow_interval):
    true, predicted = noisy(1, n=60)
    _, other = noisy(4, n=60)
    predicted[::9] = n_labels - 1  # with 8 labels one that the truth lacks; two are in neither
    groups = np.random.default_rng(2).integers(0, 15, 60)
    names, generator, scores = np.unique(groups), np.random.default_rng(0), []
    for _ in range(200):
        drawn = names[generator.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(groups == name) for name in drawn])
        present = np.unique(true[rows])
        f1 = [f1_per_label(confusion_matrix(true[rows], given[rows], n_labels)) for given in (predicted, other)]
        scores.append([each[present].mean() * 5 / n_labels for each in f1])
    a, b = np.transpose(scores)
    score_a, score_b = (slow_macro_f1(true, given, n_labels) for given in (predicted, other))
    members = [true == label for label in range(5)]
    expected = slow_interval(a, score_a, groups, members)
    assert bootstrap_macro_f1(true, predicted, n_labels, groups, n=200) == pytest.approx(tuple(expected), rel=1e-3)
    expected = slow_interval(a - b, score_a - score_b, groups, members, differs=predicted != other)
    found = bootstrap_paired_macro_f1(true, predicted, other, n_labels, groups, n=200)
    assert found == pytest.approx((score_a - score_b, *expected), rel=1e-3)


@pytest.mark.parametrize("n_labels", [2, 4, 20])
@given(rows=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_interval_holds_the_score_whatever_labels_are_absent(n_labels, rows):
    true, predicted, groups = (np.array(column) for column in zip(*rows, strict=True))
    predicted = np.where(predicted == 1, true, n_labels - 1)  # absent from the truth, predicted; others are in neither
    low, high = bootstrap_macro_f1(true, predicted, n_labels, groups, n=20)
    assert 0 <= low <= macro_f1(true, predicted, n_labels) <= high <= 1
    difference, low, high = bootstrap_paired_macro_f1(true, predicted, true, n_labels, groups, n=20)
    assert -1 <= low <= difference <= high <= 1
    report = two_level_report(true, predicted, np.arange(n_labels) // 2, groups, bootstrap=20)
    assert report["macro_f1_interval"][0] <= report["macro_f1"] <= report["macro_f1_interval"][1]
    assert bootstrap_paired_macro_f1(true, predicted, predicted, n_labels, groups, n=20) == (0, 0, 0)


def test_absent_labels_scale_the_interval_as_they_scale_the_score():
    true, predicted = noisy(5)
    low, high = bootstrap_macro_f1(true, predicted, 5)
    assert bootstrap_macro_f1(true, predicted, 35) == pytest.approx((low / 7, high / 7))


def test_the_order_of_rows_has_no_effect():
    true, predicted = noisy(6, n=80)
    groups = np.arange(80) % 13
    order = np.random.default_rng(0).permutation(80)
    shuffled = bootstrap_macro_f1(true[order], predicted[order], 5, groups[order], n=50)
    assert shuffled == pytest.approx(bootstrap_macro_f1(true, predicted, 5, groups, n=50))


def test_a_rare_label_that_resamples_lack_does_not_pull_the_interval_down():
    true = np.array([0] * 50 + [1])
    assert bootstrap_macro_f1(true, true, 2) == (1.0, 1.0)


def test_a_paired_difference_is_zero_for_equal_models_and_sure_for_a_better_one():
    true, predicted = noisy(3)
    assert bootstrap_paired_macro_f1(true, predicted, predicted, 5) == (0.0, 0.0, 0.0)
    difference, low, high = bootstrap_paired_macro_f1(true, true, predicted, 5)
    assert 0 < low < difference < high
    assert difference == pytest.approx(1 - macro_f1(true, predicted, 5))


@pytest.mark.parametrize(
    ("true", "predicted"), [([], []), ([0, 5], [0, 1]), ([0], [0, 1]), ([0.5], [0]), ([-1], [0]), ([[0]], [[0]])]
)
def test_wrong_labels_are_refused(true, predicted):
    with pytest.raises(ValueError, match="must"):
        macro_f1(true, predicted, 5)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_macro_f1([0], [0], 1, n=0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_macro_f1([0], [0], 1, level=1)
    with pytest.raises(ValueError, match="equally long"):
        bootstrap_macro_f1([0], [0], 1, [1, 2])
    with pytest.raises(ValueError, match="top_of"):
        two_level_report([0], [0], [-1])
