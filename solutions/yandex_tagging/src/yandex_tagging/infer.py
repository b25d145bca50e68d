"""From finished runs to logits and probabilities of any tracks, in the order of their ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from kit_core.config import config_from_dict
from kit_core.errors import DataError
from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_nn.pooling import lengths_to_padding_mask
from kit_train.batches import sequential_batches
from kit_train.device_pack import to_device
from kit_train.ranks import batches_of_rank, gather_rows
from kit_train.weights import load_weights
from yandex_tagging.baseline import load_classic, pooled_statistics
from yandex_tagging.blend import Blend
from yandex_tagging.config import Config, NetworkConfig
from yandex_tagging.data import Tracks
from yandex_tagging.model import TagNet

Gather = Callable[..., tuple[Any, Any]]


@dataclass(frozen=True)
class FittedRun:
    """A finished run: its configuration and, of an ensemble, the runs of its members and their blend."""

    path: Path
    config: Config
    n_tags: int
    dim: int
    tag_names: tuple[str, ...] | None = None
    members: tuple["FittedRun", ...] = ()
    blend: Blend | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a run folder.

        Raises:
            DataError: there is no finished run, or it is damaged.
        """
        run = RunFolder.open(path)
        config = config_from_dict(Config, run.config, source=str(path / "config.json"))
        n_tags, dim = int(run.summary["n_tags"]), int(run.summary["dim"])
        names = tuple(run.summary["tag_names"]) if run.summary["tag_names"] else None
        if config.model != "ensemble":
            return cls(path, config, n_tags, dim, names)
        members = tuple(cls.open(path / "members" / name) for name in config.members)
        return cls(path, config, n_tags, dim, names, members, Blend.load(path / "blend.safetensors"))

    def checkpoints(self, fold: int | None = None) -> list[Path]:
        """Return the files of weights, one for each fold and copy, in order; with `fold` those that did not see it.

        Raises:
            DataError: there is none.
        """
        # A network's file says which copy it is of its fold, another model's does not.
        names = ["*"] if fold is None else [f"fold{fold}", f"fold{fold}-*"]
        found = sorted(path for name in names for path in (self.path / "checkpoints").glob(f"{name}.safetensors"))
        if not found:
            which = "*" if fold is None else f"fold{fold}*"
            raise DataError(f"{self.path}: found no checkpoints/{which}.safetensors; copy the run again or train again")
        return found

    def logits(self, pack: RaggedPack, rows: np.ndarray, fold: int | None = None) -> np.ndarray:
        """Return the mean logits of the models of all folds, float32 [n, n_tags], in the order of `rows`.

        With `fold` only the models answer that did not see this fold, blended by weights found on other tracks.

        Raises:
            DataError: the frames have another dimension than those the run was trained on, or there is no such fold.
        """
        if pack.dim != self.dim:
            raise DataError(
                f"{self.path}: trained on {self.dim} dimensions a frame, found {pack.dim}; use its own data"
            )
        if self.blend is not None:
            blend = self.blend if fold is None else Blend.load(self.path / f"blend-fold{fold}.safetensors")
            return blend.mix([member.logits(pack, rows, fold) for member in self.members])
        if self.config.model != "network":
            features = pooled_statistics(pack, rows, self.config.classic.statistics)
            answers = [load_classic(path).logits(features) for path in self.checkpoints(fold)]
            return np.asarray(np.mean(answers, axis=0, dtype=np.float32))
        device = pick_device(self.config)
        gather = reader(pack, device)
        total = np.zeros((len(rows), self.n_tags), np.float32)
        paths = self.checkpoints(fold)
        for path in paths:
            total += network_logits(load_network(path).to(device), gather, pack.lengths, rows, self.config, device)
        return total / len(paths)


def infer(runs: Sequence[FittedRun], tracks: Tracks) -> np.ndarray:
    """Return probabilities, float32 [n, n_tags], in the order of `tracks.ids`; several runs: the mean of their logits.

    Raises:
        DataError: the runs have different tags, or do not fit the data.
    """
    if len({run.n_tags for run in runs}) != 1:
        found = ", ".join(f"{run.path}: {run.n_tags}" for run in runs)
        raise DataError(
            f"runs with different numbers of tags cannot be one answer: found {found}; name runs of one data"
        )
    logits = np.mean([run.logits(tracks.pack, tracks.rows) for run in runs], axis=0, dtype=np.float64)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def load_network(path: Path) -> TagNet:
    """Build a network from a checkpoint, in evaluation mode.

    Raises:
        DataError: the file is absent or damaged.
    """
    tensors, header = load_weights(path)
    network = config_from_dict(NetworkConfig, header["network"], source=str(path))
    parents = tensors["head.parent"].numpy() if "head.parent" in tensors else None
    net = TagNet(network, header["dim"], header["n_tags"], parents)
    net.load_state_dict(tensors)
    return net.eval()


def pick_device(config: Config) -> torch.device:
    """Return where networks run: a GPU where there is one and the configuration allows it."""
    return torch.device("cuda" if torch.cuda.is_available() and config.fabric.accelerator != "cpu" else "cpu")


def reader(pack: RaggedPack, device: torch.device) -> Gather:
    """Return a `gather` that gives tensors on the device: from the whole pack there, or on a CPU from the map."""
    if device.type != "cpu":
        return to_device(pack, device).gather

    def gather(rows: np.ndarray, **window: Any) -> tuple[torch.Tensor, torch.Tensor]:
        values, lengths = pack.gather(rows, **window)
        return torch.from_numpy(values), torch.from_numpy(lengths)

    return gather


@torch.no_grad()
def network_logits(
    net: nn.Module,
    gather: Gather,
    lengths: np.ndarray,
    rows: np.ndarray,
    config: Config,
    device: torch.device,
    fabric: Fabric | None = None,
) -> np.ndarray:
    """Return float32 [n, n_tags] in the order of `rows`, whatever the batches; leaves the module's mode as it was.

    Tracks longer than `infer.window` are read in `infer.windows` windows, whose logits are averaged. The ranks of a
    `fabric` share the batches, and each gets all answers.
    """
    training = net.training
    net.eval()
    track, start, count = windows_of(lengths[rows], config.infer.window, config.infer.windows)
    size = 1 if config.faithful else config.infer.batch  # the original read one track at a time
    answers: list[np.ndarray] = []
    read: list[np.ndarray] = []  # windows, in the order of `answers`
    half = config.fabric.precision == "bfloat16"
    rank, ranks = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    for batch in batches_of_rank(sequential_batches(count, size), rank, ranks):
        x, found = gather(rows[track[batch]], start=start[batch], length=count[batch])
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            answers.append(net(x, lengths_to_padding_mask(found, x.shape[1])).float().cpu().numpy())
        read.append(batch)
    net.train(training)
    if not len(rows):
        raise ValueError("no rows")
    mine = np.concatenate(answers) if answers else np.zeros((0, 0), np.float32)
    logits = gather_rows(mine, np.concatenate([*read, np.zeros(0, np.int64)]), len(track))
    total = np.zeros((len(rows), logits.shape[1]), np.float64)
    np.add.at(total, track, logits)
    return (total / np.bincount(track)[:, None]).astype(np.float32)


def windows_of(lengths: np.ndarray, window: int, windows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the windows of tracks: (which track, first frame, frames), int64 each.

    A track of at most `window` frames (or any, if `window` is 0) is one window; of a longer one `windows` are evenly
    spaced from its first frame to its last, or as many as have different places.
    """
    track, start, count = [], [], []
    for place, length in enumerate(np.asarray(lengths).tolist()):
        starts = [0]
        if window and length > window:
            starts = np.unique(np.linspace(0, length - window, windows).round().astype(int)).tolist()
        track += [place] * len(starts)
        start += starts
        count += [min(window or length, length)] * len(starts)
    return np.array(track, np.int64), np.array(start, np.int64), np.array(count, np.int64)
