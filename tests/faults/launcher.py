"""Run the command lines of the solutions in forked children, so that a start costs milliseconds and not an import.

A process of its own, started once by the tests of this folder, with no thread but one when it forks. It reads one JSON
object a line from its standard input and answers with one a line; see `Order` and `Outcome`. A child can be killed by
SIGKILL at a moment of the clock, or at the n-th change that it is about to make in a folder: between two changes of the
file system nothing can differ, so that the latter meets every dangerous moment again and again, whatever the machine.
"""

import importlib
import importlib.util
import json
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
OF_ALL = (
    "kit_io.images",
    "kit_io.ragged",
    "kit_io.tar",
    "kit_train.state",
    "kit_train.weights",
    "PIL.ImageCms",
    "torch._dynamo",
)
POLL_SECONDS = 0.001
# What verbs import when they run, where a solution has it: here once, for all children.
PRELOADED = ("cli", "data", "train", "infer", "submission", "mlp", "runs", "evaluate", "finetune", "baseline")
COUNTER = struct.Struct("q")


@dataclass(frozen=True)
class Order:
    """What to run: the command line `argv` of `module`.cli, or `function` of a file with keyword arguments."""

    log: str  # takes standard output and error
    module: str = ""
    argv: tuple[str, ...] = ()
    file: str = ""
    function: str = ""
    arguments: dict[str, Any] | None = None
    watched: str = ""  # the folder whose changes are counted
    kill_at_change: int | None = None  # counted from 0; the change itself no longer happens
    kill_after_seconds: float | None = None
    seconds_back: float = 0.0  # how far behind the machine's clock the child believes to be
    limit_seconds: float = 300.0


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    code: int  # exit code, or minus the signal
    seconds: float
    cpu_seconds: float  # of the child alone, which do not depend on what else the machine does
    changes: int  # that the child made, or was about to make, in the watched folder
    timed_out: bool


def serve() -> None:
    """Answer orders until the input ends."""
    for line in sys.stdin:
        order = Order(**json.loads(line))
        for module in (*OF_ALL, *(f"{order.module}.{name}" for name in PRELOADED if order.module)):
            if importlib.util.find_spec(module) is not None:
                importlib.import_module(module)
        print(json.dumps(asdict(run(order))), flush=True)


def run(order: Order) -> Outcome:
    """Fork, wait, kill if asked to."""
    counter = mmap.mmap(-1, COUNTER.size)  # shared: it outlives the child
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _become(order, counter)
    timed_out = False
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - started
        if pid:
            break
        timed_out = seconds > order.limit_seconds
        if timed_out or (order.kill_after_seconds is not None and seconds >= order.kill_after_seconds):
            _kill_group(child)
            _, status, used = os.wait4(child, 0)
            break
        time.sleep(POLL_SECONDS)
    _kill_group(child)  # workers that the child may have left
    changes = COUNTER.unpack(counter[:])[0]
    return Outcome(os.waitstatus_to_exitcode(status), seconds, used.ru_utime + used.ru_stime, changes, timed_out)


def _kill_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # all are gone already, or the child has no group of its own yet
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            return


def _become(order: Order, counter: mmap.mmap) -> None:
    """Turn the fork into the program, and end it without returning into the launcher."""
    code = 1
    try:
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if order.seconds_back:
            _set_back(order.seconds_back)
        if order.watched:
            _watch(order.watched, order.kill_at_change, counter)
        code = sys.modules[f"{order.module}.cli"].main(list(order.argv)) if not order.function else _call(order)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(order: Order) -> int:
    path = Path(order.file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    getattr(module, order.function)(**(order.arguments or {}))
    return 0


def _watch(folder: str, kill_at: int | None, counter: mmap.mmap) -> None:
    prefix = folder.rstrip("/")
    seen = 0

    def note(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            if not (isinstance(details[2], int) and details[2] & WRITING):
                return
        elif event not in CHANGES:
            return
        path = details[0]
        path = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        if not path.startswith(prefix):
            return
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1
        counter[:] = COUNTER.pack(seen)

    sys.addaudithook(note)


def _set_back(seconds: float) -> None:
    """Let this process believe that it is earlier; what the kernel stamps on files stays true."""
    true_time, true_time_ns = time.time, time.time_ns
    time.time = lambda: true_time() - seconds
    time.time_ns = lambda: true_time_ns() - int(seconds * 1e9)


if __name__ == "__main__":
    serve()
