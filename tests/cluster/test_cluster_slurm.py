"""A SLURM cluster of one node, real jobs: cut off the network, stopped in the middle, queued again, as good as ever."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slurm

SCRIPT = Path(__file__).with_name("one_node.sh")
PATIENCE_SECONDS = 1800.0  # for one job, on a machine that others use as well
UNREPEATABLE = ("seconds", "frames_per_second")
NEEDED = ("sbatch", "slurmctld", "slurmd", "munged", "unshare")


def sbin() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment for commands in a cluster that lives as long as these tests."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster is started as root")
    if any(shutil.which(name, path=sbin()) is None for name in NEEDED):
        if shutil.which("apt-get") is None:
            pytest.skip("found neither SLURM nor apt-get to install slurm-wlm and munge with")
        got = subprocess.run(["bash", str(SCRIPT), "install"], capture_output=True, text=True)
        if got.returncode:
            pytest.skip(f"slurm-wlm and munge could not be installed: {got.stderr.strip()[-300:]}")
    folder = tmp_path_factory.mktemp("slurm")
    environment = os.environ | {"PATH": sbin(), "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(SCRIPT)]
    begun = subprocess.run([*command, "start", str(folder)], capture_output=True, text=True, env=environment)
    try:
        assert begun.returncode == 0, begun.stderr
        yield environment
    finally:
        subprocess.run([*command, "stop", str(folder)], env=environment, check=True)


@dataclass(frozen=True)
class Trial:
    """A solution, the smallest sample of it, and a small network on that."""

    program: str
    sample: tuple[str, ...]
    train: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.program


TRIALS = [
    Trial(
        "yandex-tagging",
        ("--tracks", "120"),
        ("seed-transformer-mini", "--data.fold", "0", "--optim.batch", "8", "--optim.epochs", "12"),
    ),
    Trial("yandex-artists", ("--artists", "45"), ("smoothap-mini", "--data.fold", "all")),
]


class House:
    """A folder with a sample, and the commands of a solution in it."""

    def __init__(self, trial: Trial, root: Path, environment: dict[str, str]) -> None:
        self.trial, self.root, self.environment = trial, root, environment

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name(self.trial.program)), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.root, env=self.environment)
        assert done.returncode == code, done.stderr + done.stdout
        return done

    def train(self, run: str, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("train", *self.trial.train, "--data", "data", "--run", run, *more, code=code)

    def submit(self, run: str, *more: str) -> list[str]:
        """Submit a training and return the numbers of its jobs."""
        asked = ("--submit", "slurm", "--slurm.partition", "main", "--slurm.cpus", "1")
        self.train(run, *asked, *more)
        notes = json.loads((self.root / f"{run}.slurm" / "job.json").read_text())
        return [note["id"] for note in notes["jobs"]]

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, check=True).stdout

    def wait(self, what: str, run: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                logs = [path.read_text() for path in sorted((self.root / f"{run}.slurm").glob("*log*"))]
                pytest.fail(f"not {what} in time\n" + self.slurm("squeue") + "\n".join(logs))
            time.sleep(0.2)

    def note(self, run: str, job: str) -> dict[str, Any]:
        path = self.root / f"{run}.slurm" / f"{job}.json"
        return json.loads(path.read_text()) if path.exists() else {"state": ""}

    def wait_for(self, state: str, run: str, job: str) -> None:
        def is_so() -> bool:
            found = self.note(run, job)
            assert found["state"] not in {"failed", "stopped", "finished"} - {state}, found
            return found["state"] == state

        self.wait(state, run, is_so)

    def lines(self, run: str) -> list[dict[str, Any]]:
        path = self.root / run / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        found = [json.loads(line) for line in text.splitlines()]
        return [{key: value for key, value in line.items() if key not in UNREPEATABLE} for line in found]

    def summary(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / run / "summary.json").read_text())
        return {key: value for key, value in found.items() if key not in UNREPEATABLE}


@pytest.fixture(scope="session", params=TRIALS, ids=lambda trial: trial.id)
def house(request: pytest.FixtureRequest, cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> House:
    trial: Trial = request.param
    made = House(trial, tmp_path_factory.mktemp(trial.program), cluster)
    made.run("sample", "--out", "data", *trial.sample)
    return made


def without_network(folder: Path) -> Path:
    """Write a program that runs Python with the network cut, and notes the interfaces that are left."""
    path = folder / "python-alone"
    inside = f'tail -n +3 /proc/net/dev | cut -d: -f1 > {folder}/interfaces; exec {sys.executable} "$@"'
    path.write_text(f"#!/bin/sh\nexec unshare -n sh -c '{inside}' sh \"$@\"\n")
    path.chmod(0o755)
    return path


def test_a_run_stopped_in_the_middle_ends_like_an_unbroken_one_and_comes_home(house: House) -> None:
    house.train("whole")
    alone = without_network(house.root)
    home = ("--results-dir", "results", "--slurm.submission", "cut.csv", "--slurm.python", str(alone))
    (job,) = house.submit("cut", *home)
    house.wait("begun", "cut", lambda: len(house.lines("cut")) >= 2)
    house.slurm("scancel", "--signal=USR2", job)
    house.wait_for("requeued", "cut", job)
    assert (house.root / "results" / "cut.tar").exists()  # also what is stopped is copied
    assert not (house.root / "cut" / "DONE").exists()
    house.wait_for("finished", "cut", job)

    assert house.note("cut", job)["restarts"] == 1
    assert house.summary("cut") == house.summary("whole")  # the score and its interval, to the last bit
    assert house.lines("cut") == house.lines("whole")
    manifest = json.loads((house.root / "cut" / "manifest.json").read_text())
    assert len(manifest["resumed"]) == 1
    assert "--submit" not in manifest["argv"]
    assert (house.root / "interfaces").read_text().split() == ["lo"]
    assert "finished" in house.run("job", "status", "--run", "cut").stdout

    house.run("job", "collect", "--run", "cut", "--submission", "cut.csv", "--out", "home.tar")
    house.run("job", "verify", "home.tar")
    house.run("job", "verify", "results/cut.tar")
    house.run("check", "--submission", "cut.csv", "--data", "data")


@pytest.mark.parametrize("house", TRIALS[:1], indirect=True, ids=lambda trial: trial.id)
class TestOneSolution:
    """What does not depend on the solution."""

    def test_folds_run_beside_each_other(self, house: House) -> None:
        jobs = house.submit("folds", "--slurm.folds-apart", "--data.fold", "all", "--optim.epochs", "1")
        for job in jobs:
            house.wait_for("finished", "folds", job)
        assert len(jobs) == 5
        together = [word for fold in range(5) for word in ("--run", f"folds/fold{fold}")]
        house.run("infer", *together, "--data", "data", "--out", "folds.csv")
        house.run("check", "--submission", "folds.csv", "--data", "data")
        house.run("job", "collect", "--run", "folds", "--submission", "folds.csv", "--out", "folds.tar")

    def test_two_processes_of_a_job_learn_what_one_does(self, house: House) -> None:
        plain = ("--augment.frame-drop", "0", "--augment.longest", "0", "--augment.mixup", "0", "--optim.epochs", "3")
        plain += ("--network.dropout", "0", "--network.head-dropout", "0")
        house.train("one", *plain)
        (job,) = house.submit("two", *plain, "--slurm.processes", "2")
        house.wait_for("finished", "two", job)
        losses = [[line["loss"] for line in house.lines(run) if "loss" in line] for run in ("one", "two")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert house.summary("two")["score"] == pytest.approx(house.summary("one")["score"], abs=1e-3)

    def test_a_cancelled_run_saves_and_a_failed_one_says_why(self, house: House) -> None:
        (job,) = house.submit("ended", "--optim.epochs", "1000", "--results-dir", "results")
        house.wait("begun", "ended", lambda: len(house.lines("ended")) >= 1)
        assert f"job {job} works on it already" in house.train("ended", "--submit", "slurm", code=2).stderr
        house.run("job", "cancel", "--run", "ended")
        house.wait_for("stopped", "ended", job)
        assert (house.root / "results" / "ended.tar").exists()
        assert list((house.root / "ended" / "state").iterdir())

        shutil.copytree(house.root / "data", house.root / "broken")
        for path in (house.root / "broken").rglob("*train*.csv"):
            path.write_text("nonsense\n")
        submit = ("--submit", "slurm", "--slurm.cpus", "1", "--run", "unread", "--data", "broken")
        house.run("train", *house.trial.train, *submit)
        notes = json.loads((house.root / "unread.slurm" / "job.json").read_text())
        house.wait_for("failed", "unread", notes["jobs"][0]["id"])
        shown = house.run("job", "status", "--run", "unread").stdout
        assert "failed" in shown
        assert "broken" in shown  # the file, in the words of the command line

    def test_a_partition_that_is_not_there_is_named(self, house: House) -> None:
        told = house.train("none", "--submit", "slurm", "--slurm.partition", "mian", code=2).stderr
        assert "slurm.partition: found 'mian'; did you mean 'main'?" in told
        assert not (house.root / "none").exists()
