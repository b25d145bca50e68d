"""Which pictures belong together: groups.csv where the data has one, and near-duplicates found in the pixels.

Two relations are joined: pictures that a chain of either connects are one group, and folds never cut a group. The
search knows no file names. It has two stages: pairs whose perceptual hashes and colours agree (scans and re-encodings
of one picture), and clusters by average linkage of edges, colours in place and colour histogram, each of the content
cut out of its plain background (variants of one drawing). Average linkage, since a chain of pairs soon joins a style.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from kit_splits.near_duplicates import close_pairs, connected_groups

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

FOUND, GIVEN, BOTH = "near-duplicates", "groups.csv", "groups.csv and near-duplicates"

# Stage 1: few of 144 bits differ, and the colours of an 8 x 8 thumbnail differ little on average.
HASH_BITS = 20
THUMB_DIFFERENCE = 30.0  # of 255
HASH_COLOURS = 0.95  # least correlation of the colours in place: below it, the shape is the same but not the drawing

# Stage 2
CONTENT_SIDE = 64
BACKGROUND_DIFFERENCE = 24  # of 255 in one channel: less is background
LEAST_SIMILARITY = 0.8  # mean of the three similarities, on average between two clusters that are joined
ASPECT_RATIO = 1.35  # contents whose aspects differ by more are not compared
_BLOCK = 128


@dataclass(frozen=True)
class Agreement:
    """How two groupings of the same pictures compare, in groups and in pairs of pictures of one group."""

    groups_given: int
    groups_found: int
    groups: int
    largest_group: int
    pairs_given: int
    pairs_found: int
    pairs_both: int

    @property
    def recall(self) -> float:
        """Share of the given pairs that the search finds."""
        return self.pairs_both / self.pairs_given if self.pairs_given else 1.0

    @property
    def precision(self) -> float:
        """Share of the pairs found that are given."""
        return self.pairs_both / self.pairs_found if self.pairs_found else 1.0


def join_groups(first: Int64, second: Int64) -> Int64:
    """Return the groups int64[n] in which everything is together that either of two groupings int64[n] has together."""
    pairs = [
        np.stack([np.unique(groups, return_index=True)[1][np.unique(groups, return_inverse=True)[1]], rows], axis=1)
        for groups, rows in ((first, np.arange(len(first))), (second, np.arange(len(second))))
    ]
    return connected_groups(len(first), np.concatenate(pairs).astype(np.int64))


def compare_groups(given: Int64, found: Int64) -> Agreement:
    """Return how the groups of groups.csv and those found compare, int64[n] each."""
    joined = join_groups(given, found)
    within = np.unique(np.stack([given, found], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    return Agreement(
        len(np.unique(given)),
        len(np.unique(found)),
        len(np.unique(joined)),
        int(np.unique(joined, return_counts=True)[1].max()),
        _pairs(given),
        _pairs(found),
        _pairs(within),
    )


def _pairs(groups: Int64) -> int:
    counts = np.unique(groups, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def content_of(picture: UInt8, aspect: float) -> tuple[UInt8, float]:
    """Return what lies inside the plain background of a squashed picture uint8[h, w, 3], and its aspect.

    The content is squashed to uint8[64, 64, 3]. A picture without a plain border, or of one colour, is taken whole.
    """
    height, width = picture.shape[:2]
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]).astype(np.int16)
    background = np.median(border, axis=0)
    other = (np.abs(picture.astype(np.int16) - background) > BACKGROUND_DIFFERENCE).any(axis=2)
    box = (0, 0, width, height)
    if other.any():
        rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    cut = Image.fromarray(picture).resize((CONTENT_SIDE, CONTENT_SIDE), Image.Resampling.BICUBIC, box=box)
    return np.asarray(cut), aspect * (box[2] - box[0]) / width / ((box[3] - box[1]) / height)


def near_duplicates(
    bits: UInt8,
    thumb: UInt8,
    contents: UInt8,
    aspects: Float64,
    hexes: Sequence[str],
    readable: npt.NDArray[np.bool_],
) -> tuple[Int64, Int64]:
    """Return pairs i < j of nearly the same readable pictures, int64[m, 2], and by how many bits they differ, int64[m].

    Of a cluster, every picture is paired with the first; files with the same bytes are pairs whatever they show.
    """
    rows = np.flatnonzero(readable)
    # Of files with the same bytes one is compared: a picture that is there a thousand times makes no million pairs.
    first_of: dict[str, int] = {}
    copies = []
    for row in rows.tolist():
        first = first_of.setdefault(hexes[row], row)
        if first != row:
            copies.append((first, row))
    distinct = np.array(sorted(first_of.values()), dtype=np.int64)
    vectors = _vectors(contents[distinct]) if len(distinct) else np.zeros((0, 1), dtype=np.float32)
    close = close_pairs(bits[distinct], HASH_BITS)
    difference = np.abs(thumb[distinct[close[:, 0]]].astype(np.int16) - thumb[distinct[close[:, 1]]])
    close = close[difference.mean(axis=(1, 2, 3)) <= THUMB_DIFFERENCE]
    close = close[_same_colours(contents, distinct[close])]
    alike_pairs = distinct[np.concatenate([close, _clusters(vectors, np.log(aspects[distinct]))])]
    pairs = np.concatenate([alike_pairs.reshape(-1, 2), np.array(copies, dtype=np.int64).reshape(-1, 2)])
    pairs = np.unique(pairs, axis=0)
    distances = np.bitwise_count(bits[pairs[:, 0]] ^ bits[pairs[:, 1]]).sum(axis=1, dtype=np.int64)
    return pairs, distances


def _same_colours(contents: UInt8, pairs: Int64) -> npt.NDArray[np.bool_]:
    """Whether the colours in place of each pair of contents agree, bool[m]; of flat pictures, their one colour."""
    found = [np.zeros(0, dtype=np.bool_)]
    for start in range(0, len(pairs), _BLOCK):
        first, second = (contents[pairs[start : start + _BLOCK, side]] for side in (0, 1))
        one, other = (_centred(some.reshape(len(some), -1)) for some in (first, second))
        difference = np.abs(first.astype(np.int16) - second).mean(axis=(1, 2, 3))
        found.append((np.einsum("ij,ij->i", one, other) >= HASH_COLOURS) | (difference <= 2.0))
    return np.concatenate(found)


def _vectors(contents: UInt8) -> Float32:
    """Vectors float32[n, d] whose product is the mean of three similarities: edges, colours in place, histogram."""
    n, half = len(contents), CONTENT_SIDE // 2
    out = np.empty((n, half * half + 3 * (half // 2) ** 2 + 512), dtype=np.float32)
    for start in range(0, n, _BLOCK):
        some = contents[start : start + _BLOCK]
        values = some.astype(np.float32)
        down = np.abs(np.diff(values, axis=1, append=values[:, -1:])).max(axis=3)
        across = np.abs(np.diff(values, axis=2, append=values[:, :, -1:])).max(axis=3)
        edges = np.sqrt(down + across).reshape(len(some), half, 2, half, 2).mean(axis=(2, 4))
        small = values.reshape(len(some), half // 2, 4, half // 2, 4, 3).mean(axis=(2, 4))
        histogram = np.zeros((len(some), 512), dtype=np.float32)
        for i, one in enumerate(some.reshape(len(some), -1, 3)):
            inked = one[(one < 240).any(axis=1)].astype(np.int64) // 32
            if len(inked):
                histogram[i] = np.bincount(inked @ np.array([64, 8, 1]), minlength=512) / len(inked)
        three = (_centred(edges.reshape(len(some), -1)), _centred(small.reshape(len(some), -1)), np.sqrt(histogram))
        out[start : start + _BLOCK] = np.concatenate(three, axis=1) / np.float32(np.sqrt(3))
    return out


def _centred(rows: npt.NDArray[np.generic]) -> Float32:
    """Rows without their mean, of length 1; a row of equal numbers becomes 0."""
    values = rows.astype(np.float32)
    values = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(np.where(length > 1e-2, values / np.maximum(length, 1e-2), 0.0), dtype=np.float32)


def _clusters(vectors: Float32, log_aspect: Float64) -> Int64:
    """Pairs (first of its cluster, row) of clusters by average linkage; contents of other proportions are unlike."""
    from sklearn.cluster import AgglomerativeClustering  # here, since workers that decode start without it

    n, limit = len(vectors), float(np.log(ASPECT_RATIO))
    found = [np.zeros((0, 2), dtype=np.int64)]
    for start in range(0, n, _BLOCK):
        similarity = vectors[start : start + _BLOCK] @ vectors[start:].T
        i, j = np.nonzero(similarity >= LEAST_SIMILARITY)
        keep = (i < j) & (np.abs(log_aspect[start + i] - log_aspect[start + j]) <= limit)
        found.append(np.stack([i[keep], j[keep]], axis=1) + start)
    # Two clusters with an average of at least this have a pair with at least this: components can be cut one by one.
    component = connected_groups(n, np.concatenate(found))
    order = np.argsort(component, kind="stable")
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for rows in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        if len(rows) < 2:
            continue
        similarity = (vectors[rows] @ vectors[rows].T).astype(np.float64)
        similarity[np.abs(log_aspect[rows][:, None] - log_aspect[rows][None]) > limit] -= 0.3
        distance = np.clip(1 - (similarity + similarity.T) / 2, 0, None)
        np.fill_diagonal(distance, 0)
        cluster = AgglomerativeClustering(
            n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - LEAST_SIMILARITY
        ).fit_predict(distance)
        for one in np.unique(cluster):
            members = np.sort(rows[cluster == one])
            pairs.append(np.stack([np.full(len(members) - 1, members[0]), members[1:]], axis=1))
    return np.concatenate(pairs)
