"""The run folder: one training run on the disk, from its configuration to the mark that says it is complete.

`config.json`, `manifest.json` (what ran, where, on which data), `metrics.jsonl`, `summary.json`, `digests.json` and,
written last, `DONE`. What else a trainer keeps goes to `run.file(...)`. A finished run is read only as it was finished:
a file that differs from its digest is refused.
"""

import fcntl
import hashlib
import json
import math
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from kit_core.atomic import write_json, write_text
from kit_core.config import config_to_dict
from kit_core.errors import FULL, ConfigError, DataError, Problems, disk_full
from kit_core.repeat import differences, read_object, repetition_into

FORMAT_VERSION = 1

CONFIG, MANIFEST, METRICS, SUMMARY = "config.json", "manifest.json", "metrics.jsonl", "summary.json"
DIGESTS, DONE, LOCK = "digests.json", "DONE", ".lock"
STATE = "state"  # what only an unfinished run needs: optimizers, schedules, random numbers
WITHOUT_DIGEST = {METRICS, DIGESTS, DONE, LOCK, STATE, "plots", "tensorboard"}  # what no verb of a finished run reads
RETRAIN = "train again into another --run"  # what to do about a damaged run
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
RECORDED_PACKAGES = ("numpy", "torch", "lightgbm", "scikit-learn")  # and every installed kit-*


class RunFolder:
    """A run folder, made by `create` for writing (one process at a time) or by `open` for reading a finished run.

    Attributes: `path`, `config` (as stored, plain), `preset`, `manifest`, `summary` (empty until the run is finished).
    """

    def __init__(
        self, path: Path, config: dict[str, Any], preset: str, manifest: dict[str, Any], summary: dict[str, Any]
    ) -> None:
        self.path = path
        self.config = config
        self.preset = preset
        self.manifest = manifest
        self.summary = summary
        self._lock: IO[str] | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        config: object,
        preset: str,
        data_hashes: Mapping[str, str],
        seed: int,
        resume: bool = False,
        may_change: Collection[str] = (),
    ) -> Self:
        """Begin a run in a new or empty folder, or go on with an unfinished one, and hold its lock until `close`.

        `config` is a dataclass instance, `data_hashes` says which data (name -> digest). With `resume` an empty folder
        begins a run, a finished one is returned as it is (ask `done`). `may_change` names settings
        (`fabric.devices`) that say where a run computes and not what, so that a resume may give others. Of several
        processes on one run (DDP) only the first may call this.

        Raises:
            ConfigError: the folder is not empty and `resume` is off, it is no run folder, another process holds it, or
                the configuration, the seed or the data differ from those that the run began with.
            DataError: the run to resume is damaged or of another format, or there is no room on the disk.
        """
        path = Path(path)
        if not (path / LOCK).exists():
            _check_place(path, resume)  # before anything is written into somebody's folder
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in FULL:
                raise disk_full(path, error.strerror) from error
            raise ConfigError(f"{path}: cannot be made a run folder: {error.strerror}") from error
        lock = _take_lock(path)
        try:
            _check_place(path, resume)
            for leftover in path.rglob(".*.tmp"):  # of atomic writes that were killed; the lock says nobody writes now
                if leftover.is_file():
                    leftover.unlink()
            plain, hashes = config_to_dict(config), dict(data_hashes)
            repetition = repetition_into(path)
            if (path / CONFIG).exists():
                run = cls._load(path)
                run._refuse_changes(plain, hashes, seed, {f"config.{key}" for key in may_change})
                _drop_torn_line(path / METRICS)
                if not run.done:
                    run.manifest["resumed"].append(_environment())
                    write_json(path / MANIFEST, run.manifest)
            else:
                manifest = {"format_version": FORMAT_VERSION, "seed": seed, "data": hashes}
                run = cls(path, plain, preset, manifest | _environment() | {"resumed": []}, {})
                if repetition is not None:
                    run.manifest |= {"argv": list(repetition.argv), "repeats": str(repetition.earlier.path)}
                write_json(path / MANIFEST, run.manifest)
                write_json(path / CONFIG, {"preset": preset, "config": plain})  # second: its presence makes it a run
            if repetition is not None:
                repetition.tell_differences(plain, run.manifest)
        except BaseException:
            lock.close()
            raise
        run._lock = lock
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read a finished run, without a lock.

        Raises:
            DataError: there is no run, it is unfinished or damaged, a file of it is not as `finish` found it, or its
                format is not the one that this code reads.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise DataError(f"{path}: no run folder: found no {CONFIG}; expected a folder that `train --run` wrote")
        run = cls._load(path)
        if not run.done:
            raise DataError(f"{path}: the run is not finished: found no {DONE}; continue it with `train ... --resume`")
        _check_digests(path)
        return run

    @classmethod
    def _load(cls, path: Path) -> Self:
        manifest = read_object(path / MANIFEST, ("format_version", "seed", "data", "resumed"), RETRAIN)
        if manifest["format_version"] != FORMAT_VERSION:
            found = manifest["format_version"]
            raise DataError(
                f"{path / MANIFEST}: found format_version {found!r}, expected {FORMAT_VERSION}; "
                "use the code that wrote the run, or train again"
            )
        stored = read_object(path / CONFIG, ("preset", "config"), RETRAIN)
        summary = read_object(path / SUMMARY, (), RETRAIN) if (path / DONE).exists() else {}
        return cls(path, stored["config"], stored["preset"], manifest, summary)

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return (self.path / DONE).exists()

    def file(self, *parts: str) -> Path:
        """Return the path of a file inside the run folder; its parent folders are made."""
        path = self.path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, **values: object) -> None:
        """Append one line of JSON to `metrics.jsonl`; floats that are not finite become null.

        Raises:
            DiskFullError: there is no room on the disk.
            RuntimeError: the run folder is closed or was opened for reading.
        """
        self._require_lock()
        line = json.dumps(_jsonable(values), ensure_ascii=False) + "\n"
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            if error.errno in FULL:
                raise disk_full(self.path / METRICS, error.strerror) from error
            raise

    def finish(self, summary: Mapping[str, object]) -> None:
        """Write `summary.json`, the digests of all files, and then `DONE`; floats that are not finite become null.

        What `state` holds is removed: a process killed between a model and its state would else leave that for ever.

        Raises:
            DiskFullError, RuntimeError: as `log`.
        """
        self._require_lock()
        for leftover in (self.path / STATE).rglob("*"):
            if leftover.is_file():
                leftover.unlink()
        self.summary = _jsonable(summary)
        write_json(self.path / SUMMARY, self.summary)
        digests = {name: hash_file(self.path / name) for name in _lasting_files(self.path)}
        write_json(self.path / DIGESTS, {"files": digests, "sha256": _digest_of(digests)})
        write_text(self.path / DONE, _now() + "\n")
        if (repetition := repetition_into(self.path)) is not None:
            repetition.tell_score(self.summary)

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing alone would leave it to forked workers that still live
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _require_lock(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"{self.path}: the run folder is closed or was opened for reading")

    def _refuse_changes(
        self, config: dict[str, Any], hashes: dict[str, str], seed: int, may_change: Collection[str]
    ) -> None:
        differing = differences(self.config, config, "config")
        changes = [
            *(line for line in differing if line.partition(":")[0] not in may_change),
            *differences(self.manifest["data"], hashes, "data"),
            *differences(self.manifest["seed"], seed, "seed"),
        ]
        if changes:
            first = f"{self.path}: --resume continues a run as it began, but these differ:"
            last = "do: give the same settings and data as then, or begin another --run"
            raise ConfigError("\n  ".join([first, *changes, last]))


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lasting_files(path: Path) -> list[str]:
    names = (file.relative_to(path) for file in path.rglob("*") if file.is_file() and file.suffix != ".tmp")
    return sorted(name.as_posix() for name in names if name.parts[0] not in WITHOUT_DIGEST)


def _check_digests(path: Path) -> None:
    """Refuse files that changed. One that is gone fails where it is read; the first runs had no digests."""
    if not (path / DIGESTS).exists():
        return
    problems = Problems(path, f"files as they were when {DIGESTS} was written", "copy the run again, or train again")
    stored = read_object(path / DIGESTS, ("files", "sha256"), RETRAIN)
    if not isinstance(stored["files"], dict) or _digest_of(stored["files"]) != stored["sha256"]:
        problems.add(DIGESTS, "other content than its own sha256 says")
        problems.raise_if_any()
    for name, digest in stored["files"].items():
        file = path / name
        if file.resolve().is_relative_to(path.resolve()) and file.is_file() and (found := hash_file(file)) != digest:
            problems.add(name, f"sha256 {found[:16]}… for {str(digest)[:16]}…")
    problems.raise_if_any()


def _digest_of(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _check_place(path: Path, resume: bool) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: is a file, expected a folder for the run")
    ours = {LOCK, MANIFEST} if resume else {LOCK}  # what a run killed in its first moment leaves
    found = sorted(p.name for p in path.iterdir() if p.name not in ours) if path.exists() else []
    if found and not resume:
        raise ConfigError(f"{path}: is not empty; add --resume to go on with the run in it, or name another --run")
    if resume and CONFIG not in found and any(not name.endswith(".tmp") for name in found):
        raise ConfigError(f"{path}: no run to resume: found {', '.join(found[:5])} but no {CONFIG}; name another --run")


def _take_lock(path: Path) -> IO[str]:
    try:
        lock = (path / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path / LOCK, error.strerror) from error
        raise ConfigError(f"{path}: the run folder cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise ConfigError(f"{path}: the run is in use by another process ({holder or 'unknown'})") from error
    with suppress(OSError):  # who holds it is only for a message: a full disk is told by what is written next
        lock.truncate(0)
        os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())  # nothing left to flush
    return lock


def _drop_torn_line(path: Path) -> None:
    """Cut an unfinished last line, which a killed process may leave, so that the next one does not run into it."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch scalars and arrays, without importing either
        return _jsonable(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _environment() -> dict[str, Any]:
    return {
        "started": _now(),
        "argv": sys.argv,
        "cwd": str(Path.cwd()),
        "git": _git_state(Path(__file__)),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": _device(),
        "cpus": os.cpu_count(),
        "threads": _thread_counts(),
        "python": platform.python_version(),
        "packages": _package_versions(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache  # of the code that this process has loaded; an ensemble makes several run folders
def _git_state(source: Path) -> dict[str, object] | None:
    """Return revision and dirtiness of the repository that tracks `source`; None outside one or without git."""
    # A hook's GIT_DIR would point git at another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=environment)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # a site-packages folder inside some repository is not in it
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _device() -> str:
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch and torch.cuda.is_available() else "cpu"


def _thread_counts() -> dict[str, object]:
    """Return the cores that the process may use, what limits its libraries, and the threads of PyTorch if loaded."""
    limits = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    torch = sys.modules.get("torch")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS lacks it
    return {"cores": cores, **limits, **({"torch": torch.get_num_threads()} if torch else {})}


def _package_versions() -> dict[str, str]:
    found = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in metadata.distributions()}
    return {name: found[name] for name in sorted(found) if name.startswith("kit-") or name in RECORDED_PACKAGES}
