"""Losses for multilabel, metric and ranking problems, in fp32 under autocast."""

from kit_losses.margin import ArcFace
from kit_losses.multilabel import DistributionBalancedLoss, asymmetric_loss, focal_loss
from kit_losses.pairs import (
    PairLoss,
    PairLosses,
    circle,
    contrastive,
    multi_similarity,
    nt_xent,
    random_triplets,
    triplet_margin,
)
from kit_losses.ranking import roadmap, smooth_ap, sup_ap

__all__ = [
    "ArcFace",
    "DistributionBalancedLoss",
    "PairLoss",
    "PairLosses",
    "asymmetric_loss",
    "circle",
    "contrastive",
    "focal_loss",
    "multi_similarity",
    "nt_xent",
    "random_triplets",
    "roadmap",
    "smooth_ap",
    "sup_ap",
    "triplet_margin",
]
