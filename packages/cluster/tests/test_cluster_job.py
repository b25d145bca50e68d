"""`TrainJob.__call__` from start to end in this process, with the variables of SLURM set and without SLURM."""

import json
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kit_cluster.config import SlurmConfig
from kit_cluster.job import TrainJob
from kit_cluster.run_notes import WISH
from kit_core.errors import DataError
from kit_core.interrupt import Interrupted
from kit_core.run import RunFolder

ARGV = ["/env/bin/my-task", "train", "best", "--run", "R"]


@dataclass(frozen=True)
class Settings:
    layers: int = 2


def write_run(run: Path, score: float, resume: bool = False) -> None:
    """Write what a training writes, with weights."""
    with RunFolder.create(run, config=Settings(), preset="best", data_hashes={}, seed=0, resume=resume) as folder:
        folder.file("models", "fold0.safetensors").write_bytes(b"weights")
        folder.finish({"metric": "tau", "score": score})


class Job:
    """A job on a made-up solution `my_task`, whose `train` is what a test says."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "runs" / "x"
        self.results = folder / "results"
        self.inferred: list[dict[str, Any]] = []
        self.cli = ModuleType("my_task.cli")
        self.cli.__dict__["infer"] = lambda **values: self.inferred.append(values)
        (folder / "runs" / "x.slurm").mkdir(parents=True)

    def __call__(self, train: Callable[..., None], **slurm: Any) -> None:
        self.cli.__dict__["train"] = train
        values = {"run": self.run, "data": Path("data"), "resume": True}
        TrainJob("my_task.cli:train", values, ARGV, SlurmConfig(**slurm), self.results)()

    @property
    def note(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.run.parent / "x.slurm" / "7.json").read_text())
        return values


@pytest.fixture
def run_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    variables = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    job = Job(tmp_path)
    monkeypatch.setitem(sys.modules, "my_task", ModuleType("my_task"))
    monkeypatch.setitem(sys.modules, "my_task.cli", job.cli)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield job
    for number, handler in before.items():
        signal.signal(number, handler)


def names_in_archive(path: Path) -> set[str]:
    with tarfile.open(path) as archive:
        return set(archive.getnames())


def test_a_finished_training_is_noted_answered_copied_and_others_are_thinned_out(run_job: Job, tmp_path: Path) -> None:
    write_run(run_job.run.parent / "good", 0.9)
    write_run(run_job.run.parent / "poor", 0.1)
    states: list[str] = []

    def train(run: Path, data: Path, resume: bool) -> None:
        states.append(run_job.note["state"])
        assert (sys.argv, data, resume) == (ARGV, Path("data"), True)
        write_run(run, 0.5)

    run_job(train, submission=tmp_path / "out.csv", keep=1)
    assert states == ["running"]
    assert run_job.note["state"] == "finished"
    assert run_job.inferred == [{"run": (run_job.run,), "data": Path("data"), "out": tmp_path / "out.csv"}]
    assert {"x/DONE", "x/models/fold0.safetensors"} <= names_in_archive(run_job.results / "x.tar")
    left = {path.parents[1].name for path in run_job.run.parent.glob("*/models/fold0.safetensors")}
    assert left == {"good", "x"}, "the best one and the last one keep their weights"


def test_without_a_wish_nothing_is_answered_or_removed(run_job: Job) -> None:
    write_run(run_job.run.parent / "poor", 0.1)
    run_job(lambda run, **_: write_run(run, 0.5))
    assert run_job.inferred == []
    assert (run_job.run.parent / "poor" / "models" / "fold0.safetensors").exists()


def test_bad_data_fail_the_job_with_its_exit_code_and_message(run_job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    def train(**_: Any) -> None:
        raise DataError("train.csv: no rows")

    with pytest.raises(SystemExit) as ended:
        run_job(train, submission=Path("out.csv"))
    assert ended.value.code == 3
    assert (run_job.note["state"], run_job.note["message"]) == ("failed", "train.csv: no rows")
    assert "my-task: train.csv: no rows" in capsys.readouterr().err
    assert run_job.inferred == []


def test_a_bug_fails_the_job_with_its_traceback_and_what_there_is_comes_home(run_job: Job) -> None:
    def train(run: Path, **_: Any) -> None:
        write_run(run, 0.5)
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        run_job(train)
    assert run_job.note["state"] == "failed"
    assert "ZeroDivisionError: by zero" in run_job.note["message"]
    assert (run_job.results / "x.tar").is_file()


def test_a_stopped_training_is_queued_again(run_job: Job) -> None:
    def train(run: Path, **_: Any) -> None:
        run.mkdir()
        (run / "config.json").write_text("{}")
        raise Interrupted("stopped after epoch 3")

    with pytest.raises(SystemExit) as ended:
        run_job(train, submission=Path("out.csv"))
    assert ended.value.code == Interrupted.exit_code
    assert run_job.note["state"] == "requeued"
    assert (run_job.run.parent / "x.slurm" / "7.json").with_suffix(WISH).exists()
    assert run_job.inferred == []


def test_other_ranks_train_and_leave_the_rest_to_the_first(run_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    trained: list[Path] = []
    run_job(lambda run, **_: trained.append(run), submission=Path("out.csv"), keep=1)
    assert trained == [run_job.run]
    assert run_job.inferred == []
    assert not (run_job.run.parent / "x.slurm" / "7.json").exists()
    assert not run_job.results.exists()
