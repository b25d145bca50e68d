"""One track's file → the likeliest tags for a person, and a picture of the frames that mattered."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kit_core.atomic import atomic_path
from kit_core.console import render_table
from kit_core.errors import ConfigError, DataError
from kit_io.ragged import RaggedPack
from kit_io.source import NPY_ERRORS
from yandex_tagging.infer import FittedRun, load_network

Names = Sequence[str] | None


def predict_file(
    track: Path, runs: Sequence[FittedRun], *, top: int = 10, names: Path | None = None, plot: Path | None = None
) -> str:
    """Return a table of the `top` likeliest tags of a track; several runs: the mean of their logits.

    `names` is a text file, line k the name of tag k; without it, the names that the first run was trained with, if any.
    `plot` is a picture to write (.png, .svg, .pdf): how much each frame counts, from the first run's networks.

    Raises:
        DataError: the track is no .npy with float frames [T, dim] of the runs' dimension, or `names` does not fit.
        ConfigError: `top` is below 1, or a plot is asked for of runs without a network.
    """
    if top < 1:
        raise ConfigError(f"--top: found {top}, expected 1 or more")
    frames = read_frames(track)
    pack = RaggedPack.from_items([frames], "float32")
    logits = np.mean([run.logits(pack, np.zeros(1, np.int64))[0] for run in runs], axis=0)
    tags = np.argsort(-logits, kind="stable")[:top]
    labels = tag_labels(runs[0], names)
    if plot is not None:
        draw(plot, frames, runs, tags[: min(top, 5)], labels, track.name)
    rows = [(labels[tag], f"{1 / (1 + np.exp(-logits[tag])):.3f}") for tag in tags]
    return render_table(["tag", "probability"], rows)


def read_frames(path: Path) -> np.ndarray:
    """Return the frames of a track's file, float32 [T, dim].

    Raises:
        DataError: the file is absent or torn, or holds anything but one or more finite frames of floats.
    """
    try:
        frames = np.load(path, allow_pickle=False)
    except NPY_ERRORS as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a .npy file of frames [T, dim]") from error
    if not isinstance(frames, np.ndarray) or frames.ndim != 2 or not frames.size or frames.dtype.kind != "f":
        found = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, np.ndarray) else "an archive"
        raise DataError(f"{path}: found {found}, expected floats [T, dim] with at least one frame")
    if not np.isfinite(frames).all():
        raise DataError(f"{path}: found NaN or infinity, expected finite numbers; compute the embedding again")
    return frames.astype(np.float32)


def tag_labels(run: FittedRun, names: Path | None) -> list[str]:
    """Return a text for each tag: its name, or its number.

    Raises:
        DataError: the file of names is absent, no text, or has another number of lines than there are tags.
    """
    if names is None:
        return list(run.tag_names) if run.tag_names else [str(tag) for tag in range(run.n_tags)]
    try:
        lines = names.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{names}: cannot be read as names of tags ({error})") from error
    if len(lines) != run.n_tags:
        raise DataError(f"{names}: found {len(lines)} lines, expected {run.n_tags}, one for each tag of the run")
    return lines


def frame_weights(frames: np.ndarray, runs: Sequence[FittedRun], tags: np.ndarray) -> np.ndarray:
    """Return how much each frame counts for each of the tags, float [T, len(tags)], sum 1 over the frames.

    Mean over the networks of all folds and members; where a network weighs frames for all tags alike, so here.

    Raises:
        ConfigError: there is no network among the runs.
    """
    found = []
    members = [member for run in runs for member in (run.members or (run,))]
    for run in members:
        if run.config.model != "network":
            continue
        for path in run.checkpoints():
            net = load_network(path)
            with torch.no_grad():
                weights = net.frame_weights(
                    torch.from_numpy(frames)[None], torch.zeros(1, len(frames), dtype=torch.bool)
                )
            by_tag = weights.shape[2] == run.n_tags and run.config.network.head in ("queries", "frames")
            shared = weights[0].mean(1, keepdim=True).expand(-1, len(tags))
            found.append((weights[0][:, torch.from_numpy(tags)] if by_tag else shared).numpy())
    if not found:
        raise ConfigError("--plot: these runs hold no network, and what else they hold does not weigh frames")
    return np.asarray(np.mean(found, axis=0))


def draw(
    path: Path, frames: np.ndarray, runs: Sequence[FittedRun], tags: np.ndarray, labels: Sequence[str], title: str
) -> None:
    """Write a picture: one row for each tag, one column for each frame, dark where the frame counts.

    Raises:
        ConfigError: as `frame_weights`, or the suffix of `path` is no picture's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot: found {path.suffix or path.name!r}, expected a name ending in .png, .svg or .pdf")
    weights = frame_weights(frames, runs, tags)
    figure = Figure(figsize=(10, 1.2 + 0.45 * len(tags)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(weights.T, aspect="auto", cmap="Greys", interpolation="nearest", vmin=0)
    axes.set_yticks(range(len(tags)), [labels[tag] for tag in tags])
    axes.set_xlabel("frame")
    axes.set_title(f"{title}: share of each frame")
    figure.colorbar(image)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=120)
