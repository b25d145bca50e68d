"""Repeat an earlier run from its manifest, and say what differs: versions, code, machine, data, settings, score.

`train --from-manifest` of `kit_core.cli` is the front of it. While a repetition is under way (`repeating`), the run
folder at its place tells the differences as soon as it is made, before the work begins, and the scores when it is
finished.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit_core.console import say
from kit_core.errors import ConfigError, DataError

ABSENT = "(absent)"  # stands for a key that one side of a comparison lacks
VERSIONS, CODE = ("python", "packages"), ("git",)
MACHINE = ("platform", "device", "cpus", "threads")  # other machines round otherwise; the host's name does not


@dataclass(frozen=True)
class Earlier:
    """A run to be repeated, finished or not: its folder, and what its files of settings, manifest and summary hold.

    `summary` is empty where the run was not finished.
    """

    path: Path
    preset: str
    config: dict[str, Any]
    manifest: dict[str, Any]
    summary: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "Earlier":
        """Read a run by its folder or by the manifest in it.

        Raises:
            ConfigError: there is no such folder.
            DataError: it holds no run, or the files of the run are damaged.
        """
        given = Path(path)
        folder = given if given.is_dir() else given.parent
        if not folder.is_dir():
            raise ConfigError(f"--from-manifest: found no {folder}; expected the folder of a run")
        remedy = "name the folder of another run"
        manifest = read_object(folder / "manifest.json", ("seed", "data", "argv", "packages"), remedy)
        stored = read_object(folder / "config.json", ("preset", "config"), remedy)
        summary = read_object(folder / "summary.json", (), remedy) if (folder / "DONE").exists() else {}
        return cls(folder, str(stored["preset"]), stored["config"], manifest, summary)

    @property
    def moved_from(self) -> Path | None:
        """The working directory of the run, where relative paths began; None: this one, or not recorded."""
        cwd = self.manifest.get("cwd")
        return Path(cwd) if cwd and Path(cwd) != Path.cwd() else None

    def flags(self, verb: Sequence[str]) -> list[str]:
        """Return the flags that the run was started with behind the words of its verb and its preset.

        `--resume` is left out, since a repetition begins anew. Nothing comes back where the run was not started by
        this verb of a command line, as by a test or a notebook.
        """
        words = [*verb, self.preset]
        argv = [str(word) for word in self.manifest["argv"]][1:]
        if argv[: len(words)] != words:
            return []
        return [word for word in argv[len(words) :] if word not in ("--resume", "--no-resume")]


@dataclass(frozen=True)
class Repetition:
    """An earlier run, the folder that its repetition is written to, and the whole command line that would begin it."""

    earlier: Earlier
    into: Path
    argv: tuple[str, ...]

    def tell_differences(self, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Say in what the run that now begins differs from the earlier one; on stderr."""
        found = differing(self.earlier, config, manifest)
        same = [name for name, lines in found.items() if not lines]
        say(f"{self.into}: repeats {self.earlier.path}, preset {self.earlier.preset}")
        say(f"  the same: {', '.join(same) or 'nothing'}")
        for name, lines in found.items():
            for line in lines:
                say(f"  {name}: {line}")

    def tell_score(self, summary: Mapping[str, Any]) -> None:
        """Say the score of then and of now; nothing where one of them is not known. On stderr."""
        then, now = self.earlier.summary.get("score"), summary.get("score")
        if isinstance(then, int | float) and isinstance(now, int | float):
            verdict = "the same to the last bit" if then == now else f"differs by {now - then:+.2g}"
            say(f"{self.into}: score was {then!r}, is {now!r}: {verdict}")


_current: ContextVar[Repetition | None] = ContextVar("repetition", default=None)


@contextmanager
def repeating(repetition: Repetition) -> Iterator[None]:
    """Let the run folder that is made at `repetition.into` inside this block tell what differs."""
    token = _current.set(repetition)
    try:
        yield
    finally:
        _current.reset(token)


def repetition_into(path: Path) -> Repetition | None:
    """Return the repetition under way whose folder is `path`; None for every other folder, such as those of members."""
    repetition = _current.get()
    return repetition if repetition is not None and repetition.into.resolve() == path.resolve() else None


def differing(earlier: Earlier, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return, for versions, code, machine, data, settings and seed, one line for each difference; none: no lines.

    `config` and `manifest` are those of the new run, plain as stored. Code counts as different whenever uncommitted
    changes were around, since nobody can say what they were.
    """
    then = earlier.manifest
    found = {
        "versions": _changes(then, manifest, VERSIONS),
        "code": _changes(then, manifest, CODE),
        "machine": _changes(then, manifest, MACHINE),
        "data": differences(then["data"], manifest["data"], "data"),
        "settings": differences(earlier.config, dict(config), "config"),
        "seed": differences(then["seed"], manifest["seed"], "seed"),
    }
    if not found["code"]:
        git = then.get("git")
        if git is None:
            found["code"] = ["no revision is known of either run"]
        elif git.get("dirty"):
            found["code"] = ["the same revision, but both times with changes that were not committed"]
    return found


def differences(old: Any, new: Any, key: str) -> list[str]:
    """Return a line `key: was OLD, is NEW` for each leaf in which two plain nested values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(name, old.get(name, ABSENT), new.get(name, ABSENT)) for name in {**old, **new}]
        return [line for name, then, now in pairs for line in differences(then, now, f"{key}.{name}")]
    return [] if old == new else [f"{key}: was {old!r}, is {new!r}"]


def read_object(path: Path, keys: Iterable[str], remedy: str) -> dict[str, Any]:
    """Return what a JSON file of a run folder holds: an object with these keys and perhaps more.

    Raises:
        DataError: the file is absent or damaged, or a key is missing; `remedy` says what to do.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: absent; expected the file that `train --run` wrote; {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, or thousands of nested brackets
        raise DataError(f"{path}: not JSON: {error}; {remedy}") from error
    missing = [key for key in keys if key not in value] if isinstance(value, dict) else ["table of keys"]
    if missing:
        raise DataError(f"{path}: found no {', '.join(missing)}; expected what `train` wrote; {remedy}")
    return dict(value)


def _changes(then: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [line for key in keys for line in differences(then.get(key, ABSENT), now.get(key, ABSENT), key)]
