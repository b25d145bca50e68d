"""Places that cannot be used: a full disk, a read-only folder, a run that another process holds, an odd clock."""

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)  # of what the unbroken work needs


def mount(*arguments: str) -> None:
    """Call mount; without the right to do so the test is skipped."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Path]:
    """Mount a disk of a size, in memory."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def kibibytes(path: Path) -> int:
    """What a file or folder takes on a disk of pages of 4 KiB."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // 4096) * 4 for file in files)


def check_refused(ran: Any, code: int, *words: str) -> None:
    """The exit code, all words, and no traceback."""
    assert ran.code == code, ran.log
    assert "Traceback" not in ran.log, ran.log
    for word in words:
        assert word in ran.log, ran.log


@pytest.mark.parametrize("share", [pytest.param(one, marks=() if one == 0.6 else pytest.mark.slow) for one in SHARES])
def test_a_full_disk_is_told_and_with_more_room_the_work_goes_on(
    case: Any,
    verb: str,
    share: float,
    whole: Any,
    launch: Callable[..., Any],
    outputs: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    needed = kibibytes(whole.target(verb))
    room = int(needed * share) // 4 * 4
    with small_disk(tmp_path / "disk", room + 4) as disk:
        other = disk / "other"
        other.write_bytes(bytes(4096))  # a disk of no size at all cannot be mounted
        target = disk / whole.target(verb).name
        argv = case.argv(verb, whole.source(verb), target, whole.run)
        ran = launch(module=case.module, argv=argv)
        check_refused(ran, 3, str(disk), "free space")
        if verb == "train":
            unfinished = launch(
                module=case.module, argv=case.argv("infer", whole.prepared, tmp_path / "out.csv", target)
            )
            check_refused(unfinished, 3, str(target))
        if verb == "infer":
            assert list(disk.iterdir()) == [other]
        mount("-o", f"remount,size={10 * needed + 4096}k", str(disk))
        ran = launch(module=case.module, argv=(*argv, "--resume") if verb == "train" else argv)
        assert ran.code == 0, ran.log
        found, expected = outputs(target), outputs(whole.target(verb))
        assert {**found, "metrics.jsonl": ""} == {
            **expected,
            "metrics.jsonl": "",
        }  # the full disk may have taken a line
        assert sorted(disk.iterdir()) == sorted([other, target])


def test_a_place_that_may_only_be_read_is_told(
    case: Any, verb: str, whole: Any, launch: Callable[..., Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        mount("-o", "remount,ro", str(disk))
        target = disk / whole.target(verb).name
        ran = launch(module=case.module, argv=case.argv(verb, whole.source(verb), target, whole.run))
        check_refused(ran, 2, str(target))


def test_data_and_runs_that_may_only_be_read_are_enough(
    case: Any, whole: Any, launch: Callable[..., Any], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "read-only"
    place.mkdir()
    mount("--bind", str(whole.run.parent), str(place))
    try:
        mount("-o", "remount,bind,ro", str(place))
        answers = tmp_path / "answers.csv"
        argv = case.argv("infer", place / whole.prepared.name, answers, place / whole.run.name)
        ran = launch(module=case.module, argv=argv)
        assert ran.code == 0, ran.log
        assert answers.read_bytes() == whole.submission.read_bytes()
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_run_that_another_process_holds_is_refused(
    case: Any, whole: Any, launch: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as lock:
        lock.write("process 1 on elsewhere\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = sorted(path.name for path in run.iterdir())
        for argv in (case.argv("train", whole.prepared, run), (*case.argv("train", whole.prepared, run), "--resume")):
            ran = launch(module=case.module, argv=argv)
            check_refused(ran, 2, str(run), "in use by another process (process 1 on elsewhere)")
            assert ran.log.count("in use") == 1
        assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.slow  # two trainings each
def test_a_clock_that_goes_back_changes_nothing(
    case: Any,
    whole: Any,
    launch: Callable[..., Any],
    outputs: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    """A run is stopped and goes on, as the clock says, before it began; what it reads was changed in the future."""
    run = tmp_path / "run"
    argv = case.argv("train", whole.prepared, run)
    changes = whole.ran["train"].changes
    ran = launch(module=case.module, argv=argv, watched=str(tmp_path), kill_at_change=changes * 2 // 3)
    assert ran.code < 0, ran.log
    past = whole.prepared.stat().st_mtime - 400 * 86_400
    for path in (run, *run.rglob("*")):
        os.utime(path, (past + 800 * 86_400, past + 800 * 86_400))
    ran = launch(module=case.module, argv=(*argv, "--resume"), seconds_back=400 * 86_400.0)
    assert ran.code == 0, ran.log
    found, expected = outputs(run), outputs(whole.run)
    assert {**found, "metrics.jsonl": ""} == {**expected, "metrics.jsonl": ""}  # the kill may have taken a line
