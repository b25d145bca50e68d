"""Run folders as they lie on the disk, finished or not, read with warnings in place of errors."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

PLOT_SUFFIXES = (".png", ".jpg", ".jpeg", ".svg")
LARGEST_PLOT_BYTES = 2_000_000
MOST_PLOTS = 24  # of one run: a page that a phone can load
LARGEST_METRICS_BYTES = 64_000_000


@dataclass(frozen=True)
class Run:
    """One run folder; `summary` is empty unless it is finished, `torn` counts lines of metrics that are no JSON."""

    path: Path
    preset: str
    config: dict[str, Any]
    manifest: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    torn: int
    finished: bool
    plots: tuple[Path, ...] = field(default=())

    @property
    def program(self) -> str:
        """The program that wrote it, from its command line: `ai4code`; empty where that is not known."""
        argv = self.manifest.get("argv")
        return PurePath(str(argv[0])).name if isinstance(argv, list) and argv else ""

    @property
    def data_argument(self) -> str:
        """What `--data` of its command line was; empty where that is not known."""
        argv = self.manifest.get("argv")
        words = [str(word) for word in argv] if isinstance(argv, list) else []
        for place, word in enumerate(words):
            if word == "--data" and place + 1 < len(words):
                return words[place + 1]
            if word.startswith("--data="):
                return word.removeprefix("--data=")
        return ""

    @property
    def score(self) -> float | None:
        """The score of its summary, where there is a finite one."""
        return _finite(self.summary.get("score"))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of its score, where there is one."""
        found = self.summary.get("interval")
        if isinstance(found, list) and len(found) == 2:
            low, high = map(_finite, found)
            if low is not None and high is not None and low <= high:
                return low, high
        return None


def find_runs(folders: Iterable[Path], warnings: list[str]) -> list[Run]:
    """Return every run below the folders, by path; runs inside runs (members of an ensemble) included.

    A folder with a damaged run is left out and named in `warnings`. Links are not followed.
    """
    found: dict[Path, Run] = {}
    for top in folders:
        if not top.is_dir():
            warnings.append(f"{top}: no folder; expected one that holds run folders")
            continue
        for folder, inner, files in os.walk(top):
            inner.sort()
            path = Path(folder)
            if "config.json" in files and "manifest.json" in files and path.resolve() not in found:
                run = read_run(path, warnings)
                if run is not None:
                    found[path.resolve()] = run
    return [found[path] for path in sorted(found)]


def read_run(path: Path, warnings: list[str]) -> Run | None:
    """Return the run in a folder, or None, with a warning that names what is damaged."""
    stored, manifest = _object(path / "config.json", warnings), _object(path / "manifest.json", warnings)
    if stored is None or manifest is None:
        return None
    config = stored.get("config")
    if not isinstance(config, dict) or "preset" not in stored:
        if "argv" in manifest:  # a packed data set may have files of these names too, but never a command line
            warnings.append(f"{path / 'config.json'}: left out: found no preset and config")
        return None
    finished = (path / "DONE").exists()
    summary = (_object(path / "summary.json", warnings) or {}) if finished else {}
    metrics, torn = _metrics(path / "metrics.jsonl", warnings)
    return Run(path, str(stored["preset"]), config, manifest, summary, metrics, torn, finished, _plots(path / "plots"))


def _metrics(path: Path, warnings: list[str]) -> tuple[list[dict[str, Any]], int]:
    if not path.exists():
        return [], 0
    if path.stat().st_size > LARGEST_METRICS_BYTES:
        warnings.append(f"{path}: {path.stat().st_size} bytes, not read: above {LARGEST_METRICS_BYTES}")
        return [], 0
    found, torn = [], 0
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):  # a killed process may leave a line that is cut, or not UTF-8
            value = None
        if isinstance(value, dict):
            found.append(value)
        elif line.strip():
            torn += 1
    if torn:
        warnings.append(f"{path}: {torn} lines are no JSON and were passed over")
    return found, torn


def _plots(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PLOT_SUFFIXES)
    usable = [p for p in found if p.is_file() and not p.is_symlink() and p.stat().st_size <= LARGEST_PLOT_BYTES]
    return tuple(usable[:MOST_PLOTS])


def _object(path: Path, warnings: list[str]) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        warnings.append(f"{path}: left out: {error}")
        return None
    if not isinstance(value, dict):
        warnings.append(f"{path}: left out: found no table of keys")
        return None
    return value


def _finite(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
