"""From finished runs and tracks to neighbours: needs run folders and data, nothing of training.

Every fold and member of every run embeds all tracks; each is normalised by its own statistics, all are set side by
side, and the first run's post-processing ranks them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kit_core.config import config_from_dict
from kit_core.console import progress
from kit_core.errors import DataError
from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_retrieval.vectors import Whitening
from kit_train.state import mixed_seed
from kit_train.weights import load_weights, save_weights
from yandex_artists.batches import Frames, Rows
from yandex_artists.config import Config, MemberConfig, ModelConfig
from yandex_artists.data import Tracks
from yandex_artists.embed import Cohort, Embedded, Floats, embed, join
from yandex_artists.model import Encoder
from yandex_artists.post import rank


@dataclass(frozen=True)
class FittedUnit:
    """One trained network, with its member's settings and its cohort."""

    encoder: Encoder
    cohort: Cohort
    member: MemberConfig


@dataclass(frozen=True)
class FittedRun:
    """A run, ready to embed."""

    config: Config
    units: list[FittedUnit]
    channels: int
    device: torch.device

    @classmethod
    def open(cls, path: Path, device: str | torch.device = "cpu") -> "FittedRun":
        """Read a finished run of networks.

        Raises:
            DataError: the run is unfinished, damaged, of another format, or not one of networks.
        """
        run = RunFolder.open(path)
        config = config_from_dict(Config, run.config, source=str(path / "config.json"))
        if config.method != "networks":
            raise DataError(f"{path}: found a run of method {config.method!r}, expected networks")
        whole = fold_folder(path, None)
        folders = [whole] if whole.exists() else sorted((path / "models").glob("fold*"))
        if not folders:
            raise DataError(f"{path / 'models'}: found no models, expected one folder a fold; train again")
        where = torch.device(device)
        units = [
            FittedUnit(*load_unit(folder, name, where), member)
            for folder in folders
            for name, member in unit_names(config)
        ]
        return cls(config, units, units[0].encoder.channels, where)

    def parts(self, pack: RaggedPack, rows: Rows) -> list[Embedded]:
        """Embed items `rows` int64[n] of a pack by every network of the run.

        Raises:
            DataError: the frames have another number of channels than those that the run was trained on.
        """
        if pack.dim != self.channels:
            raise DataError(
                f"found tracks of {pack.dim} channels, expected {self.channels} as in training\n"
                "  do: give data made by the same feature extractor, or train on these"
            )
        frames = Frames(pack, self.device)
        lengths = pack.lengths[rows]
        parts = []
        for number, unit in enumerate(progress(self.units, label="embed, networks")):
            seed = mixed_seed(self.config.seed, number)
            vectors = embed(unit.encoder, frames, rows, lengths, unit.member, seed, self.device)
            parts.append(Embedded(vectors, unit.cohort))
        return parts

    def embed(self, pack: RaggedPack, rows: Rows) -> Floats:
        """The vectors of all networks side by side, each normalised as the run's `post` says: float32[n, D]."""
        return join(self.parts(pack, rows), self.config.post)[0]


def neighbours(runs: Sequence[FittedRun], tracks: Tracks, *, k: int = 100) -> NDArray[np.int64]:
    """The k nearest tracks of every track, itself left out, as positions in `tracks.ids`: int64[n, k].

    Raises:
        DataError: there are not more than k tracks, or the runs were trained on different artists, whose centres have
            nothing to do with each other.
    """
    if len(tracks.ids) <= k:
        raise DataError(f"found {len(tracks.ids)} tracks, expected more than {k}: each needs {k} neighbours")
    post = runs[0].config.post
    parts = [part for run in runs for part in run.parts(tracks.pack, tracks.rows)]
    artists = sorted({len(part.cohort.centres) for part in parts})
    if len(artists) > 1:
        raise DataError(f"the runs were trained on data with {artists} artists; take runs of one data set")
    return rank(*join(parts, post), post, k=k, device=str(runs[0].device))


def fold_folder(run: Path, fold: int | None) -> Path:
    """Where the models of a fold lie."""
    return run / "models" / ("whole" if fold is None else f"fold{fold}")


def unit_names(config: Config) -> list[tuple[str, MemberConfig]]:
    """The networks of one fold, by the name of their files, with their settings."""
    return [
        (member.name if member.copies == 1 else f"{member.name}-{copy}", member)
        for member in config.members
        for copy in range(member.copies)
    ]


def save_unit(folder: Path, name: str, encoder: Encoder, cohort: Cohort, member: MemberConfig, channels: int) -> None:
    """Write a network and its cohort; the network last, since its presence says that both are there."""
    arrays = {
        "mean": torch.from_numpy(cohort.whitening.mean),
        "projection": torch.from_numpy(cohort.whitening.projection),
        "centres": torch.from_numpy(cohort.centres),
    }
    header = {"model": asdict(member.model), "channels": channels}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / f"{name}.cohort.safetensors", arrays, {})
    save_weights(folder / f"{name}.safetensors", encoder, header)


def load_unit(folder: Path, name: str, device: torch.device) -> tuple[Encoder, Cohort]:
    """Read back what `save_unit` wrote, in evaluation mode.

    Raises:
        DataError: a file is absent or damaged, or does not hold the network that it says.
    """
    path = folder / f"{name}.safetensors"
    weights, header = load_weights(path)
    arrays, _ = load_weights(folder / f"{name}.cohort.safetensors")
    try:
        model = config_from_dict(ModelConfig, header["model"], source=str(path))
        encoder = Encoder(model, int(header["channels"]))
        encoder.load_state_dict(weights)
        whitening = Whitening(arrays["mean"].numpy(), arrays["projection"].numpy())
        cohort = Cohort(whitening, arrays["centres"].numpy())
    except (KeyError, RuntimeError) as error:
        raise DataError(
            f"{path}: does not hold the network that its header describes ({error}); train again"
        ) from error
    return encoder.to(device).eval(), cohort
