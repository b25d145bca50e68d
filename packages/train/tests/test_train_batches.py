"""Batches: each row exactly once, whatever the settings; buckets waste little; schedules and stopping by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_train.batches import bucketed_batches, padding_efficiency, random_batches, sequential_batches
from kit_train.schedules import Plateau, cosine, cyclic_cosine, one_cycle, set_learning_rate
from kit_train.stopping import Patience

LENGTHS = st.lists(st.integers(1, 60), max_size=40).map(lambda values: np.array(values, np.int64))


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 99), budget=st.none() | st.integers(1, 200))
def test_every_row_is_in_exactly_one_batch(lengths: np.ndarray, size: int, seed: int, budget: int | None) -> None:
    n = len(lengths)
    for batches in (
        random_batches(n, size, seed),
        bucketed_batches(lengths, size, seed, frames_budget=budget),
        sequential_batches(lengths, size, frames_budget=budget),
    ):
        rows = np.concatenate([*batches, np.zeros(0, np.int64)])
        assert sorted(rows.tolist()) == list(range(n))
        assert all(1 <= len(batch) <= size for batch in batches)
    if budget is not None:
        for batch in bucketed_batches(lengths, size, seed, frames_budget=budget):
            assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


def test_buckets_waste_little_differ_by_seed_and_repeat_with_it() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 0.45, 5000).clip(10, 404).astype(np.int64)
    bucketed = bucketed_batches(lengths, 64, seed=1)
    assert padding_efficiency(lengths, bucketed) > 0.85
    assert padding_efficiency(lengths, random_batches(5000, 64, seed=1)) < 0.55
    assert padding_efficiency(lengths, sequential_batches(lengths, 64)) > 0.97
    again, other = bucketed_batches(lengths, 64, seed=1), bucketed_batches(lengths, 64, seed=2)
    assert all((a == b).all() for a, b in zip(bucketed, again, strict=True))
    assert {tuple(sorted(batch)) for batch in bucketed}.isdisjoint(tuple(sorted(batch)) for batch in other)
    means = [lengths[batch].mean() for batch in bucketed]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # short and long ones come mixed


def test_equal_lengths_are_shuffled() -> None:
    batches = bucketed_batches(np.full(64, 7), 8, seed=0, noise=0.0)
    order = np.concatenate(sorted(batches, key=lambda batch: int(batch[0])))
    assert np.mean(np.diff(order) == 1) < 0.2


def test_sequential_batches_begin_with_the_longest() -> None:
    lengths = np.array([3, 9, 1, 9])
    assert [batch.tolist() for batch in sequential_batches(lengths, 3)] == [[1, 3, 0], [2]]


@pytest.mark.parametrize("noise", [-0.1, 1.0])
def test_wrong_settings_are_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="noise"):
        bucketed_batches(np.array([1]), 1, 0, noise=noise)
    with pytest.raises(ValueError, match="size: found 0"):
        random_batches(3, 0, 0)
    with pytest.raises(ValueError, match="frames_budget 0"):
        bucketed_batches(np.array([1]), 1, 0, frames_budget=0)


def test_one_cycle_equals_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=101, pct_start=0.31, final_div_factor=1e9
    )
    # torch turns one step earlier: at 0.31 * 101 - 1 = 30.31, and ends at 100.
    for step in range(101):
        expected = optimizer.param_groups[0]["lr"]
        assert one_cycle(step, 100, warmup=0.3031) == pytest.approx(expected, abs=1e-6)
        optimizer.step()
        if step < 100:
            reference.step()


def test_cosines() -> None:
    assert [cosine(step, 10, warmup=0.2) for step in (0, 1, 2, 6, 10, 99)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 0.5, 0, 0]
    )
    assert cosine(10, 10, floor=0.1) == pytest.approx(0.1)
    assert [cyclic_cosine(step, 4) for step in (0, 2, 4, 6)] == pytest.approx([1, 0.5, 1, 0.5])
    assert cyclic_cosine(3, 4, floor=1.0) == pytest.approx(1)


def test_set_learning_rate_keeps_the_ratio_of_groups() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[0], "lr": 1.0}, {"params": parameters[1], "lr": 0.1}])
    for factor in (0.5, 0.25):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor, factor * 0.1])


def test_plateau_halves_after_patience_and_goes_on_after_a_resume() -> None:
    plateau = Plateau(0.5, patience=2, minimum=0.2)
    seen = []
    for score in (0.1, 0.3, 0.3, 0.2, 0.3, 0.1, 0.4, 0.1, 0.1, 0.0, 0.0):
        seen.append((plateau.step(score), plateau.reduced))
        resumed = Plateau(0.5, patience=2, minimum=0.2)
        resumed.load_state_dict(plateau.state_dict())
        plateau = resumed
    factors = [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]
    assert [factor for factor, _ in seen] == factors
    assert [place for place, (_, reduced) in enumerate(seen) if reduced] == [3, 5, 8]
    lower_is_better = Plateau(patience=1, mode="min")
    assert [lower_is_better.step(score) for score in (2.0, 1.0, 1.5)] == [1, 1, 0.5]


def test_patience_counts_and_nan_is_no_gain() -> None:
    patience = Patience(2)
    assert [patience.update(score) for score in (0.1, 0.1, 0.2, math.nan)] == [True, False, True, False]
    assert (patience.best, patience.exhausted) == (0.2, False)
    resumed = Patience(2)
    resumed.load_state_dict(patience.state_dict())
    resumed.update(0.2)
    assert resumed.exhausted
    falling = Patience(1, mode="min")
    assert [falling.update(score) for score in (0.2, 0.1, 0.3)] == [True, True, False]
    assert falling.exhausted
