"""One command, several processes: `train ... --fabric.devices 4`, or the same command under torchrun or SLURM.

    @in_ranks
    def train(preset: str, config: Config, data: Path, run: Path, resume: bool = False) -> None:
        with open_run(run, config=config, ...) as folder: ...

Loads without PyTorch, so that a command line may import it.
"""

import functools
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from kit_core.errors import ConfigError, DataError, KitError
from kit_core.interrupt import Interrupted
from kit_core.run import LOCK, RunFolder
from kit_train.errors import PeerError, RankError

WHERE_NOT_WHAT = ("fabric.devices",)  # settings that a resume may change
ERRORS: tuple[type[KitError], ...] = (ConfigError, DataError, Interrupted)  # by exit code, to tell a worker's on
LOST_PEER = re.compile(r"gloo|nccl|socket|connection|peer|store", re.IGNORECASE)
LAST_LINES = 15  # of a failed rank's own output, shown with the failure
PATIENCE_SECONDS = 20.0  # that a rank waits to be ended by the launcher, after it lost another one or stopped with it


def in_ranks(verb: Callable[..., None]) -> Callable[..., None]:
    """Make a verb with a parameter `config` run in as many processes as `config.fabric.devices` says.

    Started by torchrun or SLURM (RANK is in the environment) the process is one rank of a run, and only rank 0 speaks.
    Otherwise, with more than one device, this process starts the ranks by torch's elastic launcher and waits. When a
    rank fails all of them end, and the error names the rank.
    """

    @functools.wraps(verb)
    def started(**values: Any) -> None:
        if "RANK" in os.environ:
            with _only_rank_0_speaks():
                verb(**values)
        elif (devices := values["config"].fabric.devices) > 1:
            _launch(f"{verb.__module__}:{verb.__qualname__}", values, devices)
        else:
            verb(**values)

    started.shares_work = True  # type: ignore[attr-defined]  # for those who start several processes and ask first
    return started


@contextmanager
def open_run(
    path: Path,
    *,
    config: object,
    preset: str,
    data_hashes: Mapping[str, str],
    seed: int,
    resume: bool = False,
    parallel: bool = True,
) -> Iterator[RunFolder]:
    """Begin a run folder, or go on with one, as `RunFolder.create` does; with several ranks only rank 0 writes to it.

    The other ranks get a private copy of it, in the folder for temporary files, that goes when they end: whatever the
    training reads or writes is there, with no question of who came first.

    Args:
        parallel: whether this preset knows how to share its work; one that does not is refused with several ranks.

    Raises:
        ConfigError: as `RunFolder.create`, or several ranks for a preset that works in one process.
    """
    settings: dict[str, Any] = {"config": config, "preset": preset, "data_hashes": data_hashes, "seed": seed}
    if int(os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else 1) == 1:
        with RunFolder.create(path, **settings, resume=resume, may_change=WHERE_NOT_WHAT) as folder:
            yield folder
        return
    if not parallel:
        found = os.environ["WORLD_SIZE"]
        raise ConfigError(f"{preset}: works in one process, but {found} were started; start one, with fabric.devices 1")
    from kit_train.ranks import agreement, join_group

    ranks = join_group(getattr(getattr(config, "fabric", None), "accelerator", "auto"))
    with ExitStack() as stack:
        with agreement("open the run"):
            if ranks.rank == 0:
                folder = stack.enter_context(
                    RunFolder.create(path, **settings, resume=resume, may_change=WHERE_NOT_WHAT)
                )
        with agreement("copy the run"):
            if ranks.rank:
                private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"rank{ranks.rank}-")), path.name)
                shutil.copytree(path, private, ignore=shutil.ignore_patterns(LOCK, "tensorboard", ".*.tmp"))
                folder = stack.enter_context(
                    RunFolder.create(private, **settings, resume=True, may_change=WHERE_NOT_WHAT)
                )
        yield folder


def _launch(verb: str, values: Mapping[str, Any], devices: int) -> None:
    """Start `devices` ranks of a verb on this machine, and wait.

    Raises:
        KitError: a rank failed; of the class that it raised, where it was one of ours.
    """
    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = values["config"].fabric
    check_devices(config.accelerator, devices)
    for name in ("torch.distributed", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they tell every failure at length; we, in short
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    with tempfile.TemporaryDirectory(prefix="ranks-") as scratch:
        logs = DefaultLogsSpecs(log_dir=scratch, redirects=dict.fromkeys(range(1, devices), Std.ALL))
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=Path(scratch).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=logs,
        )
        try:
            elastic_launch(settings, _work)(verb, dict(values), scratch)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise _told(Path(scratch), rank, devices, failure.exitcode) from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise RankError(f"ended by {signal.Signals(error.sigval).name}, with all {devices} ranks") from None


def _work(verb: str, values: dict[str, Any], scratch: str) -> None:
    """Be one rank: run the verb, and leave what went wrong where the launcher finds it."""
    module, _, name = verb.partition(":")
    rank = os.environ["RANK"]
    failure = Path(scratch, f"rank{rank}.json")
    try:
        getattr(importlib.import_module(module), name)(**values)
    except PeerError:
        time.sleep(PATIENCE_SECONDS)  # the other one is about to tell, and the launcher to end this one
        _exit_at_once(1)
    except KitError as error:
        failure.write_text(json.dumps({"exit_code": error.exit_code, "message": str(error)}), encoding="utf-8")
        _exit_at_once(error.exit_code)
    except Exception as error:
        if LOST_PEER.search(str(error)) and isinstance(error, RuntimeError):
            time.sleep(PATIENCE_SECONDS)  # another rank was first: the launcher is about to end this one
        text = "".join(traceback.format_exception(error))
        failure.write_text(json.dumps({"exit_code": 1, "message": text.rstrip()}), encoding="utf-8")
        _exit_at_once(1)


def _exit_at_once(code: int) -> NoReturn:
    """End this rank without finalizing the interpreter.

    The threads of a process group that lost a peer may still run, and destroying them aborts the process (SIGABRT).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _told(scratch: Path, rank: int, devices: int, exit_code: int) -> KitError:
    """Return the error of the rank that failed first, in words."""
    where = f"rank {rank} of {devices}"
    path = scratch / f"rank{rank}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for kind in ERRORS:
            if kind.exit_code == found["exit_code"]:
                named = found["message"].startswith("rank ")  # the ranks above 0 have done so themselves
                return kind(found["message"] if named else f"{where}: {found['message']}")
        return RankError(f"{where} failed, and the others were ended:\n{found['message']}")
    cause = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
    hint = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
    lines = [line for log in sorted(scratch.rglob(f"{rank}/stderr.log")) for line in log.read_text().splitlines()]
    shown = "".join(f"\n  {line}" for line in lines[-LAST_LINES:])
    return RankError(f"{where} {cause}{hint}, and the others were ended; --resume goes on{shown}")


@contextmanager
def _only_rank_0_speaks() -> Iterator[None]:
    """Silence the ranks above 0, and name the rank in what they raise; in the end part from the others.

    A stop that was asked for leaves the first word to rank 0, whose state it is that counts.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))
    with ExitStack() as stack:
        if rank:
            silence = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(silence))
            stack.enter_context(redirect_stderr(silence))
        try:
            yield
        except KitError as error:
            if rank:
                if isinstance(error, Interrupted):
                    time.sleep(PATIENCE_SECONDS)  # the first to end has the others ended; rank 0 may still be saving
                error.args = (f"rank {rank} of {size}: {error}",)
            raise
        except Exception as error:
            error.add_note(f"in rank {rank} of {size}")
            raise
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def check_devices(accelerator: str, devices: int) -> None:
    """Refuse what this machine does not have.

    Raises:
        ConfigError: the accelerator is absent, or there are fewer devices than asked for.
    """
    import torch

    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("fabric.accelerator: found no CUDA device; use 'cpu' or 'auto'")
    if accelerator != "cpu" and torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise ConfigError(f"fabric.devices: found {devices}, but this machine has {torch.cuda.device_count()}")
