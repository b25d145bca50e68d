"""A photo → its likely categories and subcategories, and on request a picture of what the answer rests on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from kit_core.atomic import atomic_path
from kit_core.console import render_table, say
from kit_core.errors import ConfigError, DataError
from kit_io.images import decode, squash
from russian_art.backbones import inside, normalisation, parts, run_tail, to_images, unsquashed
from russian_art.baseline import Linear
from russian_art.config import PROBES, Fit
from russian_art.data import DEFAULT_SIZE
from russian_art.infer import FittedRun, common_labels


def read_photo(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Return one image file as pixels uint8[side, side, 3], as `prepare` packs them, and its width over its height.

    Raises:
        DataError: there is no such file, or it is no image.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected an image file") from error
    picture = decode(content, name=str(path), target=DEFAULT_SIZE)
    return squash(picture, DEFAULT_SIZE), picture.width / picture.height


def predict(photos: Sequence[Path], runs: Sequence[FittedRun], top: int, plot: Path | None = None) -> str:
    """Return, for every photo, a table of the `top` likeliest labels with probabilities; several runs are averaged.

    `plot` is a folder, or for a single photo a .png file, for the saliency pictures.

    Raises:
        ConfigError: no photo, `top` below 1, or a plot of runs that have no convolutional backbone.
        DataError: a photo cannot be read, or the runs disagree about the labels.
    """
    if not photos or top < 1:
        raise ConfigError("predict: expected at least one photo, and --top of 1 or more")
    labels = common_labels(runs)
    read = [read_photo(photo) for photo in photos]
    pixels, aspect = np.stack([one for one, _ in read]), np.array([one for _, one in read])
    probabilities = np.mean([run.probabilities(pixels, aspect) for run in runs], axis=0)
    blocks = []
    for i, photo in enumerate(photos):
        best = np.argsort(-probabilities[i], kind="stable")[:top]
        rows = [(*labels.pairs[label], f"{probabilities[i, label]:.1%}") for label in best]
        blocks.append(f"{photo}\n" + render_table(["category", "subcategory", "probability"], rows))
        if plot is not None:
            target = plot if plot.suffix == ".png" and len(photos) == 1 else plot / f"{photo.stem}.png"
            heat = saliency(runs[0], pixels[i], float(aspect[i]), int(best[0]))
            write_saliency(pixels[i], heat, target)
            say(f"{target}: what speaks for {labels.shown(int(best[0]))}")
    return "\n\n".join(blocks)


class _ProbeOnMaps(nn.Module):
    """A frozen backbone under a linear probe as one network, so that Grad-CAM can look into it."""

    def __init__(self, backbone: nn.Module, weight: NDArray[np.float64], bias: NDArray[np.float64], root: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.root = root
        self.label = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.label.weight.copy_(torch.from_numpy(weight))
            self.label.bias.copy_(torch.from_numpy(bias))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = images
        for part in parts(self.backbone):
            maps = part(maps)
        features = run_tail(self.backbone, maps)
        if self.root:
            features = features.sign() * (features.abs() + 1e-6).sqrt()  # the slope at 0 would be infinite
        logits: torch.Tensor = self.label(features)
        return logits


def saliency(run: FittedRun, pixels: NDArray[np.uint8], aspect: float, label: int) -> NDArray[np.float32]:
    """Return where a squashed picture uint8[h, w, 3] speaks for a label: float32[height, width] in 0..1, by Grad-CAM.

    Asked is the run's first network, or else its first linear probe, as far as it uses the first backbone's
    `final` features. `aspect` is the width of the picture over its height before the squash.

    Raises:
        ConfigError: the run has neither.

    Source: Selvaraju et al., "Grad-CAM" (ICCV 2017), in the library pytorch-grad-cam.
    """
    from pytorch_grad_cam import GradCAM  # here, since it loads much that prediction without a plot does not need
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, size, fit = _differentiable(run)
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    shown = unsquashed(pixels[None], np.array([aspect]), size) if fit == "pad" else pixels[None]
    images = to_images(shown, size, normalisation(backbone))
    model = model.cpu().eval().requires_grad_(True)
    with GradCAM(model=model, target_layers=[parts(backbone)[-1]]) as cam:
        heat = cam(input_tensor=images, targets=[ClassifierOutputTarget(label)])
    picture = inside(aspect, size) if fit == "pad" else (slice(None), slice(None))  # without the white around it
    return np.asarray(heat[0][picture], dtype=np.float32)


def _differentiable(run: FittedRun) -> tuple[nn.Module, int, Fit]:
    """Return a network to ask, and the size and fit of the images that it takes."""
    for member in run.members:
        if isinstance(member, list):
            return member[0], run.config.network.size, "squash"
    wanted = run.config.features
    for name, member in zip(run.config.members, run.members, strict=True):
        if name in PROBES and isinstance(member, Linear):
            backbone = next(iter(run.backbones.values()))
            weight, bias = member.plain()
            return (
                _ProbeOnMaps(backbone, weight[:, : backbone.head_hidden_size], bias, wanted.root),
                wanted.sizes[0],
                wanted.fit,
            )
    raise ConfigError(f"{run.path}: --plot needs a network, or a linear probe on a backbone")


def write_saliency(pixels: NDArray[np.uint8], heat: NDArray[np.float32], target: Path) -> None:
    """Write a picture uint8[h, w, 3] and beside it the same under the heat float32[height, width], as PNG."""
    height, width = pixels.shape[:2]
    scaled = np.asarray(
        Image.fromarray(np.round(heat * 255).astype(np.uint8)).resize((width, height)), dtype=np.float32
    )
    share = (scaled / 255 * 0.6)[..., None]
    red = np.array([255.0, 40.0, 0.0])
    mixed = np.round(pixels * (1 - share) + red * share).astype(np.uint8)
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        Image.fromarray(np.concatenate([np.asarray(pixels), mixed], axis=1)).save(file, format="PNG")
