"""What the first answers for all markdown cells of a notebook say about each single pair of cell and gap."""

import numpy as np
from scipy.stats import rankdata

from ai4code.features import View
from ai4code.structure import Heading, precedes

RELATION_FEATURES = (
    "first", "first_log", "first_share", "first_cdf", "from_mean", "from_median", "from_mean_sd", "sd", "surest",
    "others_here", "others_before", "others_after", "strongest_rival", "lead", "share_of_gap", "balanced",
    "balanced_share", "crowding", "from_similar", "similar_here", "similarity", "disorder", "disorder_share",
    "must_follow", "must_precede", "from_lower", "from_upper", "headings_here", "texts_here", "is_heading", "level",
    "level_1_here", "level_2_here", "level_3_here", "rank", "rank_from_gap",
)  # fmt: skip


def relation_block(view: View, index: int, probability: np.ndarray) -> np.ndarray:
    """Describe the pairs of one notebook by the first answers: float32 [n_markdown, n_code + 1, RELATION_FEATURES].

    Args:
        probability: float64 [n_markdown, n_code + 1], first answers, rows sum to 1.
    """
    table = view.table
    rows = table.cell_rows[index][view.n_code(index) :]
    p = (probability + 1e-5) / (probability + 1e-5).sum(axis=1, keepdims=True)
    n, gaps = p.shape
    gap = np.arange(gaps, dtype=np.float64)[None, :]
    cdf = np.cumsum(p, axis=1)
    mean = p @ gap.T
    median = (cdf < 0.5).sum(axis=1, keepdims=True)
    sd = np.sqrt((p * (gap - mean) ** 2).sum(axis=1, keepdims=True))
    surest = p.max(axis=1, keepdims=True)

    others = p.sum(axis=0, keepdims=True) - p  # expected number of other markdown cells in each gap
    beside = np.pad(others, ((0, 0), (1, 1)), constant_values=-1.0)
    rival = _strongest_other(p)
    balanced = _balance(p)
    crowding = np.cumsum(others, axis=1) - others / 2 - (n - 1) * (gap + 0.5) / gaps

    markdown = view.tfidf[rows]
    similarity = (markdown @ markdown.T).toarray()
    np.fill_diagonal(similarity, 0.0)
    trust = similarity**3
    trust /= trust.sum(axis=1, keepdims=True) + 1e-9

    headings = [table.headings[row] for row in rows]
    before, lower, upper = _numbered_neighbours(headings, mean[:, 0], gaps)
    disorder = before.T @ (1.0 - cdf) + before @ (cdf - p)  # smaller numbers behind this gap, larger ones before it
    must_follow, must_precede = before.sum(axis=0)[:, None], before.sum(axis=1)[:, None]

    level = np.array([one.level for one in headings], dtype=np.float64)[:, None]
    is_heading = (level > 0).astype(np.float64)
    order = rankdata(np.round(mean, 5), method="min", axis=0)  # equal ones share a rank: json order says nothing
    rank = (order - 1) / n

    parts = [
        p, np.log(p), p / surest, cdf - p / 2, gap - mean, gap - median, (gap - mean) / (sd + 0.3), sd, surest,
        others, beside[:, :-2], beside[:, 2:], rival, p - rival, p / p.sum(axis=0, keepdims=True), balanced,
        balanced / balanced.max(axis=1, keepdims=True), crowding, gap - trust @ mean, trust @ p,
        similarity.max(axis=1, keepdims=True), disorder, disorder / np.maximum(must_follow + must_precede, 1.0),
        must_follow, must_precede, gap - lower[:, None], upper[:, None] - gap,
        _others_of_kind(p, is_heading), _others_of_kind(p, 1.0 - is_heading), is_heading, level,
        *(_others_of_kind(p, (level == wanted).astype(np.float64)) for wanted in (1, 2, 3)),
        rank, rank - gap / gaps,
    ]  # fmt: skip
    return np.stack([np.broadcast_to(part, p.shape) for part in parts], axis=-1).astype(np.float32)


def _strongest_other(p: np.ndarray) -> np.ndarray:
    """The highest probability that any other cell gives each gap; 0 where there is no other cell."""
    if len(p) == 1:
        return np.zeros_like(p)
    top = np.sort(p, axis=0)
    return np.where(p == top[-1:], top[-2:-1], top[-1:])


def _balance(p: np.ndarray, rounds: int = 2, strength: float = 0.7) -> np.ndarray:
    """Draw cells away from crowded gaps towards empty ones (a softened Sinkhorn iteration; rows keep sum 1)."""
    balanced = p
    for _ in range(rounds):
        wanted = len(p) / p.shape[1]
        balanced = balanced * ((wanted + 0.3) / (balanced.sum(axis=0, keepdims=True) + 0.3)) ** strength
        balanced = balanced / balanced.sum(axis=1, keepdims=True)
    return balanced


def _numbered_neighbours(
    headings: list[Heading], mean: np.ndarray, gaps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which cell must precede which by its number, and where the nearest lower and upper numbers are thought to stand.

    Returns:
        before float64 [n, n], 1 where the row's number is smaller; lower, upper float64 [n] (−1 and `gaps` for none).
    """
    n = len(headings)
    before = np.zeros((n, n))
    lower, upper = np.full(n, -1.0), np.full(n, float(gaps))
    numbered = [i for i in range(n) if headings[i].number]
    for i in numbered:
        smaller = [j for j in numbered if precedes(headings[j], headings[i])]
        larger = [j for j in numbered if precedes(headings[i], headings[j])]
        before[i, larger] = 1.0
        if smaller:
            lower[i] = mean[max(smaller, key=lambda j: headings[j].number)]
        if larger:
            upper[i] = mean[min(larger, key=lambda j: headings[j].number)]
    return before, lower, upper


def _others_of_kind(p: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Expected number of other cells of a kind in each gap; `member` float64 [n, 1] is 1 for cells of the kind."""
    mass = p * member
    return mass.sum(axis=0, keepdims=True) - mass
