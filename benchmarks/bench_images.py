"""Large JPEGs to small squares: `russian_art.data.prepare` beside plain Pillow, and epochs with and without the result.

    python benchmarks/bench_images.py

takes about a minute and prints a Markdown table. The pictures are generated: JPEGs of 12 megapixels. Both sides end in
256 x 256 pixels; before anything counts, the two must agree within `MEAN_TOLERANCE` on average over each picture (the
first lets the JPEG decoder scale by whole factors). `prepare` gets one process, as Pillow does: what more workers add
depends on the cores that are free. Its times include all that it does: reading tables, hashing content, finding
near-duplicates, writing with fsync. The two are measured in turn.
"""

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from timing import in_own_process, in_turn

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
import sys
from pathlib import Path
from russian_art.data import prepare
from timing import own_peak_mb
prepare(Path(sys.argv[1]), Path(sys.argv[2]), size=int(sys.argv[3]), workers=1)
print(own_peak_mb())
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
            in_turn(
                f"{PICTURES} JPEGs of 12 MP to {SIZE} x {SIZE}, one process (mean difference {difference:.2f})",
                lambda: prepare(data, next(outs), size=SIZE, workers=WORKERS),
                "Pillow: open, convert, resize",
                lambda: _plain(data),
                required=REQUIRED_PREPARE,
                repeats=REPEATS,
            ),
            in_turn(
                f"a shuffled epoch of {PICTURES} pictures, batches of {BATCH}",
                lambda: _epoch(art),
                "Pillow: open, convert, resize",
                lambda: _plain(data),
                required=REQUIRED_EPOCH,
                repeats=REPEATS,
            ),
        ]
        cases[0]["memory_mb"] = in_own_process(PEAK, data, root / "out peak", SIZE)
    return cases


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


if __name__ == "__main__":
    from run import render_rows

    print(render_rows(run()))
