"""kit_splits.near_duplicates against brute force, and what the hash does and does not notice."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_splits.near_duplicates import GRAY_SIDE, HASH_BYTES, close_pairs, connected_groups, perceptual_hashes


def all_distances(hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    return np.unpackbits(hashes[:, None] ^ hashes[None], axis=2).sum(axis=2).astype(np.int64)


def brute_force(hashes: npt.NDArray[np.uint8], max_distance: int) -> npt.NDArray[np.int64]:
    return np.argwhere(np.triu(all_distances(hashes) <= max_distance, 1))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 2**32 - 1), st.data())
def test_pairs_are_those_of_brute_force(n: int, width: int, seed: int, data: st.DataObject):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (n, width), dtype=np.uint8)
    for _ in range(n // 3):  # some rows near to, or the same as, others
        first, second = rng.integers(0, n, 2)
        hashes[first] = hashes[second]
        hashes[first, rng.integers(width)] ^= np.uint8(rng.integers(0, 256))
    distance = data.draw(st.integers(0, 8 * width - 1))
    found = close_pairs(hashes, distance)
    assert found.dtype == np.int64
    assert np.array_equal(found, brute_force(hashes, distance).reshape(-1, 2))


def test_wrong_arguments_of_pairs():
    good = np.zeros((3, 2), np.uint8)
    for bad in (good[0], good.astype(np.int64)):
        with pytest.raises(ValueError, match="expected uint8"):
            close_pairs(bad, 1)
    for distance in (-1, 16):
        with pytest.raises(ValueError, match="hashes of 16 bits"):
            close_pairs(good, distance)


@settings(deadline=None)
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=40))
def test_groups_are_what_chains_of_pairs_reach(n: int, pairs: list[tuple[int, int]]):
    pairs = [(a % n, b % n) for a, b in pairs]
    groups = connected_groups(n, np.array(pairs, dtype=np.int64).reshape(-1, 2))
    reach = np.eye(n, dtype=bool)
    for a, b in pairs:
        reach[a, b] = reach[b, a] = True
    for _ in range(n):  # as often as a chain is long
        reach = reach @ reach
    assert np.array_equal(groups[:, None] == groups, reach)
    firsts = [int(np.flatnonzero(groups == g)[0]) for g in range(groups.max() + 1)]
    assert firsts == sorted(firsts)


def test_no_rows_no_groups():
    assert connected_groups(0, np.zeros((0, 2), np.int64)).tolist() == []
    assert close_pairs(np.zeros((0, 4), np.uint8), 3).shape == (0, 2)


def textures(n: int, seed: int) -> npt.NDArray[np.float64]:
    """Random pictures with more in low frequencies than in high ones, as natural ones have."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(GRAY_SIDE)[:, None], np.fft.rfftfreq(GRAY_SIDE)) + 1 / GRAY_SIDE
    spectrum = np.fft.rfft2(rng.normal(size=(n, GRAY_SIDE, GRAY_SIDE))) / frequency
    pictures = np.fft.irfft2(spectrum, s=(GRAY_SIDE, GRAY_SIDE))
    low, high = pictures.min(axis=(1, 2), keepdims=True), pictures.max(axis=(1, 2), keepdims=True)
    return 20 + 215 * (pictures - low) / (high - low)


def test_hashes_forgive_light_and_noise_and_tell_pictures_apart():
    pictures = textures(60, 0)
    hashes = perceptual_hashes(pictures)
    assert hashes.shape == (60, HASH_BYTES)
    assert hashes.dtype == np.uint8
    others = all_distances(hashes)[np.triu_indices(60, 1)]
    assert others.min() > 40
    assert abs(others.mean() - 72) < 4  # of 143 bits that mean anything, half
    noise = np.random.default_rng(1).normal(0, 2, pictures.shape)
    for changed in (pictures * 0.8, pictures + 15, np.round(pictures + noise), pictures.astype(np.uint8)):
        bits = np.bitwise_count(perceptual_hashes(changed) ^ hashes).sum(axis=1)
        assert np.median(bits) <= 8
        assert bits.max() <= 20


def test_hashes_are_those_of_scipy():
    fft = pytest.importorskip("scipy.fft")
    pictures = textures(5, 2)
    low = fft.dctn(pictures, axes=(1, 2), norm="ortho")[:, :12, :12].reshape(5, -1)
    expected = low > np.median(low[:, 1:], axis=1, keepdims=True)
    expected[:, 0] = False  # the mean
    assert np.array_equal(np.unpackbits(perceptual_hashes(pictures), axis=1), expected)


def test_flat_pictures_have_no_bits():
    flat = np.stack([np.full((GRAY_SIDE, GRAY_SIDE), value) for value in (0, 7, 128, 255)])
    assert not perceptual_hashes(flat).any()
    assert perceptual_hashes(flat[:0]).shape == (0, HASH_BYTES)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected \[n, 32, 32\]"):
        perceptual_hashes(np.zeros((3, 16, 16)))
