"""Decoding against librosa.load, and files that are no sound."""

from itertools import pairwise
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from kit_audio import cut, decode, resample
from kit_core.errors import DataError

# librosa.load, which only these tests call, imports a package that imports what Python 3.13 removes
pytestmark = pytest.mark.filterwarnings("ignore:'(aifc|audioop|sunau)' is deprecated:DeprecationWarning")


def tone(rate: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    time = np.arange(round(rate * seconds)) / rate
    voices = [np.sin(2 * np.pi * (220 + 110 * channel) * time) for channel in range(channels)]
    return (0.4 * np.stack(voices, axis=1)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".ogg", ".flac", ".mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (22_050, 2), (44_100, 2), (48_000, 1)])
def test_every_format_equals_librosa(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    path = tmp_path / f"song{suffix}"
    soundfile.write(path, tone(rate, channels=channels), rate)
    audio = decode(path)
    expected, _ = librosa.load(path, sr=22_050)
    np.testing.assert_array_equal(audio.samples, expected)
    assert audio.samples.dtype == np.float32
    assert (audio.source_rate, audio.source_channels) == (rate, channels)
    assert audio.seconds == pytest.approx(1.0, abs=0.15)  # mp3 pads to whole blocks


@given(st.integers(1, 4_000), st.sampled_from([8_000, 11_025, 16_000, 44_100]))
def test_resampled_length_is_librosas(samples: int, rate: int) -> None:
    noise = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    expected = librosa.resample(noise, orig_sr=rate, target_sr=22_050)
    np.testing.assert_array_equal(resample(noise, rate, 22_050), expected)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        decode(path)
    message = str(caught.value)
    assert path.name in message
    assert "expected: " in message
    assert "do: " in message
    assert caught.value.exit_code == 3
    return message


def test_an_absent_file(tmp_path: Path) -> None:
    assert "found no such file" in refusal(tmp_path / "none.wav")
    (tmp_path / "folder.wav").mkdir()
    assert "found no such file" in refusal(tmp_path / "folder.wav")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.wav", b"", "no bytes at all"),
        ("a.ogg", b"<html>404</html>", "16 bytes that libsndfile cannot decode"),
        ("a.mp3", b"no music in here", "16 bytes that libsndfile cannot decode"),
    ],
)
def test_bytes_that_are_no_sound(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


def test_a_flac_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100)
    soundfile.write(path, noise, 44_100)
    path.write_bytes(path.read_bytes()[:30])
    assert "cannot decode" in refusal(path)


def test_sound_without_samples_and_with_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((0, 1)), 22_050)
    assert "no samples at all" in refusal(path)
    samples = np.zeros(100)
    samples[[3, 7]] = np.nan, np.inf
    soundfile.write(path, samples, 22_050, subtype="FLOAT")
    assert "2 of 100 samples are not finite" in refusal(path)
    soundfile.write(path, np.ones(100), 100)
    assert "a sample rate of 100 Hz" in refusal(path)


def test_mp3_where_there_is_no_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(b"\xff\xfb\x90\x00" * 4)
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "wav"})
    message = refusal(path)
    assert "has no mp3 decoder" in message
    assert "convert the file to ogg or wav" in message


@given(st.integers(1, 100_000), st.floats(0.1, 10.0))
def test_clips_follow_one_another(samples: int, clip_seconds: float) -> None:
    clips = cut(samples, sample_rate=1_000, clip_seconds=clip_seconds)
    length = round(clip_seconds * 1_000)
    assert clips
    assert clips[0][0] == 0
    assert all(first[1] == second[0] for first, second in pairwise(clips))
    assert all(stop - start == length for start, stop in clips[:-1])
    assert 0 <= samples - clips[-1][1] < length / 2
    assert len(clips) == 1 or 2 * (clips[-1][1] - clips[-1][0]) >= length


def test_clips_of_no_sound() -> None:
    assert cut(0) == []
    with pytest.raises(ValueError, match="clip_seconds"):
        cut(10, clip_seconds=0.0)
