"""The command line `ai4code`: every verb in a few lines, the work is elsewhere."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tyro.conf import Positional, UseAppendAction

from ai4code import data as official
from ai4code import evaluate as evaluation
from ai4code import infer as inference
from ai4code import predict as prediction
from ai4code import sample as samples
from ai4code import tokenizer, training_report
from ai4code.config import Config
from kit_core import cli
from kit_core.config import preset_header, preset_names
from kit_core.console import say
from kit_core.run import RunFolder

PRESETS = Path(__file__).resolve().parents[2] / "presets"
Runs = UseAppendAction[tuple[Path, ...]]


def presets() -> None:
    """List the presets: what each reproduces, its cost, its score."""
    for name in preset_names(PRESETS):
        print(f"{name}\n  " + preset_header(PRESETS, name).replace("\n", "\n  ") + "\n")


def sample(out: Path, notebooks: int = 160, seed: int = 0) -> None:
    """Write a generated sample in the official layout, with hidden answers for its test part."""
    made = samples.write_sample(out, notebooks, seed)
    print(f"generated sample (its scores say nothing about the competition): {made}")


def prepare(data: Path, out: Path, workers: int = os.cpu_count() or 1) -> None:
    """Check the official data (folder or zip) and pack it; goes on where it was stopped."""
    print(official.prepare(data, out, workers=workers))


def train(preset: str, config: Config, data: Path, run: Path, resume: bool = False) -> None:
    """Fit a preset on the official or prepared data and write a run folder."""
    from ai4code.train import train as fit  # torch and LightGBM load slowly: `--help` need not wait for them

    hashes = {"train": official.fingerprint(data)}
    with RunFolder.create(
        run, config=config, preset=preset, data_hashes=hashes, seed=config.seed, resume=resume
    ) as folder:
        if folder.done:
            say(f"{run}: this run is finished already")
            summary = folder.summary
        else:
            summary = fit(config, official.load(data, "train"), folder)
    print(training_report.summary_text(preset, summary))


def infer(run: Runs, data: Path, out: Path, split: Literal["auto", "train", "test"] = "auto") -> None:
    """Write the submission for the notebooks of a split (auto: test where there is one); several --run: an ensemble."""
    runs = [inference.FittedRun.open(path) for path in run]
    splits = official.splits_in(data)
    chosen = split if split != "auto" else ("test" if "test" in splits else "train")
    notebooks = official.load(data, chosen)
    official.write_submission(out, notebooks.ids, inference.infer(runs, notebooks))
    say(f"{out}: {len(notebooks)} notebooks of the {chosen} split")


def check(submission: Path, data: Path, split: Literal["auto", "train", "test"] = "auto") -> None:
    """Would the judge take this submission? Every notebook and every cell exactly once."""
    splits = official.splits_in(data)
    chosen = split if split != "auto" else ("test" if "test" in splits else "train")
    orders = official.check_submission(submission, official.load(data, chosen))
    print(f"{submission}: valid, {len(orders)} notebooks of the {chosen} split")


def evaluate(submission: Path, truth: Path, data: Path | None = None, json_: bool = False) -> None:
    """Score a submission: the competition's tau with its interval, and every other metric that the truth allows."""
    report = evaluation.evaluate_submission(submission, truth, data)
    print(json.dumps(report) if json_ else evaluation.report_text(report))


def predict(notebook: Positional[Path], run: Runs, write: Path | None = None) -> None:
    """Print the order that a run would give an .ipynb file, and which cells look misplaced."""
    print(prediction.predict_file(notebook, [inference.FittedRun.open(path) for path in run], write))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    tokenizers: dict[str, cli.Verb] = {"train": tokenizer.train_command, "report": tokenizer.report_command}
    verbs: dict[str, cli.Verb | dict[str, cli.Verb]] = {
        "presets": presets, "sample": sample, "prepare": prepare, "train": train, "infer": infer, "check": check,
        "evaluate": evaluate, "predict": predict, "tokenizer": tokenizers,
    }  # fmt: skip
    return cli.run("ai4code", verbs, (Config, PRESETS), argv)


if __name__ == "__main__":
    sys.exit(main())
