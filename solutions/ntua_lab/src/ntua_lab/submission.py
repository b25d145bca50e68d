"""Answers to a split as the files that a judge takes, and whether it would take them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kit_core.errors import DataError
from ntua_lab import data as official
from ntua_lab.data import Clips, Set, Split
from ntua_lab.infer import FittedRun, answer_all


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
