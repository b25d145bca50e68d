"""Steps 1 to 4 of the lab: look at two clips of different classes, their sizes, and how many clips each class has."""

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kit_core.console import render_table
from kit_core.errors import DataError
from ntua_lab import data as official
from ntua_lab.data import MEL_ROWS, VERSIONS, Clips
from ntua_lab.plots import draw_chroma, draw_counts, draw_mel, save


def explore(data: Path, out: Path, seed: int = 0) -> str:
    """Write the pictures of steps 1 to 4 into a folder; returns the sizes and counts as text.

    `step1-mel.png`, `step2-beat.png` (both versions side by side), `step3-chroma.png` and `step4-classes.png`.

    Raises:
        DataError: fewer than two classes, or clips without one of the versions.
    """
    clips = official.load(data)
    pair = choose_pair(clips, seed)
    for version in VERSIONS:
        clips.need(version, np.array(pair))
    titles = [f"{clips.ids[i]}, {clips.raw[i]}" for i in pair]
    spectra = {version: [clips.spectra(i, version) for i in pair] for version in VERSIONS}

    figure = Figure(figsize=(11, 4))
    for axes, one, title in zip(figure.subplots(1, 2), spectra["full"], titles, strict=True):
        draw_mel(axes, one, f"mel, {title}, {one.shape[1]} frames")
    save(figure, out / "step1-mel.png")
    figure = Figure(figsize=(11, 7))
    for row, full, beat, title in zip(figure.subplots(2, 2), spectra["full"], spectra["beat"], titles, strict=True):
        draw_mel(row[0], full, f"{title}, {full.shape[1]} frames")
        draw_mel(row[1], beat, f"{title}, {beat.shape[1]} beats", beat=True)
    save(figure, out / "step2-beat.png")
    figure = Figure(figsize=(11, 7))
    for row, full, beat, title in zip(figure.subplots(2, 2), spectra["full"], spectra["beat"], titles, strict=True):
        draw_chroma(row[0], full, f"{title}, {full.shape[1]} frames")
        draw_chroma(row[1], beat, f"{title}, {beat.shape[1]} beats", beat=True)
    save(figure, out / "step3-chroma.png")

    figure = Figure(figsize=(11, 7))
    grid = figure.subplots(2, 2)
    counts = {}
    for row, split in zip(grid, official.SPLITS, strict=True):
        indices = clips.where("genre", split)
        before = Counter(clips.raw[i] for i in indices if clips.raw[i])
        after = Counter(clips.classes[clips.label[i]] for i in indices if clips.label[i] >= 0)
        counts[split] = after
        draw_counts(row[0], dict(sorted(before.items())), f"{split}, before the mapping: {sum(before.values())} clips")
        draw_counts(row[1], dict(sorted(after.items())), f"{split}, after it: {sum(after.values())} clips")
    save(figure, out / "step4-classes.png")

    sizes = [
        (clips.ids[i], clips.raw[i], version, *one.shape, f"{one[:MEL_ROWS].min():.1f}", f"{one[MEL_ROWS:].max():.2f}")
        for version in VERSIONS
        for i, one in zip(pair, spectra[version], strict=True)
    ]
    table = render_table(["clip", "genre", "version", "rows", "steps", "lowest dB", "highest chroma"], sizes)
    classes = [(name, *(counts[split][name] for split in official.SPLITS)) for name in clips.classes]
    return "\n\n".join(
        [table, length_table(clips), render_table(["class", "train", "test"], classes), f"{out}: 4 pictures"]
    )


def choose_pair(clips: Clips, seed: int) -> tuple[int, int]:
    """Draw two clips of different classes.

    Raises:
        DataError: there are not two classes.
    """
    known = np.flatnonzero(clips.label >= 0)
    if len(set(clips.label[known].tolist())) < 2:
        raise DataError(
            "found fewer than two classes among the clips, expected some to compare; give the genre folders"
        )
    order = np.random.default_rng(seed).permutation(known).tolist()
    other = next(i for i in order if clips.label[i] != clips.label[order[0]])
    return order[0], other


def length_table(clips: Clips) -> str:
    """Return steps in every version: shortest, median and longest clip."""
    rows = []
    for version, pack in clips.packs.items():
        lengths = pack.lengths
        rows.append((version, len(lengths), int(lengths.min()), int(np.median(lengths)), int(lengths.max())))
    return render_table(["version", "clips", "fewest steps", "median", "most"], rows)
