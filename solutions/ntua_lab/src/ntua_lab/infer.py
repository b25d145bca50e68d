"""From finished runs and clips to answers: needs run folders and data, nothing of training.

Of every run the models of all folds answer and are averaged, then its units are blended as the run says; several runs
count alike.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kit_core.config import config_from_dict
from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from ntua_lab import baseline
from ntua_lab import data as official
from ntua_lab.answers import Blend, Unit, load_network, network_answers, pooled_answers, units_of
from ntua_lab.config import AXES, Config
from ntua_lab.data import Clips, Set, Split
from ntua_lab.features import kind_for, statistics_for, statistics_of
from ntua_lab.inputs import Inputs, of_arrays
from ntua_lab.model import Network
from ntua_lab.submission import clips_of

Floats = NDArray[np.float64]
Int64 = NDArray[np.int64]


def write_submission(
    runs: Sequence[Path],
    data: Path,
    out: Path,
    task: Literal["auto", "genre", "emotion"],
    split: Split | Literal["auto"],
) -> str:
    """Answer the clips of a split by one or more runs; returns one line that says what was written.

    "auto" is the task of the runs (emotion for joint ones), and the test split where it has clips.

    Raises:
        DataError: no such clips, a run that is unfinished, or one that knows other classes.
        ConfigError: no run answers the task.
    """
    fitted = [FittedRun.open(path) for path in runs]
    clips = official.load(data)
    wanted: Set = task if task != "auto" else "genre" if fitted[0].config.task == "genre" else "emotion"
    indices, chosen = clips_of(clips, wanted, split)
    answers = answer_all(fitted, clips, indices, wanted)
    ids = [clips.ids[i] for i in indices]
    if wanted == "genre":
        official.write_genres(out, ids, [clips.classes[k] for k in answers.argmax(axis=1)])
    else:
        official.write_emotions(out, ids, answers)
    return f"{out}: {len(ids)} clips of the {wanted} {chosen} split"


@dataclass(frozen=True, eq=False)
class FittedRun:
    """A run, ready to answer: for every fold a model of each unit."""

    path: Path
    config: Config
    classes: tuple[str, ...]
    units: list[Unit]
    folds: list[list[baseline.Fitted | Network]]
    blend: Blend

    @classmethod
    def open(cls, path: Path) -> "FittedRun":
        """Read a finished run.

        Raises:
            DataError: the run is unfinished, damaged, or has no models.
        """
        run = RunFolder.open(path)
        config = config_from_dict(Config, run.config, source=str(path / "config.json"))
        folders = sorted(folder for folder in (path / "models").glob("*") if folder.is_dir())
        if not folders:
            raise DataError(f"{path / 'models'}: found no models; name a run that fitted some, not one by heart")
        try:
            classes = tuple(json.loads((path / "models" / "classes.json").read_text(encoding="utf-8")))
            stored = json.loads((path / "models" / "blend.json").read_text(encoding="utf-8"))
            blend = Blend(stored["places"], stored["targets"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: damaged run: {error}\n  do: restore the folder, or train again") from error
        units = units_of(config, len(classes))
        folds = [[_load(unit, folder, len(classes)) for unit in units] for folder in folders]
        return cls(path, config, classes, units, folds, blend)

    def answer(self, clips: Clips, indices: Int64) -> Floats:
        """Answer clips of a data set: float64[indices, classes + 3], NaN for what the run does not answer."""
        table = statistics_for(self.config, clips, indices)
        inputs = Inputs.of(clips, indices, self.config.input) if "network" in self.config.members else None
        return self._blended(table, inputs, indices)

    def answer_spectra(self, full: NDArray[np.float32], beat: NDArray[np.float32]) -> Floats:
        """Answer one clip that lies in memory, float32[140, T] in both versions: float64[1, classes + 3]."""
        if set(self.config.members) <= {"prior", "network"}:
            row = np.zeros(1, np.float32)
        else:
            row = statistics_of(kind_for(self.config), full, beat)
        array = full if self.config.input.version == "full" else beat
        return self._blended(row[None], of_arrays([array], self.config.input), np.array([0]))

    def _blended(self, table: NDArray[np.float32] | None, inputs: Inputs | None, indices: Int64) -> Floats:
        said = []
        for number, unit in enumerate(self.units):
            of_folds = []
            for fold in self.folds:
                model = fold[number]
                if isinstance(model, Network):
                    assert inputs is not None
                    of_folds.append(network_answers(model, inputs, indices, len(self.classes)))
                else:
                    assert table is not None
                    of_folds.append(pooled_answers(model, unit, table, len(self.classes)))
            said.append(np.mean(of_folds, axis=0))
        return self.blend.apply(said, len(self.classes))


def answer_all(runs: Sequence[FittedRun], clips: Clips, indices: Int64, task: Set) -> Floats:
    """Answer clips by one or more runs: probabilities [n, classes] or values [n, 3]; of several the mean.

    Raises:
        ConfigError: no run answers the task, or an axis of it.
        DataError: the runs know other classes than the data.
    """
    for run in runs:
        if task == "genre" and run.classes != clips.classes:
            raise DataError(
                f"{run.path}: found the classes {', '.join(run.classes)}\n  expected: those of the data, "
                f"{', '.join(clips.classes)}\n  do: give data with the class mapping that the run was trained with"
            )
    return combined([run.answer(clips, indices) for run in runs], [len(run.classes) for run in runs], task)


def combined(answers: Sequence[Floats], classes: Sequence[int], task: Set) -> Floats:
    """Return the mean of what runs answer, left out where one says nothing.

    Raises:
        ConfigError: no run answers the task, or an axis of it.
    """
    parts = [one[:, :k] if task == "genre" else one[:, k:] for one, k in zip(answers, classes, strict=True)]
    stacked = np.stack(parts)
    known = np.isfinite(stacked)
    counts = known.sum(axis=0)
    if counts.size and not counts.all():
        missing = "genre" if task == "genre" else ", ".join(a for a, c in zip(AXES, counts[0], strict=True) if not c)
        raise ConfigError(f"--run: no run answers {missing}; add a run that does (task 'genre', 'emotion' or 'joint')")
    return np.where(known, stacked, 0.0).sum(axis=0) / counts


def _load(unit: Unit, folder: Path, classes: int) -> baseline.Fitted | Network:
    if unit.member == "network":
        return load_network(folder / f"{unit.name}.safetensors")[0]
    return baseline.load(unit.member, folder / unit.name, classes if "genre" in unit.heads else 0)
