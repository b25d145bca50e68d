"""Generated tracks in the official layout, so that everything can be tried without the official ones.

    write_sample(Path("sample"))                         # a few seconds

A frame is what its artist, its genre and its track add up to, and noise. What tells artists apart is small beside what
differs from track to track, and lies in other directions: a plain mean finds some of it, whitening more. How loud the
noise of each channel is belongs to the artist too, which no mean of frames can see. Scores on it say that the program
works, nothing else.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kit_core.atomic import atomic_dir
from kit_core.errors import ConfigError
from kit_io.tables import write_csv
from yandex_artists.data import META_COLUMNS

CHANNELS = 48  # the official ones have 512
FEWEST_FRAMES, MOST_FRAMES = 61, 81  # as the official ones; nearly all have the most
TEST_SHARE = 3  # every third artist is in the test
TRACKS = 10  # of most artists, and never more
GENRES = 8
LOUD = 8  # directions in which tracks of one artist differ most
FEWEST_ARTISTS = 45  # then the test has more than the 101 tracks that a submission needs


@dataclass(frozen=True)
class Sample:
    """What was written: tracks and artists of both parts."""

    out: Path
    train_tracks: int
    train_artists: int
    test_tracks: int
    test_artists: int


def write_sample(out: Path, artists: int = 90, seed: int = 0, channels: int = CHANNELS) -> Sample:
    """Writes tracks of `artists` artists, a third of them as test, in the official layout into the new folder `out`.

    Beside the official files lies test_truth.tsv, the answers that a competition would hide. The same seed gives the
    same files.

    Raises:
        ConfigError: `out` exists and is not empty, or there are too few artists or channels.
    """
    if artists < FEWEST_ARTISTS:
        raise ConfigError(f"artists: found {artists}, expected at least {FEWEST_ARTISTS}")
    if channels < 2 * LOUD:
        raise ConfigError(f"channels: found {channels}, expected at least {2 * LOUD}")
    world = _World.of(channels, seed)
    counts = [_number_of_tracks(number, artists) for number in range(artists)]
    is_test = [number % TEST_SHARE == TEST_SHARE - 1 for number in range(artists)]
    rows: dict[str, list[tuple[str, ...]]] = {"train": [], "test": [], "truth": []}
    track = 0
    with atomic_dir(out) as folder:
        for split in ("train", "test"):
            # Official artists are numbered by their first track, in train and then in test.
            for artist in [number for number in range(artists) if is_test[number] == (split == "test")]:
                rng = np.random.default_rng([seed, artist])
                voice = world.artist(rng)
                loudness = np.exp(0.25 * rng.standard_normal(channels))
                for _ in range(counts[artist]):
                    track += 1
                    # The first part is the fold of a training artist. In the test it says nothing.
                    first = (artist + 1) % 10 if split == "train" else int(rng.integers(10))
                    path = f"{first}/{track % 10}/{track // 10 % 10}/{track}.npy"
                    file = folder / f"{split}_features" / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    np.save(file, world.track(voice, loudness, rng))
                    if split == "train":
                        rows["train"].append((str(track), str(artist + 1), path))
                    else:
                        rows["test"].append((str(track), path))
                        rows["truth"].append((str(track), str(artist + 1)))
        write_csv(folder / "train_meta.tsv", META_COLUMNS["train"], rows["train"], delimiter="\t")
        write_csv(folder / "test_meta.tsv", META_COLUMNS["test"], rows["test"], delimiter="\t")
        write_csv(folder / "test_truth.tsv", ("trackid", "artistid"), rows["truth"], delimiter="\t")
    of_test = sum(is_test)
    return Sample(Path(out), len(rows["train"]), artists - of_test, len(rows["test"]), of_test)


def _number_of_tracks(number: int, artists: int) -> int:
    """Most artists have ten tracks, the later ones fewer; only training artists may have a single one."""
    if number < 0.7 * artists:
        return TRACKS
    fewer = 2 + number % 7
    return 1 if number % TEST_SHARE == 0 and number >= 0.9 * artists else fewer


@dataclass(frozen=True, eq=False)
class _World:
    """What all tracks share: the genres, and the directions in which tracks are loud."""

    mean: npt.NDArray[np.float64]
    genres: npt.NDArray[np.float64]
    loud: npt.NDArray[np.float64]

    @staticmethod
    def of(channels: int, seed: int) -> "_World":
        rng = np.random.default_rng([seed, 1 << 20])
        loud = np.linalg.qr(rng.standard_normal((channels, LOUD)))[0].T
        return _World(rng.standard_normal(channels), 0.25 * rng.standard_normal((GENRES, channels)), loud)

    def artist(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        own = 0.15 * rng.standard_normal(len(self.mean))
        return self.mean + self.genres[rng.integers(len(self.genres))] + own

    def track(
        self, voice: npt.NDArray[np.float64], loudness: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        """Frames float32[channels, frames], channels first."""
        frames = MOST_FRAMES if rng.random() < 0.9 else int(rng.integers(FEWEST_FRAMES, MOST_FRAMES + 1))
        shift = voice + 0.25 * rng.standard_normal(len(voice)) + 2.0 * rng.standard_normal(LOUD) @ self.loud
        noise = loudness[:, None] * rng.standard_normal((len(voice), frames))
        return np.asarray(shift[:, None] + noise, dtype=np.float32)
