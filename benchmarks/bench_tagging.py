"""Music tagging where its time goes: reading, padding, the metric, submissions, packing.

    python benchmarks/bench_tagging.py

takes about two minutes and prints a Markdown table. The tracks are generated with the published lengths, in the
official form (768 dimensions, float32 files). Before anything counts, both sides must give the same: tracks value by
value, answers of a network whatever the batches, scores to 1e-12, submissions bit by bit. The two are measured in
turn, so that a slow moment of the machine meets both; the ratio is the median, its spread the range over the median.
Files come from the page cache on both sides.
"""

import csv
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score

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

TRACKS, BATCH = 750, 64
TAGS, FOLD_ROWS, TEST_ROWS = 256, 5_000, 4_000
REPEATS = 3
ROUNDING = 0.004  # of float16, at the size of these values
REQUIRED_READING, REQUIRED_BUCKETS, REQUIRED_METRIC = 5.0, 1.8, 2.5
REQUIRED_WRITING, REQUIRED_READING_BACK = 8.0, 5.0
TRACKS_A_SECOND = 25.0  # the limit for packing: the official 76,714 in less than an hour
PEAK = """
import re, sys
from pathlib import Path
from yandex_tagging.data import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]))
# Not the peak of getrusage, which a child takes over from the process that began it.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
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
        rows.append(_row(name, lambda: _drain(ours()), "np.load, random batches", lambda: _drain(peer()), required))
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
    return _row(name, lambda: epoch(bucketed), "the same in random batches", lambda: epoch(shuffled), REQUIRED_BUCKETS)


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
    return _row(f"macro AP, {FOLD_ROWS:,} x {TAGS}", ours, "scikit-learn", peer, REQUIRED_METRIC)


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
        _row(
            f"a submission written, {shape}",
            lambda: write_submission(ours, ids, values),
            "join of str(float32)",
            write_plain,
            REQUIRED_WRITING,
        ),
        _row(
            f"a submission read, {shape}",
            lambda: read_submission(ours),
            "csv, split, float",
            read_plain,
            REQUIRED_READING_BACK,
        ),
    ]


def _packing(root: Path) -> dict[str, Any]:
    """From track_embeddings.tar.gz to a pack, all checks included, beside a limit; leaves `out 0`."""
    seconds = np.array([_seconds(lambda i=i: prepare(root / "archive", root / f"out {i}")) for i in range(REPEATS)])  # type: ignore[misc]  # a default binds the loop's value
    command = [sys.executable, "-c", PEAK, str(root / "archive"), str(root / "out peak")]
    peak = subprocess.run(command, check=True, capture_output=True, text=True)
    limit, median = TRACKS / TRACKS_A_SECOND, float(np.median(seconds))
    megabytes = load(root / "out 0").pack.offsets[-1] * 768 * 4 / 1e6
    return {
        "name": f"prepare {TRACKS} tracks ({megabytes:.0f} MB) from a tar.gz: {TRACKS / median:.0f} a second",
        "ours_seconds": median,
        "peer": "",
        "peer_seconds": None,
        "ratio": limit / median,
        "spread": float(np.ptp(seconds)) / median,
        "required_ratio": 1.0,
        "memory_mb": float(peak.stdout),
    }


def _row(
    name: str, ours: Callable[[], object], peer: str, plain: Callable[[], object], required: float | None
) -> dict[str, Any]:
    seconds = np.array([(_seconds(ours), _seconds(plain)) for _ in range(REPEATS)])
    ratios = seconds[:, 1] / seconds[:, 0]
    ratio = float(np.median(ratios))
    ours_seconds, peer_seconds = np.median(seconds, axis=0)
    return {
        "name": name,
        "ours_seconds": float(ours_seconds),
        "peer": peer,
        "peer_seconds": float(peer_seconds),
        "ratio": ratio,
        "spread": float(np.ptp(ratios)) / ratio,
        "required_ratio": required,
    }


def _seconds(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def main() -> None:
    print("| what | ours, s | peer | peer, s | ratio | spread | required | peak memory |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for row in run():
        memory = f"{row['memory_mb']:.0f} MiB" if "memory_mb" in row else ""
        required = "" if row["required_ratio"] is None else f"≥ {row['required_ratio']:g}"
        peer_seconds = "" if row["peer_seconds"] is None else f"{row['peer_seconds']:.3g}"
        print(
            f"| {row['name']} | {row['ours_seconds']:.3g} | {row['peer'] or '(a limit)'} | {peer_seconds} "
            f"| {row['ratio']:.1f} | {row['spread']:.0%} | {required} | {memory} |"
        )


if __name__ == "__main__":
    main()
