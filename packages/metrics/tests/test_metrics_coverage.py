"""How often the intervals hold the true value, in populations shaped like the small data sets of the solutions.

A sample is a fixed number of groups drawn from a population in which rows of one group resemble each other. The true
value is the expected score of such a sample, taken from many of them: what a score estimates without bias, and what a
comparison of scores at one size is about. (For macro F1 and macro average precision it differs from the value in an
infinite population, by less than the width of an interval.) Every sample holds every label, as the data sets do.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from kit_metrics import (
    bootstrap_macro_average_precision,
    bootstrap_macro_f1,
    bootstrap_paired_macro_average_precision,
    bootstrap_paired_macro_f1,
    bootstrap_paired_ratio,
    bootstrap_ratio,
    macro_average_precision,
    macro_f1,
)

RESAMPLES = 400
Sample = tuple[Any, Any, Any, Any]  # truth, two predictions, groups

# Groups of each of the 35 labels of art-mini, whose 1,272 rows lie in 955 groups of 1 to 9 rows.
ART = np.repeat(
    [4, 6, 10, 12, 17, 18, 19, 20, 21, 23, 25, 28, 30, 31, 32, 35, 38, 40, 41, 43, 46, 47, 48, 49, 51],
    [1, 3, 1, 2, 2, 1, 1, 3, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1],
)
MUSIC = np.array([58, 42, 29, 20, 13])


def one_label(
    generator: np.random.Generator, groups_of_labels: Any, sizes: Iterable[int], shares: Iterable[float]
) -> Sample:
    """Rows of one label a group; two thirds of a group get one common answer. The second model is a little worse."""
    n_labels, n_groups = len(groups_of_labels), groups_of_labels.sum()
    skill = np.random.default_rng(1).uniform(0.45, 0.95, n_labels)
    while True:
        label = generator.choice(n_labels, n_groups, p=groups_of_labels / n_groups)
        if len(np.unique(label)) == n_labels:
            break
    group = np.repeat(np.arange(n_groups), generator.choice(list(sizes), n_groups, p=list(shares)))
    true = label[group]

    def answers(of: Any, strength: float) -> Any:
        near = (of + generator.integers(1, 4, len(of))) % n_labels
        far = generator.integers(n_labels, size=len(of))
        wrong = np.where(generator.random(len(of)) < 0.6, near, far)
        return np.where(generator.random(len(of)) < strength * skill[of], of, wrong)

    a = np.where(generator.random(len(true)) < 0.67, answers(label, 1.0)[group], answers(true, 1.0))
    changed = (generator.random(n_groups) < 0.3)[group]  # the models agree on most groups
    return true, a, np.where(changed, answers(label, 0.9)[group], a), group


def art(generator: np.random.Generator) -> Sample:
    return one_label(generator, ART, (1, 2, 3, 4, 6, 9), (0.877, 0.064, 0.016, 0.01, 0.02, 0.013))


def music(generator: np.random.Generator) -> Sample:
    return one_label(generator, MUSIC, (1, 2, 3, 4), (0.5, 0.36, 0.12, 0.02))


def tagging(generator: np.random.Generator) -> Sample:
    """585 groups of 1 to 81 rows, about 1,875; 81 tags from most of the rows to a handful of groups."""
    n_groups, n_tags = 585, 81
    share = np.append([0.6, 0.5, 0.4, 0.3, 0.22], np.geomspace(0.16, 6 / n_groups, n_tags - 5))
    while True:
        sizes = np.clip(np.ceil(np.exp(generator.normal(0.1, 1.25, n_groups))), 1, 81).astype(int)
        group = np.repeat(np.arange(n_groups), sizes)
        # A group that has a tag at all has it on a share of its rows.
        rate = (generator.random((n_groups, n_tags)) < share) * generator.beta(1.2, 1.2, (n_groups, n_tags))
        truth = generator.random((len(group), n_tags)) < rate[group]
        if truth.any(axis=0).all():
            break
    a_group, a_row, b_group, b_row = (
        generator.standard_normal((n, n_tags), dtype=np.float32) for n in 2 * (n_groups, len(group))
    )
    scores = truth * np.linspace(1.2, 2.6, n_tags, dtype=np.float32) + 0.7 * a_group[group] + 0.8 * a_row
    return truth, scores, scores + 0.35 * b_group[group] + 0.3 * b_row, group


def coverage(
    population: Callable[[np.random.Generator], Sample],
    score: Callable[[Any, Any], float],
    interval: Callable[..., tuple[float, float]],
    paired: Callable[..., tuple[float, float, float]],
    truths: int,
    repetitions: int,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """For a score and for a difference: shares of intervals that hold the truth, lie below it, and lie above it."""
    generator = np.random.default_rng(seed)
    many = np.array(
        [[score(true, a), score(true, b)] for true, a, b, _ in (population(generator) for _ in range(truths))]
    )
    expected = many.mean(axis=0)
    found: dict[str, list[tuple[bool, bool, bool]]] = {"score": [], "difference": []}
    for repetition in range(repetitions):
        true, a, b, group = population(generator)
        bounds = interval(true, a, group, n=RESAMPLES, seed=repetition)
        _, *of_difference = paired(true, a, b, group, n=RESAMPLES, seed=repetition)
        for name, value, (low, high) in (
            ("score", expected[0], bounds),
            ("difference", expected[0] - expected[1], of_difference),
        ):
            found[name].append((low <= value <= high, high < value, value < low))
    return {name: tuple(np.mean(rows, axis=0).tolist()) for name, rows in found.items()}


def f1(n_labels: int) -> tuple[Any, Any, Any]:
    return (
        lambda true, a: macro_f1(true, a, n_labels),
        lambda true, a, group, **options: bootstrap_macro_f1(true, a, n_labels, group, **options),
        lambda true, a, b, group, **options: bootstrap_paired_macro_f1(true, a, b, n_labels, group, **options),
    )


ACCURACY = (
    lambda true, a: float((true == a).mean()),
    lambda true, a, group, **options: bootstrap_ratio(true == a, np.ones(len(a)), group, **options),
    lambda true, a, b, group, **options: bootstrap_paired_ratio(
        true == a, true == b, np.ones(len(a)), group, **options
    ),
)
AVERAGE_PRECISION = (
    macro_average_precision,
    bootstrap_macro_average_precision,
    bootstrap_paired_macro_average_precision,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("population", "metric", "truths", "repetitions"),
    [
        pytest.param(art, f1(35), 4000, 1000, id="art, macro F1"),
        pytest.param(music, f1(5), 8000, 1500, id="music, macro F1"),
        pytest.param(music, ACCURACY, 8000, 1500, id="music, accuracy"),
        pytest.param(tagging, AVERAGE_PRECISION, 1000, 400, id="tagging, macro AP"),
    ],
)
def test_the_interval_holds_the_true_value_as_often_as_it_says(population, metric, truths, repetitions):
    for name, (inside, below, above) in coverage(population, *metric, truths, repetitions).items():
        # Differences of macro average precision are a little too wide: 97 to 98 % of 400.
        most = 0.985 if name == "difference" and population is tagging else 0.97
        assert 0.93 <= inside <= most, f"{name}: {inside:.3f}"
        assert max(below, above) <= 0.04, f"{name}: {below:.3f} below the truth, {above:.3f} above it"
