"""The spectra of NTUA's Pattern Recognition lab 3: mel in dB, chroma, and both between beats.

    spectra = lab_spectra(samples)          # float32[samples] at 22,050 Hz
    spectra.full                            # float32[140, frames]: 128 mel bands in dB, then 12 pitch classes
    spectra.beat                            # float32[140, beats + 1]: medians between beats

Everything equals what plain librosa calls give; it is faster because one short-time Fourier transform serves the mel
bands and the separation, the harmonic part is never turned back into sound, and the medians run along one axis.
"""

import fcntl
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import librosa
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from kit_audio.decode import SAMPLE_RATE

N_FFT, HOP = 2048, 512  # samples: 93 ms and 23 ms at 22,050 Hz
MEL_BANDS, PITCH_CLASSES = 128, 12
ROWS = MEL_BANDS + PITCH_CLASSES
FLOOR_DB = -80.0  # below the clip's own maximum
MEDIAN_WIDTH = 31  # bins or frames, librosa's default for the separation
SHORTEST_SECONDS = 3.0  # below this the lowest bands of the constant-Q transform see less than they need
PITCH_NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LabSpectra:
    """The two versions of one clip, and its beats.

    full    float32[140, frames]: rows 0–127 mel in dB (0 = the clip's maximum, floor −80), 128–139 chroma in 0..1.
    beat    float32[140, beats + 1]: medians from the start to the first beat, between beats, and to the end; a column
            less where the first beat is at frame 0.
    beats   int64[beats]: frame of every beat.
    tempo   beats per minute; 0 where no pulse was found.
    """

    full: Floats
    beat: Floats
    beats: NDArray[np.int64]
    tempo: float


def lab_spectra(samples: Floats, *, sample_rate: int = SAMPLE_RATE) -> LabSpectra:
    """Compute both versions of a clip, float32[samples].

    Raises:
        ValueError: fewer than 3 seconds, or nothing but zeros, which has no loudest value to measure dB from.
    """
    if samples.ndim != 1 or len(samples) < SHORTEST_SECONDS * sample_rate:
        raise ValueError(f"samples: found shape {samples.shape}, expected at least {SHORTEST_SECONDS:g} seconds")
    if not samples.any():
        raise ValueError("samples: found digital silence, expected sound")
    ensure_compiled()
    return _spectra(samples, sample_rate)


@cache
def ensure_compiled() -> None:
    """Let numba compile what librosa needs, one process at a time; a minute once an installation, then nothing.

    numba keeps the result in a cache beside librosa. Two processes that fill it at once leave files over which every
    later process crashes, so whoever comes first does it alone.
    """
    clicks = np.zeros(4 * SAMPLE_RATE, np.float32)
    clicks[:: SAMPLE_RATE // 2] = 1.0
    with (Path(tempfile.gettempdir()) / f"kit_audio-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _spectra(clicks, SAMPLE_RATE)


def _spectra(samples: Floats, sample_rate: int) -> LabSpectra:
    transform = librosa.stft(samples, n_fft=N_FFT, hop_length=HOP)
    power = power_mel(transform, sample_rate)
    pitch = chroma(samples, sample_rate)
    tempo, beats = find_beats(percussive_part(transform, len(samples)), sample_rate)
    return LabSpectra(
        full=fuse(power, pitch),
        beat=fuse(medians_between(power, beats), medians_between(pitch, beats)),
        beats=beats,
        tempo=tempo,
    )


def power_mel(transform: NDArray[np.complexfloating], sample_rate: int = SAMPLE_RATE) -> Floats:
    """Return the power in 128 mel bands, float32[128, frames], of a transform complex[1025, frames]."""
    bands = librosa.feature.melspectrogram(S=np.abs(transform) ** 2, sr=sample_rate, n_mels=MEL_BANDS)
    return np.asarray(bands, dtype=np.float32)


def chroma(samples: Floats, sample_rate: int = SAMPLE_RATE) -> Floats:
    """Return the constant-Q chromagram float32[12, frames], every frame scaled to a maximum of 1."""
    pitch = librosa.feature.chroma_cqt(y=samples, sr=sample_rate, hop_length=HOP)
    return np.asarray(pitch, dtype=np.float32)


def running_median(values: Floats, width: int = MEDIAN_WIDTH) -> Floats:
    """Return the median of `width` (odd) neighbours along the last axis of [rows, n], reflected at both ends.

    Equal to `scipy.ndimage.median_filter(values, size=(1, width))`. The rows go end to end through the filter for one
    axis, which updates a sorted window instead of sorting each anew.

    Raises:
        ValueError: an even width.
    """
    if width % 2 == 0:
        raise ValueError(f"width: found {width}, expected an odd number")
    margin = width // 2
    padded = np.pad(values, ((0, 0), (margin, margin)), mode="symmetric")
    filtered = median_filter(padded.ravel(), size=width, mode="reflect").reshape(padded.shape)
    return np.asarray(filtered[:, margin : margin + values.shape[1]])


def percussive_part(transform: NDArray[np.complexfloating], length: int) -> Floats:
    """Return the percussive half of a harmonic-percussive separation as a waveform float32[length].

    Equal to `librosa.effects.percussive`. Source: Fitzgerald, Harmonic/percussive separation using median filtering,
    DAFx 2010, with the soft masks of Driedger, Müller and Disch, ISMIR 2014.
    """
    magnitude, phase = librosa.magphase(transform)
    harmonic = running_median(magnitude)
    percussive = running_median(np.ascontiguousarray(magnitude.T)).T
    mask = librosa.util.softmask(percussive, harmonic, power=2.0, split_zeros=True)
    return np.asarray(librosa.istft(magnitude * mask * phase, n_fft=N_FFT, hop_length=HOP, length=length))


def find_beats(percussive: Floats, sample_rate: int = SAMPLE_RATE) -> tuple[float, NDArray[np.int64]]:
    """Return the tempo in beats per minute and the frames of the beats, int64[beats], of a percussive waveform.

    Source: Ellis, Beat tracking by dynamic programming, 2007 (librosa).
    """
    tempo, beats = librosa.beat.beat_track(y=percussive, sr=sample_rate, hop_length=HOP)
    return float(np.atleast_1d(tempo)[0]), np.asarray(beats, dtype=np.int64)


def medians_between(values: Floats, beats: NDArray[np.int64]) -> Floats:
    """Return the medians of [rows, frames] from the start to the first beat, between beats and to the end.

    float32[rows, beats + 1]; without a beat there is one median, of everything. Nothing lies before a beat at frame 0.
    """
    if not len(beats):
        return np.median(values, axis=1, keepdims=True).astype(np.float32)
    return np.asarray(librosa.util.sync(values, beats.tolist(), aggregate=np.median), dtype=np.float32)


def fuse(power: Floats, pitch: Floats) -> Floats:
    """Return mel power in dB below its own maximum, floor −80, above chroma: float32[140, frames]."""
    decibels = librosa.power_to_db(power, ref=np.max, top_db=-FLOOR_DB)
    return np.concatenate([decibels, pitch]).astype(np.float32)
