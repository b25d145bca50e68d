"""The command line `new-solution`: every verb in a few lines, the work is elsewhere."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from kit_core import cli
from kit_core.console import say
from kit_core.preset_table import describe_presets
from kit_core.run import RunFolder
from new_solution import data as official
from new_solution import sample as samples
from new_solution.config import Config

PRESETS = Path(__file__).resolve().parents[2] / "presets"
Runs = UseAppendAction[tuple[Path, ...]]
Json = Annotated[bool, arg(name="json")]


def presets(name: Positional[str | None] = None) -> None:
    """List the presets: what each is, its score and on which data, its time; with a name, its whole header."""
    print(describe_presets(PRESETS, name))


def sample(out: Path, rows: int = 400, seed: int = 0) -> None:
    """Write a generated sample in the official layout, with hidden answers for its test part."""
    print(f"generated sample (its scores say nothing about the competition): {samples.write_sample(out, rows, seed)}")


def prepare(data: Path, out: Path) -> None:
    """Check the official data (folder or zip) and pack it."""
    print(official.prepare(data, out))


def train(preset: str, config: Config, data: Path, run: Path, resume: bool = False) -> None:
    """Fit a preset on the official or prepared data and write a run folder."""
    from new_solution.train import summary_text
    from new_solution.train import train as fit

    rows = official.load(data, "train")  # before the run folder is made: bad data leave nothing behind
    hashes = {"train": rows.fingerprint}
    with RunFolder.create(
        run, config=config, preset=preset, data_hashes=hashes, seed=config.seed, resume=resume
    ) as folder:
        if folder.done:
            say(f"{run}: this run is finished already")
        summary = folder.summary if folder.done else fit(config, rows, folder)
    print(summary_text(preset, summary))


def infer(run: Runs, data: Path, out: Path, split: official.Split = "test") -> None:
    """Write the submission for the rows of a split; several --run: an ensemble."""
    from new_solution.infer import predict_rows

    rows = official.load(data, split)
    official.write_submission(out, rows.ids, predict_rows(run, rows.features).argmax(axis=1))
    say(f"{out}: {len(rows.ids)} rows of the {split} split")


def check(submission: Path, data: Path, split: official.Split = "test") -> None:
    """Validate the submission format: every row exactly once, with a label of the right kind."""
    rows = official.load(data, split)
    official.check_submission(submission, rows.ids)
    print(f"{submission}: valid, {len(rows.ids)} rows of the {split} split")


def evaluate(submission: Path, truth: Path, json_: Json = False) -> None:
    """Score a submission: the competition's metric with its interval."""
    from new_solution.evaluate import evaluate_submission, report_text

    report = evaluate_submission(submission, truth)
    print(json.dumps(report) if json_ else report_text(report))


def compare(a: Positional[Path], b: Positional[Path], truth: Path | None = None, json_: Json = False) -> None:
    """Compare two runs out of fold, or two submissions given --truth: the difference A - B with its interval."""
    from new_solution.compare import compare as compare_predictions

    print(compare_predictions(a, b, truth).render(as_json=json_))


def predict(numbers: Positional[tuple[float, ...]], run: Runs) -> None:
    """Print the likeliest labels of one row of numbers."""
    from new_solution.predict import predict_text

    print(predict_text(numbers, run))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    verbs: dict[str, Callable[..., None]] = {
        "presets": presets, "sample": sample, "prepare": prepare, "train": train, "infer": infer, "check": check,
        "evaluate": evaluate, "compare": compare, "predict": predict,
    }  # fmt: skip
    return cli.run("new-solution", verbs, (Config, PRESETS), argv)


if __name__ == "__main__":
    sys.exit(main())
