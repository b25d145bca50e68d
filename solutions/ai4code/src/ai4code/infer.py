"""From finished runs and notebooks to placements: needs run folders and data, nothing of training.

Of every run the fold models answer and are averaged, then its members are blended by its weights; several runs count
alike. Notebooks are taken in chunks, so that memory does not grow with their number.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ai4code.boosting import Gaps, Joint
from ai4code.config import Config, Member
from ai4code.data import Notebooks
from ai4code.decode import Placement, average, decode_jointly, mix, spread
from ai4code.features import View, describe
from ai4code.members import FittedMember, load_member
from ai4code.text import TextModel, WordSource
from ai4code.words import word_source
from kit_core.config import config_from_dict
from kit_core.console import progress
from kit_core.errors import DataError
from kit_core.run import RunFolder

NOTEBOOKS_PER_CHUNK = 500


@dataclass(frozen=True)
class FoldModels:
    """What one fold left: its text model and its members; `joint` apart, since it reads the answers of another one."""

    text: TextModel
    members: dict[Member, FittedMember]
    joint: Joint | None


@dataclass(frozen=True)
class FittedRun:
    """A run, ready to answer."""

    config: Config
    words_of: WordSource
    weights: dict[Member, float]
    folds: list[FoldModels]

    @classmethod
    def open(cls, path: Path) -> "FittedRun":
        """Read a finished run.

        Raises:
            DataError: the run is unfinished, damaged, or of another format.
        """
        run = RunFolder.open(path)
        config = config_from_dict(Config, run.config, source=str(path / "config.json"))
        tokenizer = path / "tokenizer.json" if config.text.tokenizer is not None else None
        try:
            stored = json.loads((path / "weights.json").read_text(encoding="utf-8"))
            weights = {member: float(stored[member]) for member in config.members}
            folders = sorted(folder for folder in (path / "models").iterdir() if folder.is_dir())
            folds = [_load_fold(folder, config) for folder in folders]
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            RuntimeError,
        ) as error:  # what the readers of damaged model files raise
            raise DataError(f"{path}: damaged run: {error}\n  do: restore the folder, or train again") from error
        except Exception as error:
            if type(error).__name__ not in ("LightGBMError", "SafetensorError"):  # neither is an OSError or ValueError
                raise
            raise DataError(f"{path}: damaged run: {error}\n  do: restore the folder, or train again") from error
        if not folds:
            raise DataError(f"{path / 'models'}: found no models, expected one folder a fold; train again")
        return cls(config, word_source(tokenizer), weights, folds)

    def place(self, notebooks: Notebooks) -> list[Placement]:
        """Answer notebooks, all at once in memory."""
        table = describe(notebooks, self.words_of, self.config.text.longest)
        members = [member for member in self.config.members if self.weights[member] > 0.0]
        by_member: dict[Member, list[list[Placement]]] = {member: [] for member in members}
        for fold in self.folds:
            view = View.of(table, fold.text)
            for member in members:
                if member == "joint":
                    by_member[member].append(self._place_joint(fold, view, by_member))
                else:
                    by_member[member].append(fold.members[member].place(view))
        averaged = {
            member: [average(answers) for answers in zip(*of_folds, strict=True)]
            for member, of_folds in by_member.items()
        }
        if len(members) == 1:
            return averaged[members[0]]
        weights = [self.weights[member] for member in members]
        error = self.config.blend.position_error
        return [
            mix([spread(answer, int(notebooks.n_code[i]), error) for answer in answers], weights)
            for i, answers in enumerate(zip(*averaged.values(), strict=True))
        ]

    def _place_joint(
        self, fold: FoldModels, view: View, by_member: dict[Member, list[list[Placement]]]
    ) -> list[Placement]:
        """Answer by `joint` of a fold; what it reads is taken over where this fold answered so just now."""
        assert fold.joint is not None
        reads = self.config.joint_reads
        if reads == ("gaps",) and isinstance(gaps := fold.members["gaps"], Gaps):
            return fold.joint.place_after(view, gaps)
        first = [by_member[member][-1] if member in by_member else fold.members[member].place(view) for member in reads]
        return fold.joint.place(view, [average(answers) for answers in zip(*first, strict=True)])


def place_with_runs(runs: Sequence[FittedRun], notebooks: Notebooks) -> list[Placement]:
    """Answer notebooks by one or more runs; several are blended with equal weights."""
    answers = [run.place(notebooks) for run in runs]
    if len(runs) == 1:
        return answers[0]
    return [
        mix(
            [
                spread(answer, int(notebooks.n_code[i]), runs[r].config.blend.position_error)
                for r, answer in enumerate(both)
            ],
            [1.0] * len(runs),
        )
        for i, both in enumerate(zip(*answers, strict=True))
    ]


def predict_orders(runs: Sequence[FittedRun], notebooks: Notebooks) -> Iterator[list[str]]:
    """Yield the cell ids of every notebook in predicted order, in the order of `notebooks.ids`."""
    chunks = range(0, len(notebooks), NOTEBOOKS_PER_CHUNK)
    for start in progress(chunks, label=f"infer, chunks of {NOTEBOOKS_PER_CHUNK} notebooks"):
        chunk = notebooks.select(np.arange(start, min(start + NOTEBOOKS_PER_CHUNK, len(notebooks))))
        for index, placement in enumerate(place_with_runs(runs, chunk)):
            cells = chunk.cells(index)
            yield [cells[i] for i in decode_jointly(placement, int(chunk.n_code[index]))]


def _load_fold(folder: Path, config: Config) -> FoldModels:
    members: dict[Member, FittedMember] = {
        member: load_member(member, folder, config) for member in config.members if member != "joint"
    }
    joint = Joint.load(folder) if "joint" in config.members else None
    return FoldModels(TextModel.load(folder / "text.safetensors"), members, joint)
