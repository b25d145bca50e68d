"""Music tagging where its time goes: reading, padding, the metric, submissions, packing.

    python benchmarks/bench_tagging.py

takes about two minutes and prints a Markdown table. The tracks are generated with the published lengths, in the
official form (768 dimensions, float32 files). Before anything counts, both sides must give the same: tracks value by
value, answers of a network whatever the batches, scores to 1e-12, submissions bit by bit. The two are measured in
turn. Files come from the page cache on both sides.
"""

import csv
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score
from timing import in_own_process, in_turn, seconds

from kit_metrics.multilabel import average_precision_per_tag
from kit_nn.pooling import lengths_to_padding_mask
from kit_train.batches import bucketed_batches, padding_efficiency, random_batches
from yandex_tagging.config import NetworkConfig
from yandex_tagging.data import Tracks, load, prepare
from yandex_tagging.model import TagNet
from yandex_tagging.sample import write_sample
from yandex_tagging.submission import read_submission, write_submission

Batches = Sequence[npt.NDArray[np.int64]]
Batch = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]

TRACKS, BATCH = 3_000, 64
TAGS, FOLD_ROWS, TEST_ROWS = 256, 5_000, 4_000
REPEATS = 3
READINGS = 15  # of a tenth of a second each
ROUNDING = 0.004  # of float16, at the size of these values
REQUIRED_READING, REQUIRED_BUCKETS, REQUIRED_METRIC = 5.0, 1.8, 2.5
REQUIRED_WRITING, REQUIRED_READING_BACK = 8.0, 5.0
TRACKS_A_SECOND = 25.0  # the limit for packing: the official 76,714 in less than an hour
PEAK = """
import sys
from pathlib import Path
from timing import own_peak_mb
from yandex_tagging.data import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]))
print(own_peak_mb())
"""


def run() -> list[dict[str, Any]]:
    """One row a case: `name`, `ours_seconds`, `peer`, `peer_seconds`, `ratio`, `spread`, `required_ratio`."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_sample(root / "archive", TRACKS, form="official", archive=True)
        rows = [_packing(root)]
        tracks = load(root / "out 0")
        return [*_reading(root, tracks), _buckets(tracks), _metric(), *_submissions(root), *rows]


def _reading(root: Path, half: Tracks) -> list[dict[str, Any]]:
    """An epoch of padded batches: from a pack in length buckets, as training reads it, and from one file a track."""
    prepare(root / "archive", root / "whole", dtype="float32")
    files = root / "files"
    files.mkdir()
    with tarfile.open(root / "archive" / "track_embeddings.tar.gz") as archive:
        archive.extractall(files, filter="data")
    paths = np.array([files / f"{track}.npy" for track in half.ids])
    shuffled = random_batches(len(half), BATCH, seed=0)
    bucketed = bucketed_batches(half.lengths, BATCH, seed=0)
    assert sorted(np.concatenate(bucketed).tolist()) == list(range(len(half)))

    def peer() -> Iterable[Batch]:
        for batch in shuffled:
            arrays = [np.load(path) for path in paths[batch]]
            lengths = np.array([len(array) for array in arrays])
            values = np.zeros((len(arrays), lengths.max(), arrays[0].shape[1]), np.float32)
            for place, array in enumerate(arrays):
                values[place, : len(array)] = array
            yield values, lengths

    rows = []
    # As float32 both sides give the same bits; as float16, the default, ours moves half the bytes and converts them.
    for tracks, limit, required in ((load(root / "whole"), 0.0, REQUIRED_READING), (half, ROUNDING, None)):

        def ours(tracks: Tracks = tracks) -> Iterable[Batch]:
            return (tracks.pack.gather(tracks.rows[batch]) for batch in bucketed)

        for batch, (values, lengths) in zip(bucketed, ours(), strict=True):
            for track, array, length in zip(batch, values, lengths, strict=True):
                stored = np.load(paths[track])
                assert len(stored) == length
                assert not array[length:].any()
                assert np.abs(array[:length] - stored).max() <= limit
        name = f"an epoch of {len(tracks)} tracks read, {tracks.pack.dtype} pack in length buckets"
        peer_name = "np.load, random batches"
        rows.append(
            in_turn(
                name, lambda: _drain(ours()), peer_name, lambda: _drain(peer()), required=required, repeats=READINGS
            )
        )
    return rows


def _drain(batches: Iterable[Batch]) -> float:
    return sum(float(values[0, 0, 0]) for values, _ in batches)


def _buckets(tracks: Tracks) -> dict[str, Any]:
    """An epoch of training steps, the same tracks in batches of near-equal length and in random ones."""
    torch.manual_seed(0)
    net = TagNet(
        NetworkConfig(d=64, heads=4, ff=128, layers=2, dropout=0.0, head_dropout=0.0), 768, tracks.n_tags, None
    )
    bucketed = bucketed_batches(tracks.lengths, BATCH, seed=0)
    shuffled = random_batches(len(tracks), BATCH, seed=0)
    assert tracks.tags is not None
    targets = torch.from_numpy(tracks.tags).float()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

    def batch_logits(batch: npt.NDArray[np.int64]) -> torch.Tensor:
        values, lengths = tracks.pack.gather(tracks.rows[batch])
        logits: torch.Tensor = net(
            torch.from_numpy(values), lengths_to_padding_mask(torch.from_numpy(lengths), values.shape[1])
        )
        return logits

    answers = []
    net.eval()
    with torch.no_grad():
        for batches in (bucketed, shuffled):
            found = torch.zeros(len(tracks), tracks.n_tags)
            for batch in batches:
                found[batch] = batch_logits(batch)
            answers.append(found)
    torch.testing.assert_close(answers[0], answers[1], atol=1e-4, rtol=1e-4)
    net.train()

    def epoch(batches: Batches) -> None:
        for batch in batches:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(batch_logits(batch), targets[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotations
            optimizer.step()

    shares = [padding_efficiency(tracks.lengths, batches) for batches in (bucketed, shuffled)]
    frames = int(tracks.lengths.sum())
    name = f"an epoch of training in buckets, {frames:,} frames: {shares[0]:.0%} of all real against {shares[1]:.0%}"
    return in_turn(
        name,
        lambda: epoch(bucketed),
        "the same in random batches",
        lambda: epoch(shuffled),
        required=REQUIRED_BUCKETS,
        repeats=REPEATS,
    )


def _metric() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    prevalence = np.maximum(0.004, 0.4 / np.arange(1, TAGS + 1))
    truth = rng.random((FOLD_ROWS, TAGS)) < prevalence
    scores = (rng.standard_normal((FOLD_ROWS, TAGS)) + truth).astype(np.float32)

    def ours() -> Any:
        return average_precision_per_tag(truth, scores)

    def peer() -> Any:
        return average_precision_score(truth, scores, average=None)

    assert np.abs(ours() - peer()).max() < 1e-12
    return in_turn(
        f"macro AP, {FOLD_ROWS:,} x {TAGS}", ours, "scikit-learn", peer, required=REQUIRED_METRIC, repeats=REPEATS
    )


def _submissions(root: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    values = (rng.random((TEST_ROWS, TAGS)) ** 6).astype(np.float32)
    ids = rng.permutation(TEST_ROWS).tolist()
    ours, peer = root / "ours.csv", root / "peer.csv"

    def write_plain() -> None:
        with peer.open("w") as file:
            file.write("track,prediction\n")
            for track, row in zip(ids, values, strict=True):
                file.write(f'{track},"{",".join(str(value) for value in row)}"\n')

    def read_plain() -> tuple[list[int], npt.NDArray[np.float32]]:
        with ours.open() as file:
            rows = list(csv.reader(file))[1:]
        table = np.array([[float(text) for text in row[1].split(",")] for row in rows], dtype=np.float32)
        return [int(row[0]) for row in rows], table

    write_submission(ours, ids, values)
    write_plain()
    for found, table in (read_submission(ours), read_submission(peer), read_plain()):
        assert found == ids
        assert (table.view(np.uint32) == values.view(np.uint32)).all()
    shape = f"{TEST_ROWS:,} x {TAGS}"
    return [
        in_turn(
            f"a submission written, {shape}",
            lambda: write_submission(ours, ids, values),
            "join of str(float32)",
            write_plain,
            required=REQUIRED_WRITING,
            repeats=REPEATS,
        ),
        in_turn(
            f"a submission read, {shape}",
            lambda: read_submission(ours),
            "csv, split, float",
            read_plain,
            required=REQUIRED_READING_BACK,
            repeats=REPEATS,
        ),
    ]


def _packing(root: Path) -> dict[str, Any]:
    """From track_embeddings.tar.gz to a pack, all checks included, beside a limit; leaves `out 0`."""
    outs = [root / f"out {number}" for number in range(REPEATS)]
    times = np.array([seconds(partial(prepare, root / "archive", out)) for out in outs])
    limit, median = TRACKS / TRACKS_A_SECOND, float(np.median(times))
    megabytes = load(root / "out 0").pack.offsets[-1] * 768 * 4 / 1e6
    return {
        "name": f"prepare {TRACKS} tracks ({megabytes:.0f} MB) from a tar.gz: {TRACKS / median:.0f} a second",
        "ours_seconds": median,
        "peer": "",
        "peer_seconds": None,
        "ratio": limit / median,
        "spread": float(np.subtract(*np.quantile(times, [0.75, 0.25]))) / median,
        "required_ratio": 1.0,
        "memory_mb": in_own_process(PEAK, root / "archive", root / "out peak"),
    }


if __name__ == "__main__":
    from run import render_rows

    print(render_rows(run()))
