"""Audio files to mono waveforms, and waveforms to clips of equal length."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from kit_core.errors import DataError

SAMPLE_RATE = 22_050  # Hz, librosa's own default, which the lab's features have
SUFFIXES = (".wav", ".ogg", ".flac", ".mp3")
LOWEST_RATE, HIGHEST_RATE = 4_000, 768_000  # Hz; outside of these a header is damaged rather than unusual

Waveform = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Audio:
    """A mono waveform float32[samples] in −1..1 at `sample_rate` Hz, and what it was in the file."""

    samples: Waveform
    sample_rate: int
    source_rate: int
    source_channels: int

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return len(self.samples) / self.sample_rate


def decode(path: Path, *, sample_rate: int = SAMPLE_RATE) -> Audio:
    """Read a wav, ogg, flac or mp3 file, take the mean of its channels and resample it (soxr, high quality).

    Equal to `librosa.load(path, sr=sample_rate)`, without its fallbacks to other programs.

    Raises:
        DataError: no such file, not decodable, without samples, with samples that are not finite, or an mp3 file where
            libsndfile was built without an mp3 decoder.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate, channels = int(file.samplerate), int(file.channels)
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise _not_decodable(path, error) from error
    if not len(samples):
        raise _refused(path, "no samples at all", "leave the file out, or export it again")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise _refused(path, f"a sample rate of {rate} Hz", "export the file again at 22050 to 48000 Hz")
    mono = samples.mean(axis=1, dtype=np.float32)
    bad = int(np.count_nonzero(~np.isfinite(mono)))
    if bad:
        raise _refused(path, f"{bad} of {len(mono)} samples are not finite", "export the file again as 16-bit wav")
    return Audio(resample(mono, rate, sample_rate), sample_rate, rate, channels)


def resample(samples: Waveform, rate: int, wanted: int) -> Waveform:
    """Return the waveform float32[n] at another rate, float32[ceil(n · wanted / rate)], as `librosa.resample` does."""
    if rate == wanted:
        return samples
    length = math.ceil(len(samples) * wanted / rate)
    out = soxr.resample(samples, rate, wanted, quality="HQ")[:length]
    return np.pad(out, (0, length - len(out))).astype(np.float32, copy=False)


def cut(samples: int, *, sample_rate: int = SAMPLE_RATE, clip_seconds: float = 30.0) -> list[tuple[int, int]]:
    """Return the bounds (start, stop) of consecutive clips of a waveform of so many samples.

    What is left at the end becomes a clip of its own where it has half the length or nothing else is there.

    Raises:
        ValueError: a clip shorter than one sample.
    """
    length = round(clip_seconds * sample_rate)
    if length < 1:
        raise ValueError(f"clip_seconds: found {clip_seconds}, expected a positive length")
    whole = [(start, start + length) for start in range(0, samples - length + 1, length)]
    rest = samples - len(whole) * length
    if rest and (not whole or 2 * rest >= length):
        whole.append((len(whole) * length, samples))
    return whole


def _not_decodable(path: Path, error: Exception) -> DataError:
    if not path.is_file():
        return _refused(path, "no such file", "check the spelling and the permissions")
    if path.suffix.lower() == ".mp3" and "MP3" not in soundfile.available_formats():
        return _refused(
            path,
            f"an mp3 file, and libsndfile {soundfile.__libsndfile_version__} here has no mp3 decoder",
            "install libsndfile 1.1 or later, or convert the file to ogg or wav",
        )
    size = path.stat().st_size
    if not size:
        return _refused(path, "no bytes at all", "copy or download the file again")
    reason = str(error).partition(": ")[2].rstrip(".") or type(error).__name__
    return _refused(
        path, f"{size} bytes that libsndfile cannot decode ({reason})", "convert or download the file again"
    )


def _refused(path: Path, found: str, remedy: str) -> DataError:
    return DataError(f"{path}: found {found}\n  expected: sound as wav, ogg, flac or mp3\n  do: {remedy}")
