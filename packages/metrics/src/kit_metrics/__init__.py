"""Competition metrics in vectorised NumPy with bootstrap intervals."""

from kit_metrics.bootstrap import bootstrap_paired_ratio, bootstrap_ratio
from kit_metrics.classification import (
    bootstrap_macro_f1,
    bootstrap_paired_macro_f1,
    confusion_matrix,
    f1_per_label,
    macro_f1,
    two_level_report,
)
from kit_metrics.ordering import (
    Orderings,
    count_inversions,
    inversions_per_segment,
    kendall_tau_pooled,
    ordering_report,
)

__all__ = [
    "Orderings",
    "bootstrap_macro_f1",
    "bootstrap_paired_macro_f1",
    "bootstrap_paired_ratio",
    "bootstrap_ratio",
    "confusion_matrix",
    "count_inversions",
    "f1_per_label",
    "inversions_per_segment",
    "kendall_tau_pooled",
    "macro_f1",
    "ordering_report",
    "two_level_report",
]
