"""From a trained encoder to vectors of tracks, and from the vectors of several encoders to one gallery.

Training and inference both use this; it needs no labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from kit_nn.pooling import lengths_to_padding_mask
from kit_retrieval.vectors import Whitening, l2_normalise
from kit_train.batches import sequential_batches
from kit_train.ranks import batches_of_rank
from yandex_artists.augment import bootstrap
from yandex_artists.batches import Frames, Rows, rolling_windows
from yandex_artists.config import MemberConfig, PostConfig
from yandex_artists.model import Encoder

Floats = NDArray[np.float32]
TRACKS_PER_BATCH = 512
WHITENING_SHRINK = 0.1  # of the mean variance, by which every variance is raised


@dataclass(frozen=True)
class Cohort:
    """What inference needs of a member's training tracks: a whitening, and every artist's centre."""

    whitening: Whitening
    centres: Floats
    """float32[artists, d], means over the tracks at length 1."""


@dataclass(frozen=True)
class Embedded:
    """Vectors float32[n, d] of a gallery's tracks by one member, as the encoder gave them, and its cohort."""

    vectors: Floats
    cohort: Cohort


def embed(
    encoder: Encoder,
    frames: Frames,
    rows: Rows,
    lengths: Rows,
    member: MemberConfig,
    seed: int,
    device: torch.device,
    fabric: Fabric | None = None,
) -> Floats:
    """Embed tracks by the member's views: rows of the pack and their lengths, int64[n] each; returns float32[n, d].

    The views of a track are averaged as they are, as in the seed's rolling windows. The encoder is put in evaluation
    mode, each one for itself: the seed's ensemble held its models in a list that its own switch never reached. The
    ranks of `fabric` share the batches, and each gets all vectors.
    """
    encoder.eval()
    rank, ranks = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    if member.views == "rolling":
        windows = [rolling_windows(int(length), member.window, member.hop) for length in lengths]
        owner = np.repeat(np.arange(len(rows)), [len(of_track) for of_track in windows])
        start, taken = np.array([window for of_track in windows for window in of_track], np.int64).T
    else:
        owner, start, taken = np.arange(len(rows)), np.zeros(len(rows), np.int64), np.asarray(lengths, np.int64)
    draws = member.draws if member.views == "bootstrap" else 1
    out = np.zeros((len(rows), encoder.d), np.float64)
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)  # of the frame bootstraps: a track's vector depends on neither training nor order of calls
    try:
        batches = sequential_batches(taken, TRACKS_PER_BATCH)
        first_of_own = {int(batch[0]) for batch in batches_of_rank(batches, rank, ranks)}
        for batch in batches:
            if batch[0] not in first_of_own:
                for _ in range(1, draws):  # what another rank draws of its batch, so that all are drawn as by one
                    torch.rand(len(batch), int(taken[batch].max()), device=device)
                continue
            x, counts = frames.gather(rows[owner[batch]], start[batch], taken[batch])
            for draw in range(draws):
                seen = bootstrap(x, counts) if draw else x
                vectors = _forward(encoder, seen, counts)
                np.add.at(out, owner[batch], vectors.double().cpu().numpy())
    finally:
        torch.set_rng_state(generator_state)
    if fabric is not None and ranks > 1:
        summed = fabric.all_reduce(torch.from_numpy(out), reduce_op="sum")
        assert isinstance(summed, Tensor)
        out = summed.cpu().numpy()
    views = np.bincount(owner, minlength=len(rows)) * draws
    return (out / views[:, None]).astype(np.float32)


@torch.inference_mode()
def _forward(encoder: Encoder, x: Tensor, lengths: Tensor) -> Tensor:
    return encoder(x, lengths_to_padding_mask(lengths, x.shape[1])).float()


def make_cohort(vectors: Floats, artists: Rows, fitted: NDArray[np.bool_], power: float) -> Cohort:
    """Statistics of vectors float32[n, d]: whitening of the rows `fitted`, centres of all artists 0..k-1."""
    unit = l2_normalise(vectors)
    sums = np.zeros((int(artists.max()) + 1, vectors.shape[1]))
    np.add.at(sums, artists, unit)
    centres = sums / np.maximum(np.bincount(artists), 1)[:, None]
    whitening = Whitening.fit(vectors[fitted], power=power, shrinkage=WHITENING_SHRINK)
    return Cohort(whitening, centres.astype(np.float32))


def join(parts: Sequence[Embedded], post: PostConfig) -> tuple[Floats, Floats]:
    """Set the vectors of several members side by side: gallery float32[n, D] and artists' centres float32[k, D].

    With `normalise = "no"` a member with longer vectors weighs more, as in the seed; otherwise all weigh alike.
    """
    gallery = np.concatenate([_prepared(part.vectors, part.cohort, post) for part in parts], axis=1)
    centres = np.concatenate([_prepared(part.cohort.centres, part.cohort, post) for part in parts], axis=1)
    return gallery, centres


def _prepared(vectors: Floats, cohort: Cohort, post: PostConfig) -> Floats:
    if post.normalise == "no":
        return vectors
    if post.normalise == "whiten":
        vectors = cohort.whitening.apply(vectors)
    return l2_normalise(vectors)
