"""Statistics of a clip's spectra over time: what models that are no networks see."""

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from kit_core.console import progress
from ntua_lab.config import Config
from ntua_lab.data import MEL_ROWS, Clips, Version
from ntua_lab.descriptors import describe

Kind = Literal["full", "beat", "rich", "wide", "descriptors"]
NEEDED: dict[Kind, tuple[Version, ...]] = {
    "full": ("full",), "beat": ("beat",), "rich": ("full", "beat"), "wide": ("full", "beat"),
    "descriptors": ("full", "beat"),
}  # fmt: skip
QUANTILES = (10, 25, 50, 75, 90)
COARSE_BANDS, CEPSTRA = 32, 24
MODULATION_BANDS, MODULATION_FRAMES, MODULATION_STEPS = 16, 1280, 13
BLOCK, SLOW_BLOCK, BLOCK_STEP = 10, 25, 5  # frames
RISE = 3  # frames over which a band may rise
LEAST_FRAMES = 40
CEPSTRAL_ROWS, CEPSTRAL_LAGS = 20, (2, 8, 32)

Floats = NDArray[np.float32]


def statistics_for(config: Config, clips: Clips, indices: NDArray[np.int64]) -> Floats | None:
    """Return what the members of a run that are no networks see of clips; None where there is no such member."""
    others = set(config.members) - {"network"}
    if others == {"prior"}:
        return np.zeros((len(indices), 1), np.float32)  # it looks at nothing
    return pooled(clips, indices, kind_for(config)) if others else None


def kind_for(config: Config) -> Kind:
    """Return the statistics that a run's models see; "task" is what serves the task best."""
    kind = config.pooled.features
    return kind if kind != "task" else "descriptors" if config.task == "emotion" else "wide"


def pooled(clips: Clips, indices: NDArray[np.int64], kind: Kind) -> Floats:
    """Return the statistics of clips, float32[clips, width].

    Raises:
        DataError: a clip has not the version that they are of.
    """
    for version in NEEDED[kind]:
        clips.need(version, indices)
    rows = []
    for index in progress(indices.tolist(), label=f"statistics, {kind}"):
        spectra = [clips.spectra(index, version) for version in NEEDED[kind]]
        rows.append(statistics_of(kind, spectra[0], spectra[-1]))
    return np.array(rows, np.float32)


def statistics_of(kind: Kind, full: Floats, beat: Floats) -> Floats:
    """Return the statistics of one clip from its spectra [140, T] in both versions; `kind` may need one alone."""
    if kind == "rich":
        return rich(full, beat)
    if kind == "wide":
        return wide(full, beat)
    if kind == "descriptors":
        return describe(full, beat)
    return statistics(full if kind == "full" else beat)


def statistics(rows: Floats) -> Floats:
    """Mean, deviation, five quantiles, mean size and deviation of the changes of each row of [rows, T]: [9 · rows]."""
    changes = np.diff(rows, axis=1) if rows.shape[1] > 1 else np.zeros_like(rows)
    quantiles = np.percentile(rows, QUANTILES, axis=1)
    parts = [rows.mean(axis=1), rows.std(axis=1), *quantiles, np.abs(changes).mean(axis=1), changes.std(axis=1)]
    return np.concatenate(parts).astype(np.float32)


def rich(full: Floats, beat: Floats) -> Floats:
    """Statistics of compact rows of both versions, modulations and correlations of bands, of spectra [140, T]."""
    return np.concatenate(
        [statistics(compact(full)), statistics(compact(beat)), modulations(full), correlations(full)]
    ).astype(np.float32)


def wide(full: Floats, beat: Floats) -> Floats:
    """Add to `rich` what blocks of frames look like, and how cepstra move together."""
    return np.concatenate([rich(full, beat), blocks(full), cepstral(full)]).astype(np.float32)


def compact(spectra: Floats) -> Floats:
    """Return 32 bands, 24 cepstra and chroma turned so that its strongest pitch class comes first: [68, T]."""
    mel, chroma = spectra[:MEL_ROWS], spectra[MEL_ROWS:]
    coarse = mel.reshape(COARSE_BANDS, -1, mel.shape[1]).mean(axis=1)
    cepstra = dct(mel, axis=0, norm="ortho")[:CEPSTRA]
    turned = np.roll(chroma, -int(chroma.mean(axis=1).argmax()), axis=0)  # the same piece in another key looks the same
    return np.concatenate([coarse, cepstra, turned])


def modulations(spectra: Floats) -> Floats:
    """Return how strongly 16 bands go up and down at 12 rates, from 2 to 600 cycles a clip, in log: [192].

    Source: the idea of rhythm patterns, Pampalk, Rauber and Merkl, ACM Multimedia 2002.
    """
    mel = spectra[:MEL_ROWS].reshape(MODULATION_BANDS, -1, spectra.shape[1]).mean(axis=1)
    times = -(-MODULATION_FRAMES // mel.shape[1])  # a shorter clip is repeated, so that its rhythm goes on
    mel = np.tile(mel, times)[:, :MODULATION_FRAMES]
    swing = (mel - mel.mean(axis=1, keepdims=True)) * np.hanning(MODULATION_FRAMES)
    strength = np.abs(np.fft.rfft(swing, axis=1))
    edges = np.unique(np.geomspace(2, 600, MODULATION_STEPS).astype(int))
    bins = [strength[:, low:high].mean(axis=1) for low, high in pairwise(edges.tolist())]
    return np.log1p(np.stack(bins, axis=1)).ravel().astype(np.float32)


def correlations(spectra: Floats) -> Floats:
    """Return the correlations over time of 16 bands with one another: [120]; 0 where a band never changes."""
    return _correlations_of(spectra[:MEL_ROWS].reshape(MODULATION_BANDS, -1, spectra.shape[1]).mean(axis=1))


def blocks(spectra: Floats) -> Floats:
    """Return what blocks of frames look like, summarised over a clip: [440].

    Of 32 bands, four levels of a quarter second (sorted, so that it does not matter when they sound), median and 90 %
    quantile over blocks; how far a band rises in half a second, four upper levels and the deviation, 90 % quantile; and
    the range within each of 8 groups of bands, mean and two quantiles.

    Source: the spectral, delta spectral, variance and contrast patterns of Seyerlehner, Schedl, Pohle and Knees, "Using
    block-level features for genre classification, tag classification and music similarity estimation", MIREX 2010,
    with fewer bands and levels.
    """
    mel = _long_enough(spectra[:MEL_ROWS])
    bands = mel.reshape(COARSE_BANDS, -1, mel.shape[1]).mean(axis=1)
    levels = np.sort(_windows(bands, BLOCK), axis=2)[:, :, ::3]
    rise = _windows(np.maximum(bands[:, RISE:] - bands[:, :-RISE], 0.0), SLOW_BLOCK)
    upper = np.sort(rise, axis=2)[:, :, SLOW_BLOCK // 2 :: 4]
    groups = bands.reshape(8, -1, bands.shape[1])
    spread = groups.max(axis=1) - groups.min(axis=1)
    parts = [
        np.percentile(levels, 90, axis=1),
        np.percentile(levels, 50, axis=1),
        np.percentile(upper, 90, axis=1),
        np.percentile(rise.std(axis=2), 90, axis=1),
        spread.mean(axis=1),
        *np.percentile(spread, (10, 90), axis=1),
    ]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def cepstral(spectra: Floats) -> Floats:
    """Return the correlations of 20 cepstra and of their changes, and the mean size of changes over 3 lags: [440].

    Source: the idea of modelling a song by the covariance of its cepstra, Mandel and Ellis, ISMIR 2005.
    """
    cepstra = dct(_long_enough(spectra[:MEL_ROWS]), axis=0, norm="ortho")[:CEPSTRAL_ROWS]
    sizes = [np.abs(cepstra[:, lag:] - cepstra[:, :-lag]).mean(axis=1) for lag in CEPSTRAL_LAGS]
    return np.concatenate([_correlations_of(cepstra), _correlations_of(np.diff(cepstra, axis=1)), *sizes])


def _correlations_of(rows: Floats) -> Floats:
    """Return the correlation of each pair of rows [rows, T]; 0 where a row never changes."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    size = np.sqrt((centred**2).sum(axis=1))
    products = centred @ centred.T
    scale = np.outer(size, size)
    matrix = np.divide(products, scale, out=np.zeros_like(products), where=scale > 1e-6)
    return matrix[np.triu_indices(len(rows), 1)].astype(np.float32)


def _long_enough(rows: Floats) -> Floats:
    """Return rows [rows, T] of 40 frames or more; shorter ones are repeated."""
    return np.tile(rows, -(-LEAST_FRAMES // rows.shape[1]))


def _windows(rows: Floats, size: int) -> Floats:
    """Return every fifth window of `size` frames of [rows, T]: [rows, windows, size]."""
    return np.lib.stride_tricks.sliding_window_view(rows, size, axis=1)[:, ::BLOCK_STEP]
