"""What a network learns from: labels, and the answers of a finished run, its teacher, to tracks with or without them.

The teacher of a fold is made of those of its models that did not see this fold, so no label of the fold that is left
out reaches the student through them; of an ensemble, the weights too are found on tracks outside the fold.

Sources: distillation, Hinton et al. 2015 (arXiv:1503.02531); pseudo-labels, Lee 2013.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kit_core.errors import ConfigError
from kit_core.run import RunFolder
from yandex_tagging.config import TeacherConfig
from yandex_tagging.data import Tracks
from yandex_tagging.infer import FittedRun


@dataclass(frozen=True)
class Lesson:
    """What one network is fitted to: items of the pack, int64 [n], and their targets, float32 [n, n_tags] in 0..1."""

    rows: np.ndarray
    targets: np.ndarray


def lesson_of(
    teacher: FittedRun | None,
    config: TeacherConfig,
    tracks: Tracks,
    unlabelled: Tracks | None,
    fitted: np.ndarray,
    tags: np.ndarray,
    held: np.ndarray,
    fold: int,
) -> Lesson:
    """Return the tracks and targets of a fold.

    Args:
        teacher: as `open_teacher` gives it; None: the labels alone.
        unlabelled: more tracks without labels, of the same pack.
        fitted: places in `tracks` of those with labels, int64 [n], and `tags` their labels, bool [n, n_tags].
        held: places of the fold that is left out.
    """
    targets = tags.astype(np.float32)
    if teacher is None:
        return Lesson(tracks.rows[fitted], targets)

    def answers(rows: np.ndarray) -> np.ndarray:
        logits = teacher.logits(tracks.pack, rows, fold).astype(np.float64)
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    if config.weight:
        targets += config.weight * (answers(tracks.rows[fitted]) - targets)
    if not config.pseudo_labels:
        return Lesson(tracks.rows[fitted], targets)
    others = np.concatenate([tracks.rows[held], *([] if unlabelled is None else [unlabelled.rows])])
    return Lesson(np.concatenate([tracks.rows[fitted], others]), np.concatenate([targets, answers(others)]))


def open_teacher(config: TeacherConfig, tracks: Tracks, folds: np.ndarray) -> FittedRun | None:
    """Open the run that teaches, or None where there is none.

    Raises:
        ConfigError: it was fitted on other data or with other folds, so that its answers could betray labels.
        DataError: there is no finished run, or it is damaged.
    """
    if config.run is None:
        return None
    fingerprint = RunFolder.open(config.run).manifest["data"].get("train")
    if fingerprint != tracks.fingerprint:
        raise ConfigError(
            f"teacher.run: {config.run} was fitted on other data (found {str(fingerprint)[:16]}…, expected "
            f"{tracks.fingerprint[:16]}…); name a run on the same data"
        )
    table = pq.read_table(config.run / "oof.parquet", columns=["track", "fold"])
    theirs: dict[int, Any] = dict(zip(table["track"].to_pylist(), table["fold"].to_pylist(), strict=True))
    wrong = [
        f"track {track}: found {theirs[track]}, expected {fold}"
        for track, fold in zip(tracks.ids, folds.tolist(), strict=True)
        if theirs.get(track, fold) != fold
    ]
    if wrong:
        raise ConfigError(
            f"teacher.run: {config.run} has other folds ({len(wrong)} tracks; {'; '.join(wrong[:5])}); "
            "give the data settings (n_folds, groups, seed) of that run"
        )
    return FittedRun.open(config.run)


def digest(run: Path) -> str:
    """Tell one teacher from another: the digest of its out-of-fold answers.

    Raises:
        DataError: there is no finished run.
    """
    return hashlib.sha256((RunFolder.open(run).path / "oof.parquet").read_bytes()).hexdigest()
