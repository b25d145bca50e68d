"""Exact search, query expansion, score normalisation and re-ranking: pure functions on vectors and neighbours."""

from kit_retrieval.diffusion import diffuse
from kit_retrieval.expansion import alpha_expansion, mutual, smooth, threshold_expansion
from kit_retrieval.rerank import k_reciprocal
from kit_retrieval.score_norm import CohortStatistics, as_norm, cohort_statistics, reorder
from kit_retrieval.search import Neighbours, top_k
from kit_retrieval.sweep import Trial, sweep
from kit_retrieval.vectors import Whitening, concatenate, l2_normalise

__all__ = [
    "CohortStatistics",
    "Neighbours",
    "Trial",
    "Whitening",
    "alpha_expansion",
    "as_norm",
    "cohort_statistics",
    "concatenate",
    "diffuse",
    "k_reciprocal",
    "l2_normalise",
    "mutual",
    "reorder",
    "smooth",
    "sweep",
    "threshold_expansion",
    "top_k",
]
