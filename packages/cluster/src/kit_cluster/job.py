"""What runs inside a job: the training, with an ear for SLURM's signals.

SIGUSR2 (the time limit is near, or a pre-emption that warns) asks the loop to save and stop; then the job's script
queues it again, and it goes on with the same bits. SIGTERM (scancel, or a pre-emption) asks for the same, and the job
ends; SLURM itself queues pre-empted jobs again. A thread listens, since Python's own handlers wait while a library
computes.
"""

import importlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit_cluster.config import SlurmConfig
from kit_cluster.results import copy_results, retain
from kit_cluster.run_notes import WISH, notes_folder, read_json
from kit_core import interrupt
from kit_core.atomic import write_json
from kit_core.console import say
from kit_core.errors import KitError
from kit_core.interrupt import Interrupted

GRACE_SHARE = 0.5  # of the time between the signal and the end, for the loop to save by itself
TERM_GRACE_SECONDS = 15.0  # SLURM kills 30 s after SIGTERM


@dataclass(frozen=True)
class TrainJob:
    """A training as a job: called by submitit on the node, once in every process of it.

    Attributes:
        verb: the function, as `module:name`.
        values: its arguments; `resume` is set.
        argv: the command, for the manifest.
        results_dir: where results are copied to.
    """

    verb: str
    values: dict[str, Any]
    argv: list[str]
    slurm: SlurmConfig
    results_dir: Path | None

    @property
    def program(self) -> str:
        """The console script that the verb belongs to."""
        return self.verb.partition(".")[0].replace("_", "-")

    def __call__(self) -> None:
        """Run until the training is done, fails, or is asked to stop."""
        import submitit

        environment = submitit.JobEnvironment()
        first = environment.global_rank == 0
        if environment.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        sys.argv = list(self.argv)
        run: Path = self.values["run"]
        ear = Ear(lambda kind: self._give_up_waiting(kind, environment.job_id) if first else None, self.slurm)
        note = Note(run, environment.job_id) if first else None
        try:
            if note is not None:
                note.write("running")
            train = _find(self.verb)
            train(**self.values)
            if note is not None:
                self._finish(run)
                note.write("finished")
        except Interrupted as error:
            if note is None:
                return  # rank 0 does the rest
            say(f"{self.program}: {error}")
            self._stopped(ear.heard or "requeue", environment.job_id)
        except KitError as error:
            if note is not None:
                note.write("failed", str(error))
                self._copy(run)
            print(f"{self.program}: {error}", file=sys.stderr, flush=True)
            sys.exit(error.exit_code)
        except Exception as error:
            if note is not None:
                note.write("failed", f"{type(error).__name__}: {error}; the log holds the traceback")
                self._copy(run)
            raise
        finally:
            ear.close()

    def _finish(self, run: Path) -> None:
        if self.slurm.submission is not None:
            infer = _find(f"{self.verb.partition(':')[0]}:infer")
            infer(run=(run,), data=self.values["data"], out=self.slurm.submission.absolute())
        self._copy(run)
        if self.slurm.keep:
            retain(run.parent, best=self.slurm.keep, apply=True)

    def _copy(self, run: Path) -> None:
        """Copy results; what goes wrong with that is told, and does not fail a run that is safe where it lies."""
        if self.results_dir is not None and run.exists():
            try:
                copy_results(run, self.results_dir)
            except KitError as error:
                say(f"results not copied: {error}")

    def _stopped(self, kind: str, job_id: str) -> None:
        run: Path = self.values["run"]
        self._copy(run)
        note = Note(run, job_id)
        if kind == "end":
            note.write("stopped", "asked to end by SIGTERM; the state is saved")
            sys.exit(128 + signal.SIGTERM)
        problem = requeue(run, job_id, self.slurm.requeues)
        if problem is None:
            sys.exit(Interrupted.exit_code)
        command = " ".join([self.program, *(word for word in self.argv[1:] if word != "--resume")])
        text = f"{problem}; nothing is lost: the state is saved. Go on with: {command} --resume --submit slurm"
        note.write("stopped", text)
        print(text, file=sys.stderr, flush=True)
        sys.exit(Interrupted.exit_code)

    def _give_up_waiting(self, kind: str, job_id: str) -> None:
        """The loop did not stop by itself: what it saved last is what the next start goes on from."""
        say("the training did not stop in time; it goes on from what it saved last")
        try:
            self._stopped(kind, job_id)
        finally:
            os._exit(Interrupted.exit_code)


class Ear:
    """Listen to SIGUSR2 and SIGTERM in a thread, ask the loop to stop, and call `late` when it does not.

    `heard` is what was wanted: "requeue" or "end".
    """

    def __init__(self, late: Callable[[str], None], slurm: SlurmConfig) -> None:
        self.heard: str | None = None
        self._late = late
        self._graces = {"requeue": GRACE_SHARE * slurm.signal_seconds, "end": TERM_GRACE_SECONDS}
        self._closed = threading.Event()
        self._reads, self._writes = socket.socketpair()
        self._writes.setblocking(False)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # the number goes to the wakeup socket, at once
        signal.set_wakeup_fd(self._writes.fileno(), warn_on_full_buffer=False)
        # SLURM signals child processes too, and SIGUSR2 would end them; they inherit that it is blocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        interrupt.withdraw()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; from here on signals are ignored."""
        self._closed.set()
        signal.set_wakeup_fd(-1)
        self._writes.close()  # the thread reads an end of file, and ends
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=1.0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})

    def _listen(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})  # of this thread: it is the one that hears
        with self._reads:
            while number := self._reads.recv(1):
                kinds = {signal.SIGUSR2: "requeue", signal.SIGTERM: "end"}
                if (kind := kinds.get(signal.Signals(number[0]))) is None or self.heard == kind:
                    continue
                self.heard = kind
                say(f"{signal.Signals(number[0]).name}: saving and stopping")
                interrupt.ask()
                if not self._closed.wait(self._graces[kind]):
                    self._late(kind)


class Note:
    """What became of a job, in RUN.slurm/JOB.json: SLURM forgets finished jobs where it has no accounting."""

    def __init__(self, run: Path, job_id: str) -> None:
        folder = notes_folder(run)
        if not folder.exists():  # the run of one fold: the folder is that of all of them
            folder = notes_folder(run.parent)
        self.path = folder / f"{job_id}.json"

    def write(self, state: str, message: str = "") -> None:
        """Note a state, such as "running", with what there is to say of it."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"state": state, "message": message, "at": now, "host": socket.gethostname(), "restarts": restarts()}
        write_json(self.path, facts)


def restarts() -> int:
    """Return how often SLURM started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def requeue(run: Path, job_id: str, limit: int) -> str | None:
    """Leave the wish that the job's script queues it again; returns None, or why not.

    The script does it and not this process, which may be in a container or without network, where is no scontrol.
    """
    note = Note(run, job_id)
    marks = note.path.with_suffix(".progress.json")
    before, now = (read_json(marks) if marks.exists() else None), progress_mark(run)
    if before == now and restarts():
        return (
            "not queued again: nothing was saved since the last start; an epoch takes longer than the job, so ask for "
            "more --slurm.minutes"
        )
    if restarts() >= limit:
        return f"not queued again: it was {restarts()} times, and slurm.requeues is {limit}"
    write_json(marks, now)
    note.write("requeued", "stopped by SLURM; goes on when the queue comes to it")
    note.path.with_suffix(WISH).touch()
    return None


def progress_mark(run: Path) -> list[list[Any]]:
    """Return what changes whenever a training saves: names, sizes and times of what lies in the run folder."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name not in (".lock", "manifest.json")]
    return [[path.relative_to(run).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _find(name: str) -> Callable[..., None]:
    module, _, function = name.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(module), function)
    return found
