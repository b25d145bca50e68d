"""Groups of nearly the same picture (two scans of one painting), which must not be on both sides of a split.

hashes = perceptual_hashes(gray)                     # 144 bits a picture
pairs = close_pairs(hashes, max_distance=20)         # all pairs that differ in at most 20 bits
groups = connected_groups(len(hashes), pairs)
"""

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

GRAY_SIDE = 32  # pixels a side of the gray thumbnails that are hashed
FREQUENCIES = 12  # lowest of these 32 in each direction, 144 bits: above them a smooth picture holds noise
HASH_BYTES = FREQUENCIES * FREQUENCIES // 8


def perceptual_hashes(gray: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return 144 bits, uint8[n, 18], of n gray thumbnails [n, 32, 32], any numeric type.

    A bit says whether one of the 12 x 12 lowest frequencies is above their median; the mean brightness is left out.
    Brightness, contrast, compression, scale and a cut of two per cent change few bits; another view changes many.

    Raises:
        ValueError: another shape.
    Source: "pHash", C. Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010.
    """
    if gray.ndim != 3 or gray.shape[1:] != (GRAY_SIDE, GRAY_SIDE):
        raise ValueError(f"thumbnails of shape {gray.shape}, expected [n, {GRAY_SIDE}, {GRAY_SIDE}]")
    if not len(gray):
        return np.zeros((0, HASH_BYTES), dtype=np.uint8)
    cosines = _cosines()
    frequencies = (cosines @ gray.astype(np.float64) @ cosines.T).reshape(len(gray), -1)
    without_mean = np.round(frequencies[:, 1:], 6)  # a flat picture has rounding noise here, and its sign is no bit
    bits = without_mean > np.median(without_mean, axis=1, keepdims=True)
    return np.packbits(np.pad(bits, ((0, 0), (1, 0))), axis=1)


def close_pairs(hashes: NDArray[np.uint8], max_distance: int) -> NDArray[np.int64]:
    """Return all pairs i < j of rows of `hashes` (uint8[n, bytes]) that differ in at most `max_distance` bits, sorted.

    Exact: the bits are cut into `max_distance + 1` bands, and rows that differ in no more bits agree in one band at
    least; only rows that do are compared. Fast as long as few rows share a band; equal rows give a pair each.

    Raises:
        ValueError: another shape, or a distance that is negative or not below the number of bits.
    """
    if hashes.ndim != 2 or hashes.dtype != np.uint8:
        raise ValueError(f"hashes of shape {hashes.shape} and type {hashes.dtype}, expected uint8[n, bytes]")
    n, width = hashes.shape
    if not 0 <= max_distance < 8 * width:
        raise ValueError(f"a distance of {max_distance} for hashes of {8 * width} bits")
    words = np.pad(hashes, ((0, 0), (0, -width % 8))).view(np.uint64)
    found = [np.zeros(0, dtype=np.int64)]
    for band in np.array_split(np.unpackbits(hashes, axis=1), max_distance + 1, axis=1):
        for first, second in _equal_rows(np.packbits(band, axis=1)):
            close = np.bitwise_count(words[first] ^ words[second]).sum(axis=1) <= max_distance
            low, high = np.minimum(first, second)[close], np.maximum(first, second)[close]
            found.append(low * n + high)
    distinct = np.unique(np.concatenate(found))  # most close pairs share several bands
    return np.stack([distinct // max(n, 1), distinct % max(n, 1)], axis=1)


def connected_groups(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the group of each of n rows, int64[n]: rows joined by a chain of `pairs` (int64[m, 2]) are in one group.

    Groups are numbered from 0 in the order of their first rows.
    """
    parent = list(range(n))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for first, second in pairs.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    roots = np.array([root(row) for row in range(n)], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


@functools.cache
def _cosines() -> NDArray[np.float64]:
    """The lowest rows of the orthonormal cosine transform, float64[12, 32]."""
    frequency, position = np.arange(FREQUENCIES)[:, None], np.arange(GRAY_SIDE)
    rows = np.cos(np.pi * frequency * (2 * position + 1) / (2 * GRAY_SIDE)) * np.sqrt(2 / GRAY_SIDE)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows, dtype=np.float64)


def _equal_rows(keys: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of equal rows, in vectors: each row with the next that equals it, with the second next, and so on."""
    _, value = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(value, kind="stable")
    ordered = value[order]
    start = np.arange(len(order) - 1)
    step = 1
    while len(start := start[(start + step < len(order))]) and len(
        start := start[ordered[start] == ordered[start + step]]
    ):
        yield order[start], order[start + step]
        step += 1
