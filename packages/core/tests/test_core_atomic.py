"""Whole or absent: round trips, errors inside the block, and kill -9 at known and at random moments."""

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_core.atomic import atomic_dir, atomic_path, names_in, write_bytes, write_json, write_text
from kit_core.errors import ConfigError, DiskFullError

FEW = settings(max_examples=30, deadline=None)  # every example waits for the disk
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(code: str, *arguments: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


@FEW
@given(first=st.binary(), second=st.binary())
def test_bytes_round_trip_and_replace(first: bytes, second: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        target = Path(name, "file.bin")
        for content in (first, second):
            write_bytes(target, content)
            assert target.read_bytes() == content
        assert names(Path(name)) == ["file.bin"]


@FEW
@given(text=st.text())
def test_text_keeps_every_character_and_line_end(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_text(Path(name, "a"), text)
        assert Path(name, "a").read_bytes() == text.encode()


@FEW
@given(value=JSON)
def test_json_round_trip(value: object) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_json(Path(name, "a.json"), value)
        text = Path(name, "a.json").read_text(encoding="utf-8")
        assert text.endswith("\n")
        assert json.loads(text) == value


def test_json_is_readable_and_keeps_the_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": "é", "a": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "z": "é",\n  "a": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("value", [float("nan"), {"x": [float("inf")]}, {1, 2}])
def test_what_json_cannot_hold_changes_nothing(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_content_and_no_rest(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "sub" / "a.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            assert temporary.name.startswith(".")
            assert temporary.name.endswith(".tmp")
            assert temporary.parent == target.parent
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert names(target.parent) == ["a.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_text(tmp_path / "a", "x")
    assert events == ["file", "rename", "folder"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "x"


def test_folders_and_devices_are_never_replaced(tmp_path: Path) -> None:
    for target in (tmp_path, Path("/dev/null")):
        with pytest.raises(ConfigError, match="cannot be written"):
            write_text(target, "x")
    assert Path("/dev/null").is_char_device()


def test_a_parent_that_is_a_file_is_told(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    with pytest.raises(ConfigError, match="cannot be made"):
        write_text(tmp_path / "a" / "b", "x")


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_kill_in_the_middle_of_a_write(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    code = """
import sys, time
from kit_core.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary, temporary.open("w") as file:
    file.write("half of the new")
    file.flush()
    print("now", flush=True)
    time.sleep(60)
"""
    with start(code, target) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert all(name.startswith(".") and name.endswith(".tmp") for name in names(tmp_path) if name != "a.txt")
    write_text(target, "new")
    assert target.read_text() == "new"


def write_elsewhere(target: Path) -> None:
    code = "import sys; from kit_core.atomic import write_text; write_text(sys.argv[1], 'x')"
    with start(code, target) as child:
        assert child.wait(60) == 0


def test_what_killed_processes_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.0123abcd.tmp").write_text("half")
    (tmp_path / ".other.0123abcd.tmp").mkdir()
    (tmp_path / ".other.0123abcd.tmp" / "half").write_text("half")
    (tmp_path / ".link.0123abcd.tmp").symlink_to(tmp_path / "mine")
    for name in ("mine", "mine.tmp", ".mine.tmp", ".mine.0123.tmp", ".0123abcd.tmp"):  # of other programs
        (tmp_path / name).write_text("mine")
    assert names_in(tmp_path) == [".0123abcd.tmp", ".mine.0123.tmp", ".mine.tmp", "mine", "mine.tmp"]
    write_elsewhere(tmp_path / "b.txt")
    kept = [".0123abcd.tmp", ".mine.0123.tmp", ".mine.tmp", "b.txt", "mine", "mine.tmp"]
    assert names(tmp_path) == kept


def test_what_a_living_process_writes_is_not_removed(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        write_elsewhere(tmp_path / "b.txt")
        assert temporary.read_text() == "half"
    assert names(tmp_path) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_file_and_remedy(tmp_path: Path, number: int) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(DiskFullError, match=r"/a: cannot be written: .*; free space"), atomic_path(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(DiskFullError, match="/b: cannot be written"), atomic_dir(tmp_path / "b"):
        raise OSError(number, os.strerror(number))
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_an_error_without_number_is_of_the_disk_only_where_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RuntimeError, match="of a library"), atomic_path(tmp_path / "a"):
        raise RuntimeError("of a library")
    with pytest.raises(DiskFullError, match="/a: cannot be written"), atomic_path(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    with pytest.raises(DiskFullError, match="/a: cannot be written"), atomic_path(tmp_path / "a"):
        raise RuntimeError("of a library")
    assert names(tmp_path) == []


def test_kill_at_a_random_moment_never_shows_a_mixture(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    code = """
import sys
from kit_core.atomic import write_bytes
print("now", flush=True)
while True:
    for letter in (b"a", b"b"):
        write_bytes(sys.argv[1], letter * 300_000)
"""
    generator = random.Random(0)
    for _ in range(6):
        with start(code, target) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(generator.uniform(0.005, 0.05))
            child.kill()
        if target.exists():
            content = target.read_bytes()
            assert len(content) == 300_000
            assert len(set(content)) == 1


def test_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "packed") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "values.bin").write_bytes(b"123")
        assert not (tmp_path / "packed").exists()
    assert (tmp_path / "packed" / "deep" / "values.bin").read_bytes() == b"123"
    assert names(tmp_path) == ["packed"]


def test_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    with atomic_dir(tmp_path / "packed") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path / "packed") == ["a"]


def test_folder_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_dir(tmp_path / "packed") as folder:
            (folder / "a").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == []


def test_folder_never_overwrites(tmp_path: Path) -> None:
    write_text(tmp_path / "packed" / "precious", "x")
    for target in (tmp_path / "packed", tmp_path / "packed" / "precious"):
        with pytest.raises(ConfigError, match="not an empty folder"), atomic_dir(target):
            pytest.fail("the block must not begin")
    assert names(tmp_path / "packed") == ["precious"]


def test_folder_that_another_process_made_meanwhile(tmp_path: Path) -> None:
    def collide() -> None:
        with atomic_dir(tmp_path / "packed") as folder:
            (folder / "a").write_text("mine")
            write_text(tmp_path / "packed" / "a", "theirs")

    with pytest.raises(ConfigError, match="meanwhile"):
        collide()
    assert (tmp_path / "packed" / "a").read_text() == "theirs"
    assert names(tmp_path) == ["packed"]


def test_folder_killed_half_way_is_absent(tmp_path: Path) -> None:
    code = """
import sys, time
from kit_core.atomic import atomic_dir
with atomic_dir(sys.argv[1]) as folder:
    (folder / "a").write_text("x")
    print("now", flush=True)
    time.sleep(60)
"""
    with start(code, tmp_path / "packed") as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    assert not (tmp_path / "packed").exists()
