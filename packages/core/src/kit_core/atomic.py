"""Files and folders that are either whole or absent, also after a crash or a kill.

Everything is written to a hidden neighbour (`.NAME.xxxxxxxx.tmp`, in the same folder and so on the same file system),
flushed to the disk and renamed. A process killed in between leaves the old content and, at worst, that neighbour. The
next process that writes into the folder removes it: whoever writes holds a shared lock of the folder, which the kernel
releases at death, so that an exclusive one says that nobody's neighbour is alive.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kit_core.errors import FULL, ConfigError, KitError, disk_full

NEIGHBOUR = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)
PROBE_BYTES = 1 << 20  # a disk with less than this left is full for all that is written here
_swept: set[Path] = set()  # folders where this process has looked for what killed ones left; once is enough


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `path` when the block ends and is removed when it raises.

    Missing parent folders are made; a symbolic link stays one and its target is replaced. The yielded name ends in
    `.tmp`: give writers that add a suffix of their own (`numpy.save`) an open file.

    Raises:
        ConfigError: `path` is a folder or a device, or its folder cannot be written.
        DiskFullError: there is no room on the disk.
        FileNotFoundError: the block ended without writing the file.
    """
    given, target = Path(path), Path(path).resolve()
    if given.exists() and not given.is_file():
        raise ConfigError(f"{given}: cannot be written: it is {'a folder' if given.is_dir() else 'not a regular file'}")
    with _writing_into(target) as temporary:
        try:
            with _telling_a_full_disk(given, temporary):
                yield temporary
                _sync(temporary)
                temporary.replace(target)
                _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the content of `path` atomically; raises as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Replace the content of `path` atomically with UTF-8 text, line ends as given; raises as `atomic_path`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, obj: object) -> None:
    """Replace the content of `path` atomically with indented JSON, keys in their own order.

    Raises:
        ValueError: a float is not finite, which JSON cannot hold.
        TypeError: a value that JSON cannot hold.
        ConfigError: as `atomic_path`.
    """
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `path` when the block ends and is removed when it raises.

    Raises:
        ConfigError: `path` is a file or a folder that is not empty (nothing is ever overwritten), or cannot be written.
        DiskFullError: there is no room on the disk.
    """
    given, target = Path(path), Path(path).resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{given}: exists and is not an empty folder; remove it or name another place")
    with _writing_into(target) as temporary:
        try:
            with _telling_a_full_disk(given, temporary):
                temporary.mkdir()
                yield temporary
                for folder, _, files in os.walk(temporary):
                    for name in files:
                        _sync(Path(folder, name))
                    _sync(Path(folder))
                try:
                    temporary.replace(target)
                except OSError as error:
                    if not target.exists():
                        raise
                    raise ConfigError(
                        f"{given}: another process made it meanwhile; remove it or name another place"
                    ) from error
                _sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # after the rename there is nothing left to remove


def names_in(folder: str | Path) -> list[str]:
    """The names in a folder, sorted; not the neighbours of killed processes, which go with the next write into it."""
    return sorted(path.name for path in Path(folder).iterdir() if not NEIGHBOUR.fullmatch(path.name))


@contextmanager
def _writing_into(target: Path) -> Iterator[Path]:
    """Yield the name of a neighbour, holding the lock that keeps it from being swept."""
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(target, error.strerror) from error
        raise ConfigError(f"{target}: its folder cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{target}: the folder {folder} cannot be written; name another place")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks of folders, or somebody writes: nothing is swept
            if folder not in _swept:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _sweep(folder)
                _swept.add(folder)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield folder / f".{target.name}.{secrets.token_hex(4)}.tmp"
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    with os.scandir(folder) as found:
        for item in found:
            if NEIGHBOUR.fullmatch(item.name):
                if item.is_dir(follow_symlinks=False):
                    shutil.rmtree(item.path, ignore_errors=True)
                else:
                    Path(item.path).unlink(missing_ok=True)


@contextmanager
def _telling_a_full_disk(path: Path, temporary: Path) -> Iterator[None]:
    """Turn what a full disk raises into a DataError.

    Libraries written in C++ or Rust (torch.save, safetensors) raise errors of their own, without a number: whether they
    mean a full disk, their words or a trial show.
    """
    try:
        yield
    except KitError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path, error.strerror) from error
        raise
    except Exception as error:
        if any(os.strerror(number) in str(error) for number in FULL) or _is_full(temporary):
            raise disk_full(path, os.strerror(errno.ENOSPC)) from error
        raise


def _is_full(temporary: Path) -> bool:
    """Return whether the disk has no room for a little more, while what was written so far is still there."""
    probe = temporary.with_name(f".probe.{secrets.token_hex(4)}.tmp")
    try:
        with probe.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, PROBE_BYTES)
    except OSError as error:
        return error.errno in FULL
    finally:
        probe.unlink(missing_ok=True)
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
