"""Pictures of spectra, classes and answers, drawn by matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import librosa.display
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kit_audio import SAMPLE_RATE
from kit_audio.spectra import HOP, PITCH_NAMES
from kit_core.atomic import atomic_path
from ntua_lab.config import AXES
from ntua_lab.data import MEL_ROWS, check_submission, read_answers

mpl.rcParams["axes.titlesize"] = 9  # titles hold a clip's id, class and size


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; the format is that of the suffix."""
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=110)


def draw_mel(axes: Axes, spectra: NDArray[Any], title: str, *, beat: bool = False) -> None:
    """Draw the mel rows of float[140, T] in dB: frequency vertical, time in seconds or beats horizontal."""
    image = librosa.display.specshow(
        spectra[:MEL_ROWS], sr=SAMPLE_RATE, hop_length=HOP, y_axis="mel", x_axis=None if beat else "time", ax=axes,
        vmin=-80, vmax=0, cmap="magma",
    )  # fmt: skip
    axes.set(title=title, xlabel="beats" if beat else "seconds", ylabel="Hz")
    axes.figure.colorbar(image, ax=axes, format="%+.0f dB")


def draw_chroma(axes: Axes, spectra: NDArray[Any], title: str, *, beat: bool = False) -> None:
    """Draw the chroma rows of float[140, T] with the names of the 12 pitch classes."""
    image = librosa.display.specshow(
        spectra[MEL_ROWS:], sr=SAMPLE_RATE, hop_length=HOP, x_axis=None if beat else "time", ax=axes, vmin=0, vmax=1,
        cmap="viridis",
    )  # fmt: skip
    axes.set_yticks(np.arange(12) + (0.5 if _edges(axes) else 0.0), PITCH_NAMES, fontsize=6)
    axes.set(title=title, xlabel="beats" if beat else "seconds", ylabel="pitch class")
    axes.figure.colorbar(image, ax=axes)


def _edges(axes: Axes) -> bool:
    """Whether rows are drawn from 0 to 12 (then a name stands in the middle), not from −0.5."""
    return axes.get_ylim()[0] == 0.0


def draw_confusion(axes: Axes, confusion: NDArray[Any], classes: Sequence[str], title: str) -> None:
    """Draw a confusion matrix: rows are true classes, colours shares of a row, numbers counts."""
    counts = np.asarray(confusion)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = np.arange(len(classes))
    axes.set_xticks(ticks, classes, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(ticks, classes, fontsize=7)
    for row, column in np.argwhere(counts > 0).tolist():
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(title=title, xlabel="predicted", ylabel="true")


def draw_scatter(axes: Axes, true: NDArray[Any], predicted: NDArray[Any], title: str) -> None:
    """Draw predicted against true values, both in 0..1, with the line of equality."""
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.scatter(true, predicted, s=9, alpha=0.6)
    axes.set(title=title, xlabel="true", ylabel="predicted", xlim=(0, 1), ylim=(0, 1))


def draw_counts(axes: Axes, counts: dict[str, int], title: str) -> None:
    """Draw how many clips each class has."""
    axes.bar(range(len(counts)), list(counts.values()), color="tab:blue")
    axes.set_xticks(range(len(counts)), list(counts), rotation=60, ha="right", fontsize=7)
    axes.set(title=title, ylabel="clips")


def plot_submission(path: Path, submission: Path, truth: Path, report: dict[str, Any]) -> None:
    """Draw the confusion matrix of genres, or true against predicted values of each axis, to a file."""
    if report["task"] == "genre":
        figure = Figure(figsize=(6, 5.5))
        title = f"accuracy {report['accuracy']:.3f}, macro F1 {report['macro_f1']:.3f}, {report['n']} clips"
        draw_confusion(figure.subplots(), np.array(report["confusion"]), report["classes"], title)
    else:
        true = read_answers(truth)
        answers = check_submission(submission, true.ids, ())
        assert true.values is not None
        assert answers.values is not None
        figure = Figure(figsize=(11, 3.8))
        for number, axes in enumerate(figure.subplots(1, 3)):
            title = f"{AXES[number]}, Spearman {report['spearman_of_axes'][number]:.3f}"
            draw_scatter(axes, true.values[:, number], answers.values[:, number], title)
    save(figure, path)
