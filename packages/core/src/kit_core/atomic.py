"""Files and folders that are either whole or absent, also after a crash or a kill.

Everything is written to a hidden neighbour (`.NAME.xxxxxxxx.tmp`, in the same folder and so on the same file system),
flushed to the disk and renamed. A process killed in between leaves the old content and, at worst, that neighbour.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit_core.errors import ConfigError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `path` when the block ends and is removed when it raises.

    Missing parent folders are made; a symbolic link stays one and its target is replaced. The yielded name ends in
    `.tmp`: give writers that add a suffix of their own (`numpy.save`) an open file.

    Raises:
        ConfigError: `path` is a folder or a device, or its folder cannot be written.
        FileNotFoundError: the block ended without writing the file.
    """
    given, target = Path(path), Path(path).resolve()
    if given.exists() and not given.is_file():
        raise ConfigError(f"{given}: cannot be written: it is {'a folder' if given.is_dir() else 'not a regular file'}")
    temporary = _neighbour(target)
    try:
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
    """
    given, target = Path(path), Path(path).resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{given}: exists and is not an empty folder; remove it or name another place")
    temporary = _neighbour(target)
    temporary.mkdir()
    try:
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
            raise ConfigError(f"{given}: another process made it meanwhile; remove it or name another place") from error
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after the rename there is nothing left to remove


def _neighbour(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{target}: its folder cannot be made: {error.strerror}") from error
    if not os.access(target.parent, os.W_OK):
        raise ConfigError(f"{target}: the folder {target.parent} cannot be written; name another place")
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
