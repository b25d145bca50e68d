"""Submission without a cluster: the script, the flags, and each refusal; signals and requeues with stand-ins."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from kit_cluster import job, jobs, submit
from kit_cluster.config import SlurmConfig
from kit_cluster.slurm import queue_again, script_of
from kit_cluster.submit import own_argv, split_folds, submittable
from kit_core import cli, interrupt
from kit_core.errors import ConfigError
from kit_core.run import RunFolder


@dataclass(frozen=True)
class Data:
    fold: int | Literal["all"] = "all"
    folds: int = 3


@dataclass(frozen=True)
class DataOfNFolds(Data):
    n_folds: int = 4


@dataclass(frozen=True)
class Fabric:
    devices: int = 1


@dataclass(frozen=True)
class Config:
    layers: int = 2
    data: Data = field(default_factory=Data)
    fabric: Fabric = field(default_factory=Fabric)

    def __post_init__(self) -> None:
        if self.fabric.devices > 1 and self.layers == 1:
            raise ValueError("fabric.devices: found more than 1, and 1 layer is nothing to share")


@submittable
def train(preset: str, config: Config, data: Path, run: Path, resume: bool = False) -> None:
    """Fit a preset."""
    settings: dict[str, Any] = {"config": config, "preset": preset, "data_hashes": {}, "seed": 0, "resume": resume}
    with RunFolder.create(run, **settings) as folder:
        folder.log(epoch=1)
        if config.layers == 13:
            raise ValueError("thirteen")
        folder.finish({"metric": "accuracy", "score": 0.5})
    print(f"trained {config.layers} layers on {data}")


def shared(**values: Any) -> None:
    """A verb that would share its work."""


shared.shares_work = True  # type: ignore[attr-defined]  # as `in_ranks` marks it


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "best.toml").write_text("# A preset.\nlayers = 3\n")
    return folder


def command(presets: Path, *words: str) -> int:
    return cli.run("program", {"train": train, "job": jobs.VERBS}, (Config, presets), ["train", "best", *words])


def test_without_submit_it_trains_here_and_copies_results(
    presets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data", "d", "--run", str(tmp_path / "run"), "--results-dir", str(tmp_path / "results"))
    assert command(presets, *words) == 0
    assert capsys.readouterr().out == "trained 3 layers on d\n"
    assert (tmp_path / "results" / "run.tar").exists()
    words = ("--data", "d", "--run", str(tmp_path / "bad"), "--results-dir", str(tmp_path / "results"))
    assert command(presets, *words, "--layers", "13") == 1
    assert (tmp_path / "results" / "bad.tar").exists()  # also when a run breaks off


def test_the_help_tells_the_flags_of_submission(presets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(presets, "--help") == 0
    shown = capsys.readouterr().out
    for flag in ("--submit", "--slurm.partition", "--slurm.dry-run", "--results-dir", "--data.fold", "--layers"):
        assert flag in shown


def test_a_dry_run_prints_the_script_and_needs_no_slurm(
    presets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    place = ("--data", "d", "--run", str(tmp_path / "run"), "--submit", "slurm", "--slurm.dry-run")
    wishes = (
        *("--slurm.partition", "main", "--slurm.minutes", "90", "--slurm.gpus", "1", "--slurm.account", "lab"),
        *("--slurm.cpus", "6", "--slurm.memory-gb", "20", "--slurm.qos", "long", "--slurm.constraint", "a100"),
    )
    assert command(presets, *place, *wishes, "--slurm.setup", "module load cuda") == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [
        *("--partition=main", "--time=90", "--gpus-per-node=1", "--account=lab", "--signal=USR2@120", "--requeue"),
        *("--cpus-per-task=6", "--mem=20GB", "--qos=long", "--constraint=a100", "--nodes=1", "--ntasks-per-node=1"),
    ]
    assert [f"#SBATCH {flag}" for flag in expected if f"#SBATCH {flag}" not in lines] == []
    assert "module load cuda" in lines
    assert any("HF_HUB_OFFLINE=1" in line for line in lines)
    assert lines[-1].startswith("srun") or any(sys.executable in line for line in lines)
    assert command(presets, *place, "--slurm.folds-apart") == 0
    assert "#SBATCH --array=0-2%3" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("run.slurm/*"))


def test_several_processes_need_a_solution_that_shares_its_work(tmp_path: Path) -> None:
    values: dict[str, Any] = {"preset": "best", "config": Config(), "data": Path("d"), "run": tmp_path / "run"}
    asked = SlurmConfig(nodes=2, gpus=4, dry_run=True)
    with pytest.raises(ConfigError, match=r"found 8 processes \(2 nodes, 4 gpus each\).*folds-apart"):
        submit.submit_to_slurm(train, values, asked, None)
    with pytest.raises(ConfigError, match=r"found 8 processes, but this preset trains in one: .* 1 layer"):
        submit.submit_to_slurm(shared, values | {"config": Config(layers=1)}, asked, None)
    submit.submit_to_slurm(shared, values, asked, None)
    text = script_of(tmp_path / "run.slurm", asked, Config())
    assert "#SBATCH --ntasks-per-node=4" in text
    assert "--kill-on-bad-exit=1" in text
    assert "#SBATCH --ntasks-per-node=3" in script_of(tmp_path, SlurmConfig(), Config(fabric=Fabric(3)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--submit", "slurm"), "found no sbatch on PATH; submit from a login node"),
        (("--slurm.minutes", "5"), "found --slurm flags without --submit slurm"),
        (("--submit", "slurm", "--slurm.minutes", "0"), "slurm.minutes: found 0, expected 1 or more"),
        (("--submit", "slurm", "--slurm.requeues", "-1"), "slurm.requeues: found -1, expected 0 or more"),
        (("--submit", "slurm", "--slurm.minutes", "2"), "slurm.signal_seconds: found 120, expected less than the 2"),
        (("--submit", "slurm", "--slurm.folds-apart", "--data.fold", "1"), "found data.fold 1, expected 'all'"),
        (("--submit", "slurm", "--slurm.folds-apart", "--slurm.submission", "s"), "slurm.submission: folds apart"),
    ],
)
def test_wrong_flags_are_told(
    words: tuple[str, ...],
    told: str,
    presets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert command(presets, "--data", "d", "--run", str(tmp_path / "run"), *words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def stand_in(folder: Path, name: str, body: str) -> None:
    """Write a program with a name of SLURM's."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM's commands, first on the PATH."""
    folder = tmp_path / "bin"
    stand_in(folder, "sinfo", "echo main; echo gpu")
    stand_in(folder, "squeue", ":")
    stand_in(folder, "sbatch", "echo Submitted batch job 41")
    stand_in(folder, "scancel", ":")
    stand_in(folder, "srun", ":")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def test_jobs_are_noted_and_looked_up(
    presets: Path, tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ("--data", "d", "--run", str(run), "--submit", "slurm")
    assert command(presets, *words, "--slurm.partition", "gpus") == 2
    assert "slurm.partition: found 'gpus'; did you mean 'gpu'?\n  partitions: gpu, main" in capsys.readouterr().err
    assert command(presets, *words, "--slurm.folds-apart") == 0
    assert "submitted: 41_0, 41_1, 41_2" in capsys.readouterr().err
    notes = json.loads((tmp_path / "run.slurm" / "job.json").read_text())["jobs"]
    assert [(note["id"], note["fold"]) for note in notes] == [("41_0", 0), ("41_1", 1), ("41_2", 2)]

    stand_in(slurm, "squeue", "echo '41_1|RUNNING|None'; echo '9|PENDING|Resources'")
    job.Note(run / "fold2", "41_2").write("failed", "no such data")
    assert [one.state for one in jobs.states_of(run)] == ["dead", "running", "failed"]
    assert command(presets, *words) == 2
    assert "job 41_1 works on it already" in capsys.readouterr().err
    jobs.cancel(run)
    assert "cancelled: 41_1" in capsys.readouterr().err
    stand_in(slurm, "squeue", "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(ConfigError, match="Unable to contact slurm controller"):
        jobs.status(run)
    with pytest.raises(ConfigError, match="no job was submitted for it"):
        jobs.status(tmp_path / "other")


def test_a_job_that_ends_while_it_is_looked_up_is_told(presets: Path, tmp_path: Path, slurm: Path) -> None:
    run, asked = tmp_path / "run", tmp_path / "asked"
    assert command(presets, "--data", "d", "--run", str(run), "--submit", "slurm") == 0
    stand_in(slurm, "squeue", f"[ -e {asked} ] || echo '41|RUNNING|None'; touch {asked}")
    assert [one.state for one in jobs.states_of(run)] == ["running"]
    assert [one.state for one in jobs.states_of(run)] == ["dead"]


def test_a_job_that_is_not_queued_again_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (tmp_path / "run.slurm").mkdir()
    argv = ["/there/bin/my-task", "train", "best", "--run", "R", "--resume"]
    training = job.TrainJob("my_task.cli:train", {"run": run}, argv, SlurmConfig(requeues=0), None)
    with pytest.raises(SystemExit):
        training._stopped("requeue", "7")
    told = "Go on with: my-task train best --run R --resume --submit slurm"
    assert capsys.readouterr().err.strip().endswith(told)
    assert json.loads((tmp_path / "run.slurm" / "7.json").read_text())["message"].endswith(told)


def test_what_sbatch_refuses_is_told_in_its_words(
    presets: Path, tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(slurm, "sbatch", "echo 'sbatch: error: Requested time limit is invalid' >&2; exit 1")
    assert command(presets, "--data", "d", "--run", str(tmp_path / "run"), "--submit", "slurm") == 2
    assert "Requested time limit is invalid" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    assert command(presets, "--data", "d", "--run", str(tmp_path / "run"), "--submit", "slurm") == 2
    assert "is not empty; add --resume" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command(presets, "--data", "d", "--run", str(tmp_path / "file"), "--submit", "slurm") == 2
    assert "file: is a file" in capsys.readouterr().err


def test_folds_become_configurations_of_their_own(tmp_path: Path) -> None:
    parts = split_folds(Config(), tmp_path)
    assert [(part.config.data.fold, part.run.name) for part in parts] == [(0, "fold0"), (1, "fold1"), (2, "fold2")]
    assert parts[1].config == replace(Config(), data=Data(fold=1))


def test_folds_may_be_called_n_folds(tmp_path: Path) -> None:
    config = replace(Config(), data=DataOfNFolds())
    assert [part.config.data.fold for part in split_folds(config, tmp_path)] == [0, 1, 2, 3]


def test_the_command_of_a_job_is_the_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "program train best --submit slurm --run R --slurm.setup a b --slurm.dry-run --layers 3 --slurm.gpus=2"
    monkeypatch.setattr(sys, "argv", words.split())
    assert own_argv() == ["program", "train", "best", "--run", "R", "--layers", "3"]


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGUSR2, "requeue"), (signal.SIGTERM, "end")])
def test_signals_are_heard_while_the_main_thread_is_busy(
    number: signal.Signals, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "TERM_GRACE_SECONDS", 0.05)
    before = {one: signal.getsignal(one) for one in (signal.SIGUSR2, signal.SIGTERM)}
    late: list[str] = []
    ear = job.Ear(late.append, SlurmConfig(signal_seconds=0))
    try:
        assert not interrupt.asked()
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 20
        while not late and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (ear.heard, late, interrupt.asked()) == (kind, [kind], True)
    finally:
        ear.close()
        interrupt.withdraw()
        for one, handler in before.items():
            signal.signal(one, handler)


def test_a_requeue_needs_progress_and_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, wish = tmp_path / "run", tmp_path / "run.slurm" / "7.requeue"
    wish.parent.mkdir()
    run.mkdir()
    (run / "metrics.jsonl").write_text("{}\n")
    assert job.requeue(run, "7", limit=2) is None
    assert wish.exists()
    wish.unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "nothing was saved since the last start" in (job.requeue(run, "7", limit=2) or "")
    (run / "metrics.jsonl").write_text("{}\n{}\n")
    assert job.requeue(run, "7", limit=2) is None
    wish.unlink()
    (run / "metrics.jsonl").write_text("{}\n{}\n{}\n")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert "slurm.requeues is 2" in (job.requeue(run, "7", limit=2) or "")
    assert not wish.exists()


def test_the_script_queues_again_and_keeps_what_slurm_says_against_it(
    presets: Path, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = tmp_path / "run", tmp_path / "run.slurm"
    assert command(presets, "--data", "d", "--run", str(run), "--submit", "slurm") == 0
    script = "\n".join(queue_again(folder))
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    stand_in(slurm, "scontrol", f'echo "$@" >> {tmp_path}/called')
    subprocess.run(["bash", "-c", script], check=True)
    assert not (tmp_path / "called").exists()  # nobody wished it
    job.Note(run, "41").write("requeued")
    (folder / "41.requeue").touch()
    subprocess.run(["bash", "-c", script], check=True)
    assert (tmp_path / "called").read_text() == "requeue 41\n"
    assert [(one.state, one.message[:18]) for one in jobs.states_of(run)] == [("dead", "SLURM knows it no ")]

    stand_in(slurm, "scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    (folder / "41.requeue").touch()
    subprocess.run(["bash", "-c", script], check=False)
    [state] = jobs.states_of(run)
    assert state.state == "stopped"
    assert state.message.startswith("not queued again: Requested operation is presently disabled; nothing is lost")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "50")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    stand_in(slurm, "scontrol", f'echo "$@" >> {tmp_path}/called')
    (folder / "50_3.requeue").touch()
    subprocess.run(["bash", "-c", script], check=True)
    assert (tmp_path / "called").read_text().endswith("requeue 50_3\n")
