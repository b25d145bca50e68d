"""What a musician would say of a clip, in numbers: loudness, brightness, onsets, pulse, percussion, key and harmony.

Models of emotion values see these few numbers; each is of a kind that such values are known to depend on. All are
computed from the spectra of the lab, without sound.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from ntua_lab.data import MEL_ROWS

RATE = 22050 / 512  # frames a second
QUANTILES = (10, 50, 90)
LOW, MIDDLE, HIGH = slice(0, 20), slice(20, 70), slice(70, None)  # mel bands: to 0.6 kHz, to 3.5 kHz, above
RISE_LAGS = np.geomspace(0.2, 2.5, 25) * RATE  # of autocorrelations, in frames
PULSE = slice(int(0.25 * RATE), int(1.5 * RATE))  # periods of a beat, 40 to 240 a minute
HARMONIC_FRAMES, PERCUSSIVE_BANDS = 17, 9  # of the medians, over every second band
SEGMENTS = 8  # with a key of their own
LEAST_FRAMES = 60

# Key profiles: Krumhansl, Cognitive Foundations of Musical Pitch, 1990, from probe tones.
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])

Floats = NDArray[np.float64]


def describe(full: NDArray[np.float32], beat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the descriptors of one clip from its spectra [140, T] in both versions: float32[193]."""
    tempo = 60.0 * beat.shape[1] * RATE / full.shape[1]  # a column of the beat version is a beat
    frames = np.tile(full, -(-LEAST_FRAMES // full.shape[1])).astype(np.float64)
    beats = np.tile(beat, -(-2 // beat.shape[1])).astype(np.float64)
    mel = frames[:MEL_ROWS]
    rises = np.maximum(np.diff(mel, axis=1), 0.0)
    parts = [
        loudness(mel),
        brightness(mel),
        onsets(rises),
        pulse(rises, tempo),
        [np.abs(np.diff(beats[:MEL_ROWS], axis=1)).mean(), beats[:MEL_ROWS].std(axis=1).mean()],
        percussion(mel),
        harmony(frames[MEL_ROWS:]),
        harmony(beats[MEL_ROWS:]),
    ]
    return np.concatenate([np.asarray(part, np.float64) for part in parts]).astype(np.float32)


def loudness(mel: Floats) -> list[float]:
    """Level against the loudest frame and its changes, in dB, of mel spectra in dB [128, T]."""
    power = 10 ** (mel / 10)
    level = 10 * np.log10(power.sum(axis=0) + 1e-8)
    changes = np.abs(np.diff(level))
    below = float((level < level.mean()).mean())
    whole = 10 * np.log10(power.sum(axis=0).mean() + 1e-8)
    return [*_five(level - level.max()), *_five(level), below, *_five(changes), float(whole)]


def brightness(mel: Floats) -> list[float]:
    """Centroid, width, roll-offs and flatness of the spectrum over time."""
    centre = _mel_to_hertz(np.linspace(0, _hertz_to_mel(11025.0), MEL_ROWS + 2)[1:-1])
    power = 10 ** (mel / 10)
    share = power / (power.sum(axis=0) + 1e-12)
    centroid = (share * centre[:, None]).sum(axis=0)
    width = np.sqrt((share * (centre[:, None] - centroid) ** 2).sum(axis=0)) / 1000
    upto = np.cumsum(share, axis=0)
    flatness = mel.mean(axis=0) - 10 * np.log10(power.mean(axis=0) + 1e-12)
    above = np.maximum(mel + 80, 0)
    place = (above * np.arange(MEL_ROWS)[:, None]).sum(axis=0) / (above.sum(axis=0) + 1e-9)
    rows = (width, (upto < 0.85).sum(axis=0), (upto < 0.5).sum(axis=0), flatness, place)
    return [*np.log(np.array(_five(centroid)) + 1e-9), *(value for row in rows for value in _five(row))]


def onsets(rises: Floats) -> list[float]:
    """How strongly bands rise from frame to frame [128, T - 1]: all, low, middle, high; and how often."""
    whole = rises.mean(axis=0)
    inner = whole[1:-1]
    peaks = (inner > whole[:-2]) & (inner >= whole[2:]) & (inner > whole.mean() + whole.std())
    contrast = [whole.std() / (whole.mean() + 1e-9), np.percentile(whole, 95) / (np.median(whole) + 1e-6)]
    rows = (whole, *(rises[bands].mean(axis=0) for bands in (LOW, MIDDLE, HIGH)))
    return [*(value for row in rows for value in _five(row)), *contrast, float(peaks.mean()) * RATE]


def pulse(rises: Floats, tempo: float) -> list[float]:
    """How regularly onsets come back: autocorrelations of the rises, also at multiples of the beat; and the tempo."""
    found: list[float] = []
    for number, bands in enumerate((slice(None), LOW, HIGH)):
        again = _autocorrelation(rises[bands].mean(axis=0))
        at_lags = np.interp(RISE_LAGS, np.arange(len(again)), again)
        found += np.sort(at_lags)[::-1][:6].tolist()
        if number == 0:
            found += at_lags.tolist()
            period = 60 * RATE / tempo
            found += [float(np.interp(period * k, np.arange(len(again)), again)) for k in (0.5, 1, 2, 4)]
        beat = again[PULSE]
        found += [beat.max(), beat.max() - np.median(beat), beat.std()]
    return [*found, tempo, float(np.log2(tempo))]


def percussion(mel: Floats) -> list[float]:
    """Share of what is short and broad (percussion) against what is long and narrow.

    Source: Fitzgerald, "Harmonic/percussive separation using median filtering", DAFx 2010.
    """
    every = mel[::2]
    long, broad = median_filter(every, size=(1, HARMONIC_FRAMES)), median_filter(every, size=(PERCUSSIVE_BANDS, 1))
    power_long, power_broad, power = (10 ** (values / 10) for values in (long, broad, every))
    mask = power_broad**2 / (power_long**2 + power_broad**2 + 1e-20)
    thirds = [mask[bands].mean() for bands in (slice(0, 20), slice(20, 45), slice(45, None))]
    excess = broad - long
    sizes = [excess.mean(), np.maximum(excess, 0).mean(), np.maximum(-excess, 0).mean()]
    return [
        (mask * power).sum() / power.sum(), mask.mean(), *np.percentile(mask.mean(axis=0), QUANTILES), *sizes, *thirds
    ]  # fmt: skip


def harmony(chroma: Floats) -> list[float]:
    """How far a clip is in major or in minor, how clear its key is, which intervals sound, and how fast they change."""
    found: list[float] = []
    for strength in (chroma.mean(axis=1), (chroma**2).mean(axis=1)):
        major, minor, third = _keys(strength)
        clear = max(major.max(), minor.max())
        found += [major.max() - minor.max(), major.max(), minor.max()]
        found += [clear - np.sort(np.concatenate([major, minor]))[-4], third]
    size = max(1, chroma.shape[1] // SEGMENTS)
    starts = range(0, chroma.shape[1] - size + 1, size)
    segments = [_keys(chroma[:, start : start + size].mean(axis=1)) for start in starts]
    modes = [major.max() - minor.max() for major, minor, _ in segments]
    share = chroma / (chroma.sum(axis=0) + 1e-9)
    entropy = -(share * np.log(share + 1e-9)).sum(axis=0)
    intervals = [(chroma * np.roll(chroma, -steps, axis=0)).mean() for steps in range(1, 7)]
    found += [float(np.mean(modes)), float(np.std(modes)), *_five(entropy), np.abs(np.diff(chroma, axis=1)).mean()]
    found += (np.array(intervals) / ((chroma**2).mean() + 1e-9)).tolist()
    return [*found, chroma.mean(axis=1).std(), chroma.std()]


def _keys(strength: Floats) -> tuple[Floats, Floats, float]:
    """Correlations of pitch classes [12] with the 12 major and 12 minor keys; how far the best key's third is major."""
    values = _unit(strength)
    major, minor = (np.stack([_unit(np.roll(p, key)) for key in range(12)]) @ values for p in (MAJOR, MINOR))
    tonic = int(np.maximum(major, minor).argmax())
    return major, minor, float(values[(tonic + 4) % 12] - values[(tonic + 3) % 12])


def _unit(values: Floats) -> Floats:
    centred = values - values.mean()
    return np.asarray(centred / (np.linalg.norm(centred) + 1e-9))


def _autocorrelation(values: Floats) -> Floats:
    """Autocorrelation [T] at lags 0 .. T - 1, each by its number of pairs (half of all at least); 0 of a constant."""
    n = len(values)
    spectrum = np.abs(np.fft.rfft(values - values.mean(), 2 * n)) ** 2
    sums = np.fft.irfft(spectrum)[:n]
    return np.asarray(sums / (sums[0] + 1e-9) * n / np.maximum(n - np.arange(n), n / 2))


def _five(values: NDArray[Any]) -> list[float]:
    """Mean, deviation and three quantiles."""
    return [float(values.mean()), float(values.std()), *np.percentile(values, QUANTILES).tolist()]


def _hertz_to_mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def _mel_to_hertz(mel: Floats) -> Floats:
    return np.asarray(700 * (10 ** (mel / 2595) - 1))
