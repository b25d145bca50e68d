"""The command line `yandex-artists`: every verb in a few lines, the work is elsewhere."""

import json
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
from yandex_artists import data as official
from yandex_artists import sample as samples
from yandex_artists.config import Config

PRESETS = Path(__file__).resolve().parents[2] / "presets"
Runs = UseAppendAction[tuple[Path, ...]]
Json = Annotated[bool, arg(name="json")]
# torch and lightgbm load slowly; the verbs that need them import them, so that `--help` answers at once.


def presets(name: Positional[str | None] = None) -> None:
    """List the presets: what each is, its score and on which data, its time; with a name, its whole header."""
    print(describe_presets(PRESETS, name))


def sample(out: Path, artists: int = 90, seed: int = 0, channels: int = samples.CHANNELS) -> None:
    """Write a generated sample in the official layout, with hidden answers for its test part."""
    written = samples.write_sample(out, artists, seed, channels)
    print(f"generated sample (its scores say nothing about the competition): {written}")


def prepare(
    data: Path,
    out: Path,
    dtype: Literal["float16", "float32", "bfloat16"] = "float16",
    max_frames: int = official.MAX_FRAMES,
) -> None:
    """Check the official data (folder, zip or tar.gz) and pack it once; goes on where it was stopped.

    --max-frames is the longest track that is accepted; the official ones have 81 frames.
    """
    print(official.prepare(data, out, dtype=dtype, max_frames=max_frames))


def clips(table: Path, features: UseAppendAction[tuple[Path, ...]], out: Path, distinct: str | None = None) -> None:
    """Write the official layout from a csv of clips (columns id, artist) and folders of features, ID.*.npy[.gz].

    --distinct COLUMN keeps one clip for each value of that column, such as the track that clips were cut from.
    """
    from yandex_artists.clips import write_layout

    print(write_layout(table, features, out, distinct))


@submittable
@in_ranks
def train(
    preset: str,
    config: Config,
    data: Path,
    run: Path,
    resume: bool = False,
) -> None:
    """Fit a preset on the official or prepared data and write a run folder."""
    from yandex_artists.train import summary_text
    from yandex_artists.train import train as fit
    from yandex_artists.train_baseline import train_baseline

    tracks = official.load(data, "train")
    hashes = {"train": tracks.fingerprint}
    distractors = None
    if config.data.distractors is not None:
        distractors = official.load(config.data.distractors, official.splits_in(config.data.distractors)[0])
        hashes["distractors"] = distractors.fingerprint
    networks = config.method == "networks"
    with open_run(
        run, config=config, preset=preset, data_hashes=hashes, seed=config.seed, resume=resume, parallel=networks
    ) as folder:
        if folder.done:
            say(f"{run}: this run is finished already")
            summary = folder.summary
        else:
            summary = (fit if networks else train_baseline)(config, tracks, folder, distractors)
    print(summary_text(preset, summary))


def infer(run: Runs, data: Path, out: Path, split: Literal["auto", "train", "test"] = "auto") -> None:
    """Write the submission for the tracks of a split (auto: test where there is one); several --run: an ensemble."""
    from yandex_artists.runs import neighbours

    tracks = official.load(data, _split(data, split))
    found = neighbours(run, tracks, _device())
    official.write_submission(out, tracks.ids, official.as_ids(tracks, found))
    say(f"{out}: {len(tracks)} tracks of the {tracks.split} split")


def check(submission: Path, data: Path, split: Literal["auto", "train", "test"] = "auto") -> None:
    """Validate the submission format: what the judge would refuse is an error, what costs score a warning."""
    ids = official.track_ids(data, _split(data, split))
    rows = official.check_submission(submission, ids)
    for warning in [*official.line_warnings(submission, ids), *official.submission_warnings(rows)]:
        say(f"warning: {submission}: {warning}")
    print(f"{submission}: valid, {len(ids)} tracks")


def evaluate(submission: Path, truth: Path, json_: Json = False) -> None:
    """Score a submission: the competition's nDCG@100 with its interval; --truth: a table with trackid and artistid."""
    from yandex_artists import evaluate as evaluation

    report = evaluation.evaluate_submission(submission, truth)
    print(json.dumps(report) if json_ else evaluation.report_text(report))


def compare(a: Positional[Path], b: Positional[Path], truth: Path | None = None, json_: Json = False) -> None:
    """Compare two runs, or two submissions and a --truth: their nDCG@100, by a paired bootstrap over artists."""
    from yandex_artists.compare import compare as compare_queries

    print(compare_queries(a, b, truth).render(as_json=json_))


def predict(
    track: Positional[Path],
    run: Path,
    gallery: Path,
    top: int = 10,
    split: Literal["auto", "train", "test"] = "auto",
) -> None:
    """Print the tracks of a gallery that are nearest to one file of features [channels, frames]."""
    from yandex_artists.predict import nearest, nearest_text
    from yandex_artists.runs import open_encoder

    tracks = official.load(gallery, _split(gallery, split))
    print(nearest_text(nearest(track, open_encoder(run, _device()), tracks, top), tracks))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    verbs: dict[str, cli.Verb | Mapping[str, cli.Verb]] = {
        "presets": presets, "sample": sample, "clips": clips, "prepare": prepare, "train": train, "infer": infer,
        "check": check, "evaluate": evaluate, "compare": compare, "predict": predict, "job": jobs.VERBS,
    }  # fmt: skip
    return cli.run("yandex-artists", verbs, (Config, PRESETS), argv)


def _split(data: Path, split: Literal["auto", "train", "test"]) -> Literal["train", "test"]:
    if split != "auto":
        return split
    return "test" if "test" in official.splits_in(data) else "train"


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
