"""Statistics of a clip's spectra over time: what models that are no networks see."""

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from kit_core.console import progress
from ntua_lab.config import Config
from ntua_lab.data import MEL_ROWS, Clips, Version

Kind = Literal["full", "beat", "rich"]
QUANTILES = (10, 25, 50, 75, 90)
COARSE_BANDS, CEPSTRA = 32, 24
MODULATION_BANDS, MODULATION_FRAMES, MODULATION_STEPS = 16, 1280, 13

Floats = NDArray[np.float32]


def statistics_for(config: Config, clips: Clips, indices: NDArray[np.int64]) -> Floats | None:
    """Return what the members of a run that are no networks see of clips; None where there is no such member."""
    others = set(config.members) - {"network"}
    if others == {"prior"}:
        return np.zeros((len(indices), 1), np.float32)  # it looks at nothing
    return pooled(clips, indices, config.pooled.features) if others else None


def pooled(clips: Clips, indices: NDArray[np.int64], kind: Kind) -> Floats:
    """Return the statistics of clips, float32[clips, width].

    Raises:
        DataError: a clip has not the version that they are of.
    """
    needed: tuple[Version, ...] = ("full", "beat") if kind == "rich" else (kind,)
    for version in needed:
        clips.need(version, indices)
    rows = []
    for index in progress(indices.tolist(), label=f"statistics, {kind}"):
        spectra = [clips.spectra(index, version) for version in needed]
        rows.append(rich(*spectra) if kind == "rich" else statistics(spectra[0]))
    return np.array(rows, np.float32)


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
    bands = spectra[:MEL_ROWS].reshape(MODULATION_BANDS, -1, spectra.shape[1]).mean(axis=1)
    centred = bands - bands.mean(axis=1, keepdims=True)
    size = np.sqrt((centred**2).sum(axis=1))
    products = centred @ centred.T
    scale = np.outer(size, size)
    matrix = np.divide(products, scale, out=np.zeros_like(products), where=scale > 1e-6)
    return matrix[np.triu_indices(MODULATION_BANDS, 1)].astype(np.float32)
