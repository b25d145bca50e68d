"""Which clips of a split a judge asks for, and whether it would take a file of answers."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kit_core.errors import DataError
from ntua_lab import data as official
from ntua_lab.data import Clips, Set, Split


def check(submission: Path, data: Path, split: Split | Literal["auto"]) -> str:
    """Say that a file is valid for the clips of a split.

    Raises:
        DataError: clips missing, doubled or unknown, values outside 0..1, unknown classes, or another header.
    """
    clips = official.load(data)
    task = official.read_answers(submission).task
    indices, chosen = clips_of(clips, task, split)
    answers = official.check_submission(submission, [clips.ids[i] for i in indices], clips.classes)
    return f"{submission}: valid, {len(answers.ids)} clips of the {task} {chosen} split"


def clips_of(clips: Clips, task: Set, split: Split | Literal["auto"]) -> tuple[NDArray[np.int64], Split]:
    """Return the clips to answer, and their split; clips of a dropped genre are not asked for.

    Raises:
        DataError: there are none.
    """
    for chosen in official.SPLITS[::-1] if split == "auto" else (split,):
        indices = clips.where(task, chosen)
        indices = np.array([i for i in indices if clips.raw[i] == "" or clips.label[i] >= 0], np.int64)
        if len(indices):
            return indices, chosen
    raise DataError(f"found no {task} clips of the split {split}, expected some; give data that hold them")
