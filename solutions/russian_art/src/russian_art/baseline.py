"""Classifiers on fixed numbers, thumbnails or frozen features: what places 2 and 3 used, and the non-neural reference.

Every fitted model turns features float32[n, width] into logits float64[n, labels], and is kept as plain arrays, so that
nothing has to be unpickled.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Protocol

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.svm import LinearSVC

from kit_core.errors import ConfigError
from kit_metrics import macro_f1

FloatArray = NDArray[np.float64]
Features = NDArray[np.float32]
Labels = NDArray[np.int64]

LEAST = -12.0  # logit of a label without any training image


class Probe(Protocol):
    """A fitted classifier."""

    @property
    def parameters(self) -> int:
        """Return how many numbers were fitted."""
        ...

    def logits(self, X: Features) -> FloatArray:
        """Return the logits float64[n, labels] of features [n, width]."""
        ...

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all that `restore` needs."""
        ...


@dataclass(frozen=True)
class Linear:
    """Logits that are linear in standardised features: `((x - mean) / scale) @ weight.T + bias`."""

    mean: FloatArray
    scale: FloatArray
    weight: FloatArray
    bias: FloatArray

    @property
    def parameters(self) -> int:
        """Return how many numbers were fitted."""
        return self.weight.size + self.bias.size

    def logits(self, X: Features) -> FloatArray:
        """Return the logits float64[n, labels] of features [n, width]."""
        return ((X - self.mean) / self.scale) @ self.weight.T + self.bias

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all that `restore` needs."""
        return {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": self.bias}

    def plain(self) -> tuple[FloatArray, FloatArray]:
        """Return weight [labels, width] and bias [labels] that act on features as they are, for a network's head."""
        weight = self.weight / self.scale
        return weight, self.bias - weight @ self.mean


@dataclass(frozen=True)
class Neighbours:
    """Votes of the nearest training images by cosine similarity of standardised features, weighted by its power."""

    mean: FloatArray
    scale: FloatArray
    known: Features
    label: Labels
    k: int
    n_labels: int

    @property
    def parameters(self) -> int:
        """Return how many numbers were fitted."""
        return 0  # it keeps the pictures as they are

    def logits(self, X: Features) -> FloatArray:
        """Return the logarithm of the shares of votes, float64[n, labels]."""
        unit = _unit((X - self.mean) / self.scale).astype(np.float32)
        similarity = unit @ self.known.T
        k = min(self.k, similarity.shape[1])
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        strength = np.exp(10 * np.take_along_axis(similarity, nearest, axis=1).astype(np.float64))
        votes = np.zeros((len(X), self.n_labels))
        for column in range(k):
            votes[np.arange(len(X)), self.label[nearest[:, column]]] += strength[:, column]
        return np.log(votes / votes.sum(axis=1, keepdims=True) + 0.005)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all that `restore` needs."""
        counts = np.array([self.k, self.n_labels])
        return {"mean": self.mean, "scale": self.scale, "known": self.known, "label": self.label, "counts": counts}


@dataclass(frozen=True)
class Kernel:
    """Kernel ridge regression of the labels on standardised features, with a Gaussian kernel.

    `gamma` is that of the mean squared difference over the features, so that it does not depend on their number.
    """

    mean: FloatArray
    scale: FloatArray
    known: Features
    weight: FloatArray
    bias: FloatArray
    gamma: float

    @property
    def parameters(self) -> int:
        """Return how many numbers were fitted."""
        return self.weight.size + self.bias.size

    def logits(self, X: Features) -> FloatArray:
        """Return the regressed shares of the labels times 10, roughly a logistic scale, float64[n, labels]."""
        Z = ((X - self.mean) / self.scale).astype(np.float32)
        return 10 * (_gaussian(Z, self.known, self.gamma) @ self.weight + self.bias)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all that `restore` needs."""
        solved: dict[str, NDArray[np.generic]] = {"weight": self.weight, "bias": self.bias}
        return solved | {"mean": self.mean, "scale": self.scale, "known": self.known, "gamma": np.array([self.gamma])}


@dataclass(frozen=True)
class Trees:
    """Gradient-boosted trees, kept as LightGBM's own text."""

    text: str
    n_labels: int

    @property
    def parameters(self) -> int:
        """Return how many numbers were fitted."""
        return sum(int(count) for count in re.findall(r"^num_leaves=(\d+)$", self.text, re.MULTILINE))

    def logits(self, X: Features) -> FloatArray:
        """Return the logarithm of the trees' probabilities, float64[n, labels]."""
        return np.log(np.asarray(lightgbm.Booster(model_str=self.text).predict(X)) + 1e-6)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all that `restore` needs."""
        text = np.frombuffer(self.text.encode(), dtype=np.uint8)
        return {"trees": text, "counts": np.array([self.n_labels])}


def restore(arrays: dict[str, NDArray[np.generic]]) -> Probe:
    """Return the model of which `arrays` are the arrays."""
    a = dict(arrays)
    if "trees" in a:
        return Trees(a["trees"].tobytes().decode(), int(a["counts"][0]))
    if "gamma" in a:
        gamma = float(a.pop("gamma")[0])
        return Kernel(**a, gamma=gamma)  # type: ignore[arg-type]  # the dtypes that `arrays` gave
    if "known" in a:
        k, n_labels = (int(count) for count in a.pop("counts"))
        return Neighbours(**a, k=k, n_labels=n_labels)  # type: ignore[arg-type]  # the dtypes that `arrays` gave
    return Linear(**a)  # type: ignore[arg-type]  # the dtypes that `arrays` gave


def fit_logistic(X: Features, y: Labels, n_labels: int, C: float) -> Linear:
    """Fit multinomial logistic regression on standardised features [n, width]."""
    mean, scale = _standard(X)
    if len(np.unique(y)) == 1:
        return _always(mean, scale, y, n_labels)
    model = LogisticRegression(C=C, max_iter=500, tol=1e-3)
    _fit_quietly(model, ((X - mean) / scale).astype(np.float32), y)
    return _linear(mean, scale, model.coef_, model.intercept_, model.classes_, n_labels)


def fit_prior(y: Labels, n_labels: int) -> Linear:
    """Learn the frequency of every label, and nothing of the pictures; features are one column that is ignored."""
    counts = np.bincount(y, minlength=n_labels)
    zero = np.zeros((n_labels, 1))
    return Linear(np.zeros(1), np.ones(1), zero, np.log(np.maximum(counts, 0.01) / counts.sum()))


def fit_svc(X: Features, y: Labels, n_labels: int, C: float, seed: int) -> Linear:
    """Fit one-against-rest linear support vector machines; logits are margins times 4, roughly a logistic scale."""
    mean, scale = _standard(X)
    if len(np.unique(y)) == 1:
        return _always(mean, scale, y, n_labels)
    model = LinearSVC(C=C, random_state=seed, max_iter=1000, tol=1e-3)
    _fit_quietly(model, (X - mean) / scale, y)
    return _linear(mean, scale, 4 * model.coef_, 4 * model.intercept_, model.classes_, n_labels)


def fit_discriminant(X: Features, y: Labels, n_labels: int, shrinkage: float) -> Linear:
    """Fit Gaussians with one shared covariance, shrunk towards a multiple of the identity; logits hold the priors.

    Source: J. H. Friedman, "Regularized discriminant analysis", 1989.
    """
    mean, scale = _standard(X)
    Z = (X - mean) / scale
    classes, index, counts = np.unique(y, return_inverse=True, return_counts=True)
    centres = np.stack([Z[index == c].mean(axis=0) for c in range(len(classes))])
    rest = Z - centres[index]
    spread = float((rest**2).sum() / rest.size)
    # With more features than rows the inverse is taken in the space of the rows (Woodbury).
    ridge, share = shrinkage * spread, (1 - shrinkage) / len(Z)
    if len(Z) < Z.shape[1]:
        inner = np.eye(len(Z)) + (share / ridge) * (rest @ rest.T)
        weight = (centres - (share / ridge) * np.linalg.solve(inner, rest @ centres.T).T @ rest) / ridge
    else:
        weight = np.linalg.solve(ridge * np.eye(Z.shape[1]) + share * rest.T @ rest, centres.T).T
    bias = np.log(counts / counts.sum()) - 0.5 * (weight * centres).sum(axis=1)
    return _linear(mean, scale, weight, bias, classes, n_labels)


def fit_neighbours(X: Features, y: Labels, n_labels: int, k: int) -> Neighbours:
    """Keep the training images for `Neighbours`."""
    mean, scale = _standard(X)
    return Neighbours(mean, scale, _unit((X - mean) / scale).astype(np.float32), y.astype(np.int64), k, n_labels)


def fit_kernel(X: Features, y: Labels, n_labels: int, gamma: float, ridge: float) -> Kernel:
    """Fit kernel ridge regression of the labels, each as a column of zeros and ones; needs memory for rows x rows."""
    mean, scale = _standard(X)
    Z = ((X - mean) / scale).astype(np.float32)
    wanted = np.eye(n_labels)[y]
    bias = wanted.mean(axis=0)
    within = _gaussian(Z, Z, gamma)
    within[np.diag_indices(len(Z))] += ridge
    return Kernel(mean, scale, Z, np.linalg.solve(within, wanted - bias), bias, gamma)


def fit_lightgbm(X: Features, y: Labels, n_labels: int, rounds: int, seed: int) -> Trees:
    """Fit gradient-boosted trees."""
    settings = {
        "objective": "multiclass",
        "num_class": n_labels,
        "learning_rate": 0.08,
        "num_leaves": 15,
        "min_data_in_leaf": 5,
        "feature_fraction": 0.1,
        "max_bin": 63,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
    }
    booster = lightgbm.train(settings, lightgbm.Dataset(X, y, params={"verbosity": -1}), num_boost_round=rounds)
    return Trees(booster.model_to_string(), n_labels)


def choose_strength(
    X: Features, y: Labels, groups: Labels, n_labels: int, grid: tuple[float, ...], seed: int
) -> tuple[float, dict[float, float]]:
    """Return the C of `grid` with the best macro F1 in three grouped folds, and the scores of all.

    `X` is [n, views, width]; the views of an image stay together.
    """
    scores = dict.fromkeys(grid, 0.0)
    folds = list(StratifiedGroupKFold(3, shuffle=True, random_state=seed).split(X, y, groups))
    for C in grid:
        predicted = np.empty_like(y)
        for train, test in folds:
            model = fit_logistic(*rows_of(X[train], y[train]), n_labels, C)
            predicted[test] = view_logits(model, X[test]).argmax(axis=1)
        scores[C] = macro_f1(y, predicted, n_labels)
    return max(grid, key=lambda C: scores[C]), scores


def rows_of(X: Features, y: Labels) -> tuple[Features, Labels]:
    """Turn images [n, views, width] into rows [n * views, width] with their labels."""
    return X.reshape(-1, X.shape[2]), np.repeat(y, X.shape[1])


def view_logits(model: Probe, X: Features) -> FloatArray:
    """Return the logits [n, labels] of images [n, views, width], averaged over the views."""
    return np.mean([model.logits(X[:, view]) for view in range(X.shape[1])], axis=0)


def thumbnails(pixels: NDArray[np.uint8], edge: int) -> Features:
    """Return images uint8[n, h, w, 3] as rows of `edge` x `edge` mean colours in 0..1, float32[n, edge * edge * 3].

    Raises:
        ConfigError: the images have fewer pixels than that.
    """
    n, height, width, _ = pixels.shape
    if edge > min(height, width):
        raise ConfigError(f"probe.pixels: found {edge}, expected at most {min(height, width)}, the size of the images")
    rows = np.linspace(0, height, edge + 1).astype(int)[:-1]
    columns = np.linspace(0, width, edge + 1).astype(int)[:-1]
    out = np.empty((n, edge * edge * 3), dtype=np.float32)
    for i in range(n):
        sums = np.add.reduceat(np.add.reduceat(pixels[i].astype(np.float32), rows, axis=0), columns, axis=1)
        areas = np.outer(np.diff(np.append(rows, height)), np.diff(np.append(columns, width)))
        out[i] = (sums / areas[..., None] / 255).ravel()
    return out


def _standard(X: Features) -> tuple[FloatArray, FloatArray]:
    scale = X.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6] = 1.0  # a constant feature stays constant instead of becoming noise
    return X.mean(axis=0, dtype=np.float64), scale


def _unit(X: NDArray[np.floating]) -> NDArray[np.floating]:
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-9)


def _gaussian(A: Features, B: Features, gamma: float) -> FloatArray:
    squares = (A**2).sum(axis=1, dtype=np.float64)[:, None] + (B**2).sum(axis=1, dtype=np.float64)[None]
    return np.asarray(np.exp(-gamma / A.shape[1] * np.maximum(squares - 2.0 * (A @ B.T), 0.0)), dtype=np.float64)


def _linear(
    mean: FloatArray, scale: FloatArray, weight: FloatArray, bias: FloatArray, classes: Labels, n_labels: int
) -> Linear:
    """Spread the rows of the classes that were seen over all labels; scikit-learn has one row for two classes."""
    if len(classes) == 2 and len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full, offsets = np.zeros((n_labels, weight.shape[1])), np.full(n_labels, LEAST)
    full[classes], offsets[classes] = weight, bias
    return Linear(mean, scale, full, offsets)


def _always(mean: FloatArray, scale: FloatArray, y: Labels, n_labels: int) -> Linear:
    """Give every image the only label that was seen, of which scikit-learn's classifiers will not learn."""
    return _linear(mean, scale, np.zeros((1, len(mean))), np.zeros(1), y[:1], n_labels)


def _fit_quietly(model: LogisticRegression | LinearSVC, X: NDArray[np.floating], y: Labels) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the cap on iterations ends the last digits, not the score
        model.fit(X, y)
