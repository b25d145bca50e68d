"""The models that are not networks, on pooled statistics: LightGBM for each tag, neighbours, logistic regression.

Each has `fit`, `logits`, `save` and `load`; features are float32 [n, columns], tags bool [n, k], logits float32 [n, k].
"""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kit_core.console import progress
from kit_io.ragged import RaggedPack
from kit_train.weights import load_weights, save_weights

MAX_ITERATIONS = 500  # of L-BFGS; about a hundred are enough
GRADIENT = 1e-8  # largest derivative of the mean loss at which L-BFGS stops

Statistic = Literal["mean", "std", "max", "min"]


class Classic(Protocol):
    """What the models of this module have in common."""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32 [n, k] for features [n, columns]."""

    def save(self, path: Path) -> None:
        """Write the model to one file."""


def pooled_statistics(pack: RaggedPack, rows: np.ndarray, statistics: Sequence[Statistic]) -> np.ndarray:
    """Return float32 [n, statistics × dim]: each statistic of the frames of each track, side by side."""
    pool = {
        "mean": lambda frames: frames.mean(0),
        "std": lambda frames: frames.std(0),
        "max": lambda frames: frames.max(0),
        "min": lambda frames: frames.min(0),
    }
    features = np.empty((len(rows), len(statistics), pack.dim), np.float32)
    for place, row in enumerate(rows.tolist()):
        frames = pack.item(row)
        for column, name in enumerate(statistics):
            features[place, column] = pool[name](frames)
    return features.reshape(len(rows), -1)


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each column of the fitted features."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Measure them; a column that does not vary gets the deviation 1."""
        deviation = features.std(0)
        return cls(features.mean(0), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return standardised features."""
        return (features - self.mean) / self.deviation


class Boosting:
    """One LightGBM model for each tag; all share the bins of one data set, and tags run in parallel."""

    def __init__(self, models: list[str]) -> None:
        import lightgbm  # here and below: it takes seconds to load, and only this class needs it

        self._texts = models
        self._boosters = [lightgbm.Booster(model_str=text) for text in models]

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        tags: np.ndarray,
        *,
        rounds: int,
        leaves: int,
        learning_rate: float,
        feature_share: float,
        workers: int,
        seed: int,
    ) -> Self:
        """Fit them; `workers` threads (0: one a core), each fits whole tags with one thread of its own."""
        import lightgbm

        parameters = {
            "objective": "binary",
            "num_leaves": leaves,
            "learning_rate": learning_rate,
            "feature_fraction": feature_share,
            "min_data_in_leaf": 10,
            "num_threads": 1,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,  # else LightGBM measures which layout is faster, and the bits may differ
            "max_bin": 63,
            "verbosity": -1,
        }
        binned = lightgbm.Dataset(features, params=parameters, free_raw_data=False).construct()

        def fit_tag(tag: int) -> str:
            labelled = lightgbm.Dataset(features, label=tags[:, tag], reference=binned, params=parameters)
            return str(lightgbm.train(parameters, labelled, num_boost_round=rounds).model_to_string())

        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            fitted = pool.map(fit_tag, range(tags.shape[1]))
            return cls(list(progress(fitted, total=tags.shape[1], label="tags fitted")))

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return raw scores, float32 [n, k]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # scikit-learn's wish for column names
            columns = [np.asarray(booster.predict(features, raw_score=True)) for booster in self._boosters]
        return np.stack(columns, 1).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write the models as LightGBM's own texts, one behind the other."""
        texts = [text.encode() for text in self._texts]
        content = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
        save_weights(path, {"texts": content}, {"kind": "lightgbm", "sizes": [len(text) for text in texts]})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], header: dict) -> Self:
        """Build it from what `save` wrote."""
        content = tensors["texts"].numpy().tobytes()
        ends = np.cumsum(header["sizes"]).tolist()
        return cls([content[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)])


class Neighbours:
    """Votes of the k tracks with the most similar (cosine) standardised features, weighed by a power of similarity."""

    POWER = 4  # near neighbours count more; any value from 2 to 8 gives nearly the same

    def __init__(self, scaling: Scaling, features: np.ndarray, tags: np.ndarray, k: int) -> None:
        self._scaling, self._features, self._tags, self._k = scaling, features, tags, k

    @classmethod
    def fit(cls, features: np.ndarray, tags: np.ndarray, *, k: int) -> Self:
        """Remember the tracks."""
        scaling = Scaling.of(features)
        return cls(scaling, _normalised(scaling(features)), tags.astype(np.float32), min(k, len(features)))

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logit of each tag's share of the votes, float32 [n, k]."""
        prior = self._tags.mean(0)
        out = np.empty((len(features), self._tags.shape[1]), np.float32)
        for start in range(0, len(features), 1024):
            similarity = _normalised(self._scaling(features[start : start + 1024])) @ self._features.T
            nearest = np.argpartition(-similarity, self._k - 1, axis=1)[:, : self._k]
            weight = np.take_along_axis(similarity, nearest, 1).clip(0.01) ** self.POWER
            votes = np.einsum("nk,nkt->nt", weight / weight.sum(1, keepdims=True), self._tags[nearest])
            share = (votes * self._k + prior) / (self._k + 1)  # one vote by what is common, so that no share is 0 or 1
            out[start : start + 1024] = _logit(share)
        return out

    def save(self, path: Path) -> None:
        """Write the remembered tracks."""
        tensors = {
            "features": self._features,
            "tags": self._tags,
            "mean": self._scaling.mean,
            "deviation": self._scaling.deviation,
        }
        save_weights(path, {name: torch.from_numpy(a) for name, a in tensors.items()}, {"kind": "knn", "k": self._k})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], header: dict) -> Self:
        """Build it from what `save` wrote."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        scaling = Scaling(arrays["mean"], arrays["deviation"])
        return cls(scaling, arrays["features"], arrays["tags"], int(header["k"]))


class Logistic:
    """One logistic regression for each tag on standardised features, all fitted at once."""

    def __init__(self, scaling: Scaling, weight: np.ndarray, bias: np.ndarray, *, unit_norm: bool = False) -> None:
        self._scaling, self._weight, self._bias, self._unit_norm = scaling, weight, bias, unit_norm

    @classmethod
    def fit(cls, features: np.ndarray, tags: np.ndarray, *, C: float, unit_norm: bool = False) -> Self:
        """Minimise the summed cross-entropy + |w|² / 2C of each tag by L-BFGS, as scikit-learn's regression does.

        The minimum is unique. Double precision and a small gradient bring every run so near to it that rounding, which
        depends on the number of threads, changes nothing that counts. A change of variables by the eigenvectors of
        XᵀX, scaled to the curvature at the start, makes that a matter of tens of iterations. With `unit_norm` the
        standardised features of each track are scaled to length 1.
        """
        scaling = Scaling.of(features)
        x = torch.from_numpy(_standardised(scaling, features, unit_norm).astype(np.float64))
        y = torch.from_numpy(tags.astype(np.float64))
        prior = y.mean(0).clamp(1e-4, 1 - 1e-4)
        squares, vectors = torch.linalg.eigh(x.T @ x)
        variance = prior * (1 - prior)
        scale = (squares.clamp_min(0)[:, None] * variance + 1 / C).rsqrt()  # [columns, tags]
        bias_scale = (len(x) * variance).rsqrt()
        rotated = x @ vectors
        weight = torch.zeros(scale.shape, dtype=torch.float64, requires_grad=True)
        bias = (torch.logit(prior) / bias_scale).requires_grad_()
        solver = torch.optim.LBFGS(
            [weight, bias],
            max_iter=MAX_ITERATIONS,
            max_eval=2 * MAX_ITERATIONS,
            tolerance_grad=GRADIENT,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            solver.zero_grad()
            scaled = scale * weight
            entropy = functional.binary_cross_entropy_with_logits(
                rotated @ scaled + bias_scale * bias, y, reduction="sum"
            )
            total = (entropy + scaled.square().sum() / (2 * C)) / len(x)
            total.backward()
            return total

        solver.step(loss)
        found = (vectors @ (scale * weight.detach())).float().numpy()
        return cls(scaling, found, (bias_scale * bias.detach()).float().numpy(), unit_norm=unit_norm)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32 [n, k]."""
        x = _standardised(self._scaling, features, self._unit_norm)
        return np.asarray(x @ self._weight + self._bias, np.float32)

    def save(self, path: Path) -> None:
        """Write the weights."""
        tensors = {
            "weight": self._weight,
            "bias": self._bias,
            "mean": self._scaling.mean,
            "deviation": self._scaling.deviation,
        }
        header = {"kind": "logistic", "unit_norm": self._unit_norm}
        save_weights(path, {name: torch.from_numpy(a) for name, a in tensors.items()}, header)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], header: dict) -> Self:
        """Build it from what `save` wrote."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        unit_norm = bool(header.get("unit_norm", False))  # older files do not say: they had none
        scaling = Scaling(arrays["mean"], arrays["deviation"])
        return cls(scaling, arrays["weight"], arrays["bias"], unit_norm=unit_norm)


KINDS: dict[str, type[Boosting] | type[Neighbours] | type[Logistic]] = {
    "lightgbm": Boosting,
    "knn": Neighbours,
    "logistic": Logistic,
}


def load_classic(path: Path) -> Classic:
    """Read a model that one of the classes saved.

    Raises:
        DataError: the file is absent or damaged.
    """
    tensors, header = load_weights(path)
    return KINDS[header["kind"]].from_tensors(tensors, header)


def _standardised(scaling: Scaling, features: np.ndarray, unit_norm: bool) -> np.ndarray:
    scaled = scaling(features)
    return _normalised(scaled) if unit_norm else scaled


def _normalised(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)


def _logit(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 1e-6, 1 - 1e-6)
    return np.log(share) - np.log1p(-share)
