"""Run folders: content, resume, the lock between processes, kills, and what a reader refuses."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import kit_core.run
from kit_core.errors import ConfigError, DataError
from kit_core.run import FORMAT_VERSION, RunFolder, hash_file


@dataclass(frozen=True)
class Model:
    layers: int = 2


@dataclass(frozen=True)
class Config:
    model: Model = Model()
    path: Path = Path("a/b")
    sizes: tuple[int, ...] = (1, 2)


def begin(path: Path, **changes: Any) -> RunFolder:
    arguments: dict[str, Any] = {
        "config": Config(),
        "preset": "best",
        "data_hashes": {"train": "00ff"},
        "seed": 5,
    } | changes
    return RunFolder.create(path, **arguments)


def finished(path: Path) -> Path:
    with begin(path) as run:
        run.finish({"score": 0.5})
    return path


HOLDER = """
import sys, time
from dataclasses import dataclass
from kit_core.run import RunFolder

@dataclass(frozen=True)
class Config:
    layers: int = 2

run = RunFolder.create(sys.argv[1], config=Config(), preset="p", data_hashes={}, seed=0, resume="--resume" in sys.argv)
print("holding", flush=True)
sys.stdin.read()
"""


def hold(path: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER, str(path), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@dataclass(frozen=True)
class HolderConfig:
    layers: int = 2


def resume_held(path: Path) -> RunFolder:
    return RunFolder.create(path, config=HolderConfig(), preset="p", data_hashes={}, seed=0, resume=True)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    with begin(tmp_path / "deep" / "run") as run:
        assert not run.done
        run.log(epoch=1, loss=0.5)
        run.log(epoch=2, loss=math.nan, per_class=[1.0, math.inf], where=Path("x"))
        run.file("plots", "a.txt").write_text("x")
        run.finish({"score": 0.9, "interval": (0.8, math.nan)})
    path = tmp_path / "deep" / "run"
    assert json.loads((path / "config.json").read_text()) == {
        "preset": "best",
        "config": {"model": {"layers": 2}, "path": "a/b", "sizes": [1, 2]},
    }
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"epoch": 1, "loss": 0.5},
        {"epoch": 2, "loss": None, "per_class": [1.0, None], "where": "x"},
    ]
    assert json.loads((path / "summary.json").read_text()) == {"score": 0.9, "interval": [0.8, None]}
    opened = RunFolder.open(path)
    assert opened.done
    assert opened.preset == "best"
    assert opened.config == run.config
    assert opened.manifest == run.manifest
    assert opened.summary == {"score": 0.9, "interval": [0.8, None]}


def test_the_manifest(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as run:
        manifest = run.manifest
    assert manifest == json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION
    assert manifest["seed"] == 5
    assert manifest["data"] == {"train": "00ff"}
    assert manifest["argv"] == sys.argv
    assert manifest["cwd"] == str(Path.cwd())
    assert manifest["threads"]["cores"] == len(os.sched_getaffinity(0))
    assert manifest["packages"]["kit-core"]
    assert set(manifest) >= {"git", "host", "device", "platform", "python", "started"}
    assert datetime.fromisoformat(manifest["started"]).utcoffset() is not None


def git_state(path: Path) -> Any:
    kit_core.run._git_state.cache_clear()
    with begin(path) as run:
        return run.manifest["git"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_manifest_names_revision_and_dirtiness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    source = repository / "code.py"
    repository.mkdir()
    source.write_text("")
    monkeypatch.setattr(kit_core.run, "__file__", str(source))
    assert git_state(tmp_path / "outside") is None
    git(repository, "init", "-q")
    assert git_state(tmp_path / "untracked") is None
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook
    revision = git(repository, "--git-dir", str(repository / ".git"), "rev-parse", "HEAD")
    assert git_state(tmp_path / "clean") == {"revision": revision, "dirty": False}
    source.write_text("x = 1\n")
    assert git_state(tmp_path / "dirty") == {"revision": revision, "dirty": True}


def test_the_manifest_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path / "run") is None
    kit_core.run._git_state.cache_clear()  # None is not the state of the other tests


def test_numbers_of_numpy_can_be_logged(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    with begin(tmp_path / "run") as run:
        run.log(a=np.float32(0.5), b=np.int64(3), c=np.array([1.0, np.nan]), d=np.float64("inf"))
        run.finish({"score": np.float64(0.25)})
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == {"a": 0.5, "b": 3, "c": [1, None], "d": None}
    assert RunFolder.open(tmp_path / "run").summary == {"score": 0.25}


def test_a_folder_that_is_not_empty_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("x")
    for resume, words in ((False, "add --resume .* or name another --run"), (True, "no run to resume")):
        with pytest.raises(ConfigError, match=words):
            begin(tmp_path, resume=resume)
        assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]
    with pytest.raises(ConfigError, match="is a file"):
        begin(tmp_path / "letters.txt")
    with pytest.raises(ConfigError, match="cannot be made"):
        begin(tmp_path / "letters.txt" / "run")


def test_an_empty_folder_is_taken_with_and_without_resume(tmp_path: Path) -> None:
    for resume in (False, True):
        folder = tmp_path / str(resume)
        folder.mkdir()
        with begin(folder, resume=resume) as run:
            assert not run.done
        with begin(tmp_path / f"new{resume}", resume=resume) as run:
            assert not run.done


def test_a_second_run_without_resume_is_refused(tmp_path: Path) -> None:
    begin(tmp_path / "run").close()
    with pytest.raises(ConfigError, match="--resume"):
        begin(tmp_path / "run")
    with begin(tmp_path / "run", resume=True):  # the refusal left no lock behind
        pass


def test_resume_goes_on(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as run:
        run.log(epoch=1)
        started = run.manifest["started"]
    with begin(tmp_path / "run", resume=True) as run:
        run.log(epoch=2)
        run.finish({})
        assert run.manifest["started"] == started
        assert len(run.manifest["resumed"]) == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    assert RunFolder.open(tmp_path / "run").manifest["resumed"][0]["argv"] == sys.argv


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": Config(model=Model(layers=3))}, r"config\.model\.layers: was 2, is 3"),
        ({"config": replace(Config(), sizes=(1,))}, r"config\.sizes: was \[1, 2\], is \[1\]"),
        ({"config": HolderConfig()}, r"config\.layers: was '\(absent\)', is 2"),
        ({"seed": 6}, "seed: was 5, is 6"),
        ({"data_hashes": {"train": "11"}}, r"data\.train: was '00ff', is '11'"),
    ],
)
def test_resume_with_other_settings_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    begin(tmp_path / "run").close()
    with pytest.raises(ConfigError, match=words):
        begin(tmp_path / "run", resume=True, **changes)
    finished_run = finished(tmp_path / "finished")
    with pytest.raises(ConfigError, match=words):
        begin(finished_run, resume=True, **changes)


def test_a_finished_run_is_read_only_as_it_was_finished(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with begin(path) as run:
        run.log(epoch=1)
        for names in (("models", "a.txt"), ("models", "b.txt"), ("plots", "c.txt"), ("state", "d.txt")):
            run.file(*names).write_text("as it was")
        run.finish({"score": 0.9})
    assert not (path / "state" / "d.txt").exists()
    assert set(json.loads((path / "digests.json").read_text())["files"]) == {
        "config.json", "manifest.json", "summary.json", "models/a.txt", "models/b.txt",
    }  # fmt: skip
    for name in ("plots/c.txt", "state/new.txt", "metrics.jsonl"):
        (path / name).write_text("other")
    (path / "models" / "new.txt").write_text("new")
    (path / "models" / "b.txt").unlink()
    RunFolder.open(path)
    (path / "models" / "a.txt").write_text("As it was")
    with pytest.raises(DataError, match=r"models/a\.txt: found sha256"):
        RunFolder.open(path)
    digests = (path / "digests.json").read_text()
    (path / "digests.json").write_text(digests.replace("models/a.txt", "models/x.txt"))
    with pytest.raises(DataError, match=r"digests\.json: found other content"):
        RunFolder.open(path)
    (path / "digests.json").unlink()  # a run from before there were any
    RunFolder.open(path)


def test_a_finished_run_is_returned_as_it_is(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in path.iterdir() if p.name != ".lock"}
    with begin(path, resume=True) as run:
        assert run.done
        assert run.summary == {"score": 0.5}
    assert {p.name: p.read_bytes() for p in path.iterdir() if p.name != ".lock"} == before


def test_writing_needs_the_lock(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    for run in (RunFolder.open(path), begin(tmp_path / "other")):
        run.close()
        run.close()
        with pytest.raises(RuntimeError, match="closed or was opened for reading"):
            run.log(a=1)
        with pytest.raises(RuntimeError, match="closed or was opened for reading"):
            run.finish({})


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_on_one_run(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "run"
    with hold(path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holding\n"
        with pytest.raises(ConfigError, match=rf"in use by another process \(process {first.pid} on "):
            RunFolder.create(path, config=HolderConfig(), preset="p", data_hashes={}, seed=0, resume=resume)
        first.kill()
    with resume_held(path) as run:  # the lock died with its holder
        run.finish({})


def test_of_processes_that_start_together_one_wins(tmp_path: Path) -> None:
    children = [hold(tmp_path / "run", "--resume") for _ in range(3)]
    firsts = [child.stdout.readline() for child in children if child.stdout is not None]
    assert firsts.count("holding\n") == 1
    errors = [child.communicate()[1] for child in children]
    assert sum("in use by another process" in error for error in errors) == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the fork is the point here
def test_close_releases_the_lock_while_a_forked_worker_lives(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # lives until the parent closes the pipe
        os._exit(0)
    try:
        run.close()
        begin(tmp_path / "run", resume=True).close()
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)


def test_what_a_killed_process_left_is_cleaned(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with begin(path) as run:
        run.log(epoch=1)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lo')
    run.file("checkpoints", ".step_1.0011aabb.tmp").write_text("half")
    with begin(path, resume=True) as run:
        run.log(epoch=2)
    assert (path / "metrics.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    assert list((path / "checkpoints").iterdir()) == []


def test_a_run_killed_while_it_began_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begin(path).close()
    (path / "config.json").rename(path / ".config.json.0011aabb.tmp")
    with pytest.raises(ConfigError, match="--resume"):
        begin(path)
    with begin(path, resume=True, seed=6) as run:
        run.finish({})
    assert RunFolder.open(path).manifest["seed"] == 6
    assert not list(path.glob(".*.tmp"))


def test_done_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def noting(real: Callable[[Path, Any], None]) -> Callable[[Path, Any], None]:
        def write(path: Path, value: Any) -> None:
            written.append(path.name)
            real(path, value)

        return write

    for name in ("write_json", "write_text"):
        monkeypatch.setattr(kit_core.run, name, noting(getattr(kit_core.run, name)))
    finished(tmp_path / "run")
    assert written == ["manifest.json", "config.json", "summary.json", "digests.json", "DONE"]


def test_a_config_that_cannot_be_stored_leaves_no_run(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Rate:
        rate: float

    with pytest.raises(ConfigError, match="rate: found nan"):
        begin(tmp_path / "run", config=Rate(math.nan))
    with begin(tmp_path / "run"):
        pass


def break_json(path: Path) -> None:
    path.write_text(path.read_text()[:-4])


def drop_preset(path: Path) -> None:
    path.write_text("{}")


def change_version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("DONE", Path.unlink, "not finished: found no DONE"),
        ("config.json", Path.unlink, "no run folder: found no config.json"),
        ("manifest.json", Path.unlink, "manifest.json: absent"),
        ("summary.json", Path.unlink, "summary.json: absent"),
        ("config.json", break_json, "config.json: not JSON"),
        ("config.json", drop_preset, "found no preset, config"),
        ("manifest.json", change_version, "found format_version 99, expected 1"),
        ("summary.json", lambda path: path.write_bytes(b"\xff"), "summary.json: not JSON"),
        ("summary.json", lambda path: path.write_text("[]"), "found no table of keys"),
    ],
)
def test_a_reader_refuses_what_is_damaged(tmp_path: Path, name: str, damage: Any, words: str) -> None:
    path = finished(tmp_path / "run")
    damage(path / name)
    with pytest.raises(DataError, match=words):
        RunFolder.open(path)


def test_a_reader_names_a_folder_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder"):
        RunFolder.open(tmp_path / "absent")


@pytest.mark.parametrize("size", [0, 1, 300_001])
def test_hash_file(tmp_path: Path, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "a").write_bytes(content)
    assert hash_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
