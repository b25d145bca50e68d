"""Large JPEGs to small squares: `russian_art.data.prepare` beside plain Pillow, and epochs with and without the result.

    python benchmarks/bench_images.py

takes about a minute and prints a Markdown table. The pictures are generated: JPEGs of 12 megapixels. Both sides end in
256 x 256 pixels; before anything counts, the two must agree within `MEAN_TOLERANCE` on average over each picture (the
first lets the JPEG decoder scale by whole factors). `prepare` gets one process, as Pillow does: what more workers add
depends on the cores that are free. Its times include all that it does: reading tables, hashing content, finding
near-duplicates, writing with fsync. The two are measured in turn, so that a slow moment of the machine meets both; the
ratio is the median, its spread the range over the median.
"""

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kit_io.tables import write_csv
from russian_art.data import LABEL_COLUMNS, SUBMISSION_COLUMNS, Art, load, prepare

PICTURES = 24
DISTINCT = 12  # painting takes long; the others are the same with another byte behind their end
WORKERS = 1
WIDTH, HEIGHT = 4000, 3000
SIZE = 256
REPEATS = 3
BATCH = 8
MEAN_TOLERANCE = 1.0  # of 255, for every picture
REQUIRED_PREPARE = 4.0
REQUIRED_EPOCH = 10.0
PEAK = """
import resource, sys
from pathlib import Path
from russian_art.data import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]), size=int(sys.argv[3]), workers=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def run() -> list[dict[str, Any]]:
    """One row a case: `name`, `ours_seconds`, `peer`, `peer_seconds`, `ratio`, `spread`, `required_ratio`."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = root / "data"
        _write_data(data)
        prepared, decoded = root / "out 0", _plain(data)
        prepare(data, prepared, size=SIZE, workers=WORKERS)
        art = load(prepared)
        difference = np.abs(art.pixels.astype(np.int16) - decoded).mean(axis=(1, 2, 3)).max()
        assert difference <= MEAN_TOLERANCE, f"the two differ by {difference:.2f} on average"
        outs = iter([root / f"out {number}" for number in range(1, REPEATS + 1)])
        cases = [
            _row(
                f"{PICTURES} JPEGs of 12 MP to {SIZE} x {SIZE}, one process (mean difference {difference:.2f})",
                lambda: prepare(data, next(outs), size=SIZE, workers=WORKERS),
                "Pillow: open, convert, resize",
                lambda: _plain(data),
                REQUIRED_PREPARE,
            ),
            _row(
                f"a shuffled epoch of {PICTURES} pictures, batches of {BATCH}",
                lambda: _epoch(art),
                "Pillow: open, convert, resize",
                lambda: _plain(data),
                REQUIRED_EPOCH,
            ),
        ]
        command = [sys.executable, "-c", PEAK, str(data), str(root / "out peak"), str(SIZE)]
        peak = subprocess.run(command, check=True, capture_output=True, text=True)
        cases[0]["memory_mb"] = float(peak.stdout)
    return cases


def _row(
    name: str, ours: Callable[[], object], peer: str, plain: Callable[[], object], required: float
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


def _plain(data: Path) -> npt.NDArray[np.uint8]:
    """What everybody writes, one file after the other, in the order of train.csv."""
    pictures = []
    for number in range(PICTURES):
        with Image.open(data / "train" / _name(number)) as image:
            small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        pictures.append(np.asarray(small))
    return np.stack(pictures)


def _epoch(art: Art) -> float:
    """Every picture once, in batches that are copied out of the memory map."""
    order = np.random.default_rng(0).permutation(len(art))
    return sum(float(art.pixels[order[i : i + BATCH]][:, 0, 0, 0].sum()) for i in range(0, len(order), BATCH))


def _name(number: int) -> str:
    return f"{number:032x}.jpg"


def _write_data(data: Path) -> None:
    """The official layout: two labels, pictures with smooth parts, edges and grain."""
    (data / "train").mkdir(parents=True)
    for number in range(DISTINCT):
        rng = np.random.default_rng(number)
        picture = Image.new("RGB", (WIDTH, HEIGHT))
        for cells in (8, 40, 300):
            coarse = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
            layer = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            picture = Image.blend(picture, layer, 0.4)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        for copy in range(number, PICTURES, DISTINCT):
            (data / "train" / _name(copy)).write_bytes(stream.getvalue() + bytes([copy]))
    rows = [(_name(number), str(number % 2)) for number in range(PICTURES)]
    write_csv(data / "train.csv", SUBMISSION_COLUMNS, rows, delimiter="\t")
    write_csv(
        data / "label_to_id.csv", LABEL_COLUMNS, [("Живопись/Пейзаж", "0"), ("Графика/Пейзаж", "1")], delimiter="\t"
    )


def main() -> None:
    print("| what | ours, s | peer | peer, s | ratio | spread | required | peak memory |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for row in run():
        memory = f"{row['memory_mb']:.0f} MiB" if "memory_mb" in row else ""
        print(
            f"| {row['name']} | {row['ours_seconds']:.3g} | {row['peer']} | {row['peer_seconds']:.3g} "
            f"| {row['ratio']:.1f} | {row['spread']:.0%} | ≥ {row['required_ratio']:g} | {memory} |"
        )


if __name__ == "__main__":
    main()
