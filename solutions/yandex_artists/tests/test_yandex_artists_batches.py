"""Batches: every artist once an epoch and whole; windows inside tracks; padding that stays padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from kit_io.ragged import RaggedPack
from yandex_artists.augment import augment, bootstrap, keep_some, roll, splice, zero_and_copy_runs
from yandex_artists.batches import (
    Frames,
    artist_batches,
    epoch_batches,
    group_batches,
    random_windows,
    rolling_windows,
)
from yandex_artists.config import AugmentConfig, StageConfig

ARTISTS = some.lists(some.integers(5, 40), min_size=1, max_size=80).map(np.array)


@given(ARTISTS, some.integers(1, 12), some.integers(0, 99))
@settings(max_examples=60, deadline=None)  # a shared machine has slow moments
def test_artist_batches_hold_every_artist_once_and_whole(artists: np.ndarray, size: int, seed: int) -> None:
    batches = artist_batches(artists, size, seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(artists)))
    sets = [set(artists[rows].tolist()) for rows in batches]
    assert sum(map(len, sets)) == len(set(artists.tolist()))  # so no two batches share one
    assert all(len(of_batch) <= size for of_batch in sets)
    assert len(batches) == -(-len(set(artists.tolist())) // size)


@given(ARTISTS, some.integers(1, 12), some.integers(1, 4), some.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_group_batches_draw_some_tracks_of_every_artist(artists: np.ndarray, size: int, each: int, seed: int) -> None:
    drawn = np.concatenate(group_batches(artists, size, each, seed))
    assert len(set(drawn.tolist())) == len(drawn)
    values, counts = np.unique(artists, return_counts=True)
    found = dict(zip(*np.unique(artists[drawn], return_counts=True), strict=True))
    assert found == dict(zip(values, np.minimum(counts, each), strict=True))


def test_epochs_differ_and_repeat_with_their_seed() -> None:
    artists = np.arange(100) // 4
    for batching in ("artists", "groups", "tracks"):
        stage = StageConfig(batching=batching, batch=7, per_artist=2)
        first, again, other = (np.concatenate(epoch_batches(artists, stage, seed)) for seed in (1, 1, 2))
        assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize("batching", ["artists", "groups", "tracks"])
def test_every_training_artist_is_seen_in_an_epoch(batching: str) -> None:
    artists = np.array(
        [900, 7, 900, 12, 7, 44, 900]
    )  # raw numbers far above their count, where the original loses them
    batches = epoch_batches(artists, StageConfig(batching=batching, batch=2), 0)
    assert set(artists[np.concatenate(batches)].tolist()) == {7, 12, 44, 900}
    of_several = epoch_batches(artists, StageConfig(batching=batching, batch=2, smallest_artist=2), 0)
    assert set(artists[np.concatenate(of_several)].tolist()) == {7, 900}


def test_random_windows_reach_both_ends_and_stay_inside() -> None:
    lengths = np.array([3, 10, 25] * 200)
    start, taken = random_windows(lengths, 10, seed=0)
    assert taken.tolist() == [3, 10, 10] * 200
    assert (start + taken <= lengths).all()
    assert {0, 15} <= set(start[2::3].tolist())
    assert random_windows(lengths, 0, seed=0)[1].tolist() == lengths.tolist()


def test_rolling_windows_of_the_seed() -> None:
    windows = rolling_windows(81, 10, 5)
    assert len(windows) == 15
    assert windows[0] == (71, 10)
    assert windows[-1] == (1, 10)
    assert rolling_windows(8, 10, 5) == [(0, 8)]


def test_frames_come_as_the_pack_has_them() -> None:
    generator = np.random.default_rng(0)
    items = [generator.normal(size=(length, 3)).astype(np.float32) for length in (4, 7)]
    frames = Frames(RaggedPack.from_items(items), torch.device("cpu"))
    x, lengths = frames.gather(np.array([1, 0]), np.array([2, 0]), np.array([3, 4]))
    assert lengths.tolist() == [3, 4]
    np.testing.assert_array_equal(x[0, :3], items[1][2:5])
    assert not x[0, 3].any()


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    lengths = torch.tensor([9, 1, 5, 12, 2, 7])
    x = torch.randn(6, 12, 16) + 10  # far from 0, so that a zero is one that was put there
    x = x.masked_fill(torch.arange(12)[None, :, None] >= lengths[:, None, None], 0.0)
    return x, lengths, torch.tensor([0, 0, 1, 1, 2, 3])


EVERYTHING = AugmentConfig(
    bootstrap=True, keep=0.4, roll=0.5, mask_frames=4, splice=0.5, seed_recipe=True, noise=0.1, channel_dropout=0.1
)


def test_augmentation_leaves_padding_zero_and_at_least_one_frame() -> None:
    x, lengths, artists = _batch()
    for seed in range(20):
        torch.manual_seed(seed)
        out, counts = augment(x, lengths, artists, EVERYTHING)
        assert (counts >= 1).all()
        assert (counts <= lengths).all()
        assert out.shape[1] >= int(counts.max())
        assert not out[torch.arange(out.shape[1]) >= counts[:, None]].any()


def test_no_augmentation_is_none() -> None:
    x, lengths, artists = _batch()
    out, counts = augment(x, lengths, artists, AugmentConfig())
    assert torch.equal(out, x)
    assert torch.equal(counts, lengths)


def _rows(x: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(frame.tolist()) for frame in x}


def test_bootstrap_roll_and_keep_take_only_frames_of_the_track() -> None:
    x, lengths, _ = _batch()
    rolled, drawn = roll(x, lengths, 1.0), bootstrap(x, lengths)
    kept, counts = keep_some(x, lengths, 0.2)
    for i, n in enumerate(lengths.tolist()):
        original = _rows(x[i, :n])
        assert _rows(rolled[i, :n]) == original
        assert _rows(drawn[i, :n]) <= original
        assert _rows(kept[i, : counts[i]]) <= original
        places = [x[i].tolist().index(frame) for frame in kept[i, : counts[i]].tolist()]
        assert places == sorted(places)  # in their order


def test_splice_borrows_from_the_same_artist_only() -> None:
    x, lengths, artists = _batch()
    out = splice(x, lengths, artists, 1.0)
    for i, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        n = int(lengths[i])
        assert torch.equal(out[i, : n // 2], x[i, : n // 2])
        assert _rows(out[i, n // 2 : n]) <= _rows(x[other, : lengths[other]])
    assert torch.equal(out[4:], x[4:])  # nobody to borrow from


def test_the_recipe_of_the_seed_zeroes_and_copies() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 40, 32) + 10
    out = zero_and_copy_runs(x, torch.full((200,), 40))
    zeros = (out == 0).float().mean().item()
    copied = ((out != x) & (out != 0)).float().mean().item()
    # Expected: 5 tries on channels and 2.5 on frames, a third of them made, of 3.5 places each, overlaps aside.
    assert 0.1 < zeros < 0.35
    assert 0.1 < copied < 0.4
