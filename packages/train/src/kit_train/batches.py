"""Which rows make a batch: at random, of near-equal length for training, or sorted for inference."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def random_batches(n: int, size: int, seed: int) -> list[Rows]:
    """Return n shuffled rows in batches of `size` (the last may be smaller): each row once.

    Raises:
        ValueError: `size` below 1.
    """
    _check(size)
    order = np.random.default_rng(seed).permutation(n).astype(np.int64)
    return [order[i : i + size] for i in range(0, n, size)]


def bucketed_batches(
    lengths: NDArray[np.int64], size: int, seed: int, *, noise: float = 0.1, frames_budget: int | None = None
) -> list[Rows]:
    """Return batches of rows of near-equal length, in random order: each row once, little padding.

    Rows are sorted by length × a factor drawn evenly from 1 ± `noise`, so that the batches differ from seed to seed,
    and cut every `size` rows; with `frames_budget` also before rows × longest length passes it (a single longer row
    makes a batch alone). `lengths` int64[n], in frames.

    Raises:
        ValueError: `size` below 1, `noise` outside 0..1, or a budget below 1.
    """
    _check(size)
    if not 0 <= noise < 1 or (frames_budget is not None and frames_budget < 1):
        raise ValueError(
            f"found noise {noise} and frames_budget {frames_budget}, expected 0 <= noise < 1 and 1 or more"
        )
    generator = np.random.default_rng(seed)
    n = len(lengths)
    jittered = np.asarray(lengths) * generator.uniform(1 - noise, 1 + noise, n)
    shuffled = generator.permutation(n)  # equal keys fall in random order
    order = shuffled[np.argsort(jittered[shuffled], kind="stable")].astype(np.int64)
    batches = _cut(order, np.asarray(lengths), size, frames_budget, first=int(generator.integers(1, size + 1)))
    return [batches[i] for i in generator.permutation(len(batches))]


def sequential_batches(lengths: NDArray[np.int64], size: int, *, frames_budget: int | None = None) -> list[Rows]:
    """Return batches of rows sorted by length, longest first, for inference; the caller scatters answers back.

    `frames_budget` as in `bucketed_batches`.

    Raises:
        ValueError: `size` below 1.
    """
    _check(size)
    order = np.argsort(-np.asarray(lengths), kind="stable").astype(np.int64)
    return _cut(order, np.asarray(lengths), size, frames_budget, first=size)


def padding_efficiency(lengths: NDArray[np.int64], batches: list[Rows]) -> float:
    """Return the share of real frames among all frames of padded batches, 0..1."""
    padded = sum(int(lengths[rows].max()) * len(rows) for rows in batches)
    return float(sum(int(lengths[rows].sum()) for rows in batches) / padded) if padded else 1.0


def _cut(order: Rows, lengths: NDArray[np.int64], size: int, budget: int | None, *, first: int) -> list[Rows]:
    """Cut an order into batches; the first has at most `first` rows, which moves all borders from epoch to epoch."""
    if budget is None:
        starts = [0, *range(first, len(order), size)]
        return [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=True) if b > a]
    batches, start, longest, room = [], 0, 0, first
    for i, row in enumerate(order.tolist()):
        longest = max(longest, int(lengths[row]))
        if i > start and (i - start == room or (i - start + 1) * longest > budget):
            batches.append(order[start:i])
            start, longest, room = i, int(lengths[row]), size
    if start < len(order):
        batches.append(order[start:])
    return batches


def _check(size: int) -> None:
    if size < 1:
        raise ValueError(f"size: found {size}, expected 1 or more rows a batch")
