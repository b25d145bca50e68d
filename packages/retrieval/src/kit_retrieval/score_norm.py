"""Adaptive score normalisation (AS-norm): a score says less where everything scores high.

Some tracks are near to everything ("hubs"). How high the scores of a vector usually are is measured on a cohort of
foreign vectors, such as the centres of the training artists, and taken out of each score on both of its sides.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kit_retrieval.search import Neighbours, top_k

Floats = NDArray[np.float32]


class CohortStatistics(NamedTuple):
    """Of each vector: mean and standard deviation of its highest scores with the cohort, float32[n] each."""

    mean: Floats
    deviation: Floats


def cohort_statistics(
    x: Floats, cohort: Floats, top: int = 400, *, device: str | torch.device = "cpu"
) -> CohortStatistics:
    """Mean and deviation of the `top` highest scores of each row of `x` [n, d] with the `cohort` [m, d].

    Raises:
        ValueError: as `kit_retrieval.search.top_k`, `top` below 2, or a cohort of one row, whose scores do not deviate.
    """
    if top < 2:
        raise ValueError(f"top: found {top}, expected 2 or more")
    if len(cohort) < 2:
        raise ValueError(f"cohort: found {len(cohort)} row, expected 2 or more")
    scores = top_k(x, cohort, min(top, len(cohort)), device=device).scores
    return CohortStatistics(scores.mean(axis=1), np.maximum(scores.std(axis=1), np.float32(1e-6)))


def as_norm(
    candidates: Neighbours, queries: CohortStatistics, gallery: CohortStatistics, *, share: float = 1.0
) -> Neighbours:
    """Candidates in the order of their normalised scores: the mean of (s - mean) / deviation on either side.

    Args:
        candidates: more than are wanted in the end, since what comes behind the last one cannot move up.
        queries: of the n queries.
        gallery: of the m gallery rows.
        share: of the normalised score; the rest is the score as it was, brought to mean 0 and deviation 1 over all
            candidates, as the normalised one is.

    Raises:
        ValueError: statistics that do not fit, or a share outside [0, 1].

    Source: Matějka et al., Analysis of score normalization in multilingual speaker recognition, Interspeech 2017; mixed
    with a share of 0.3 by the third place of the Yandex Cup 2022.
    """
    s, i = candidates.scores, candidates.indices
    if len(queries.mean) != len(candidates) or len(gallery.mean) <= i.max(initial=-1) or not 0 <= share <= 1:
        raise ValueError(
            f"found statistics of {len(queries.mean)} for {len(candidates)} queries and of {len(gallery.mean)} for "
            f"gallery rows to {i.max(initial=-1)}, share {share}"
        )
    of_query = (s - queries.mean[:, None]) / queries.deviation[:, None]
    of_gallery = (s - gallery.mean[i]) / gallery.deviation[i]
    normalised = np.asarray(of_query + of_gallery, dtype=np.float32) / 2
    return reorder(i, np.float32(share) * _standard(normalised) + np.float32(1 - share) * _standard(s))


def reorder(indices: NDArray[np.int64], scores: Floats) -> Neighbours:
    """Neighbours in the order of new scores, the highest first, equal ones by index."""
    order = np.lexsort((indices, -scores), axis=1)
    return Neighbours(
        np.take_along_axis(indices, order, axis=1), np.take_along_axis(scores, order, axis=1).astype(np.float32)
    )


def _standard(scores: NDArray[np.floating]) -> Floats:
    return np.asarray((scores - scores.mean()) / max(float(scores.std()), 1e-12), dtype=np.float32)
