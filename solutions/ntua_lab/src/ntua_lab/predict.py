"""One sound file → genre probabilities and emotion values, for a person."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kit_audio import cut, decode, lab_spectra
from kit_core.console import render_table
from kit_core.errors import DataError
from ntua_lab.config import AXES
from ntua_lab.infer import FittedRun

CLIP_SECONDS = 30.0
BAR = 30  # characters of a probability of 1


def predict_song(path: Path, runs: Sequence[Path], plot: Path | None = None) -> str:
    """Cut a song into clips as the lab did, answer each by every run, and return the means as text.

    Raises:
        DataError: the file is no sound, silent, or shorter than 3 seconds; a run is unfinished; runs with other
            classes each.
    """
    fitted = [FittedRun.open(run) for run in runs]
    classes = {run.classes for run in fitted if run.config.task != "emotion"}
    if len(classes) > 1:
        raise DataError(f"--run: found runs with other classes each ({len(classes)} kinds), expected one; name fewer")
    sound = decode(path)
    spectra = []
    for start, stop in cut(len(sound.samples), clip_seconds=CLIP_SECONDS):
        try:
            spectra.append(lab_spectra(sound.samples[start:stop]))
        except ValueError as error:
            reason = str(error).removeprefix("samples: ")
    if not spectra:
        raise DataError(f"{path}: {reason}\n  expected: 3 seconds of sound or more\n  do: name another file")
    lines = [
        f"{path.name}: {sound.seconds:.1f} s, {sound.source_channels} channels at {sound.source_rate} Hz, "
        f"{len(spectra)} clips, about {np.median([one.tempo for one in spectra]):.0f} beats a minute"
    ]
    answers = [np.mean([run.answer_spectra(one.full, one.beat) for one in spectra], axis=0)[0] for run in fitted]
    genre = [one[: len(run.classes)] for run, one in zip(fitted, answers, strict=True)]
    emotion = [one[len(run.classes) :] for run, one in zip(fitted, answers, strict=True)]
    known = [one for one in genre if np.isfinite(one).all()]
    if known:
        shares = np.mean(known, axis=0)
        rows = [
            (name, f"{share:.3f}", "#" * round(BAR * share))
            for share, name in sorted(zip(shares.tolist(), next(iter(classes)), strict=True), reverse=True)
        ]
        lines.append(render_table(["genre", "probability", ""], rows))
    values = [
        (axis, f"{np.mean(found):.3f}", "#" * round(BAR * float(np.mean(found))))
        for number, axis in enumerate(AXES)
        if (found := [one[number] for one in emotion if np.isfinite(one[number])])
    ]
    if values:
        lines.append(render_table(["emotion", "value", ""], values))
    if plot is not None:
        from matplotlib.figure import Figure

        from ntua_lab.plots import draw_chroma, draw_mel, save

        figure = Figure(figsize=(11, 7))
        top, bottom = figure.subplots(2, 2)
        for axes, version, array in ((top, "full", spectra[0].full), (bottom, "beat", spectra[0].beat)):
            draw_mel(axes[0], array, f"{path.name}, {version}, {array.shape[1]} steps", beat=version == "beat")
            draw_chroma(axes[1], array, "chroma", beat=version == "beat")
        save(figure, plot)
        lines.append(f"{plot}: the first clip")
    return "\n\n".join(lines)
