"""What fitted models say about clips, in one form: float64[clips, classes + 3], probabilities and then the three axes.

A column that a model does not answer is NaN.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kit_core.config import config_from_dict
from kit_core.errors import DataError
from kit_train.weights import load_weights, save_weights
from ntua_lab.config import AXES, Config, InputConfig, Member, NetworkConfig
from ntua_lab.inputs import Inputs
from ntua_lab.model import Network, build_network

if TYPE_CHECKING:
    from kit_train.ranks import Ranks
    from ntua_lab.baseline import Fitted

ANSWER_BATCH = 32

Floats = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Unit:
    """One model of a run: its member, the heads that it has, with their sizes, and which of equal ones it is."""

    member: Member
    heads: dict[str, int]
    copy: int = 0

    @property
    def name(self) -> str:
        """Its name in file names and reports: svm-genre, network-valence, network-genre-copy2."""
        names = "emotion" if tuple(self.heads) == AXES else "joint" if len(self.heads) > 3 else "-".join(self.heads)
        return f"{self.member}-{names}" + (f"-copy{self.copy + 1}" if self.copy else "")


def units_of(config: Config, classes: int) -> list[Unit]:
    """Return the models of a run, in the order of their answers."""
    axes: dict[str, int] = dict.fromkeys(config.axes, 1)
    if config.task == "genre":
        heads = [{"genre": classes}]
    elif config.task == "emotion":
        heads = [{axis: 1} for axis in axes] if config.separate else [axes]
    else:
        heads = [{"genre": classes} | axes]
    copies = {"network": config.copies}
    return [
        Unit(member, one, copy) for member in config.members for one in heads for copy in range(copies.get(member, 1))
    ]


def place_answers(found: dict[str, Floats], classes: int, n: int) -> Floats:
    """Put answers by head, genre [n, classes] and axes [n], into the common form."""
    answers = np.full((n, classes + len(AXES)), np.nan)
    for name, values in found.items():
        if name == "genre":
            answers[:, :classes] = values
        else:
            answers[:, classes + AXES.index(name)] = values
    return answers


def pooled_answers(model: "Fitted", unit: Unit, table: NDArray[np.float32], classes: int) -> Floats:
    """Return the answers of a model on statistics float32[n, width]: float64[n, classes + 3]."""
    if not len(table):
        return np.zeros((0, classes + len(AXES)))
    found = model.answer(table)
    by_head = {"genre": found} if "genre" in unit.heads else dict(zip(unit.heads, found.T, strict=True))
    return place_answers(by_head, classes, len(table))


def network_answers(
    network: Network, inputs: Inputs, indices: Int64, classes: int, ranks: "Ranks | None" = None
) -> Floats:
    """Return the answers of a network, averaged over the windows of each clip: float64[indices, classes + 3].

    Several `ranks` share the batches, and each gets all answers.
    """
    device = next(network.parameters()).device
    network.eval()
    lengths = inputs.pack.lengths[inputs.rows[indices]]
    order = np.argsort(-lengths, kind="stable")  # batches of near-equal length
    size = 4 if inputs.chunk else ANSWER_BATCH  # a clip of 30 s in chunks is a batch of its own kind
    batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
    mine = batches
    if ranks is not None and ranks.size > 1:
        from kit_train.ranks import batches_of_rank, gather_rows  # here: loads Lightning, which `infer` does not need

        mine = batches_of_rank(batches, ranks.rank, ranks.size)
    found: dict[str, Floats] = {}
    with torch.inference_mode():
        for places in mine:
            x, mask, owner = inputs.covering(indices[places])
            x, mask = x.to(device), mask.to(device)
            for name, logits in network(network.standardise(x, mask), mask).items():
                values = logits.float().softmax(dim=1) if name == "genre" else logits.float().sigmoid()
                mean = _mean_by(values.double().cpu(), owner, len(places)).numpy()
                found.setdefault(name, np.zeros((len(indices), *mean.shape[1:])))[places] = mean
    if ranks is not None and ranks.size > 1 and batches:
        read = np.concatenate([*mine, np.zeros(0, np.int64)])
        nothing = np.zeros(len(indices))  # of a rank without a batch
        found = {name: gather_rows(found.get(name, nothing)[read], read, len(indices)) for name in network.heads}
    return place_answers(found, classes, len(indices))


def _mean_by(values: Tensor, owner: Tensor, n: int) -> Tensor:
    """Return the mean of the rows of each owner, [n, ...] for values [windows, ...]."""
    sums = torch.zeros(n, *values.shape[1:], dtype=values.dtype).index_add_(0, owner, values)
    counts = torch.bincount(owner, minlength=n).to(values.dtype)
    return sums / counts.reshape(-1, *[1] * (values.dim() - 1))


def save_network(path: Path, network: Network, config: Config, heads: dict[str, int], classes: Sequence[str]) -> None:
    """Write the weights with what is needed to build the network again."""
    header = {
        "network": dataclasses.asdict(config.network),
        "input": dataclasses.asdict(config.input),
        "heads": heads,
        "classes": list(classes),
    }
    save_weights(path, network, header)


def load_network(path: Path) -> tuple[Network, InputConfig, dict[str, Any]]:
    """Build a network from its file of weights; returns it with the settings of its input and the header.

    Raises:
        DataError: the file is absent, damaged, or of another program.
    """
    weights, header = load_weights(path)
    try:
        settings = config_from_dict(NetworkConfig, header["network"], source=str(path))
        input_ = config_from_dict(InputConfig, header["input"], source=str(path))
        network = build_network(settings, input_, dict(header["heads"]))
        network.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: not weights of this program ({error}); train again") from error
    return network.eval(), input_, header


@dataclass(frozen=True, eq=False)
class Blend:
    """How the answers of several units become one.

    Probabilities are averaged. A value on an axis becomes its place among the unit's out-of-fold values, since members
    err in scale and the metric sees order; the mean place becomes a value again by the quantiles of the targets.
    With one unit, or without out-of-fold values, values are averaged as they are.

    places   for every unit that answers an axis: axis -> its sorted out-of-fold values.
    targets  axis -> sorted targets of the run's clips.
    """

    places: list[dict[str, list[float]]]
    targets: dict[str, list[float]]

    @classmethod
    def fit(cls, said: Sequence[Floats], emotion: NDArray[Any], classes: int) -> "Blend":
        """Take the out-of-fold answers of every unit, [n, classes + 3] each, and the targets [n, 3] (NaN: unknown)."""
        places: list[dict[str, list[float]]] = [
            {
                axis: np.sort(column[np.isfinite(column)]).tolist()
                for axis, column in zip(AXES, answers[:, classes:].T, strict=True)
            }
            for answers in said
        ]
        targets: dict[str, list[float]] = {
            axis: np.sort(column[np.isfinite(column)]).tolist() for axis, column in zip(AXES, emotion.T, strict=True)
        }
        return cls(places, targets)

    def apply(self, said: Sequence[Floats], classes: int) -> Floats:
        """Return the answers of all units together, [n, classes + 3]; NaN where none answers."""
        stacked = np.stack(said)
        blended = _mean_of_known(stacked)
        for number, axis in enumerate(AXES):
            column = classes + number
            saying = [unit for unit in range(len(said)) if np.isfinite(stacked[unit, :, column]).any()]
            if len(saying) < 2 or not all(self.places[unit].get(axis) for unit in saying):
                continue
            shares = [_place_among(stacked[unit, :, column], self.places[unit][axis]) for unit in saying]
            levels = np.linspace(0.0, 1.0, len(self.targets[axis]))
            blended[:, column] = np.interp(np.mean(shares, axis=0), levels, self.targets[axis])
        blended[:, classes:] = np.clip(blended[:, classes:], 0.0, 1.0)
        return blended


def _place_among(values: Floats, known: Sequence[float]) -> Floats:
    """Return the share of `known` (sorted) that lies below each value, ties counted half."""
    below = np.searchsorted(known, values, side="left")
    upto = np.searchsorted(known, values, side="right")
    inside: Floats = np.clip((below + upto) / (2 * len(known)), 0.0, 1.0)
    return inside


def _mean_of_known(stacked: Floats) -> Floats:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    known = np.isfinite(stacked)
    counts = known.sum(axis=0)
    sums = np.where(known, stacked, 0.0).sum(axis=0)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
