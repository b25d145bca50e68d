"""Small tracks and the training of a run, for the tests of this solution."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from yandex_tagging import train as training
from yandex_tagging.config import Config
from yandex_tagging.data import Tracks

DIM, TAGS, N = 8, 6, 150


def tracks_of(seed: int = 0, n: int = N) -> Tracks:
    """Tracks whose tags each lie in one or two strong frames among noise."""
    generator = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(TAGS, DIM))
    tags = generator.random((n, TAGS)) < np.linspace(0.5, 0.15, TAGS)
    tags[~tags.any(1), 0] = True
    items = []
    for row in tags:
        frames = generator.normal(size=(int(generator.integers(4, 20)), DIM))
        for tag in np.flatnonzero(row):
            frames[generator.integers(len(frames))] += 2.5 * directions[tag]
        items.append(frames.astype(np.float32))
    ids = (1000 + generator.permutation(n)).tolist()
    return Tracks(
        split="train",
        ids=ids,
        pack=RaggedPack.from_items(items, "float32"),
        rows=np.arange(n),
        tags=tags,
        n_tags=TAGS,
        tag_names=tuple(f"tag {tag}" for tag in range(TAGS)),
        groups=None,
        fingerprint="made here",
    )


def fit_run(config: Config, tracks: Tracks, path: Path, *, resume: bool = False, **more: Any) -> dict[str, Any]:
    """Train into a run folder of its own and return the summary."""
    with RunFolder.create(
        path,
        config=config,
        preset="test",
        data_hashes={"train": tracks.fingerprint},
        seed=config.seed,
        resume=resume,
    ) as run:
        return training.train(config, tracks, run, resume=resume, **more)


@pytest.fixture(scope="module", autouse=True)
def no_flushing() -> Iterator[None]:
    """Hundreds of run folders are written here, and no power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit_core.atomic._sync", lambda path: None)
        yield


@pytest.fixture(scope="session")
def make_tracks() -> Callable[..., Tracks]:
    """`make_tracks(seed, n)`: other tracks than `tracks`."""
    return tracks_of


@pytest.fixture(scope="session")
def tracks() -> Tracks:
    return tracks_of()


@pytest.fixture(scope="session")
def fit() -> Callable[..., dict[str, Any]]:
    """`fit(config, tracks, path)`: the summary of a run."""
    return fit_run
