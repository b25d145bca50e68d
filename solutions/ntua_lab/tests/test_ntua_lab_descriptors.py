"""Musical descriptors: what is known of made-up clips must be found in them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from ntua_lab import descriptors
from ntua_lab.descriptors import MAJOR, MINOR, RATE


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 99))
def test_numbers_of_clips_of_any_length(frames: int, beats: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    full, beat = (
        np.concatenate([rng.uniform(-80, 0, (128, n)), rng.random((12, n))]).astype(np.float32) for n in (frames, beats)
    )
    found = descriptors.describe(full, beat)
    assert found.shape == (193,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    for level in (-80.0, 0.0):
        still = descriptors.describe(
            np.full((140, frames), level, np.float32), np.full((140, beats), level, np.float32)
        )
        assert np.isfinite(still).all()


@pytest.mark.parametrize("key", [0, 5, 11])
def test_major_and_minor(key: int) -> None:
    rng = np.random.default_rng(0)

    def chroma(profile: np.ndarray) -> np.ndarray:
        return np.roll(profile, key)[:, None] / profile.max() * rng.uniform(0.9, 1.0, (12, 200))

    major, minor = (descriptors.harmony(chroma(profile)) for profile in (MAJOR, MINOR))
    assert major[0] > 0.1 > -0.1 > minor[0]  # major against minor
    assert major[4] > 0 > minor[4]  # the third
    assert major[10] > 0 > minor[10]  # mean over segments
    expected = pearsonr(chroma(MAJOR).mean(axis=1), np.roll(MAJOR, key)).statistic
    assert major[1] == pytest.approx(expected, abs=0.02)


def test_a_pulse_comes_back() -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 1, (128, 1290))
    beats = noise.copy()
    beats[:, ::20] += 30
    regular, irregular = (descriptors.pulse(rises, 60 * RATE / 20) for rises in (beats, noise))
    at_beat = 6 + 25 + 1  # after the sorted ones and the grid: half a beat, a beat, two, four
    assert regular[at_beat] > 0.9
    assert abs(irregular[at_beat]) < 0.2
    assert regular[at_beat - 1] < 0.1  # nothing half way
    assert regular[-2] == pytest.approx(60 * RATE / 20)
    assert descriptors.onsets(beats)[-1] == pytest.approx(RATE / 20, rel=0.05)  # onsets a second


def test_bright_loud_and_percussive() -> None:
    dark, bright = (np.full((128, 300), -70.0) for _ in range(2))
    dark[5:15], bright[90:100] = -5.0, -5.0
    assert descriptors.brightness(bright)[0] > descriptors.brightness(dark)[0] + 1  # log of the centroid
    steady = np.full((128, 300), -70.0)
    steady[::16] = -5.0  # lines along time
    clicks = np.full((128, 300), -70.0)
    clicks[:, ::25] = -5.0  # lines along frequency
    assert descriptors.percussion(clicks)[0] > 0.9
    assert descriptors.percussion(steady)[0] < 0.1
    rising = np.linspace(-60, -10, 300) * np.ones((128, 1))
    even = np.full((128, 300), -10.0)
    assert descriptors.loudness(rising)[1] > 5  # deviation of the level
    assert descriptors.loudness(even)[1] == pytest.approx(0, abs=1e-9)


def test_autocorrelation_is_the_slow_one() -> None:
    values = np.random.default_rng(0).random(50)
    centred = values - values.mean()
    slow = [(centred[: 50 - lag] * centred[lag:]).sum() / max(50 - lag, 25) for lag in range(50)]
    np.testing.assert_allclose(descriptors._autocorrelation(values), np.array(slow) / slow[0], atol=1e-6)
