"""From one gallery's vectors to every track's neighbours, by the steps that a run's configuration names.

Steps on vectors come first, in their order, then those on lists of neighbours, in theirs. Every step uses the other
tracks of the gallery: the answer to one query then depends on what else is in it, which a plain search does not.
"""

import numpy as np
from numpy.typing import NDArray

from kit_retrieval.diffusion import diffuse
from kit_retrieval.expansion import alpha_expansion, smooth, threshold_expansion
from kit_retrieval.rerank import k_reciprocal
from kit_retrieval.score_norm import as_norm, cohort_statistics
from kit_retrieval.search import Neighbours, top_k
from kit_retrieval.vectors import l2_normalise
from yandex_artists.config import PostConfig
from yandex_artists.embed import Floats

CANDIDATES = 3  # times k: as many as a step on lists may move up into the first k


def rank(gallery: Floats, centres: Floats, post: PostConfig, *, k: int, device: str = "cpu") -> NDArray[np.int64]:
    """The k nearest of every track of a gallery float32[n, D], itself left out, the best first: int64[n, k].

    `centres` float32[artists, D] are those of the training artists, with which `as-norm` compares. Neighbourhoods are
    cut to what a small gallery has.
    """
    others = len(gallery) - 1
    for step in post.steps:
        near = min(others, max(len(post.weights) - 1, post.neighbours))
        if step == "smoothing":
            unit = l2_normalise(gallery)
            gallery = smooth(unit, top_k(unit, k=near, device=device), post.weights[: near + 1])
        elif step == "alpha":
            unit = l2_normalise(gallery)
            neighbours = top_k(unit, k=near, device=device)
            gallery = alpha_expansion(unit, neighbours, min(near, post.neighbours), post.alpha)
    if "threshold" in post.steps:  # on vectors as they are: the second query is their plain mean
        return threshold_expansion(gallery, k, post.threshold, device=device).indices

    unit = l2_normalise(gallery)
    candidates = top_k(unit, k=min(others, CANDIDATES * k), device=device)
    for step in post.steps:
        if step == "as-norm":
            statistics = cohort_statistics(unit, l2_normalise(centres), post.cohort, device=device)
            candidates = as_norm(candidates, statistics, statistics, share=post.share)
        elif step == "reciprocal":
            candidates = _reciprocal(candidates, post)
        elif step == "diffusion":
            candidates = diffuse(candidates, candidates.k, links=min(post.links, candidates.k), device=device)
    return candidates.cut(k).indices


def _reciprocal(candidates: Neighbours, post: PostConfig) -> Neighbours:
    k1 = min(post.k1, candidates.k)
    return k_reciprocal(candidates, k1=k1, k2=min(post.k2, k1), share=post.jaccard)
