"""What several models of a run are made of and how they answer together, and the statistics that they see."""

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.fft import dct
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC, SVR

from ntua_lab import baseline, features
from ntua_lab.cli import main
from ntua_lab.config import PooledConfig

SMALL = (
    "--network.channels", "4", "6", "--input.chunk", "24", "--train.epochs", "2", "--train.batch", "8",
)  # fmt: skip


def train(preset: str, data: Path, run: Path, *flags: str) -> None:
    assert main(["train", preset, "--data", str(data), "--run", str(run), *flags]) == 0


def test_transfer_begins_with_the_backbone_of_the_other_run(packed: Path, tmp_path: Path) -> None:
    train("short-chunk-cnn", packed, tmp_path / "genre", *SMALL, "--data.fold", "none")
    frozen = ("--train.learning-rate", "1e-12", "--train.ema", "0", "--axes", "valence")
    train("transfer", packed, tmp_path / "transfer", *SMALL, *frozen, "--start", str(tmp_path / "genre"))
    start = load_file(tmp_path / "genre/models/whole/network-genre.safetensors")
    taken = load_file(tmp_path / "transfer/models/fold0/network-valence.safetensors")
    names = [name for name in start if name.startswith("backbone.") and name.endswith(("weight", "bias"))]
    assert len(names) >= 6
    for name in (*names, "mean", "scale"):
        np.testing.assert_allclose(taken[name], start[name], atol=1e-9)
    train("cnn-emotion", packed, tmp_path / "random", *SMALL, *frozen)
    other = load_file(tmp_path / "random/models/fold0/network-valence.safetensors")
    assert any(np.abs(other[name] - start[name]).max() > 1e-3 for name in names)


def standardised(X: np.ndarray, among: np.ndarray) -> np.ndarray:
    return (X - among.mean(axis=0)) / among.std(axis=0)


def made_up(classes: int) -> tuple[np.ndarray, Any, np.ndarray]:
    """Statistics, targets, and statistics to answer."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 8)) * 3 + 1
    target: Any = np.repeat(np.arange(3), [35, 15, 10]) if classes else rng.random((60, 2))
    X[:, 0] += 2 * (target if classes else target[:, 0])
    return X, target, rng.standard_normal((30, 8)) * 3 + 1


@pytest.mark.parametrize("classes", [0, 3])
def test_support_vector_machines_are_those_of_scikit_learn(classes: int) -> None:
    X, target, others = made_up(classes)
    found = baseline.fit("svm", X, target, classes, PooledConfig(svm_strength=2.0), 0).answer(others)
    x, y = standardised(X, X), standardised(others, X)
    if classes:
        margins = [SVC(C=2.0).fit(x, target == k).decision_function(y) for k in range(classes)]
        shares = np.exp(3 * np.stack(margins, axis=1))
        np.testing.assert_allclose(found, shares / shares.sum(axis=1, keepdims=True), atol=1e-9)
    else:
        values = [SVR(C=2.0, epsilon=0.05).fit(x, column).predict(y) for column in target.T]
        np.testing.assert_allclose(found, np.stack(values, axis=1), atol=1e-9)


@pytest.mark.parametrize("classes", [0, 3])
def test_linear_models_are_those_of_scikit_learn(classes: int) -> None:
    X, target, others = made_up(classes)
    found = baseline.fit("linear", X, target, classes, PooledConfig(linear_strength=0.1), 0).answer(others)
    x, y = standardised(X, X), standardised(others, X)
    if classes:
        model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(x, target)
        np.testing.assert_allclose(found, model.predict_proba(y), atol=1e-9)
    else:
        np.testing.assert_allclose(found, Ridge(10.0).fit(x, target).predict(y), atol=1e-9)


def test_two_of_four_classes_are_those_of_scikit_learn() -> None:
    X, target, others = made_up(3)
    target = np.where(target == 0, 1, 3)
    found = baseline.fit("linear", X, target, 4, PooledConfig(linear_strength=0.1), 0).answer(others)
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(standardised(X, X), target)
    np.testing.assert_allclose(found[:, [1, 3]], model.predict_proba(standardised(others, X)), atol=1e-9)
    np.testing.assert_allclose(found[:, [0, 2]], 0.0, atol=1e-9)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_prior_is_the_share_of_a_class_or_the_mean(classes: int) -> None:
    X, target, others = made_up(classes)
    found = baseline.fit("prior", X, target, classes, PooledConfig(), 0).answer(others)
    expected = np.array([35, 15, 10]) / 60 if classes else target.mean(axis=0)
    np.testing.assert_allclose(found, np.tile(expected, (30, 1)), atol=1e-9)


def test_trees_are_those_of_lightgbm_and_depend_on_the_seed() -> None:
    X, target, others = made_up(3)
    found = baseline.fit("lightgbm", X, target, 3, PooledConfig(rounds=7), 5).answer(others)
    model = lightgbm.LGBMClassifier(
        n_estimators=7, learning_rate=0.05, num_leaves=15, min_child_samples=10, colsample_bytree=0.2, subsample=0.8,
        subsample_freq=1, reg_lambda=2.0, max_bin=63, random_state=5, deterministic=True, force_col_wise=True,
        n_jobs=1, verbosity=-1,
    ).fit(X, target)  # fmt: skip
    np.testing.assert_allclose(found, model.booster_.predict(others), atol=1e-9)
    other = baseline.fit("lightgbm", X, target, 3, PooledConfig(rounds=7), 6).answer(others)
    assert np.abs(found - other).max() > 1e-3
    values = np.stack([X[:, 0], -X[:, 1]], axis=1)
    both = baseline.fit("lightgbm", X, values, 0, PooledConfig(rounds=30), 0).answer(X)
    assert [np.corrcoef(both[:, axis], values[:, axis])[0, 1] > 0.5 for axis in (0, 1)] == [True, True]


@pytest.mark.parametrize("member", ["svm", "linear", "ridge", "prior"])
def test_a_stored_model_answers_as_the_fitted_one(member: Any, tmp_path: Path) -> None:
    X, target, others = made_up(3)
    model = baseline.fit(member, X, target, 3, PooledConfig(), 0)
    model.save(tmp_path / "model")
    found = baseline.load(member, tmp_path / "model", 3).answer(others)
    np.testing.assert_array_equal(found, model.answer(others))


def test_statistics_far_outside_count_as_ten_deviations_and_constant_ones_nothing() -> None:
    X, target, others = made_up(0)
    X[:, 3] = 4.0
    model = baseline.fit("linear", X, target, 0, PooledConfig(), 0)
    far, further = others.copy(), others.copy()
    far[:, 0], further[:, 0] = X[:, 0].mean() + 10 * X[:, 0].std(), 1e6
    further[:, 3] = -1e6
    np.testing.assert_allclose(model.answer(far), model.answer(further), atol=1e-9)


@pytest.mark.parametrize("classes", [0, 3])
def test_ridge_weighs_classes_alike(classes: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 8)) * 3 + 1
    target: Any = np.repeat([0, 1, 2], [40, 15, 5]) if classes else rng.random((60, 2))
    model = baseline.fit("ridge", X, target, classes, PooledConfig(ridge_penalty=0.5), 0)
    x = (X - X.mean(axis=0)) / X.std(axis=0)
    if not classes:
        np.testing.assert_allclose(model.answer(X), Ridge(4.0).fit(x, target).predict(x), atol=1e-9)
        return
    weight = np.array([1 / 40, 1 / 15, 1 / 5])[target]
    weight /= weight.mean()
    penalised = np.hstack([np.ones((60, 1)), x])  # the normal equations, the intercept free
    gram = penalised.T @ (weight[:, None] * penalised) + 0.5 * 8 * np.diag([0.0, *[1.0] * 8])
    wanted = np.where(target[:, None] == np.arange(3), 1.0, -1.0)
    scores = penalised @ np.linalg.solve(gram, penalised.T @ (weight[:, None] * wanted))
    shares = np.exp(3 * scores)
    np.testing.assert_allclose(model.answer(X), shares / shares.sum(axis=1, keepdims=True), atol=1e-9)


def test_a_class_without_clips_is_never_the_answer_of_ridge() -> None:
    rng = np.random.default_rng(0)
    target = np.repeat([0, 2], 15)
    X = rng.standard_normal((30, 4)) + target[:, None]
    answers = baseline.fit("ridge", X, target, 4, PooledConfig(), 0).answer(X)
    assert set(answers.argmax(axis=1)) <= {0, 2}
    assert (answers.argmax(axis=1) == target).mean() > 0.8


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.integers(0, 99))
def test_wide_statistics_of_clips_of_any_length(frames: int, beats: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    full, beat = (
        np.concatenate([rng.uniform(-80, 0, (128, n)), rng.random((12, n))]).astype(np.float32) for n in (frames, beats)
    )
    found = features.wide(full, beat)
    assert found.shape == (2416,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:1536], features.rich(full, beat))
    silent = features.wide(np.full((140, frames), -80, np.float32), np.full((140, beats), -80, np.float32))
    assert np.isfinite(silent).all()


def test_levels_in_blocks_and_correlations_by_hand() -> None:
    rng = np.random.default_rng(0)
    spectra = rng.uniform(-80, 0, (140, 200)).astype(np.float32)
    found = features.blocks(spectra)
    bands = spectra[:128].reshape(32, 4, 200).mean(axis=1)
    slow = np.array([np.sort(bands[5, start : start + 10])[[0, 3, 6, 9]] for start in range(0, 191, 5)])
    np.testing.assert_allclose(found[:128].reshape(32, 4)[5], np.percentile(slow, 90, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[128:256].reshape(32, 4)[5], np.median(slow, axis=0), rtol=1e-5)
    louder = features.blocks(spectra + 7)
    np.testing.assert_allclose(louder[:256], found[:256] + 7, rtol=1e-5)
    np.testing.assert_allclose(louder[256:], found[256:], atol=1e-4)  # rises and ranges know no level
    cepstra = dct(spectra[:128], axis=0, norm="ortho")[:20]
    expected = np.corrcoef(cepstra)[np.triu_indices(20, 1)]
    np.testing.assert_allclose(features.cepstral(spectra)[:190], expected, atol=1e-5)
    changes = np.corrcoef(np.diff(cepstra, axis=1))[np.triu_indices(20, 1)]
    np.testing.assert_allclose(features.cepstral(spectra)[190:380], changes, atol=1e-5)
