"""What comes home from a run: one archive with the hash of each file; and what may go when space is short."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit_core.atomic import atomic_path
from kit_core.errors import ConfigError, DataError, DiskFullError, Problems
from kit_core.repeat import read_object
from kit_core.run import CONFIG, DONE, LOCK, SUMMARY

HASHES = "hashes.json"
FORMAT_VERSION = 1
UNFINISHED_ONLY = "state"  # the folder that a resume needs, and a finished run does not
NEVER = ("tensorboard",)
HEAVY = ("checkpoints", "models", "members", "state")  # what retention takes from a run: everything but its record
REMEDY = "restore the file, or leave this run out"
PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class Member:
    """A file for the archive: its name there, where it lies, and its bytes when it was looked at."""

    name: str
    path: Path
    size: int


def collect(runs: Sequence[Path], out: Path, submission: Path | None = None) -> dict[str, Any]:
    """Put runs and a submission into one tar archive with the SHA-256 of each file, whole or not at all.

    A run is a run folder, or a folder of those of single folds. Of an unfinished run the state comes along, so that it
    can be resumed elsewhere. Returns what `hashes.json`, the last file of the archive, says.

    Raises:
        ConfigError: the place cannot be written.
        DiskFullError: there is no room; what was there stays as it was.
        DataError: there is no run, or no submission, at the given place, a run is damaged, or two have one name.
    """
    members = [member for run in runs for member in _of_run(run)]
    if submission is not None:
        if not submission.is_file():
            raise DataError(f"{submission}: no such file; write it with `infer`, or leave --submission out")
        members.append(Member(f"submission{submission.suffix}", submission, submission.stat().st_size))
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise DataError(f"{', '.join(map(str, runs))}: two runs have one name; collect them into archives of their own")
    facts: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "runs": [_facts(folder, run.absolute().parent) for run in runs for folder in run_folders(run)],
        "files": {},
    }
    _check_room(out, sum(member.size for member in members))
    with atomic_path(out) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            info = archive.gettarinfo(str(member.path), member.name)
            info.size, info.uname, info.gname, info.uid, info.gid = member.size, "", "", 0, 0
            with member.path.open("rb") as file:
                reader = _Hashing(file, member.size)
                archive.addfile(info, reader)
            facts["files"][member.name] = {"bytes": member.size, "sha256": reader.digest.hexdigest()}
        text = json.dumps(facts, indent=2).encode()
        info = tarfile.TarInfo(HASHES)
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    return facts


def verify_archive(path: Path) -> dict[str, Any]:
    """Read an archive of `collect` again, compare every hash, and return what it says of itself.

    Raises:
        DataError: it is no such archive, or files are changed, missing or too many.
    """
    found: dict[str, str] = {}
    said: Any = None
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                file = archive.extractfile(info)
                if file is None:
                    raise DataError(f"{path}: found {info.name!r}, which is no file; expected what `collect` wrote")
                if info.name == HASHES:
                    said = json.loads(file.read())
                else:
                    digest = hashlib.sha256()
                    while piece := file.read(PIECE):
                        digest.update(piece)
                    found[info.name] = digest.hexdigest()
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an archive of results: {error}; collect again") from error
    if not isinstance(said, dict) or said.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{path}: holds no {HASHES} of format {FORMAT_VERSION}; collect again")
    problems = Problems(path, "the files and hashes that hashes.json names", "copy the archive or collect again")
    for name in sorted({*found, *said["files"]}):
        expected = said["files"].get(name, {}).get("sha256")
        if found.get(name) != expected:
            problems.add(name, "another content" if name in found and expected else "it missing on one side")
    problems.raise_if_any()
    return said


def copy_results(run: Path, results_dir: Path) -> None:
    """Write results_dir/NAME.tar, in the place of an earlier one of the run; raises as `collect`.

    A folder that no training has begun yet gives nothing. The run of one fold is named after its parent as well.
    """
    if run_folders(run):
        name = run.name if run not in run_folders(run.parent) else f"{run.parent.name}-{run.name}"
        collect([run], results_dir / f"{name}.tar")


def run_folders(path: Path) -> list[Path]:
    """Return the run folder at a path, or those of single folds below it; none where no training began."""
    if (path / CONFIG).is_file():
        return [path]
    return sorted(folder.parent for folder in path.glob(f"fold*/{CONFIG}"))


def retain(folder: Path, best: int, *, apply: bool = False) -> list[tuple[Path, str, int]]:
    """Free the space of all finished runs in a folder but the `best` ones and the last, for each metric.

    Configuration, manifest, metrics, summary and out-of-fold answers stay; weights go. Unfinished runs are left alone.

    Args:
        apply: remove; else only tell.

    Returns:
        For each finished run: its path, "best", "last" or "freed", and the bytes that its weights have.

    Raises:
        ConfigError: `best` is below 1, or there is no such folder.
        DataError: the summary of a run is damaged.
    """
    if best < 1:
        raise ConfigError(f"best: found {best}, expected 1 or more")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name the one that holds the run folders")
    by_metric: dict[str, list[tuple[float, float, Path]]] = {}
    for done in sorted(folder.glob(f"*/{DONE}")):
        summary = read_object(done.parent / SUMMARY, (), REMEDY)
        metric, score = str(summary.get("metric")), summary.get("score")
        sign = -1.0 if metric.endswith("loss") else 1.0
        value = float("-inf") if score is None else sign * float(score)
        by_metric.setdefault(metric, []).append((value, done.stat().st_mtime, done.parent))
    decided = []
    for runs in by_metric.values():
        runs.sort(key=lambda one: (-one[0], -one[1]))
        last = max(runs, key=lambda one: one[1])[2]
        for place, (_, _, run) in enumerate(runs):
            why = "best" if place < best else "last" if run == last else "freed"
            heavy = [run / name for name in HEAVY if (run / name).exists()]
            size = sum(path.stat().st_size for one in heavy for path in one.rglob("*") if path.is_file())
            decided.append((run, why, size))
            if apply and why == "freed":
                for one in heavy:
                    shutil.rmtree(one, ignore_errors=True)  # another job may be at the same work
    return decided


def _of_run(run: Path) -> Iterator[Member]:
    folders = run_folders(run)
    if not folders:
        raise DataError(f"{run}: no run folder: found no {CONFIG}; expected what `train --run` wrote")
    root = run.absolute().parent
    for folder in folders:
        done = (folder / DONE).exists()
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            skipped = inside[0] in NEVER or (done and inside[0] == UNFINISHED_ONLY)
            if path.is_file() and not skipped and path.name != LOCK and path.suffix != ".tmp":
                yield Member(path.absolute().relative_to(root).as_posix(), path, path.stat().st_size)


def _facts(folder: Path, root: Path) -> dict[str, Any]:
    done = (folder / DONE).exists()
    summary = read_object(folder / SUMMARY, (), REMEDY) if done else {}
    preset = read_object(folder / CONFIG, ("preset",), REMEDY)["preset"]
    name = folder.absolute().relative_to(root).as_posix()
    return {"run": name, "preset": preset, "done": done, "metric": summary.get("metric"), "score": summary.get("score")}


def _check_room(out: Path, needed: int) -> None:
    """Refuse to begin without the space; a disk that fills up meanwhile is told by `atomic_path`."""
    place = next((folder for folder in out.absolute().parents if folder.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DiskFullError(
            f"{out}: the disk is full: {needed:,} bytes needed, {free:,} free in {place}; nothing was changed. "
            "Free some (`job retain`), or name another place"
        )


class _Hashing:
    """Read exactly `size` bytes of a file, hashing them: a log that grows meanwhile is cut where it was."""

    def __init__(self, file: Any, size: int) -> None:
        self.digest = hashlib.sha256()
        self._file, self._left = file, size

    def read(self, count: int = PIECE) -> bytes:
        """Return up to `count` bytes."""
        data: bytes = self._file.read(min(count, self._left))
        self._left -= len(data)
        self.digest.update(data)
        return data
