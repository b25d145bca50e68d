"""Models on pooled statistics, the references that are no networks: genres as probabilities, emotions as values.

Every fitted model is a few arrays, or LightGBM's own text; nothing is pickled.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightgbm
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC, SVR

from kit_core.atomic import write_bytes, write_text
from kit_core.errors import DataError
from ntua_lab.config import Member, PooledConfig

SHARPNESS = 3.0  # of the softmax over margins; margins lie mostly in −1..1, and 3 makes them honest out of fold
BOUNDS = 10.0  # standard deviations; a statistic beyond them is an artefact of a short clip

Floats = NDArray[np.float64]


class Fitted(Protocol):
    """A fitted model."""

    def answer(self, X: NDArray[Any]) -> Floats:
        """Return probabilities [n, classes], or values [n, axes], for statistics [n, width]."""
        ...

    def save(self, path: Path) -> None:
        """Write the model to a path without suffix."""
        ...


@dataclass(frozen=True, eq=False)
class Machine:
    """Scores K(x) @ weights + bias of standardised statistics; K is the Gaussian kernel with `anchors`, or x itself.

    gamma 0 means that there is no kernel. `sharpness` 0 means values; else a softmax makes probabilities of scores.
    """

    mean: Floats
    scale: Floats
    anchors: Floats
    weights: Floats
    bias: Floats
    gamma: float
    sharpness: float

    def answer(self, X: NDArray[Any]) -> Floats:
        """Return probabilities [n, classes], or values [n, axes]."""
        x = _standardised(X, self.mean, self.scale)
        if self.gamma:
            squares = (x**2).sum(1)[:, None] + (self.anchors**2).sum(1) - 2 * x @ self.anchors.T
            x = np.exp(-self.gamma * np.maximum(squares, 0.0))
        scores = x @ self.weights + self.bias
        return softmax(self.sharpness * scores, axis=1) if self.sharpness else scores

    def save(self, path: Path) -> None:
        """Write the arrays to `path`.safetensors."""
        arrays = {name: np.asarray(value, np.float64) for name, value in vars(self).items()}
        write_bytes(
            path.with_suffix(".safetensors"),
            save({name: np.ascontiguousarray(np.atleast_1d(value)) for name, value in arrays.items()}),
        )

    @classmethod
    def load(cls, path: Path) -> "Machine":
        """Read what `save` wrote.

        Raises:
            DataError: the file is absent or damaged.
        """
        try:
            arrays = load_file(path.with_suffix(".safetensors"))
            gamma, sharpness = float(arrays.pop("gamma")[0]), float(arrays.pop("sharpness")[0])
            return cls(**arrays, gamma=gamma, sharpness=sharpness)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged model: {error}\n  do: restore the run, or train again") from error


@dataclass(frozen=True, eq=False)
class Trees:
    """LightGBM: one booster for all classes, or one for every axis."""

    boosters: list[lightgbm.Booster]
    classes: int

    def answer(self, X: NDArray[Any]) -> Floats:
        """Return probabilities [n, classes], or values [n, axes]."""
        outputs = [np.asarray(booster.predict(X), np.float64) for booster in self.boosters]
        return outputs[0].reshape(len(X), self.classes) if self.classes else np.stack(outputs, axis=1)

    def save(self, path: Path) -> None:
        """Write every booster to `path`-N.txt."""
        for number, booster in enumerate(self.boosters):
            write_text(path.with_name(f"{path.name}-{number}.txt"), booster.model_to_string())

    @classmethod
    def load(cls, path: Path, classes: int) -> "Trees":
        """Read what `save` wrote.

        Raises:
            DataError: the files are absent or damaged.
        """
        files = sorted(path.parent.glob(f"{path.name}-*.txt"))
        try:
            boosters = [_booster(file) for file in files]
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            raise DataError(f"{path}: damaged model: {error}\n  do: restore the run, or train again") from error
        if not boosters:
            raise DataError(f"{path}-0.txt: no such model; restore the run, or train again")
        return cls(boosters, classes)


def _booster(path: Path) -> lightgbm.Booster:
    """Read trees; a text that is not whole is refused here, because LightGBM reads past its end.

    Raises:
        ValueError: the file is damaged.
    """
    text = path.read_text(encoding="utf-8")
    sizes = re.search(r"^tree_sizes=([\d ]*)$", text, flags=re.M)
    start, stop = text.find("Tree=0\n"), text.find("end of trees\n")
    if not text.startswith("tree\n") or sizes is None or sum(map(int, sizes[1].split())) != stop - start:
        raise ValueError(f"{path.name}: found no whole model of LightGBM")
    return lightgbm.Booster(model_str=text)


def fit(
    member: Member, X: NDArray[Any], target: NDArray[Any], classes: int, config: PooledConfig, seed: int
) -> Machine | Trees:
    """Fit one model.

    Args:
        X: statistics float[n, width].
        target: int[n] among `classes`, or for `classes` 0 the values float[n, axes].
    """
    if member == "lightgbm":
        return _fit_trees(X, target, classes, config.rounds, seed)
    mean, scale = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-6 * (1 + np.abs(mean)), scale, np.inf)  # what never changes tells nothing: becomes 0
    x = _standardised(X, mean, scale)
    nothing = np.zeros((0, x.shape[1]))
    if member == "prior" or (member == "linear" and classes and (target == target[0]).all()):  # one class alone
        if classes:
            counts = np.bincount(target, minlength=classes) + 1e-9  # a class without clips still has a logarithm
            bias = np.log(counts / counts.sum())
        else:
            bias = target.mean(axis=0)
        weights = np.zeros((x.shape[1], len(bias)))
        return Machine(mean, scale, nothing, weights, bias, 0.0, 1.0 if classes else 0.0)
    if member == "ridge":
        return _fit_ridge(x, target, classes, config.ridge_penalty, mean, scale)
    if member == "linear":
        if classes:
            model = LogisticRegression(C=config.linear_strength, class_weight="balanced", max_iter=2000).fit(x, target)
            weights, bias = _spread(model, classes)
            return Machine(mean, scale, nothing, weights, bias, 0.0, 1.0)
        ridge = Ridge(alpha=1.0 / config.linear_strength).fit(x, target)
        return Machine(mean, scale, nothing, ridge.coef_.T, np.asarray(ridge.intercept_), 0.0, 0.0)
    return _fit_kernel(x, target, classes, config.svm_strength, mean, scale)


def load(member: Member, path: Path, classes: int) -> Machine | Trees:
    """Read a model that `save` wrote.

    Raises:
        DataError: it is absent or damaged.
    """
    return Trees.load(path, classes) if member == "lightgbm" else Machine.load(path)


def _standardised(X: NDArray[Any], mean: Floats, scale: Floats) -> Floats:
    return np.clip((np.asarray(X, np.float64) - mean) / scale, -BOUNDS, BOUNDS)


def _spread(model: LogisticRegression, classes: int) -> tuple[Floats, Floats]:
    """Coefficients [width, classes] and intercepts, for absent classes such that they get nothing."""
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps only the difference of two classes
        coefficients, intercepts = np.concatenate([0 * coefficients, coefficients]), np.array([0.0, intercepts[0]])
    weights, bias = np.zeros((coefficients.shape[1], classes)), np.full(classes, -50.0)
    weights[:, model.classes_] = coefficients.T
    bias[model.classes_] = intercepts
    return weights, bias


def _fit_ridge(x: Floats, target: NDArray[Any], classes: int, penalty: float, mean: Floats, scale: Floats) -> Machine:
    """Least squares on −1 and 1 for each class, every class of the same weight in all, or on the values of the axes."""
    wanted = np.where(target[:, None] == np.arange(classes), 1.0, -1.0) if classes else target
    share = np.ones(len(x))
    if classes:
        share = (len(x) / np.bincount(target, minlength=classes).clip(1))[target]
        share /= share.mean()
    ridge = Ridge(alpha=penalty * x.shape[1], solver="cholesky").fit(x, wanted, sample_weight=share)
    bias = np.broadcast_to(np.asarray(ridge.intercept_, np.float64), wanted.shape[1:])
    weights = ridge.coef_.reshape(wanted.shape[1], -1).T
    return Machine(mean, scale, np.zeros((0, x.shape[1])), weights, bias, 0.0, SHARPNESS if classes else 0.0)


def _fit_kernel(x: Floats, target: NDArray[Any], classes: int, strength: float, mean: Floats, scale: Floats) -> Machine:
    """Support vector machines, one against the rest, or one regression for each axis."""
    gamma = 1.0 / (x.shape[1] * max(float(x.var()), 1e-12))  # scikit-learn's "scale"
    columns = classes or target.shape[1]
    weights, bias = np.zeros((len(x), columns)), np.zeros(columns)
    for column in range(columns):
        if classes:
            wanted = target == column
            if not wanted.any() or wanted.all():
                bias[column] = 1.0 if wanted.all() else -1.0
                continue
            model = SVC(C=strength, gamma=gamma).fit(x, wanted)
        else:
            model = SVR(C=strength, gamma=gamma, epsilon=0.05).fit(x, target[:, column])
        weights[model.support_, column] = model.dual_coef_[0]
        bias[column] = model.intercept_[0]
    used = np.flatnonzero(np.abs(weights).any(axis=1))
    return Machine(mean, scale, x[used], weights[used], bias, gamma, SHARPNESS if classes else 0.0)


def _fit_trees(X: NDArray[Any], target: NDArray[Any], classes: int, rounds: int, seed: int) -> Trees:
    settings: dict[str, Any] = {
        "learning_rate": 0.05,
        "num_leaves": 15,
        "min_data_in_leaf": 10,
        "feature_fraction": 0.2,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 2.0,
        "max_bin": 63,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": 1,  # several would sum in another order each time
        "verbosity": -1,
    }
    if classes:
        objective = {"objective": "multiclass", "num_class": classes}
        data = lightgbm.Dataset(X, target, params={"verbosity": -1})
        return Trees([lightgbm.train(settings | objective, data, rounds)], classes)
    boosters = [
        lightgbm.train(
            settings | {"objective": "regression"},
            lightgbm.Dataset(X, target[:, axis], params={"verbosity": -1}),
            rounds,
        )
        for axis in range(target.shape[1])
    ]
    return Trees(boosters, 0)
