"""A store of models in a space that many share: plain folders, found by name and hash, so that all load the same files.

    STORE/minilm/3f9a0c12d4e5/   model.json, and the model's own files as they were

A folder appears whole, by one rename, and is never changed. Several users and processes may publish at once: a lock
makes them wait for one another, and who comes second finds the work done.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kit_core.atomic import atomic_dir, write_json
from kit_core.config import did_you_mean
from kit_core.errors import ConfigError, DataError, Problems
from kit_core.run import hash_file

CARD = "model.json"
FORMAT_VERSION = 1
SHORT = 12  # digits of the hash in a folder's name
LOCK_SECONDS = 600.0  # copying a large model over a slow network takes its time
EVERYONE = 0o666  # of lock files: the next user must be able to take them


@dataclass(frozen=True)
class Model:
    """A model in the store.

    Attributes:
        digest: SHA-256 over the names and hashes of its files.
        files: by name, the SHA-256 and the bytes of each.
    """

    name: str
    digest: str
    path: Path
    files: Mapping[str, Mapping[str, Any]]

    @property
    def reference(self) -> str:
        """The name with enough of the hash: what to write into a command."""
        return f"{self.name}@{self.digest[:SHORT]}"


def publish(store: Path, name: str, source: Path) -> Model:
    """Copy a folder, or one file, into the store; what is there already is returned as it is.

    Raises:
        DataError: there is nothing at `source`.
        ConfigError: the name is no plain word, the store cannot be written, or somebody holds the lock for 10 minutes.
    """
    if not name or name.startswith(".") or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise ConfigError(f"model name: found {name!r}, expected letters, digits, '-', '_' and '.'")
    files = files_of(source)
    if not files:
        raise DataError(f"{source}: no files; name the folder or the file of a model")
    facts = {place: {"sha256": hash_file(path), "bytes": path.stat().st_size} for place, path in files.items()}
    digest = digest_of(facts)
    target = store / name / digest[:SHORT]
    with _locked(store, name):
        if (target / CARD).exists():
            return read_model(target)
        with atomic_dir(target) as folder:
            for place, path in files.items():
                copy = folder / place
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            for place, fact in facts.items():
                if hash_file(folder / place) != fact["sha256"]:
                    raise DataError(f"{source}: {place} changed while it was copied; try again when nobody writes it")
            card = {"format_version": FORMAT_VERSION, "name": name, "sha256": digest, "files": facts}
            write_json(folder / CARD, card)
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)  # others read it, whatever this user's umask is
    return read_model(target)


def find(store: Path, reference: str) -> Model:
    """Return the model `NAME`, or `NAME@HASH` with the first digits of its hash.

    Raises:
        ConfigError: a name alone, of which there are several versions.
        DataError: there is no such model, or its card is damaged.
    """
    name, _, digest = reference.partition("@")
    known = models(store)
    versions = [model for model in known if model.name == name and model.digest.startswith(digest)]
    if not versions:
        names = [model.reference for model in known]
        listed = ", ".join(names[:20]) or "nothing"
        raise DataError(f"{store}: no model {reference!r}{did_you_mean(reference, names)}\n  in the store: {listed}")
    if len(versions) > 1:
        raise ConfigError(f"{reference}: there are several; say which: {', '.join(one.reference for one in versions)}")
    return versions[0]


def models(store: Path) -> list[Model]:
    """Return everything in the store, by name."""
    return [read_model(card.parent) for card in sorted(store.glob(f"*/*/{CARD}")) if card.parent.name[0] != "."]


def verify(model: Model) -> None:
    """Read all files of a model again.

    Raises:
        DataError: one is changed, missing or too much.
    """
    problems = Problems(model.path, "the files that model.json names", "remove the folder and publish the model again")
    found = {place: path for place, path in files_of(model.path).items() if place != CARD}
    for place in sorted({*found, *model.files}):
        if place not in found:
            problems.add(place, "no such file")
        elif place not in model.files:
            problems.add(place, "a file that does not belong to it")
        elif hash_file(found[place]) != model.files[place]["sha256"]:
            problems.add(place, "another content")
    problems.raise_if_any()


def read_model(path: Path) -> Model:
    """Read the card of a model.

    Raises:
        DataError: it is damaged, or of another format.
    """
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        if card["format_version"] != FORMAT_VERSION or digest_of(card["files"]) != card["sha256"]:
            raise ValueError("its parts do not fit together")
        return Model(card["name"], card["sha256"], path, card["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / CARD}: is damaged: {error}; remove the folder and publish the model again") from error


def files_of(source: Path) -> dict[str, Path]:
    """Return the files of a folder by their names in it, links followed; a file alone by its own name."""
    if source.is_file():
        return {source.name: source}
    return {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}


def digest_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the SHA-256 over the sorted names and hashes of files, in hexadecimal."""
    lines = "".join(f"{place}\0{files[place]['sha256']}\n" for place in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def _locked(store: Path, name: str) -> Iterator[None]:
    try:
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / f".{name}.lock", timeout=LOCK_SECONDS, mode=EVERYONE):
            yield
    except Timeout as error:
        raise ConfigError(
            f"{store}: somebody has been publishing {name!r} for {LOCK_SECONDS / 60:.0f} minutes; try again later"
        ) from error
    except PermissionError as error:
        raise ConfigError(
            f"{store}: cannot be written by user {os.getuid()}; ask its owner, or name another"
        ) from error
