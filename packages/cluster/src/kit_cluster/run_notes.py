"""The folder RUN.slurm: logs of the jobs of a run, and what was submitted."""

import json
from pathlib import Path
from typing import Any

from kit_core.errors import ConfigError

NOTES = "job.json"  # of the folder RUN.slurm: which jobs were submitted for a run
WISH = ".requeue"  # JOB.requeue: the run saved and may be queued again
REFUSED = ".refused"  # JOB.refused: SLURM would not


def notes_folder(run: Path) -> Path:
    """Return RUN.slurm: logs of the jobs of a run, and what was submitted."""
    return run.absolute().with_name(f"{run.name}.slurm")


def read_notes(run: Path) -> list[dict[str, Any]]:
    """Return what was submitted for a run: a list of `id`, `run` and `fold`.

    Raises:
        ConfigError: nothing was.
    """
    path = notes_folder(run) / NOTES
    if not path.exists():
        raise ConfigError(f"{run}: no job was submitted for it (found no {path}); name the --run of `train --submit`")
    jobs: list[dict[str, Any]] = read_json(path)["jobs"]
    return jobs


def read_json(path: Path) -> Any:
    """Read a file that this package wrote.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: is damaged: {error}; remove it") from error
