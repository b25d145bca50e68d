"""Run every solution end to end on its generated sample, through its real command line, and compare scores with floors.

    make demo

For each solution: sample → prepare → for each preset train → infer → check → evaluate. Ends in a table, and exits with
1 when a score does not beat its floor. The floor is what the solution's simplest preset scores on the same sample, plus
a stated margin, so that it stays honest when the sample changes. Scores on a generated sample say that the code works,
and nothing about a competition. The files stay in runs/demo for a look; the next run replaces them.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kit_core.console import render_table

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Demo:
    """What differs between the solutions; the verbs and their order are the same for all."""

    program: str  # the console script, which is also the name of the solution
    reference: str  # the preset that learns nothing; its score is the base of the floor
    presets: tuple[str, ...]  # one baseline that is no neural network, and one small neural preset
    metric: str  # the key of the score in `evaluate --json`
    margin: float  # by how much a preset must beat the reference
    truth: str  # the file of the sample that holds the answers of the test part
    infer_options: tuple[str, ...] = ()


DEMOS = (
    Demo(
        program="ai4code",
        reference="as-given",
        presets=("tfidf-lightgbm", "mlp"),
        metric="tau",
        margin=0.05,
        truth="test_orders.csv",
        infer_options=("--split", "test"),
    ),
    Demo(
        program="ntua-lab",
        reference="majority",
        presets=("pooled-svm", "lstm-beat"),
        metric="accuracy",
        margin=0.2,
        truth="fma_genre_spectrograms/test_labels.txt",
        infer_options=("--split", "test"),
    ),
    Demo(
        program="russian-art",
        reference="majority",
        presets=("pixels", "scratch"),
        metric="macro_f1",
        margin=0.3,
        truth="test.csv",
        infer_options=("--split", "test"),
    ),
    Demo(
        program="yandex-artists",
        reference="naive",
        presets=("whitened", "arcface-set-mini"),
        metric="ndcg@100",
        margin=0.01,
        truth="test_truth.tsv",
        infer_options=("--split", "test"),
    ),
    Demo(
        program="yandex-tagging",
        reference="knn",
        presets=("mean-lightgbm", "frames-mini"),
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


def run_step(program: str, *arguments: object) -> str:
    """Run one command of the environment of this Python, print its verb and seconds, and return its standard output.

    Raises:
        StepError: with the command, the exit code and the end of what it wrote.
    """
    print(f"  {program} {arguments[0]} …", end="", flush=True)
    started = time.monotonic()
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=ROOT)
    print(f" {time.monotonic() - started:.1f} s", flush=True)
    if done.returncode != 0:
        ending = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise StepError(f"{' '.join(command)}\nexited with {done.returncode}; its last lines:\n{ending}")
    return done.stdout


def run_demo(demo: Demo, folder: Path) -> list[Row]:
    """Run one solution in an empty folder: first its reference preset, then the others against the floor.

    Raises:
        StepError: a command failed.
        ValueError: `evaluate --json` holds no finite score under the demo's metric.
    """
    sample, prepared = folder / "sample", folder / "prepared"
    run_step(demo.program, "sample", "--out", sample)
    run_step(demo.program, "prepare", "--data", sample, "--out", prepared)
    rows: list[Row] = []
    for preset in (demo.reference, *demo.presets):
        print(f"  {preset}:")
        run, submission = folder / preset, folder / f"{preset}.csv"
        started = time.monotonic()
        run_step(demo.program, "train", preset, "--data", prepared, "--run", run)
        run_step(demo.program, "infer", "--run", run, "--data", sample, *demo.infer_options, "--out", submission)
        seconds = time.monotonic() - started
        run_step(demo.program, "check", "--submission", submission, "--data", sample)
        truth = sample / demo.truth
        report = run_step(demo.program, "evaluate", "--submission", submission, "--truth", truth, "--json")
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
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="folder of the files (runs/demo)")
    arguments = parser.parse_args()
    for name in arguments.solution:
        if name not in names.split(", "):
            parser.error(f"no solution is called {name!r}; there are: {names}")

    rows: list[Row] = []
    for demo in DEMOS:
        if arguments.solution and demo.program not in arguments.solution:
            continue
        print(f"{demo.program}, on its generated sample", flush=True)
        folder = arguments.out.resolve() / demo.program
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            rows += run_demo(demo, folder)
        except StepError as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
    print(f"\n{render(rows)}\n\nScores of small generated samples, never competition scores. Files: {arguments.out}")
    return 0 if all(row.passes for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
