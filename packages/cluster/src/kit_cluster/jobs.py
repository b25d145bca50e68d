"""The verbs of `NAME job`: what became of a submitted run, and how its results come home."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional, UseAppendAction

from kit_cluster.results import collect as collect_runs
from kit_cluster.results import retain as retain_runs
from kit_cluster.results import verify_archive
from kit_cluster.run_notes import REFUSED, notes_folder, read_json, read_notes
from kit_cluster.slurm import alive, queue, run_slurm
from kit_core.console import render_table, say
from kit_core.run import DONE


@dataclass(frozen=True)
class JobState:
    """One job of a run: its number, run folder, state in one word, restarts, and what there is to say."""

    id: str
    run: Path
    state: str
    restarts: int
    message: str


def states_of(run: Path) -> list[JobState]:
    """Return the state of each job of a run: its own last word, else what SLURM knows, else what its files show."""
    notes, folder = read_notes(run), notes_folder(run)
    known = queue()  # once: between two looks a job may end
    living = alive(notes, known)
    found = []
    for note in notes:
        path = folder / f"{note['id']}.json"
        told: dict[str, Any] = read_json(path) if path.exists() else {"state": "", "message": "", "restarts": 0}
        place = Path(note["run"])
        state, refused = told["state"], folder / f"{note['id']}{REFUSED}"
        if state == "finished" or (note["id"] not in living and (place / DONE).exists()):
            state = "finished"
        elif state in ("failed", "stopped"):
            pass  # the job's last word: SLURM may still be putting it away
        elif note["id"] in living:
            state, told["message"] = known[note["id"]]
        elif state == "requeued" and refused.exists() and (words := refused.read_text().strip()):
            state = "stopped"
            told["message"] = f"not queued again: {words}; nothing is lost: go on with --resume --submit slurm"
        elif state in ("", "running", "requeued"):
            log = folder / f"{note['id']}_0_log.err"
            state = "dead"
            told["message"] = f"SLURM knows it no more and it is not finished; see {log}, go on with --resume"
        found.append(JobState(note["id"], place, state, int(told["restarts"]), told["message"]))
    return found


def status(run: Path) -> None:
    """Show what became of a submitted run: each job, how often it was queued again, and its last words."""
    jobs = states_of(run)
    rows = [(job.id, os.path.relpath(job.run), job.state, job.restarts, job.message) for job in jobs]
    print(render_table(["job", "run", "state", "restarts", ""], rows))


def cancel(run: Path) -> None:
    """Cancel the jobs of a run; they save their state first, and `--resume` goes on with it."""
    living = alive(read_notes(run), queue())
    if not living:
        say(f"{run}: no job of it is queued or running")
        return
    run_slurm("scancel", *living)
    say(f"cancelled: {', '.join(living)}")


def collect(run: UseAppendAction[tuple[Path, ...]], out: Path, submission: Path | None = None) -> None:
    """Put runs, and a submission, into one .tar archive with the SHA-256 of each file, and compare them again."""
    facts = collect_runs(run, out, submission)
    verify_archive(out)
    rows = [
        (one["run"], one["preset"], "yes" if one["done"] else "no", one["metric"] or "", _shown(one["score"]))
        for one in facts["runs"]
    ]
    print(render_table(["run", "preset", "finished", "metric", "score"], rows))
    print(f"{out}: {len(facts['files'])} files, {out.stat().st_size:,} bytes, every hash compared")


def verify(archive: Positional[Path]) -> None:
    """Compare every file of a collected archive with its hash."""
    facts = verify_archive(archive)
    print(f"{archive}: {len(facts['files'])} files as they were: {json.dumps([one['run'] for one in facts['runs']])}")


def retain(runs: Path, best: int = 3, apply: bool = False) -> None:
    """Free the weights of all finished runs in a folder but the best ones and the last; without --apply only tell.

    Configuration, metrics, scores and out-of-fold answers stay.
    """
    decided = retain_runs(runs, best, apply=apply)
    print(render_table(["run", "weights", "bytes"], [(run.name, why, f"{size}") for run, why, size in decided]))
    freed = sum(size for _, why, size in decided if why == "freed")
    print(f"{freed:,} bytes {'freed' if apply else 'would be freed; add --apply'}")


VERBS: dict[str, Callable[..., None]] = {
    "status": status,
    "cancel": cancel,
    "collect": collect,
    "verify": verify,
    "retain": retain,
}


def _shown(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"
