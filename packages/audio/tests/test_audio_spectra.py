"""The spectra against what plain librosa calls give."""

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from kit_audio import SAMPLE_RATE, lab_spectra, percussive_part, running_median


def music(seconds: float, beats_a_minute: float = 120.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    drum = rng.standard_normal(len(time)) * np.exp(-40 * (time % (60 / beats_a_minute)))
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (220.0, 277.2, 329.6))
    return (0.1 * chord + 0.2 * drum).astype(np.float32)


def plainly(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What everybody writes: every quantity by its own librosa call."""
    mel = librosa.feature.melspectrogram(y=samples)
    chroma = librosa.feature.chroma_cqt(y=samples)
    _, percussive = librosa.effects.hpss(samples)
    _, beats = librosa.beat.beat_track(y=percussive)
    full = np.concatenate([librosa.power_to_db(mel, ref=np.max), chroma])
    mel_beat = librosa.util.sync(mel, beats, aggregate=np.median)
    chroma_beat = librosa.util.sync(chroma, beats, aggregate=np.median)
    return full, np.concatenate([librosa.power_to_db(mel_beat, ref=np.max), chroma_beat]), beats


@pytest.mark.parametrize(("seconds", "tempo"), [(8.0, 120.0), (6.5, 90.0)])
def test_both_versions_equal_plain_librosa(seconds: float, tempo: float) -> None:
    samples = music(seconds, tempo)
    spectra = lab_spectra(samples)
    full, beat, beats = plainly(samples)
    np.testing.assert_array_equal(spectra.beats, beats)
    np.testing.assert_allclose(spectra.full, full, atol=1e-4)
    np.testing.assert_allclose(spectra.beat, beat, atol=1e-4)
    assert spectra.full.dtype == spectra.beat.dtype == np.float32
    assert spectra.full.shape == (140, 1 + len(samples) // 512)
    assert spectra.beat.shape == (140, len(beats) + 1)
    assert spectra.full[:128].max() == 0.0
    assert spectra.full[:128].min() >= -80.0
    np.testing.assert_allclose(spectra.full[128:].max(axis=0), 1.0, atol=1e-6)
    assert abs(spectra.tempo - tempo) < 6


def test_the_percussive_part_is_librosas() -> None:
    samples = music(4.0)
    ours = percussive_part(librosa.stft(samples), len(samples))
    np.testing.assert_allclose(ours, librosa.effects.percussive(samples), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(20, 120), st.sampled_from([1, 3, 31]), st.integers(0, 999))
def test_running_median_is_scipys(rows: int, length: int, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 9, (rows, length)).astype(np.float32)
    expected = median_filter(values, size=(1, width), mode="reflect")
    np.testing.assert_array_equal(running_median(values, width), expected)


def test_running_median_of_an_even_width() -> None:
    with pytest.raises(ValueError, match="width"):
        running_median(np.zeros((1, 9), np.float32), 4)


def test_sound_without_a_pulse_gives_one_column() -> None:
    time = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    fade = np.minimum(1.0, np.minimum(time, 4 - time))
    samples = (0.2 * fade * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    spectra = lab_spectra(samples)
    assert len(spectra.beats) == 0
    np.testing.assert_allclose(spectra.beat[128:, 0], np.median(spectra.full[128:], axis=1), atol=1e-6)
    assert spectra.beat.shape == (140, 1)


def test_too_short_and_silent() -> None:
    with pytest.raises(ValueError, match="at least 3 seconds"):
        lab_spectra(np.ones(2 * SAMPLE_RATE, np.float32))
    with pytest.raises(ValueError, match="digital silence"):
        lab_spectra(np.zeros(4 * SAMPLE_RATE, np.float32))
