"""Generated data in the official layout, made so that the way a model reads the frames decides what it can tell.

    write_sample(Path("sample"), tracks=600)             # a few seconds

Tags form a tree of two levels under 11 parents, as the official ones do; a child nearly always comes with its parent.
A parent lies weakly in many frames, so that their mean knows something of it. A child is a pair of neighbouring frames
that comes now and then: the mean over all frames drowns it, a maximum or attention finds it. Two siblings share the two
frames and differ in their order, which only a model that sees neighbours can tell. Each track has an offset of its own.

Lengths, numbers of tags, their frequencies and the scales of the dimensions follow what is published of the official
data. The rest is invented: scores on it say that the program works, nothing else.
"""

import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kit_core.atomic import atomic_dir
from kit_core.console import progress
from kit_core.errors import ConfigError
from kit_io.tables import write_csv
from yandex_tagging.data import ARCHIVES, COLUMNS, EMBEDDINGS
from yandex_tagging.submission import SUBMISSION_COLUMNS

Form = Literal["small", "official"]

FEWEST_TRACKS = 60  # fewer leave some tags without a track in training
OFFICIAL_TRACKS = 76_714
OFFICIAL_FROM = 5_000  # tracks; fewer are not enough for each of 256 tags
FORMS = {"small": (32, 40, 30.0), "official": (768, 256, 53.0)}  # dimensions, tags, median of frames

PARENTS = (0.39, 0.36, 0.14, 0.12, 0.10, 0.09, 0.07, 0.06, 0.05, 0.05, 0.04)  # how often they are drawn, relatively
CHILDREN = (70, 65, 19, 13, 10, 8, 6, 6, 6, 5, 4)  # official number of tags under each, which is scaled
PARENTS_OF_A_TRACK = (0.55, 0.33, 0.12)  # probability of one, two, three
CHILDREN_BESIDE_THE_FIRST = 0.6  # on average, of each parent
MISSING_PARENT = 0.019

FRAMES_SPREAD, SHORTEST, LONGEST = 0.42, 10, 404  # deviation of the logarithm, limits
PARENT_SHARE, PARENT_SIZE = 0.4, 2.0  # of the frames; in deviations of the noise
CHILD_SHARE, CHILD_SIZE = 0.08, 5.5  # places of a pair, as a share of the frames
OFFSET = 0.7  # deviation of what all frames of a track have in common


@dataclass(frozen=True)
class Sample:
    """What was written."""

    out: Path
    train: int
    test: int
    tags: int
    dim: int
    frames: int


def write_sample(
    out: Path,
    tracks: int = 600,
    seed: int = 0,
    *,
    form: Form | None = None,
    archive: bool = False,
) -> Sample:
    """Writes `tracks` tracks, a third of them as test, in the official layout into the new folder `out`.

    The form "official" has 768 dimensions, 256 tags and a median of 53 frames; "small" has 32, 40 and 30, so that a
    minute of training is enough. By default it is small below 5,000 tracks. With `archive` the embeddings are written
    as track_embeddings.tar.gz, else as a folder. Beside the official files lies test_truth.csv, the truth that a
    competition would hide. The same arguments give the same data; memory does not grow with it.

    Raises:
        ConfigError: `out` exists and is not empty, or there are fewer than 60 tracks or more than the official 76,714.
    """
    dim, tags, median = FORMS[form or ("small" if tracks < OFFICIAL_FROM else "official")]
    if not FEWEST_TRACKS <= tracks <= OFFICIAL_TRACKS:
        raise ConfigError(f"tracks: found {tracks}, expected {FEWEST_TRACKS} to {OFFICIAL_TRACKS}")
    world = _World.of(seed, dim, tags, median)
    order = np.random.default_rng([seed, 1]).permutation(tracks)
    split = {"test": order[: tracks // 3].tolist(), "train": order[tracks // 3 :].tolist()}
    frames = 0
    with atomic_dir(out) as folder:
        truth: dict[int, npt.NDArray[np.int64]] = {}
        tracks_in_order = (
            progress(range(tracks), label="generating tracks") if tracks >= OFFICIAL_FROM else range(tracks)
        )
        with _Writer(folder, archive) as writer:
            for track in tracks_in_order:
                truth[track], values = world.track(track)
                writer.write(f"{track}.npy", values)
                frames += len(values)
        for name, rows in (("train.csv", split["train"]), ("test_truth.csv", split["test"])):
            write_csv(folder / name, COLUMNS["train"], ((str(i), ",".join(map(str, truth[i]))) for i in rows))
        write_csv(folder / "test.csv", COLUMNS["test"], ((str(i),) for i in split["test"]))
        nothing = ",".join(["0.0"] * tags)
        write_csv(folder / "sample_submission.csv", SUBMISSION_COLUMNS, ((str(i), nothing) for i in split["test"]))
    return Sample(out, len(split["train"]), len(split["test"]), tags, dim, frames)


@dataclass(frozen=True)
class _World:
    """What all tracks share: the tree of tags, and how each looks in the frames.

    families  of each parent, in PARENTS' order: its tag, its children's tags.
    parents   float32[11, dim]; children float32[tags, 2, dim]: the two neighbouring frames of a child.
    """

    seed: int
    median: float
    families: list[tuple[int, list[int]]]
    parents: npt.NDArray[np.float32]
    children: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]

    @staticmethod
    def of(seed: int, dim: int, tags: int, median: float) -> "_World":
        rng = np.random.default_rng([seed, 0])
        shares = np.array(CHILDREN) / sum(CHILDREN) * (tags - 2 * len(PARENTS))
        sizes = 1 + shares.astype(int)  # every parent has a child
        sizes[: tags - len(PARENTS) - sizes.sum()] += 1
        # Frequent tags have low numbers: the expected frequency of each, parents and children together, falling.
        expected = []
        for parent, (often, size) in enumerate(zip(PARENTS, sizes.tolist(), strict=True)):
            expected.append((often, parent, -1))
            weights = _popularity(size)
            expected += [(often * share, parent, child) for child, share in enumerate(weights.tolist())]
        expected.sort(reverse=True)
        number = {(parent, child): tag for tag, (_, parent, child) in enumerate(expected)}
        families = [
            (number[parent, -1], [number[parent, child] for child in range(size)])
            for parent, size in enumerate(sizes.tolist())
        ]
        children = np.zeros((tags, 2, dim), np.float32)
        for _, members in families:
            for first, second in zip(members[::2], [*members[1::2], None], strict=False):
                pair = CHILD_SIZE * _directions(rng, 2, dim)
                children[first] = pair
                if second is not None:
                    children[second] = pair[::-1]  # the same frames, in the other order
        return _World(
            seed=seed,
            median=median,
            families=families,
            parents=PARENT_SIZE * _directions(rng, len(PARENTS), dim),
            children=children,
            mean=rng.normal(0, 0.3, dim).clip(-3.17, 3.02).astype(np.float32),
            deviation=rng.uniform(0.15, 0.93, dim).astype(np.float32),
        )

    def track(self, track: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The tags of a track, rising, and its frames float32[T, dim]."""
        rng = np.random.default_rng([self.seed, 2, track])
        often = np.array(PARENTS) / sum(PARENTS)
        count = 1 + int(rng.choice(len(PARENTS_OF_A_TRACK), p=PARENTS_OF_A_TRACK))
        chosen = rng.choice(len(PARENTS), size=count, replace=False, p=often)
        length = int(np.clip(rng.lognormal(np.log(self.median), FRAMES_SPREAD), SHORTEST, LONGEST))
        dim = len(self.mean)
        frames = rng.standard_normal((length, dim), dtype=np.float32)
        frames += OFFSET * rng.standard_normal(dim, dtype=np.float32)
        tags = []
        for parent in chosen.tolist():
            tag, members = self.families[parent]
            frames[rng.random(length) < PARENT_SHARE] += self.parents[parent]
            if rng.random() >= MISSING_PARENT:
                tags.append(tag)
            wanted = min(len(members), 1 + int(rng.poisson(CHILDREN_BESIDE_THE_FIRST)))
            for child in rng.choice(members, size=wanted, replace=False, p=_popularity(len(members))).tolist():
                places = rng.choice(length - 1, size=max(1, round(CHILD_SHARE * length)), replace=False)
                for step in (0, 1):
                    frames[places + step] += self.children[child, step]
                tags.append(child)
        frames *= self.deviation
        frames += self.mean
        return np.unique(np.array(tags, dtype=np.int64)), frames


def _popularity(size: int) -> npt.NDArray[np.float64]:
    """How often each of a parent's children is drawn; the sum is 1."""
    weights = np.arange(1, size + 1) ** -0.6
    return np.asarray(weights / weights.sum())


def _directions(rng: np.random.Generator, n: int, dim: int) -> npt.NDArray[np.float32]:
    """Random unit vectors, float32[n, dim]."""
    vectors = rng.standard_normal((n, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


class _Writer:
    """Puts npy files into a folder, or into one tar.gz, without a folder inside, as the organisers did."""

    def __init__(self, folder: Path, archive: bool) -> None:
        self._folder = folder
        self._archive = archive

    def __enter__(self) -> "_Writer":
        if self._archive:
            # Level 1: noise hardly shrinks, however long one tries. No time stamp: the same data, the same bytes.
            self._zip = gzip.GzipFile(self._folder / ARCHIVES[0], "wb", compresslevel=1, mtime=0)
            self._tar = tarfile.open(fileobj=self._zip, mode="w|")  # closed in __exit__
        else:
            self._folder = self._folder / EMBEDDINGS
            self._folder.mkdir()
        return self

    def write(self, name: str, values: npt.NDArray[np.float32]) -> None:
        if not self._archive:
            np.save(self._folder / name, values)
            return
        stream = io.BytesIO()
        np.save(stream, values)
        info = tarfile.TarInfo(name)
        info.size = stream.tell()
        stream.seek(0)
        self._tar.addfile(info, stream)

    def __exit__(self, *_: Any) -> None:
        if self._archive:
            self._tar.close()
            self._zip.close()
