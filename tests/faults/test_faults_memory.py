"""The memory of `prepare` does not grow with the data: ten times as many items, and the peak stays where it was.

Each measurement is a Python of its own that prepares and then tells its peak (VmHWM of /proc/self/status). The
tolerance is a quarter of what the larger data have more of in bytes: who held the data, once, would take four times
that, and what rightly grows (an id, a length, a table row of some hundred bytes for each item) stays below it.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GROWTH = 10
SHARE = 0.25
MEBIBYTE = 1 << 20
# The peak is that of the heap, too: without these, glibc keeps an arena for each thread, and freed memory by chance.
ALLOCATION = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
MEASURE = """
import sys
from importlib import import_module
code = import_module(sys.argv[1] + ".cli").main(sys.argv[2:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]
print("peak", peak)
sys.exit(code)
"""


def write_notebooks(folder: Path, items: int) -> None:
    """Notebooks of about 16 KB; more than one shard of 2,000 from the beginning, since a shard is held whole."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(500)]
    (folder / "train").mkdir(parents=True)
    orders, ancestors = ["id,cell_order"], ["id,ancestor_id,parent_id"]
    for number in range(25 * items):
        name = f"{number:014x}"
        cells = {f"{i:08x}": "code" if i % 2 else "markdown" for i in range(8)}
        source = {cell: " ".join(rng.choices(words, k=256)) for cell in cells}
        ordered = dict(sorted(cells.items(), key=lambda item: item[1]))  # the code cells stand first
        content = {"cell_type": ordered, "source": {cell: source[cell] for cell in ordered}}
        (folder / "train" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        orders.append(f"{name},{' '.join(cells)}")
        ancestors.append(f"{name},{number:08x},")
    (folder / "train_orders.csv").write_text("\n".join(orders) + "\n", encoding="utf-8")
    (folder / "train_ancestors.csv").write_text("\n".join(ancestors) + "\n", encoding="utf-8")


def write_tracks(folder: Path, items: int) -> None:
    """Tracks of 80 frames of 512 channels, 160 KB."""
    rng = np.random.default_rng(0)
    rows = ["trackid\tartistid\tarchive_features_path"]
    for number in range(items):
        place = folder / "train_features" / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{number}.npy", rng.standard_normal((512, 80), dtype=np.float32))
        rows.append(f"{number}\t{number // 4}\t{number % 10}/{number}.npy")
    (folder / "train_meta.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_embeddings(folder: Path, items: int) -> None:
    """Tracks of 80 frames of 512 dimensions, 160 KB."""
    rng = np.random.default_rng(0)
    (folder / "track_embeddings").mkdir(parents=True)
    for number in range(items):
        np.save(folder / "track_embeddings" / f"{number}.npy", rng.standard_normal((80, 512), dtype=np.float32))
    rows = [f"{number},{number % 3}" for number in range(items)]
    (folder / "train.csv").write_text("\n".join(["track,tags", *rows]) + "\n", encoding="utf-8")


def peak_of(case: Any, data: Path, out: Path) -> int:
    """The peak of `prepare`, in bytes."""
    flags = () if case.module == "yandex_artists" else ("--workers", "1")  # pictures at their usual size
    command = [sys.executable, "-c", MEASURE, case.module, "prepare", "--data", str(data), "--out", str(out), *flags]
    done = subprocess.run(command, env={**os.environ, **ALLOCATION}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow  # writes and packs 100 to 200 MB for each solution
def test_ten_times_the_data_take_the_same_memory(
    case: Any, spectra_layout: Callable[..., None], launch: Callable[..., Any], tmp_path: Path
) -> None:
    def write(folder: Path, items: int) -> None:
        if case.module == "ai4code":
            write_notebooks(folder, items)
        elif case.module == "ntua_lab":
            spectra_layout(folder, train=items // 7, test=2, copies=20)
        elif case.module == "russian_art":
            argv = ("sample", "--out", str(folder), "--images", str(items))
            assert launch(module=case.module, argv=argv).code == 0
        elif case.module == "yandex_artists":
            write_tracks(folder, items)
        else:
            write_embeddings(folder, items)

    peaks, sizes = [], []
    for name, items in (("small", 100), ("large", 100 * GROWTH)):
        write(tmp_path / name, items)
        peaks.append(peak_of(case, tmp_path / name, tmp_path / f"{name}-out"))
        # Pictures and gzipped spectra are small before they are packed, notebooks after.
        sizes.append(max(size_of(tmp_path / name), size_of(tmp_path / f"{name}-out")))
    more = sizes[1] - sizes[0]
    assert more > 80 * MEBIBYTE, "too little data to tell"
    growth = (peaks[1] - peaks[0]) / MEBIBYTE
    print(f"{case.program}: {more / MEBIBYTE:.0f} MiB more data, peak {peaks[0] / MEBIBYTE:.0f} MiB + {growth:.0f} MiB")
    assert growth < SHARE * more / MEBIBYTE
