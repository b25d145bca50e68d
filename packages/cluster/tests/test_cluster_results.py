"""Collected archives, hashes, full disks, and what retention leaves."""

import errno
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit_cluster import jobs
from kit_cluster.results import HASHES, collect, copy_results, retain, run_folders, verify_archive
from kit_core.errors import ConfigError, DataError, DiskFullError
from kit_core.run import RunFolder


@dataclass(frozen=True)
class Config:
    layers: int = 2


def make_run(path: Path, score: float | None = 0.5, *, done: bool = True, metric: str = "accuracy") -> Path:
    settings: dict[str, Any] = {"config": Config(), "preset": "best", "data_hashes": {}, "seed": 0}
    with RunFolder.create(path, **settings) as run:
        run.log(epoch=1)
        run.file("checkpoints", "a.safetensors").write_bytes(b"weights" * 100)
        run.file("state", "a.pt").write_bytes(b"state")
        run.file("tensorboard", "events").write_bytes(b"many")
        if done:
            run.finish({"metric": metric, "score": score})
    return path


def names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_an_archive_holds_the_run_the_submission_and_every_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, submission = make_run(tmp_path / "run"), tmp_path / "mine.csv"
    submission.write_text("id,value\n1,2\n")
    jobs.collect((run,), tmp_path / "out" / "all.tar", submission)
    assert "every hash compared" in capsys.readouterr().out
    record = ["DONE", "checkpoints/a.safetensors", "config.json", "digests.json", "manifest.json", "metrics.jsonl"]
    record += ["summary.json"]
    assert names(tmp_path / "out" / "all.tar") == [*(f"run/{name}" for name in record), "submission.csv", HASHES]
    facts = verify_archive(tmp_path / "out" / "all.tar")
    assert facts["runs"] == [{"run": "run", "preset": "best", "done": True, "metric": "accuracy", "score": 0.5}]
    jobs.verify(tmp_path / "out" / "all.tar")


def test_an_unfinished_run_brings_its_state_and_folds_come_together(tmp_path: Path) -> None:
    make_run(tmp_path / "run" / "fold0")
    make_run(tmp_path / "run" / "fold1", done=False)
    assert run_folders(tmp_path / "run") == [tmp_path / "run" / "fold0", tmp_path / "run" / "fold1"]
    collect([tmp_path / "run"], tmp_path / "all.tar")
    states = [name for name in names(tmp_path / "all.tar") if "state" in name]
    assert states == ["run/fold1/state/a.pt"]
    copy_results(tmp_path / "run" / "fold1", tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["run-fold1.tar"]


def change_a_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"weights", b"weighty", 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (change_a_byte, "run/checkpoints/a.safetensors: found another content"),
        (cut, "cannot be read as an archive|holds no hashes"),
        (lambda path: path.write_bytes(b"no tar"), "cannot be read as an archive"),
    ],
)
def test_a_damaged_archive_is_told(damage: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    collect([make_run(tmp_path / "run")], tmp_path / "all.tar")
    damage(tmp_path / "all.tar")
    with pytest.raises(DataError, match=told):
        verify_archive(tmp_path / "all.tar")


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "home" / "run.tar"
    collect([run], out)
    before = out.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: Usage(100, 90, 10))
        with pytest.raises(
            DiskFullError, match=r"the disk is full: [\d,]+ bytes needed, 10 free .* nothing was changed"
        ):
            collect([run], out)

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", fill)  # it filled up meanwhile
    with pytest.raises(DiskFullError, match="No space left on device; free space"):
        collect([run], out)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["run.tar"]


def test_what_cannot_be_collected_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(DataError, match="no run folder: found no"):
        collect([tmp_path], tmp_path / "a.tar")
    with pytest.raises(DataError, match="no such file; write it with `infer`"):
        collect([run], tmp_path / "a.tar", tmp_path / "none.csv")
    with pytest.raises(DataError, match="two runs have one name"):
        collect([run, make_run(tmp_path / "other" / "run")], tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("name", ["summary.json", "config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_run_with_a_damaged_record_is_named(tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path / "runs" / "run")
    (run / name).write_text(content)
    with pytest.raises(DataError, match=name):
        collect([run], tmp_path / "a.tar")
    if name == "summary.json":
        with pytest.raises(DataError, match=name):
            retain(tmp_path / "runs", 1, apply=True)
    assert not (tmp_path / "a.tar").exists()


def test_retention_keeps_the_best_and_the_last_and_the_record_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, score in enumerate((0.1, 0.9, 0.5, 0.2)):
        done = make_run(tmp_path / f"run{place}", score) / "DONE"
        os.utime(done, (1000 + place, 1000 + place))
    make_run(tmp_path / "open", done=False)
    for place, score in enumerate((0.3, 0.2)):  # of a loss less is better, and another metric is another contest
        done = make_run(tmp_path / f"loss{place}", score, metric="overfit_loss") / "DONE"
        os.utime(done, (1000 - place, 1000 - place))
    expected = {"run0": "freed", "run1": "best", "run2": "freed", "run3": "last", "loss0": "last", "loss1": "best"}
    assert {run.name: why for run, why, _ in retain(tmp_path, 1)} == expected
    assert (tmp_path / "run0" / "checkpoints").exists()  # so far it was only told
    jobs.retain(tmp_path, best=1, apply=True)
    assert "bytes freed" in capsys.readouterr().out
    left = sorted(path.parent.name for path in tmp_path.glob("*/checkpoints"))
    assert left == ["loss0", "loss1", "open", "run1", "run3"]
    assert json.loads((tmp_path / "run0" / "summary.json").read_text())["score"] == 0.1
    with pytest.raises(ConfigError, match="best: found 0"):
        retain(tmp_path, 0)
    with pytest.raises(ConfigError, match="no such folder"):
        retain(tmp_path / "none", 1)
