"""From finished runs and pictures to probabilities: needs run folders and data, nothing of training.

In a run the networks of the folds are averaged, the probes answer once, and the members are blended as the run found
best out of fold; several runs count alike.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import nn

from kit_core.config import config_from_dict
from kit_core.console import progress
from kit_core.errors import DataError
from kit_core.run import RunFolder
from russian_art.backbones import Weights, autocast, build, create, normalisation, pick_device, placed, to_images
from russian_art.baseline import Probe, restore, thumbnails, view_logits
from russian_art.blend import Blend
from russian_art.config import PROBES, Config
from russian_art.data import Art, Labels
from russian_art.features import assemble, extract, views
from russian_art.model import ArtNetwork, build_head

FloatArray = NDArray[np.float64]
BATCH = 32
CHUNK = 2048  # pictures whose features are held at once


@dataclass(frozen=True)
class FittedRun:
    """A run, ready to answer: `members` holds, in the order of the blend, a probe or the networks of the folds."""

    path: Path
    config: Config
    labels: Labels
    blend: Blend
    backbones: dict[str, nn.Module]
    members: list[Probe | list[ArtNetwork]]

    @classmethod
    def open(cls, path: Path) -> "FittedRun":
        """Read a finished run.

        Raises:
            DataError: the run is unfinished, damaged, or of another format.
        """
        run = RunFolder.open(path)
        config = config_from_dict(Config, run.config, source=str(path / "config.json"))
        models = path / "models"
        try:
            labels = Labels(tuple(json.loads((models / "labels.json").read_text(encoding="utf-8"))))
            blend = Blend(**json.loads((models / "blend.json").read_text(encoding="utf-8")))
            has_probe = any(member in PROBES for member in config.members)
            backbones = {
                name: create(name, Weights(models / f"backbone-{name}.safetensors", "file", ""))
                for name in (config.features.backbones if has_probe else ())
            }
            members: list[Probe | list[ArtNetwork]] = []
            for member in config.members:
                if member != "network":
                    members.append(restore(load_file(models / f"{member}.safetensors")))
                    continue
                for backbone in config.network.backbones:
                    files = sorted(models.glob(f"network-{backbone}-fold*.safetensors"))
                    if not files:
                        raise DataError(f"{models}: found no network of {backbone}; expected one a fold; train again")
                    members.append([_network(config, backbone, labels, file) for file in files])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{path}: damaged run: {error}\n  do: restore the folder, or train again") from error
        return cls(path, config, labels, blend, backbones, members)

    def probabilities(self, pixels: NDArray[np.uint8], aspect: FloatArray) -> FloatArray:
        """Return the probabilities float64[n, labels] of squashed pictures uint8[n, h, w, 3], of aspect float64[n]."""
        chunks = [slice(start, start + CHUNK) for start in range(0, len(pixels), CHUNK)]
        out = [self._chunk(pixels[chunk], aspect[chunk]) for chunk in chunks]
        return np.concatenate(out) if out else np.zeros((0, len(self.labels)))

    def _chunk(self, pixels: NDArray[np.uint8], aspect: FloatArray) -> FloatArray:
        features = self._features(pixels, aspect) if self.backbones else None
        logits = []
        names = [m for m in self.config.members for _ in (self.config.network.backbones if m == "network" else (m,))]
        for name, member in zip(names, self.members, strict=True):
            if isinstance(member, list):
                logits.append(np.mean([self._network_logits(network, pixels) for network in member], axis=0))
            elif name == "prior":
                logits.append(view_logits(member, np.zeros((len(pixels), 1, 1), dtype=np.float32)))
            elif name == "pixels":
                logits.append(view_logits(member, thumbnails(pixels, self.config.probe.pixels)[:, None]))
            else:
                assert features is not None
                logits.append(view_logits(member, features))
        return self.blend.probabilities(np.stack(logits))

    def _features(self, pixels: NDArray[np.uint8], aspect: FloatArray) -> NDArray[np.float32]:
        wanted = self.config.features
        device = pick_device(self.config).type
        found = [
            [
                extract(model, pixels, aspect, view, device, wanted.precision, label=f"{name}, {view.name}")
                for view in views(wanted.sizes, wanted.flip, wanted.fit)
            ]
            for name, model in self.backbones.items()
        ]
        return assemble(found, wanted.levels, wanted.views == "mean", wanted.root)

    def _network_logits(self, network: ArtNetwork, pixels: NDArray[np.uint8]) -> FloatArray:
        device = pick_device(self.config)
        network = placed(network, device)
        norm = normalisation(network.backbone)
        out = []
        with torch.inference_mode(), autocast(device, self.config.network.precision):
            for start in progress(range(0, len(pixels), BATCH), label="network"):
                some = pixels[start : start + BATCH]
                sides = (False, True) if self.config.network.flip_test else (False,)
                found = [network(to_images(some, self.config.network.size, norm, device, side)) for side in sides]
                out.append(torch.stack(found).double().mean(dim=0).cpu().numpy())
        return np.concatenate(out)


def infer(runs: Sequence[FittedRun], art: Art) -> tuple[list[str], NDArray[np.int64], FloatArray]:
    """Answer every file of a split: names, label ids int64[n], probabilities float64[n, labels].

    A file that cannot be decoded gets the most frequent label of training, and its prior as probabilities.

    Raises:
        DataError: the runs, or the data where it has a list, disagree about the labels.
    """
    labels = common_labels(runs)
    if art.labels.names and art.labels.names != labels.names:
        raise DataError(
            f"{runs[0].path}: found {len(labels)} labels that are not those of the data's label_to_id.csv "
            f"({len(art.labels)}); give the data that the run was trained for"
        )
    probabilities = np.mean([run.probabilities(art.pixels, art.aspect) for run in runs], axis=0)
    prior = np.array(runs[0].blend.prior)
    ids = art.completed(probabilities.argmax(axis=1), int(prior.argmax()))
    by_name = dict(zip(art.names, probabilities, strict=True))
    full = np.stack([prior if name in art.broken else by_name[name] for name in art.all_names])
    return art.all_names, ids, full


def common_labels(runs: Sequence[FittedRun]) -> Labels:
    """Return the labels that all runs know.

    Raises:
        DataError: a run knows others than the first.
    """
    for run in runs[1:]:
        if run.labels.names != runs[0].labels.names:
            raise DataError(f"{run.path}: found other labels than in {runs[0].path}; expected runs on the same labels")
    return runs[0].labels


def _network(config: Config, backbone: str, labels: Labels, file: Path) -> ArtNetwork:
    state = {name: torch.from_numpy(array) for name, array in load_file(file).items()}
    width = state["head.label.weight"].shape[1]
    head = build_head(config.network.head, width, labels.top_of, labels.genre_of)
    network = ArtNetwork(build(backbone), head, config.network.frozen_parts)
    network.load_state_dict(state)
    return network.eval()
