"""Blending of out-of-fold predictions."""

from kit_ensemble.selection import coordinate_search, greedy_selection

__all__ = ["coordinate_search", "greedy_selection"]
