"""Step 7a: what every block of a trained CNN sees of one clip."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from ntua_lab import data as official
from ntua_lab.answers import load_network
from ntua_lab.inputs import Inputs
from ntua_lab.model import ConvBackbone
from ntua_lab.plots import save

COLUMNS = 8
MOST_MAPS = 64  # of one block; more are too small to see


def draw(run: Path, data: Path, out: Path, clip: str | None = None) -> str:
    """Write `input.png` and a grid of channels for each block (`block1.png`, ...); returns their sizes as text.

    `clip` names the clip, by default the first test clip.

    Raises:
        ConfigError: the run has no CNN.
        DataError: no such clip, none of the version that the network sees, or a run that is unfinished.
    """
    folder = RunFolder.open(run)
    files = sorted((folder.path / "models").glob("*/network-*.safetensors"))
    network, input_, _ = load_network(files[0]) if files else (None, None, None)
    if network is None or input_ is None or not isinstance(network.backbone, ConvBackbone):
        raise ConfigError(f"{run}: found no CNN, expected a run of a preset such as cnn or short-chunk-cnn")
    clips = official.load(data)
    splits = [clips.where(split=split) for split in ("test", "train")]
    order = np.concatenate(splits) if clip is None else np.array([i for i, id_ in enumerate(clips.ids) if id_ == clip])
    if not len(order):
        raise DataError(f"--clip: found no clip {clip!r} in {data}, such as {clips.ids[0]!r}; name one of clips.csv")
    index = order[:1].astype(np.int64)
    inputs = Inputs.of(clips, index, input_)
    with torch.inference_mode():
        x, mask, _ = inputs.covering(index)
        maps = network.backbone.maps(network.standardise(x[:1], mask[:1]), mask[:1])
    lines = []
    for number, (values, padding) in enumerate(maps):
        steps = int((~padding).sum())
        channels = values[0, :MOST_MAPS, :, :steps].numpy()
        name = f"block{number}.png" if number else "input.png"
        columns = min(COLUMNS, len(channels))
        rows = math.ceil(len(channels) / columns)
        figure = Figure(figsize=(max(4.0, 1.5 * columns), max(2.5, 1.2 * rows)))
        grid = np.array(figure.subplots(rows, columns)).reshape(-1)
        for axes in grid:
            axes.axis("off")
        for axes, channel in zip(grid, channels, strict=False):
            axes.imshow(channel, origin="lower", aspect="auto", cmap="magma")
        title = f"block {number}" if number else "input"
        dead = int((np.ptp(channels, axis=(1, 2)) == 0).sum())
        figure.suptitle(
            f"{title} of clip {clips.ids[index[0]]}: {values.shape[1]} × {values.shape[2]} × {steps}", fontsize=9
        )
        save(figure, out / name)
        lines.append(f"{name}: {values.shape[1]} channels of {values.shape[2]} × {steps}, {dead} of them empty")
    return "\n".join([f"{out}: clip {clips.ids[index[0]]}", *lines])
