"""From the members' logits to probabilities: a temperature and a weight for each, and the logit adjustment.

What is chosen here is chosen out of fold, and the score of a run is cross-fitted: the settings for one fold come from
the others, so that no image helps to choose what it is judged by.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kit_ensemble.selection import greedy_selection
from kit_metrics import macro_f1

FloatArray = NDArray[np.float64]
Labels = NDArray[np.int64]

TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(-12, 13))
ROUNDS = 25


@dataclass(frozen=True)
class Blend:
    """How to mix the members: `p = normalised(sum_m weight_m softmax(logits_m / temperature_m) / prior ** tau)`."""

    temperatures: tuple[float, ...]
    weights: tuple[float, ...]
    tau: float
    prior: tuple[float, ...]

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Turn logits float64[members, n, labels] into probabilities float64[n, labels]."""
        mixed = sum(
            weight * softmax(one / temperature)
            for weight, temperature, one in zip(self.weights, self.temperatures, logits, strict=True)
        )
        return adjusted(np.asarray(mixed), np.array(self.prior), self.tau)

    def as_json(self) -> dict[str, Any]:
        """Return plain values; `Blend(**...)` takes them back."""
        return asdict(self)


def softmax(logits: FloatArray) -> FloatArray:
    """Return the probabilities of logits [n, labels]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)


def adjusted(probabilities: FloatArray, prior: FloatArray, tau: float) -> FloatArray:
    """Divide probabilities [n, labels] by `prior ** tau` and normalise: 0 changes nothing, 1 asks for equal priors.

    Source: Menon et al., "Long-tail learning via logit adjustment" (ICLR 2021), the adjustment after training.
    """
    scaled = probabilities / np.maximum(prior, 1e-12) ** tau
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), dtype=np.float64)


def label_prior(label: Labels, n_labels: int) -> FloatArray:
    """Return the share of every label, with one image added to each so that none is 0."""
    counts = np.bincount(label, minlength=n_labels) + 1.0
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def plain_blend(n_members: int, prior: FloatArray, tau: float) -> Blend:
    """Return the blend that needs no out-of-fold scores: equal weights, no temperatures."""
    return Blend((1.0,) * n_members, (1.0 / n_members,) * n_members, tau, tuple(prior.tolist()))


def fit_blend(
    logits: FloatArray, label: Labels, prior: FloatArray, weights: Literal["equal", "greedy"], taus: tuple[float, ...]
) -> Blend:
    """Choose temperatures and weights by the log-likelihood of `logits` [members, n, labels], then tau by macro F1.

    The likelihood is smooth where macro F1 jumps with single images; of equal taus the smallest is taken.
    """
    rows, n_labels = np.arange(len(label)), logits.shape[2]

    def likelihood(probabilities: FloatArray) -> float:
        return float(np.log(np.maximum(probabilities[rows, label], 1e-12)).mean())

    temperatures = tuple(max(TEMPERATURES, key=lambda t: likelihood(softmax(one / t))) for one in logits)
    single = np.stack([softmax(one / t) for one, t in zip(logits, temperatures, strict=True)])
    chosen = np.full(len(logits), 1.0 / len(logits))
    if weights == "greedy" and len(logits) > 1:
        chosen, _ = greedy_selection(
            len(logits), lambda w: likelihood(np.tensordot(w, single, axes=1)), rounds=ROUNDS, patience=ROUNDS
        )
    mixed = np.tensordot(chosen, single, axes=1)
    tau = max(sorted(taus), key=lambda t: macro_f1(label, adjusted(mixed, prior, t).argmax(axis=1), n_labels))
    return Blend(temperatures, tuple(chosen.tolist()), tau, tuple(prior.tolist()))


def cross_fitted(
    logits: FloatArray,
    label: Labels,
    folds: Labels,
    n_labels: int,
    weights: Literal["equal", "greedy"],
    taus: tuple[float, ...],
) -> FloatArray:
    """Return probabilities [n, labels] in which every fold is mixed by a `Blend` fitted on the other folds."""
    out = np.empty(logits.shape[1:])
    for fold in np.unique(folds):
        inside = folds == fold
        prior = label_prior(label[~inside], n_labels)
        out[inside] = fit_blend(logits[:, ~inside], label[~inside], prior, weights, taus).probabilities(
            logits[:, inside]
        )
    return out
