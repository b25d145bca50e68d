"""The command line `yandex-tagging`: every verb in a few lines, the work is elsewhere.

Each verb imports what it runs when it runs: PyTorch, LightGBM and matplotlib take seconds to load, and neither `check`
nor `--help` has a use for them.
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
from kit_core.errors import ConfigError
from kit_core.preset_table import describe_presets
from kit_train.parallel import in_ranks, open_run
from yandex_tagging.config import PRESETS, Config

Runs = UseAppendAction[tuple[Path, ...]]
Split = Literal["auto", "train", "test"]
Json = Annotated[bool, arg(name="json")]


def presets(name: Positional[str | None] = None) -> None:
    """List the presets: what each is, its score and on which data, its time; with a name, its whole header."""
    print(describe_presets(PRESETS, name))


def sample(
    out: Path,
    tracks: int = 600,
    seed: int = 0,
    form: Literal["small", "official"] | None = None,
    archive: bool = False,
) -> None:
    """Write a generated sample in the official layout, with hidden answers for its test part.

    --archive writes the embeddings as track_embeddings.tar.gz; --form official: 768 dimensions and 256 tags, as from
    5,000 tracks on.
    """
    from yandex_tagging.sample import write_sample

    written = write_sample(out, tracks, seed, form=form, archive=archive)
    print(f"generated sample (its scores say nothing about the competition): {written}")


def prepare(
    data: Path,
    out: Path,
    dtype: Literal["float16", "float32", "bfloat16"] = "float16",
    workers: int = os.cpu_count() or 1,
) -> None:
    """Check the official data (folder or archive) and pack it; goes on where it was stopped."""
    from yandex_tagging import data as official

    print(official.prepare(data, out, dtype=dtype, workers=workers))


@submittable
@in_ranks
def train(preset: str, config: Config, data: Path, run: Path, resume: bool = False) -> None:
    """Fit a preset on the official or prepared data and write a run folder."""
    from yandex_tagging import data as official
    from yandex_tagging.teacher import digest
    from yandex_tagging.train import summary_text
    from yandex_tagging.train import train as fit

    tracks = official.load(data, "train")  # before the run folder is made: bad data leave nothing behind
    hashes = {"train": tracks.fingerprint}
    unlabelled = None
    if config.teacher.run is not None:
        hashes["teacher"] = digest(config.teacher.run)
        if config.teacher.pseudo_labels and "test" in official.splits_in(data):
            unlabelled = official.load(data, "test")
    networks = config.model in ("network", "ensemble")
    with open_run(
        run, config=config, preset=preset, data_hashes=hashes, seed=config.seed, resume=resume, parallel=networks
    ) as folder:
        if folder.done:
            say(f"{run}: this run is finished already")
        summary = folder.summary if folder.done else fit(config, tracks, folder, resume=resume, unlabelled=unlabelled)
    print(summary_text(preset, summary))


def infer(run: Runs, data: Path, out: Path, split: Split = "auto") -> None:
    """Write the submission for the tracks of a split (auto: test where there is one); several --run: an ensemble."""
    from yandex_tagging import data as official
    from yandex_tagging.infer import FittedRun
    from yandex_tagging.infer import infer as answer
    from yandex_tagging.submission import write_submission

    runs = [FittedRun.open(path) for path in run]
    tracks = official.load(data, _split(data, split))
    write_submission(out, tracks.ids, answer(runs, tracks))
    say(f"{out}: {len(tracks)} tracks of the {tracks.split} split")


def check(submission: Path, data: Path, split: Split = "auto") -> None:
    """Validate the submission format: every track once, in order, a probability for every tag."""
    from yandex_tagging import data as official
    from yandex_tagging.submission import check_submission

    chosen = _split(data, split)
    ids, n_tags = official.read_wanted(data, chosen)
    # A hold-out in the layout of the training data need not have every tag: it does not tell their number.
    values = check_submission(submission, ids, n_tags if chosen == "test" else 0)
    print(f"{submission}: valid, {len(values)} tracks of the {chosen} split, {values.shape[1]} tags")


def evaluate(submission: Path, truth: Path, groups: Path | None = None, json_: Json = False) -> None:
    """Score a submission against a csv track,tags: macro AP with its interval, and by the frequency of tags.

    --groups is a .csv or .tsv of tracks and their groups: the interval then resamples whole groups.
    """
    from yandex_tagging.evaluate import evaluate_submission, report_text

    report = evaluate_submission(submission, truth, groups)
    print(json.dumps(report) if json_ else report_text(report))


def compare(
    a: Positional[Path], b: Positional[Path], truth: Path | None = None, groups: Path | None = None, json_: Json = False
) -> None:
    """Compare A with B by a paired bootstrap: two finished runs, or two submissions with --truth.

    Runs are resampled by the groups of their folds; submissions by track, or by --groups as in `evaluate`.
    """
    from yandex_tagging.compare import compare_runs, compare_submissions

    if truth is None and groups is not None:
        raise ConfigError("--groups: expected only with --truth; a run knows the groups of its folds")
    found = compare_runs(a, b) if truth is None else compare_submissions(a, b, truth, groups)
    print(found.render(as_json=json_))


def predict(
    track: Positional[Path], run: Runs, top: int = 10, names: Path | None = None, plot: Path | None = None
) -> None:
    """Print the likeliest tags of a track's .npy file; --plot: a .png of the frames that mattered."""
    from yandex_tagging.infer import FittedRun
    from yandex_tagging.predict import predict_file

    print(predict_file(track, [FittedRun.open(path) for path in run], top=top, names=names, plot=plot))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    verbs: dict[str, cli.Verb | Mapping[str, cli.Verb]] = {
        "presets": presets, "sample": sample, "prepare": prepare, "train": train, "infer": infer, "check": check,
        "evaluate": evaluate, "compare": compare, "predict": predict, "job": jobs.VERBS,
    }  # fmt: skip
    return cli.run("yandex-tagging", verbs, (Config, PRESETS), argv)


def _split(data: Path, split: Split) -> Literal["train", "test"]:
    from yandex_tagging import data as official

    if split != "auto":
        return split
    return "test" if "test" in official.splits_in(data) else "train"


if __name__ == "__main__":
    sys.exit(main())
