"""A small official data set of made-up spectra, for tests that need no sound."""

import gzip
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kit_audio import ensure_compiled
from ntua_lab.cli import main

RAW = ("Rock", "Psych-Rock", "Classical", "Electronic", "Indie-Rock")  # Rock twice, and one that is dropped


def spectra(rng: np.random.Generator, kind: int, frames: int) -> np.ndarray:
    """Spectra float32[140, frames] whose loud bands tell the kind, in the lab's ranges."""
    mel = -70.0 + 6.0 * rng.standard_normal((128, frames))
    mel[kind * 24 : kind * 24 + 20] += 45.0
    mel -= mel.max()
    chroma = rng.random((12, frames))
    chroma[kind] += 1.0
    return np.concatenate([mel.clip(-80.0), chroma / chroma.max(axis=0)]).astype(np.float32)


def gzipped(array: np.ndarray) -> bytes:
    """The bytes of a .npy.gz file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return gzip.compress(buffer.getvalue(), 1)


def write_official(root: Path, n_train: int = 30, n_test: int = 10, n_emotion: int = 16) -> Path:
    """Write the four folders with the lab's spellings; emotion values follow the loudness of a band."""
    rng = np.random.default_rng(0)
    truth = ["Id,valence,energy,danceability"]
    for suffix in ("", "_beat"):
        draw = np.random.default_rng(1)
        for split, count, first in (("train", n_train, 1000), ("test", n_test, 5000)):
            folder = root / f"fma_genre_spectrograms{suffix}" / split
            folder.mkdir(parents=True)
            rows = ["Id\tGenre"]
            for number in range(count):
                kind = number % len(RAW)
                frames = int(draw.integers(6, 12)) if suffix else int(draw.integers(50, 70))
                array = spectra(rng, kind, frames)
                if number % 2:
                    np.save(folder / f"{first + number}.fused.full.npy", array)
                else:
                    (folder / f"{first + number}.fused.full.npy.gz").write_bytes(gzipped(array))
                spelling = "beatsync.fused" if suffix else "full.fused" if split == "test" else "fused.full"
                rows.append(f"{first + number}.{spelling}.npy.gz\t{RAW[kind]}")
            (folder.parent / f"{split}_labels.txt").write_text("\n".join(rows) + "\n")
        for split, count, first in (("train", n_emotion, 100_000_000), ("test", 6, 200_000_000)):
            folder = root / f"multitask_dataset{suffix}" / split
            folder.mkdir(parents=True)
            rows = ["Id,valence,energy,danceability"]
            for number in range(count):
                kind = number % 4
                frames = int(draw.integers(6, 12)) if suffix else int(draw.integers(50, 70))
                (folder / f"{first + number}.fused.full.npy.gz").write_bytes(gzipped(spectra(rng, kind, frames)))
                rows.append(f"{first + number},{0.1 + 0.2 * kind:.3f},{0.9 - 0.2 * kind:.3f},{0.3 + 0.1 * kind:.3f}")
            if split == "train":
                (folder.parent / "train_labels.txt").write_text("\n".join(rows) + "\n")
            else:
                truth = rows
    (root / "truth.txt").write_text("\n".join(truth) + "\n")
    return root


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A fresh official folder, to be damaged."""
    return write_official(tmp_path / "official")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official folder that is only read."""
    return write_official(tmp_path_factory.mktemp("ntua") / "official")


@pytest.fixture(scope="session")
def packed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data, prepared."""
    out = tmp_path_factory.mktemp("packed") / "data"
    assert main(["prepare", "--data", str(whole), "--out", str(out)]) == 0
    return out


def names_of(first: int, count: int) -> list[tuple[str, str, str]]:
    """Id, artist and track of clips: tracks of one to three clips, artists of one to three tracks, some unknown."""
    rng = np.random.default_rng(first)
    rows: list[tuple[str, str]] = []
    track = artist = 0
    while len(rows) < count:
        artist += 1
        name = f"artist {first}-{artist}" if artist % 4 else ""
        for _ in range(rng.integers(1, 4)):
            track += 1
            rows += [(name, f"track {first}-{track}")] * int(rng.integers(1, 4))
    return [(str(first + place), name, track_name) for place, (name, track_name) in enumerate(rows[:count])]


@pytest.fixture(scope="session")
def named() -> dict[str, tuple[str, str]]:
    """Artist ("": unknown) and track of the clips with an answer, by id."""
    rows = [row for first, count in ((1000, 30), (5000, 10), (100_000_000, 16)) for row in names_of(first, count)]
    return {id_: (artist, track) for id_, artist, track in rows}


@pytest.fixture(scope="session")
def grouped(whole: Path, named: dict[str, tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official folder, with a clips.csv that names tracks and most artists."""
    out = tmp_path_factory.mktemp("grouped") / "official"
    shutil.copytree(whole, out)
    rows = [(id_, *names) for id_, names in named.items()]
    (out / "clips.csv").write_text("\n".join(["id,artist,track", *map(",".join, rows)]) + "\n")
    return out


@pytest.fixture(scope="session")
def make_npy_gz() -> Callable[[np.ndarray], bytes]:
    """Arrays to the bytes of .npy.gz files."""
    return gzipped


@pytest.fixture(scope="session", autouse=True)
def compiled_librosa() -> None:
    """Before any test calls librosa itself: two test processes must not fill numba's cache at once."""
    ensure_compiled()
