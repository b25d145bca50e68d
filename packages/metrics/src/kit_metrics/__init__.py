"""Competition metrics in vectorised NumPy with bootstrap intervals."""

from kit_metrics.bootstrap import (
    bootstrap_interval,
    bootstrap_paired_ratio,
    bootstrap_ratio,
    effective_groups,
    effective_groups_per_label,
)
from kit_metrics.classification import (
    bootstrap_macro_f1,
    bootstrap_paired_macro_f1,
    confusion_matrix,
    f1_per_label,
    macro_f1,
    two_level_report,
)
from kit_metrics.multilabel import (
    average_precision_per_tag,
    bootstrap_macro_average_precision,
    bootstrap_paired_macro_average_precision,
    macro_average_precision,
)
from kit_metrics.ordering import (
    Orderings,
    count_inversions,
    inversions_per_segment,
    kendall_tau_pooled,
    ordering_report,
)
from kit_metrics.retrieval import ndcg_per_query, ndcg_report, paired_ndcg

__all__ = [
    "Orderings",
    "average_precision_per_tag",
    "bootstrap_interval",
    "bootstrap_macro_average_precision",
    "bootstrap_macro_f1",
    "bootstrap_paired_macro_average_precision",
    "bootstrap_paired_macro_f1",
    "bootstrap_paired_ratio",
    "bootstrap_ratio",
    "confusion_matrix",
    "count_inversions",
    "effective_groups",
    "effective_groups_per_label",
    "f1_per_label",
    "inversions_per_segment",
    "kendall_tau_pooled",
    "macro_average_precision",
    "macro_f1",
    "ndcg_per_query",
    "ndcg_report",
    "ordering_report",
    "paired_ndcg",
    "two_level_report",
]
