"""The command line `ntua-lab`: every verb in a few lines, the work is elsewhere.

Each verb imports what it runs when it runs: PyTorch, librosa and LightGBM take seconds to load, and `--help` has no use
for them.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from kit_cluster import jobs
from kit_cluster.submit import submittable
from kit_core import cli
from kit_core.console import say
from kit_core.preset_table import describe_presets
from kit_train.parallel import in_ranks, open_run
from ntua_lab.config import Config

PRESETS = Path(__file__).resolve().parents[2] / "presets"
Runs = UseAppendAction[tuple[Path, ...]]
Json = Annotated[bool, arg(name="json")]
Task = Literal["auto", "genre", "emotion"]
Split = Literal["auto", "train", "test"]
Metric = Literal["auto", "accuracy", "macro_f1", "spearman"]
WORKERS = os.cpu_count() or 1


def presets(name: Positional[str | None] = None) -> None:
    """List the presets: what each is, its score and on which data, its time; with a name, its whole header."""
    print(describe_presets(PRESETS, name))


def sample(out: Path, clips: int = 72, seed: int = 0, workers: int = WORKERS) -> None:
    """Synthesise music of several genres and extract a sample in the official layout, with hidden answers."""
    from ntua_lab.sample import write_sample

    said = write_sample(out, clips, seed, workers)
    print(f"generated sample (its scores say nothing about the lab's data): {said}")


def extract(
    audio: Positional[Path],
    out: Path,
    labels: Path | None = None,
    clip_seconds: float = 30.0,
    workers: int = WORKERS,
) -> None:
    """Turn a folder of sound files into spectra in the official layout; --labels: what is known of each file."""
    from ntua_lab.extract import extract_folder

    print(extract_folder(audio, out, labels=labels, clip_seconds=clip_seconds, workers=workers))


def prepare(data: Path, out: Path, workers: int = WORKERS) -> None:
    """Check the official data (folder or zip) and pack it; goes on where it was stopped."""
    from ntua_lab import data as official

    print(official.prepare(data, out, workers=workers))


def explore(data: Path, out: Path, seed: int = 0) -> None:
    """Steps 1 to 4: spectrograms and chromagrams of two clips of different classes, sizes, class histograms."""
    from ntua_lab.explore import explore as look

    print(look(data, out, seed))


@submittable
@in_ranks
def train(preset: str, config: Config, data: Path, run: Path, start: Path | None = None, resume: bool = False) -> None:
    """Fit a preset on the official or prepared data into a run folder; --start: the run that transfer begins with."""
    from ntua_lab import data as official
    from ntua_lab.train import summary_text
    from ntua_lab.train import train as fit

    clips = official.load(data)  # before the run folder is made: bad data leave nothing behind
    hashes = {"data": clips.fingerprint} | ({"start": str(start)} if start else {})
    with open_run(
        run,
        config=config,
        preset=preset,
        data_hashes=hashes,
        seed=config.seed,
        resume=resume,
        parallel=config.shares_batches,
    ) as folder:
        if folder.done:
            say(f"{run}: this run is finished already")
        summary = folder.summary if folder.done else fit(config, clips, folder, start)
    print(summary_text(preset, summary))


def infer(run: Runs, data: Path, out: Path, task: Task = "auto", split: Split = "auto") -> None:
    """Write genres, or a solution.txt of emotions, for a split (auto: test); several --run: an ensemble."""
    from ntua_lab.infer import write_submission

    print(write_submission(run, data, out, task, split))


def check(submission: Path, data: Path, split: Split = "auto") -> None:
    """Validate the submission format: every clip of the split once, values finite and in 0..1, the right header."""
    from ntua_lab.submission import check as check_file

    print(check_file(submission, data, split))


def evaluate(submission: Path, truth: Path, plot: Path | None = None, json_: Json = False) -> None:
    """Score a file of genres or emotions against the truth; --plot: confusion matrix, or true against predicted."""
    from ntua_lab.evaluation import evaluate_submission, report_text

    report = evaluate_submission(submission, truth)
    if plot is not None:
        from ntua_lab.plots import plot_submission

        plot_submission(plot, submission, truth, report)
    print(json.dumps(report) if json_ else report_text(report))


def compare(
    a: Positional[Path], b: Positional[Path], truth: Path | None = None, metric: Metric = "auto", json_: Json = False
) -> None:
    """Compare two runs, or two files of answers to a --truth: difference with the interval of a paired bootstrap."""
    from ntua_lab.compare import compare as compare_two

    print(compare_two(a, b, truth, metric).render(as_json=json_))


def predict(song: Positional[Path], run: Runs, plot: Path | None = None) -> None:
    """Print the genre probabilities and emotion values of a sound file; --plot: a picture of its spectra."""
    from ntua_lab.predict import predict_song

    print(predict_song(song, run, plot))


def activations(run: Path, data: Path, out: Path, clip: str | None = None) -> None:
    """Draw what every block of a trained CNN sees of a clip, as one grid for each block."""
    from ntua_lab.activations import draw

    print(draw(run, data, out, clip))


def report(runs: Path, out: Path, reference: str | None = None) -> None:
    """Collect finished runs into report.html and report.pdf, with paired differences from a reference run."""
    from ntua_lab.report import write_report

    print(write_report(runs, out, reference))


def echonest(table: Path, run: Path, seed: int = 0) -> None:
    """Regress valence, energy and danceability from the other Echo Nest attributes of FMA tracks (a table)."""
    from ntua_lab.echonest import cross_validate

    print(cross_validate(table, run, seed))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    verbs: dict[str, cli.Verb | Mapping[str, cli.Verb]] = {
        "presets": presets, "sample": sample, "extract": extract, "prepare": prepare, "explore": explore,
        "train": train, "infer": infer, "check": check, "evaluate": evaluate, "compare": compare, "predict": predict,
        "activations": activations, "report": report, "echonest": echonest, "job": jobs.VERBS,
    }  # fmt: skip
    return cli.run("ntua-lab", verbs, (Config, PRESETS), argv)


if __name__ == "__main__":
    sys.exit(main())
