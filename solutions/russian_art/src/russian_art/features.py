"""Features of frozen backbones, computed once for a data set and kept in a folder.

A file is named after everything that its numbers depend on: the backbone, the digest of its weights, the view, the
code's own version of the transform and the fingerprint of the data. What differs in one of them is another file; none
is ever stale.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import nn

from kit_core.atomic import write_bytes
from kit_core.console import progress
from russian_art.backbones import Weights, autocast, check_size, normalisation, placed, to_images, unsquashed
from russian_art.config import Fit, Precision
from russian_art.data import Art

TRANSFORM = 1  # count up with every change of `to_images` or `extract` that changes numbers
BATCH, BATCH_ON_CPU = 32, 4  # larger maps are fetched from the kernel page by page each time: 1.6 times the CPU time

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """One way to look at every image: a square of `size` pixels, filled as `fit` says, perhaps mirrored."""

    size: int
    flip: bool = False
    fit: Fit = "squash"

    @property
    def name(self) -> str:
        """The view in words, for people."""
        return f"{self.size} px{', padded' if self.fit == 'pad' else ''}{', mirrored' if self.flip else ''}"


def views(sizes: tuple[int, ...], flip: bool, fit: Fit = "squash") -> list[View]:
    """Return the views that a configuration asks for, the mirrored ones last."""
    return [View(size, mirrored, fit) for mirrored in ((False, True) if flip else (False,)) for size in sizes]


def extract(
    model: nn.Module,
    pixels: NDArray[np.uint8],
    aspect: NDArray[np.float64],
    view: View,
    device: str = "cpu",
    precision: Precision = "float32",
    label: str = "features",
) -> dict[str, FloatArray]:
    """Return what a backbone makes of images uint8[n, h, w, 3]: `final` [n, width] and `stages` [n, sum of widths].

    `aspect` float64[n] is their width over height before they were squashed. `final` is the input of the backbone's own
    classifier, `stages` the spatial mean of every stage's output.
    """
    check_size(model, view.size)
    norm = normalisation(model)
    model = placed(model, device)
    finals, stages = [], []
    batch = BATCH_ON_CPU if device == "cpu" else BATCH
    with torch.inference_mode():
        for start in progress(range(0, len(pixels), batch), label=label):
            some = pixels[start : start + batch]
            if view.fit == "pad":
                some = unsquashed(some, aspect[start : start + batch], view.size)
            images = to_images(some, view.size, norm, device, view.flip)
            with autocast(device, precision):
                last, between = model.forward_intermediates(images)  # type: ignore[operator]  # a method of timm's models
                final = model.forward_head(last, pre_logits=True)  # type: ignore[operator]  # the same
            finals.append(final.float().cpu())
            stages.append(torch.cat([maps.mean(dim=(2, 3)) for maps in between], dim=1).float().cpu())
    return {"final": torch.cat(finals).numpy(), "stages": torch.cat(stages).numpy()}


def cached(
    name: str,
    weights: Weights,
    model: nn.Module,
    art: Art,
    view: View,
    folder: Path,
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "float32",
) -> dict[str, FloatArray]:
    """Return `extract` of a backbone, from `folder` where it was computed before.

    A random backbone (no weights) was made from `seed`, which is then part of the file's name.
    """
    path = folder / f"{name}-{cache_key(name, weights, art.fingerprint, view, seed, precision)}.safetensors"
    if path.exists():
        return load_file(path)
    found = extract(model, art.pixels, art.aspect, view, device, precision, label=f"{name}, {view.name}")
    write_bytes(path, save(found))
    return found


def cache_key(
    name: str, weights: Weights, fingerprint: str, view: View, seed: int, precision: Precision = "float32"
) -> str:
    """Return the digest of everything that the features depend on."""
    facts = [TRANSFORM, timm.__version__, name, weights.digest, fingerprint, view.size, view.flip]
    if view.fit != "squash":
        facts.append(view.fit)
    if precision != "float32":
        facts.append(precision)
    if weights.source == "scratch":
        facts.append(seed)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def assemble(parts: list[list[dict[str, FloatArray]]], levels: str, mean: bool, root: bool) -> FloatArray:
    """Put the features of several backbones side by side: float32[n, views, width], one view where they are averaged.

    `parts` holds, for each backbone, the features of every view.
    """
    keys = ("final",) if levels == "final" else ("final", "stages")
    per_view = [
        np.concatenate([backbone[view][key] for backbone in parts for key in keys], axis=1)
        for view in range(len(parts[0]))
    ]
    stacked = np.stack(per_view, axis=1)
    if root:
        stacked = np.sign(stacked) * np.sqrt(np.abs(stacked))
    return stacked.mean(axis=1, keepdims=True) if mean else stacked
