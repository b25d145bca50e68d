"""Run every solution end to end on its generated sample, through its real command line, and compare scores with floors.

    make demo
    make demo ARGS="--all"              one more preset of each solution
    make demo ARGS="ai4code ntua-lab"   only these

For each solution: sample → prepare → for each preset train → infer → check → evaluate. Solutions run side by side, one
thread each. Ends in a table and a report, and exits with 1 when a score does not beat its floor. The floor is what the
solution's simplest preset scores on the same sample, plus a stated margin, so that it stays honest when the sample
changes. Scores on a generated sample say that the code works, and nothing about a competition. The files stay in
runs/demo for a look; the next run replaces them.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kit_core.console import render_table

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Demo:
    """What differs between the solutions; the verbs and their order are the same for all."""

    program: str  # the console script, which is also the name of the solution
    reference: str  # the preset that learns nothing; its score is the base of the floor
    neural: str  # a small neural preset
    more: str  # a preset that learns without a network, run with --all
    metric: str  # the key of the score in `evaluate --json`
    margin: float  # by how much a preset must beat the reference
    truth: str  # the file of the sample that holds the answers of the test part
    infer_options: tuple[str, ...] = ()
    neural_options: tuple[str, ...] = ()  # what makes the training of the neural preset shorter


DEMOS = (
    Demo(
        program="ai4code",
        reference="as-given",
        neural="mlp",
        more="tfidf-lightgbm",
        metric="tau",
        margin=0.05,
        truth="test_orders.csv",
        infer_options=("--split", "test"),
    ),
    Demo(
        program="ntua-lab",
        reference="majority",
        neural="lstm-beat",
        more="pooled-svm",
        metric="accuracy",
        margin=0.2,
        truth="fma_genre_spectrograms/test_labels.txt",
        infer_options=("--split", "test"),
    ),
    Demo(
        program="russian-art",
        reference="majority",
        neural="scratch",
        neural_options=("--network.second.epochs", "12"),
        more="pixels",
        metric="macro_f1",
        margin=0.3,
        truth="test.csv",
        infer_options=("--split", "test"),
    ),
    Demo(
        program="yandex-artists",
        reference="naive",
        neural="arcface-set-mini",
        more="whitened",
        metric="ndcg@100",
        margin=0.01,
        truth="test_truth.tsv",
        infer_options=("--split", "test"),
    ),
    Demo(
        program="yandex-tagging",
        reference="knn",
        neural="frames-mini",
        neural_options=("--data.fold", "0"),
        more="mean-lightgbm",
        metric="macro_ap",
        margin=0.02,
        truth="test_truth.csv",
        infer_options=("--split", "test"),
    ),
)


@dataclass(frozen=True)
class Row:
    """The outcome of one preset; `floor` is None for the reference itself."""

    demo: Demo
    preset: str
    score: float
    floor: float | None
    seconds: float  # training and inference

    @property
    def passes(self) -> bool:
        """Whether the score beats the floor."""
        return self.floor is None or self.score > self.floor


class StepError(Exception):
    """A command of a solution exited with another code than 0."""


class Steps:
    """Runs commands of the solutions, prints each when it has ended, and stops all after one has failed."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.started = time.monotonic()
        self.failed = threading.Event()
        self.lock = threading.Lock()

    def run(self, program: str, *arguments: object) -> str:
        """Run one command of the environment of this Python and return its standard output.

        Raises:
            StepError: with the command, the exit code and the end of what it wrote; or another command failed.
        """
        if self.failed.is_set():
            raise StepError(f"{program}: not run, since another command failed")
        started = time.monotonic()
        command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=ROOT
        )
        if done.returncode != 0:
            self.failed.set()
            ending = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
            raise StepError(f"{' '.join(command)}\nexited with {done.returncode}; its last lines:\n{ending}")
        with self.lock:
            self.done += 1
            passed = time.monotonic() - self.started
            left = passed / self.done * (self.total - self.done)
            words = " ".join(map(str, arguments[: 2 if arguments[0] == "train" else 1]))
            place = f"[{self.done} of {self.total}, about {left:.0f} s left]"
            print(f"{program + ' ' + words:38} {time.monotonic() - started:6.1f} s  {place}", flush=True)
        return done.stdout


def presets_of(demo: Demo, everything: bool = False) -> tuple[str, ...]:
    """Return the presets to run, the reference first."""
    return (demo.reference, *((demo.more,) if everything else ()), demo.neural)


def count_steps(n_presets: int) -> int:
    """Return how many commands a demo of so many presets runs."""
    return 2 + 4 * n_presets


def run_demo(demo: Demo, folder: Path, steps: Steps, presets: Sequence[str]) -> list[Row]:
    """Run presets of one solution in an empty folder; the first sets the floor of the others.

    Raises:
        StepError: a command failed.
        ValueError: `evaluate --json` holds no finite score under the demo's metric.
    """
    sample, prepared = folder / "sample", folder / "prepared"
    steps.run(demo.program, "sample", "--out", sample)
    steps.run(demo.program, "prepare", "--data", sample, "--out", prepared)
    rows: list[Row] = []
    for preset in presets:
        run, submission = folder / preset, folder / f"{preset}.csv"
        started = time.monotonic()
        options = demo.neural_options if preset == demo.neural else ()
        steps.run(demo.program, "train", preset, "--data", prepared, "--run", run, *options)
        steps.run(demo.program, "infer", "--run", run, "--data", sample, *demo.infer_options, "--out", submission)
        seconds = time.monotonic() - started
        steps.run(demo.program, "check", "--submission", submission, "--data", sample)
        truth = sample / demo.truth
        report = steps.run(demo.program, "evaluate", "--submission", submission, "--truth", truth, "--json")
        score = float(json.loads(report)[demo.metric])
        if not math.isfinite(score):
            raise ValueError(f"{demo.program} evaluate --json: {demo.metric} is {score}, expected a finite number")
        rows.append(Row(demo, preset, score, rows[0].score + demo.margin if rows else None, seconds))
    return rows


def render(rows: Sequence[Row]) -> str:
    """Return the closing table as plain text."""
    headers = ["solution", "preset", "data", "metric", "score", "floor to beat", "seconds", "verdict"]
    cells = []
    for row in rows:
        if row.floor is None:
            floor, verdict = "", "sets the floor"
        else:
            floor, verdict = f"{row.floor:.4f}", "ok" if row.passes else "TOO LOW"
        score, seconds = f"{row.score:.4f}", f"{row.seconds:.1f}"
        cells.append([row.demo.program, row.preset, "sample", row.demo.metric, score, floor, seconds, verdict])
    return render_table(headers, cells)


def main() -> int:
    """Run the demos that are asked for, all by default; return 0 when every score beats its floor."""
    names = ", ".join(demo.program for demo in DEMOS)
    parser = argparse.ArgumentParser(description="Run the solutions end to end on their generated samples.")
    parser.add_argument("solution", nargs="*", help=f"all by default; there are: {names}")
    parser.add_argument("--all", action="store_true", help="one more preset of each solution")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="folder of the files (runs/demo)")
    arguments = parser.parse_args()
    for name in arguments.solution:
        if name not in names.split(", "):
            parser.error(f"no solution is called {name!r}; there are: {names}")

    demos = [demo for demo in DEMOS if not arguments.solution or demo.program in arguments.solution]
    presets = [presets_of(demo, arguments.all) for demo in demos]
    steps = Steps(sum(count_steps(len(chosen)) for chosen in presets))
    out = arguments.out.resolve()
    folders = [out / demo.program for demo in demos]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [
            pool.submit(run_demo, demo, folder, steps, chosen)
            for demo, folder, chosen in zip(demos, folders, presets, strict=True)
        ]
    errors = [error for one in running if (error := one.exception()) is not None]
    if errors:
        for error in errors:
            print(f"demo: {error}", file=sys.stderr)
        return 1
    rows = [row for one in running for row in one.result()]
    report = out / "report"
    shutil.rmtree(report, ignore_errors=True)
    command = [sys.executable, "-m", "kit_report", *map(str, folders), "--root", str(ROOT), "--out", str(report)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"\n{render(rows)}\n\nScores of small generated samples, never competition scores.")
    print(f"Files: {out}\nReport: {report / 'index.html'}")
    return 0 if all(row.passes for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
