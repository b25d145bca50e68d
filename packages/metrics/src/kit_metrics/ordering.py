"""Metrics of predicted orders: inversions, the pooled Kendall tau of AI4Code, and a report of all the others."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kit_metrics.bootstrap import bootstrap_ratio

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
AnyArray = NDArray[Any]

# Smallest and largest number of cells of each size class of the report.
SIZE_BUCKETS = ((2, 10), (11, 30), (31, 60), (61, 100), (101, None))
NDCG_CUTOFFS = (1, 3, 5)

_ONE = np.uint64(1)
_WORD = 64  # values that one unsigned 64-bit word can mark as seen
_WIDEST = 16 * _WORD  # longest row counted in one step; longer sequences are halved down to it
_CELLS_AT_ONCE = 1 << 14  # cells of a block of padded rows; its tables then stay in the processor's cache


def count_inversions(values: ArrayLike) -> int:
    """Number of pairs i < j with values[i] > values[j]; equal values are no inversion.

    `values`: [n], any boolean, integer or floating dtype.  O(n log n) time, O(n) memory.

    Raises:
        ValueError: not one-dimensional, not numeric, or NaN among the values.

    Source: halving by rank with order kept, as in a wavelet tree (Grossi, Gupta and Vitter, 2003); from rows of
        1,024 on, four halvings are sorted in one call and the last six are bit masks.
    """
    checked = _checked_values(values)
    n = len(checked)
    if n < 2:
        return 0
    width = n if n <= _WORD else _WORD << ((n - 1) // _WORD).bit_length()
    # Positions in the order of their values are a permutation with as many inversions as the values have.  The sort is
    # stable, so equal values add none; what fills the row up stays in place and adds none.
    order = np.arange(width)
    order[:n] = checked.argsort(kind="stable")
    rows: IntArray = order.reshape(1, width)
    total = 0
    while rows.shape[1] > _WIDEST:
        lost, rows = _halve(rows)
        total += lost
    if len(rows) > 1:
        rows &= rows.shape[1] - 1
    block = max(1, _CELLS_AT_ONCE // rows.shape[1])
    for start in range(0, len(rows), block):
        total += sum(_permutation_inversions(rows[start : start + block]).tolist())
    return total


def inversions_per_segment(values: ArrayLike, offsets: ArrayLike) -> IntArray:
    """Inversions of many sequences at once: int64[segments], entry s for values[offsets[s]:offsets[s + 1]].

    Shapes: `values` [n] as in `count_inversions`; `offsets` int[segments + 1], rising from 0 to n.

    Raises:
        ValueError: as `count_inversions`, or offsets that do not rise from 0 to n.

    Source: as `count_inversions`.
    """
    checked = _checked_values(values)
    bounds = _checked_offsets(offsets, len(checked))
    starts, lengths = bounds[:-1], np.diff(bounds)
    counts = np.zeros(len(lengths), dtype=np.int64)
    largest = checked.max() if len(checked) else 0
    for segments in _similar_lengths(lengths):
        longest = int(lengths[segments[0]])
        if longest > _WIDEST:
            for segment in segments:
                counts[segment] = count_inversions(checked[bounds[segment] : bounds[segment + 1]])
            continue
        width = longest if longest <= _WORD else 1 << (longest - 1).bit_length()
        # The padding equals the largest value and stands last, so that it is inverted with nothing.
        padded = _padded(checked, starts[segments], lengths[segments], width, largest)
        counts[segments] = _permutation_inversions(padded.argsort(axis=1, kind="stable"))
    return counts


def kendall_tau_pooled(inversions: ArrayLike, lengths: ArrayLike) -> float:
    """The competition's metric 1 - 4 * sum(S_i) / sum(n_i * (n_i - 1)): 1 exact, about 0 random, -1 reversed.

    Shapes: `inversions` S int[sequences], `lengths` n int[sequences].  Long sequences weigh more, by their pairs.

    Raises:
        ValueError: unequal shapes, a count outside 0..n(n-1)/2, or no sequence with two elements (0/0).

    Source: Kaggle AI4Code (2022), evaluation page.
    """
    lost, n = np.asarray(inversions, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    if lost.shape != n.shape:
        raise ValueError(f"inversions {lost.shape} and lengths {n.shape} must have one shape")
    if (n < 0).any() or (lost < 0).any() or (2 * lost > n * (n - 1)).any():
        raise ValueError("a sequence of n elements has between 0 and n * (n - 1) / 2 inversions")
    ordered_pairs = int((n * (n - 1)).sum())
    if not ordered_pairs:
        raise ValueError("no sequence holds two elements: there is no pair to judge, and the metric is 0/0")
    return 1 - 4 * int(lost.sum()) / ordered_pairs


@dataclass(frozen=True, eq=False)
class Orderings:
    """Predicted orders of many notebooks, packed: what `ordering_report` judges.

    Shapes, notebook k being the cells offsets[k]:offsets[k + 1]:
        true_rank: int[cells], cells in PREDICTED order; the value is the true 0-based position inside the notebook.
        is_markdown: bool[cells], aligned with `true_rank`.
        offsets: int[notebooks + 1].
        groups: [notebooks], the ancestor of every notebook, the unit of the bootstrap.
        gap_scores: None, or for every notebook float[markdown cells, code cells + 1], the score of each gap between
            code cells (higher is likelier), rows in TRUE order of the markdown cells; -inf is allowed, NaN is not.

    Raises:
        ValueError: shapes that do not fit, ranks that are not 0..n-1 each once in every notebook, NaN in `gap_scores`.
    """

    true_rank: IntArray
    is_markdown: BoolArray
    offsets: IntArray
    groups: AnyArray
    gap_scores: Sequence[FloatArray] | None = None

    def __post_init__(self) -> None:
        rank, markdown = self.true_rank, self.is_markdown
        if rank.ndim != 1 or rank.dtype.kind not in "iu":
            raise ValueError(f"true_rank must be one-dimensional integers, found {rank.dtype} of shape {rank.shape}")
        if markdown.shape != rank.shape or markdown.dtype != np.bool_:
            found = f"{markdown.dtype} of shape {markdown.shape}"
            raise ValueError(f"is_markdown must be bool of shape {rank.shape}, found {found}")
        offsets = _checked_offsets(self.offsets, len(rank))
        n = np.diff(offsets)
        if len(self.groups) != len(n):
            raise ValueError(f"groups must hold one entry for each of {len(n)} notebooks, found {len(self.groups)}")
        inside = (rank >= 0) & (rank < np.repeat(n, n))
        taken = np.zeros(len(rank), dtype=np.bool_)
        taken[(np.repeat(offsets[:-1], n) + rank)[inside]] = True
        wrong = np.flatnonzero(_segment_sums(taken, offsets) < n)
        if len(wrong):
            first = wrong[:5].tolist()
            raise ValueError(f"true_rank must hold 0..n-1 once; not so in {len(wrong)} notebook(s), first at {first}")
        if self.gap_scores is not None:
            _check_gap_scores(self.gap_scores, n, _segment_sums(markdown, offsets))


def ordering_report(orderings: Orderings, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """All metrics of predicted orders as plain numbers, ready for JSON; None where there is nothing to judge.

    Pooled over pairs of cells: `tau`, `tau_interval` (95 %, over groups; None for `bootstrap=0`), `tau_by_size`,
    `markdown_code_lost` and `markdown_markdown_lost` (inverted share), `pair_accuracy` (share in the right order of the
    pairs with a markdown cell; the order of two code cells is given).
    Pooled over markdown cells, the gap of one being the number of code cells before it: `gap_accuracy`, `gap_within_1`,
    `mean_absolute_gap_error`, `next_code_accuracy` (the same code cell follows; the end counts as one), and `mrr` and
    `ndcg@k` of the true gap among all gaps, by `gap_scores` or else by distance from the predicted gap, ties to the
    earlier gap.
    Pooled over cells: `lis_share` (longest rising subsequence of true ranks: cells that need not be moved).
    Mean over notebooks: `exact_match`; over those with two cells or more: `macro_tau`, `spearman`, and `footrule`,
    1 - sum(|displacement|) / floor(n * n / 2), from 0 to 1 (best).

    Raises:
        ValueError: no notebook with two cells, or `bootstrap` below 0.

    Source: tau, Kaggle AI4Code (2022); footrule, Diaconis and Graham (1977); nDCG, Järvelin and Kekäläinen (2002).
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be a number of resamples, or 0 for none, found {bootstrap}")
    rank, offsets = orderings.true_rank.astype(np.int64), orderings.offsets.astype(np.int64)
    n = np.diff(offsets)
    inversions, pairs_twice = inversions_per_segment(rank, offsets), n * (n - 1)
    tau = kendall_tau_pooled(inversions, n)
    interval = None
    if bootstrap:
        groups = orderings.groups
        interval = bootstrap_ratio(
            inversions, pairs_twice, groups, transform=_tau, n=bootstrap, seed=seed, limits=(-1.0, 1.0)
        )
    return {
        "n_notebooks": len(n),
        "n_cells": len(rank),
        "n_markdown": int(orderings.is_markdown.sum()),
        "tau": tau,
        "tau_interval": None if interval is None else list(interval),
        "macro_tau": float(_tau(inversions[n > 1] / pairs_twice[n > 1]).mean()),
        "tau_by_size": _tau_by_size(inversions, n),
        **_pair_metrics(inversions, rank, orderings.is_markdown, offsets),
        **_gap_metrics(orderings, rank, offsets),
        "exact_match": float((inversions == 0).mean()),
        **_displacement_metrics(rank, offsets),
        "lis_share": int(_longest_rising(rank, offsets).sum()) / len(rank),
    }


def _tau(inverted_share: FloatArray) -> FloatArray:
    """Kendall tau from S / (n * (n - 1))."""
    return 1 - 4 * inverted_share


def _tau_by_size(inversions: IntArray, n: IntArray) -> dict[str, dict[str, Any]]:
    buckets: dict[str, dict[str, Any]] = {}
    for smallest, largest in SIZE_BUCKETS:
        inside = (n >= smallest) & (n <= largest) if largest else n >= smallest
        name = f"{smallest}-{largest}" if largest else f">{smallest - 1}"
        tau = kendall_tau_pooled(inversions[inside], n[inside]) if inside.any() else None
        buckets[name] = {"n": int(inside.sum()), "tau": tau}
    return buckets


def _pair_metrics(
    inversions: IntArray, rank: IntArray, markdown: BoolArray, offsets: IntArray
) -> dict[str, float | None]:
    n = np.diff(offsets)
    n_markdown = _segment_sums(markdown, offsets)
    n_code = n - n_markdown
    among_markdown = int(inversions_per_segment(rank[markdown], _offsets_of(n_markdown)).sum())
    among_code = int(inversions_per_segment(rank[~markdown], _offsets_of(n_code)).sum())
    mixed = int(inversions.sum()) - among_markdown - among_code
    mixed_pairs = int((n_markdown * n_code).sum())
    markdown_pairs = int((n_markdown * (n_markdown - 1) // 2).sum())
    pairs = mixed_pairs + markdown_pairs
    return {
        "markdown_code_lost": _share(mixed, mixed_pairs),
        "markdown_markdown_lost": _share(among_markdown, markdown_pairs),
        "pair_accuracy": _share(pairs - mixed - among_markdown, pairs),
    }


def _gap_metrics(orderings: Orderings, rank: IntArray, offsets: IntArray) -> dict[str, float | None]:
    """Metrics of the place of every markdown cell on the axis of code cells."""
    markdown = orderings.is_markdown
    ranking = ["mrr", *(f"ndcg@{k}" for k in NDCG_CUTOFFS)]
    if not markdown.any():
        return dict.fromkeys(
            ["gap_accuracy", "gap_within_1", "mean_absolute_gap_error", "next_code_accuracy", *ranking]
        )
    n = np.diff(offsets)
    n_code = n - _segment_sums(markdown, offsets)
    first_code = np.repeat(_offsets_of(n_code)[:-1], n)  # code cells in all earlier notebooks
    in_true_order = np.repeat(offsets[:-1], n) + rank  # where every cell belongs
    true_markdown = np.empty_like(markdown)
    true_markdown[in_true_order] = markdown
    true_gaps = np.cumsum(~true_markdown) - first_code  # cells in true order
    predicted_gap = (np.cumsum(~markdown) - first_code)[markdown]
    true_gap = true_gaps[in_true_order[markdown]]
    end = np.repeat(n_code, n)[markdown]  # the gap after the last code cell

    if orderings.gap_scores is None:
        place = _place_by_distance(true_gap, predicted_gap, end)
    else:
        place = _place_by_scores(orderings.gap_scores, true_gaps[true_markdown])
    gains = [np.where(place <= k, 1 / np.log2(1 + place), 0.0) for k in NDCG_CUTOFFS]

    # The code cell after a gap, named by its true position; the gap at the end is followed by none, named -1.
    predicted_code = np.append(rank[~markdown], -1)
    true_code = np.append(_columns(offsets)[~true_markdown], -1)
    followed_by = np.where(predicted_gap < end, first_code[markdown] + predicted_gap, -1)
    belongs_before = np.where(true_gap < end, first_code[markdown] + true_gap, -1)

    error = np.abs(predicted_gap - true_gap)
    return {
        "gap_accuracy": float((error == 0).mean()),
        "gap_within_1": float((error <= 1).mean()),
        "mean_absolute_gap_error": float(error.mean()),
        "next_code_accuracy": float((predicted_code[followed_by] == true_code[belongs_before]).mean()),
        **{name: float(gain.mean()) for name, gain in zip(ranking, [1 / place, *gains], strict=True)},
    }


def _place_by_distance(true_gap: IntArray, predicted_gap: IntArray, end: IntArray) -> IntArray:
    """1-based place of the true gap among gaps 0..end by distance from the predicted one, the earlier of two first."""
    distance = np.abs(true_gap - predicted_gap)
    first_nearer, last_nearer = predicted_gap - distance + 1, predicted_gap + distance - 1
    nearer = np.minimum(last_nearer, end) - np.maximum(first_nearer, 0) + 1
    tied_earlier = (true_gap > predicted_gap) & (predicted_gap >= distance)
    return np.where(distance == 0, 1, 1 + nearer + tied_earlier)


def _place_by_scores(gap_scores: Sequence[FloatArray], true_gaps: IntArray) -> IntArray:
    """1-based place of the true gap of every markdown cell by falling score, the earlier of equals first."""
    place = np.empty(len(true_gaps), dtype=np.int64)
    start = 0
    for scores in gap_scores:  # ragged: the matrix of every notebook has its own shape
        stop = start + len(scores)
        gap = true_gaps[start:stop, None]
        own = np.take_along_axis(scores, gap, axis=1)
        ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < gap))
        place[start:stop] = 1 + np.count_nonzero(ahead, axis=1)
        start = stop
    return place


def _displacement_metrics(rank: IntArray, offsets: IntArray) -> dict[str, float]:
    n = np.diff(offsets)
    displacement = rank - _columns(offsets)
    squares = _segment_sums(displacement**2, offsets)[n > 1]
    distances = _segment_sums(np.abs(displacement), offsets)[n > 1]
    size = n[n > 1].astype(np.float64)  # n ** 3 of a very long sequence does not fit an integer
    return {
        "spearman": float((1 - 6 * squares / (size * (size**2 - 1))).mean()),
        "footrule": float((1 - distances / (size**2 // 2)).mean()),
    }


def _longest_rising(values: IntArray, offsets: IntArray) -> IntArray:
    """Length of the longest strictly rising subsequence of every segment of values >= 0: int64[segments].

    Patience sorting (Fredman, 1975), one step for the k-th values of all segments of a block together.
    """
    starts, lengths = offsets[:-1], np.diff(offsets)
    longest = np.minimum(lengths, 1)
    above = int(values.max(initial=0)) + 1
    narrow = values.astype(np.min_scalar_type(-above - 1))  # signed, for the padding
    for segments in _similar_lengths(lengths):
        width = int(lengths[segments[0]])
        if width > _WIDEST:  # a table of width * width comparisons would cost more than one search for every value
            for segment in segments:
                longest[segment] = _longest_rising_of_one(values[offsets[segment] : offsets[segment + 1]])
            continue
        # least_end[k, s]: the least value that ends a rising run of k + 1 values in segment s.  The padding -1 comes
        # last and can only replace least_end[0].
        steps = _padded(narrow, starts[segments], lengths[segments], width, -1).T.copy()
        least_end = np.full((width, len(segments)), above, dtype=narrow.dtype)
        columns = np.arange(len(segments))
        for step, value in enumerate(steps):
            run = np.add.reduce(least_end[:step] < value, axis=0, dtype=np.int16)
            least_end[run, columns] = value
        longest[segments] = np.count_nonzero(least_end < above, axis=0)
    return longest


def _longest_rising_of_one(values: IntArray) -> int:
    least_end: list[int] = []
    for value in values.tolist():
        run = bisect_left(least_end, value)
        least_end[run : run + 1] = [value]
    return len(least_end)


def _halve(rows: IntArray) -> tuple[int, IntArray]:
    """Split rows [m, w] by value at w / 2, order kept: the inversions between the halves, and the rows [2m, w / 2].

    Modulo w, a power of two, each row holds 0..w-1 once; so do the new rows modulo w / 2.
    """
    m, width = rows.shape
    half = width // 2
    upper = (rows & half) != 0
    upper_at = np.flatnonzero(upper)
    # Each inversion between the halves keeps one upper value one column short of its column after the split.
    split_at = np.arange(half, width) + np.arange(0, m * width, width)[:, None]
    lost = int(split_at.sum()) - int(upper_at.sum())
    lower, higher = rows[~upper], rows.reshape(-1)[upper_at]
    return lost, np.concatenate([lower.reshape(m, half), higher.reshape(m, half)], axis=1).reshape(2 * m, half)


def _permutation_inversions(rows: IntArray) -> IntArray:
    """Inversions of each row of rows [m, w], a permutation of 0..w-1; w <= 64 or 128, 256, 512, 1024: int64[m]."""
    m, width = rows.shape
    between: IntArray = np.zeros(m, dtype=np.int64)
    if width > _WORD:
        between, rows = _split_in_words(rows)
    value = rows.astype(np.uint64)
    seen = np.bitwise_or.accumulate(_ONE << value, axis=1)
    # Bits of `seen` from the own value upwards: the value itself, and each larger one of the row that came before it.
    not_below = np.bitwise_count(seen >> value).reshape(m, width)
    between += np.add.reduce(not_below, axis=1, dtype=np.int64) - width
    return between


def _split_in_words(rows: IntArray) -> tuple[IntArray, IntArray]:
    """Halve rows [m, w] down to words of 64 values, all levels at once.

    Returns the inversions between words, int64[m], and the rows [m * w / 64, 64].  As in `_halve`, they are the columns
    that the upper values still have to move, summed over all levels.
    """
    m, width = rows.shape
    shifts, bits, weights, split_sum = _levels(width)
    word = (rows >> 6).astype(np.uint8)  # the 64 values of a word have all but the last 6 bits in common
    # [row, level, column]: which cell stands there after sorting by the leading 0, 1, 2, ... bits, the order kept.
    order = (word[:, None, :] >> shifts).argsort(axis=2, kind="stable")
    if m > 1:
        order += np.arange(0, m * width, width)[:, None, None]
    upper = word.take(order[:, :-1])
    upper &= bits
    # Sums of columns stay below 2^24, so that 32-bit floats hold them exactly.
    between = split_sum - upper.reshape(m, -1).astype(np.float32) @ weights
    return between.astype(np.int64), rows.take(order[:, -1].reshape(-1, _WORD)) & (_WORD - 1)


@cache
def _levels(width: int) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    """Tables of `_split_in_words`: shifts that leave the leading bits of a word, and the bit that decides each level.

    Third, the weights that turn these bits, in place, into the sum of the columns of the upper values; last, that sum
    when all levels are split.  Shapes [levels + 1, 1], [levels, 1], [levels * width], [].
    """
    shifts = np.arange((width // _WORD).bit_length() - 1, -1, -1)[:, None]
    bits, columns = 1 << shifts[1:], np.arange(width)
    weights = (columns / bits).reshape(-1).astype(np.float32)
    split_sum = ((columns >> 6) & bits).reshape(-1).astype(np.float32) @ weights
    return shifts.astype(np.uint8), bits.astype(np.uint8), weights, split_sum


def _similar_lengths(lengths: IntArray) -> Iterator[IntArray]:
    """Indices of the segments of two or more elements, longest first, in blocks of a bounded number of cells."""
    order = np.argsort(-lengths, kind="stable")
    order = order[: int(np.count_nonzero(lengths > 1))]
    start = 0
    while start < len(order):
        stop = start + max(1, _CELLS_AT_ONCE // int(lengths[order[start]]))
        yield order[start:stop]
        start = stop


def _padded(values: AnyArray, starts: IntArray, lengths: IntArray, width: int, padding: Any) -> AnyArray:
    """Segments of `values` as the rows of a matrix [segments, width], filled up with `padding`."""
    columns = np.arange(width)
    rows: AnyArray = values[np.minimum(starts[:, None] + columns, len(values) - 1)]
    rows[columns >= lengths[:, None]] = padding
    return rows


def _checked_values(values: ArrayLike) -> AnyArray:
    """The values; integers from 0 to 2^16 - 1 as uint16, for which NumPy has a radix sort."""
    array: AnyArray = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"values must be one-dimensional numbers, found {array.dtype} of shape {array.shape}")
    if array.dtype.kind == "f":
        if np.isnan(array).any():
            raise ValueError("values must not hold NaN, which has no place in an order")
    elif array.itemsize > 2 and 0 <= np.bitwise_or.reduce(array) < 1 << 16:
        return array.astype(np.uint16)
    return array


def _checked_offsets(offsets: ArrayLike, total: int) -> IntArray:
    array = np.asarray(offsets)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise ValueError(f"offsets must be one-dimensional integers, found {array.dtype} of shape {array.shape}")
    array = array.astype(np.int64)
    if array[0] != 0 or array[-1] != total or (np.diff(array) < 0).any():
        raise ValueError(f"offsets must rise from 0 to {total}; found {array[0]} to {array[-1]}, or a fall between")
    return array


def _check_gap_scores(gap_scores: Sequence[FloatArray], n: IntArray, n_markdown: IntArray) -> None:
    if len(gap_scores) != len(n):
        raise ValueError(f"gap_scores must hold one matrix for each of {len(n)} notebooks, found {len(gap_scores)}")
    expected = np.stack([n_markdown, n - n_markdown + 1], axis=1).tolist()
    for k, scores in enumerate(gap_scores):
        if list(scores.shape) != expected[k]:
            raise ValueError(f"gap_scores[{k}] must have shape {tuple(expected[k])}, found {scores.shape}")
        if np.isnan(scores).any():
            raise ValueError(f"gap_scores[{k}] must not hold NaN")


def _columns(offsets: IntArray) -> IntArray:
    """Position of every cell inside its segment."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))


def _offsets_of(lengths: AnyArray) -> IntArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _segment_sums(values: AnyArray, offsets: IntArray) -> IntArray:
    """Exact sums of integers or booleans in every segment, empty ones included."""
    return np.diff(_offsets_of(values)[offsets])


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
