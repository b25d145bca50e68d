"""Training on a small sample: every kind of model learns, resumes to the same bits, and answers in the asked order."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kit_core.errors import ConfigError, DataError
from kit_core.testing import interrupted_after
from kit_metrics.multilabel import macro_average_precision
from kit_train.config import FabricConfig
from yandex_tagging import infer as inference
from yandex_tagging import train as training
from yandex_tagging.baseline import Logistic, load_classic
from yandex_tagging.blend import Blend
from yandex_tagging.config import (
    AugmentConfig,
    BlendConfig,
    ClassicConfig,
    Config,
    DataConfig,
    LossConfig,
    NetworkConfig,
    OptimConfig,
)
from yandex_tagging.data import Tracks
from yandex_tagging.groups import read_groups
from yandex_tagging.predict import predict_file

Fit = Callable[..., dict[str, Any]]
DIM, TAGS, N = 8, 6, 150
CPU = FabricConfig(accelerator="cpu")
NETWORK = NetworkConfig(d=16, layers=1, heads=2, ff=32, dropout=0.1, head_dropout=0.1, pooling_heads=2)
OPTIM = OptimConfig(epochs=3, batch=32, learning_rate=5e-3, evaluate_every=2)
AUGMENT = AugmentConfig(span=0.5, longest=12, frame_drop=0.1, noise=0.05, flip=0.5, mixup=0.3, cutmix=0.2)


def config_of(**changes: Any) -> Config:
    base = Config(data=DataConfig(n_folds=3), network=NETWORK, optim=OPTIM, fabric=CPU)
    return dataclasses.replace(base, **changes)


def out_of_fold(path: Path) -> np.ndarray:
    return np.stack(pq.read_table(path / "oof.parquet")["logits"].to_numpy())


MODELS = {
    "lightgbm": config_of(model="lightgbm", classic=ClassicConfig(rounds=20, leaves=4, feature_share=1.0)),
    "knn": config_of(model="knn", classic=ClassicConfig(statistics=("mean", "max"), neighbours=10)),
    "logistic": config_of(model="logistic", classic=ClassicConfig(statistics=("mean", "max"))),
    "network": config_of(
        network=dataclasses.replace(NETWORK, encoder="none", head="frames"),
        optim=dataclasses.replace(OPTIM, epochs=12),
        tensorboard=True,
    ),
}


RESUMED = {
    "ema": config_of(
        data=DataConfig(n_folds=3, fold=1),
        augment=AUGMENT,
        optim=dataclasses.replace(OPTIM, ema=0.9, schedule="cosine"),
        copies=2,
        fabric=FabricConfig(accelerator="cpu", accumulate=3),
    ),
    "swa": config_of(
        data=DataConfig(n_folds=3, fold=1),
        network=dataclasses.replace(NETWORK, encoder="conformer", kernel=3),
        optim=dataclasses.replace(OPTIM, epochs=5, swa=3),
    ),
    "plateau": config_of(
        data=DataConfig(n_folds=3, fold=1),
        network=dataclasses.replace(NETWORK, encoder="resnet1d", channels=(8,)),
        optim=dataclasses.replace(
            OPTIM, epochs=5, schedule="plateau", plateau_patience=1, patience=4, keep="best", evaluate_every=1
        ),
    ),
}


@pytest.fixture(scope="module")
def unbroken(tracks: Tracks, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a setting that was never stopped, trained once."""
    folder = tmp_path_factory.mktemp("unbroken")

    def run_of(name: str) -> Path:
        if not (folder / name).exists():
            fit((MODELS | RESUMED)[name], tracks, folder / name)
        return folder / name

    return run_of


@pytest.fixture(scope="module")
def fitted_run(unbroken: Callable[[str], Path]) -> Path:
    return unbroken("network")


@pytest.mark.parametrize("name", MODELS)
def test_each_kind_of_model_learns_and_its_run_answers_in_the_order_of_the_ids(
    name: str, tracks: Tracks, make_tracks: Callable[..., Tracks], unbroken: Callable[[str], Path]
) -> None:
    path = unbroken(name)
    summary = json.loads((path / "summary.json").read_text())
    assert tracks.tags is not None
    chance = macro_average_precision(tracks.tags, np.random.default_rng(0).random(tracks.tags.shape))
    assert summary["score"] > chance + 0.15
    assert (summary["n"], summary["n_tags"], summary["dim"]) == (N, TAGS, DIM)
    table = pq.read_table(path / "oof.parquet")
    assert table["track"].to_pylist() == tracks.ids
    assert macro_average_precision(tracks.tags, out_of_fold(path)) == pytest.approx(summary["score"])

    run = inference.FittedRun.open(path)
    other = make_tracks(seed=1)
    expected = inference.infer([run], other)
    order = np.random.default_rng(2).permutation(N)
    permuted = dataclasses.replace(other, ids=[other.ids[i] for i in order], rows=other.rows[order], tags=None)
    np.testing.assert_allclose(inference.infer([run], permuted), expected[order], rtol=1e-4, atol=1e-6)
    assert expected.dtype == np.float32
    assert other.tags is not None
    assert macro_average_precision(other.tags, expected) > summary["score"] - 0.1


@pytest.mark.parametrize(
    ("name", "saves"), [("ema", 1), ("ema", 4), ("swa", 1), ("swa", 4), ("plateau", 2), ("plateau", 4)]
)
def test_a_resumed_run_has_the_same_bits(
    name: str, saves: int, tracks: Tracks, fit: Fit, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    whole, config = unbroken(name), RESUMED[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_state", interrupted_after(training.save_state, saves))
        with pytest.raises(KeyboardInterrupt):
            fit(config, tracks, tmp_path / "part")
    found = fit(config, tracks, tmp_path / "part", resume=True)
    assert found["score"] == json.loads((whole / "summary.json").read_text())["score"]
    np.testing.assert_array_equal(out_of_fold(tmp_path / "part"), out_of_fold(whole))
    files = {path.name: path.read_bytes() for path in (whole / "checkpoints").iterdir()}
    assert len(files) == config.copies
    assert {path.name: path.read_bytes() for path in (tmp_path / "part" / "checkpoints").iterdir()} == files
    assert not list((tmp_path / "part" / "state").iterdir())


def write_presets(folder: Path) -> Path:
    folder.mkdir()
    classic = "[classic]\nrounds = 5\nleaves = 4\nfeature_share = 1.0\nneighbours = 5\nstatistics = ['mean', 'max']\n"
    (folder / "near.toml").write_text(f"# near\nmodel = 'knn'\n{classic}")
    (folder / "linear.toml").write_text(f"# linear\nmodel = 'logistic'\n{classic}")
    (folder / "net.toml").write_text(
        "# net\n[network]\nencoder = 'none'\nd = 16\nhead = 'frames'\nhead_dropout = 0.1\n"
        "[optim]\nepochs = 6\nbatch = 32\nlearning_rate = 0.005\n"
    )
    return folder


def test_an_ensemble_keeps_its_members_and_resumes(fit: Fit, tracks: Tracks, tmp_path: Path) -> None:
    presets = write_presets(tmp_path / "presets")
    config = config_of(model="ensemble", members=("near", "linear", "net"), blend=BlendConfig(rounds=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_state", interrupted_after(training.save_state, 3))
        with pytest.raises(KeyboardInterrupt):
            fit(config, tracks, tmp_path / "run", presets=presets)
    finished = tmp_path / "run" / "members" / "linear" / "DONE"
    before = finished.stat().st_mtime_ns
    summary = fit(config, tracks, tmp_path / "run", presets=presets, resume=True)
    assert finished.stat().st_mtime_ns == before
    assert set(summary["members"]) == {"near", "linear", "net"}
    assert summary["score"] > max(member["score"] for member in summary["members"].values()) - 0.02


def test_a_blend_scales_weighs_and_returns_to_the_members_scale(
    fit: Fit,
) -> None:
    generator = np.random.default_rng(0)
    tags = generator.random((400, 3)) < 0.3
    good = np.where(tags, 1.0, 0.0) + generator.normal(size=tags.shape)
    poor = generator.normal(size=tags.shape) * 50 + 10
    fitted = Blend.fit([good, poor], tags, scale="z-score", weights="per-tag", shrinkage=10, rounds=10)
    np.testing.assert_allclose(fitted.weights.sum(0), 1)
    assert (fitted.weights[0] > 0.8).all()
    assert macro_average_precision(tags, fitted.mix([good, poor])) >= macro_average_precision(tags, good) - 0.02
    alone = Blend.fit([good, good], tags, scale="z-score", weights="equal", shrinkage=0, rounds=1)
    np.testing.assert_allclose(alone.mix([good, good]), good, rtol=1e-5, atol=1e-5)
    strong = Blend.fit([good, poor], tags, scale="logit", weights="per-tag", shrinkage=1e9, rounds=10)
    assert np.ptp(strong.weights, axis=1).max() < 1e-6  # all weight on what is common to the tags


def test_weights_of_a_tag_lie_between_its_own_and_the_common_ones_by_its_positives() -> None:
    generator = np.random.default_rng(0)
    tags = generator.random((200, 3)) < [0.5, 0.3, 0.1]
    noise = generator.normal(size=(2, 200, 3)) * np.array([[0.5, 3, 1], [3, 0.5, 1]])[:, None]
    logits = list(tags + noise)  # each member is good at another tag
    found = {
        shrinkage: Blend.fit(logits, tags, scale="logit", weights="per-tag", shrinkage=shrinkage, rounds=10).weights
        for shrinkage in (0.0, 20.0)
    }
    common = Blend.fit(logits, tags, scale="logit", weights="global", shrinkage=20.0, rounds=10).weights
    assert np.ptp(common, axis=1).max() == 0
    assert np.abs(found[0.0] - common).max() > 0.2
    share = tags.sum(0) / (tags.sum(0) + 20)
    np.testing.assert_allclose(found[20.0], share * found[0.0] + (1 - share) * common)


@pytest.mark.parametrize("name", ["bce", "focal", "asymmetric", "distribution-balanced"])
def test_losses_sum_over_tags_and_average_over_tracks(name: Any, tracks: Tracks) -> None:
    assert tracks.tags is not None
    targets = torch.from_numpy(tracks.tags[:8].astype(np.float32))
    logits = torch.randn(8, TAGS, generator=torch.Generator().manual_seed(0))
    loss = training.build_loss(LossConfig(name=name, gamma_negative=2.0), tracks.tags)
    summed = training.build_loss(LossConfig(name=name, gamma_negative=2.0, sum_over_tracks=True), tracks.tags)
    torch.testing.assert_close(summed(logits, targets), 8 * loss(logits, targets))
    if name == "bce":
        bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / 8
        torch.testing.assert_close(loss(logits, targets), bce)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, 0.853553, 0.5, 0]),
        ("one-cycle", [0.04, 0.935692, 0.811745, 0]),
        ("cyclic-cosine", [1, 0.5, 1, 1]),
    ],
)
def test_rates_by_share_of_the_steps(schedule: Any, factors: list[float]) -> None:
    optim = OptimConfig(schedule=schedule, warmup=0.3 if schedule == "one-cycle" else 0.0, cycle_epochs=5, epochs=10)
    found = [training.rate_factor(optim, share, 1.0) for share in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx(factors, abs=1e-5)
    assert training.rate_factor(OptimConfig(schedule="plateau"), 0.3, 0.25) == 0.25


def write_groups(path: Path, ids: list[int], group: Callable[[int], object]) -> Path:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    lines = [delimiter.join([str(track), str(group(track)), "x"]) for track in ids]
    path.write_text("\n".join([delimiter.join(["trackid", "artistid", "path"]), *lines]) + "\n")
    return path


def test_groups_are_read_and_kept_in_one_fold(fit: Fit, tracks: Tracks, tmp_path: Path) -> None:
    path = write_groups(tmp_path / "groups.tsv", tracks.ids, lambda track: track % 13)
    groups = read_groups(path, tracks.ids)
    assert len(np.unique(groups)) == 13
    config = config_of(model="knn", data=DataConfig(n_folds=3, groups=path))
    # Without these groups the folds cut them, so what follows is not true of any folds.
    folds, _ = training.assign_folds(tracks, DataConfig(n_folds=3))
    assert max(len(np.unique(folds[groups == group])) for group in range(13)) > 1
    summary = fit(config, tracks, tmp_path / "run")
    table = pq.read_table(tmp_path / "run" / "oof.parquet").to_pydict()
    folds_of_group: dict[int, set[int]] = {}
    for track, fold in zip(table["track"], table["fold"], strict=True):
        folds_of_group.setdefault(track % 13, set()).add(fold)
    assert {len(found) for found in folds_of_group.values()} == {1}
    assert len(set(table["group"])) == 13
    assert (summary["group_by"], summary["n_groups"]) == ("groups groups.tsv", 13)
    assert summary["largest_group"] == np.bincount(np.array(tracks.ids) % 13).max()


def test_groups_of_the_data_are_the_default(
    fit: Fit, tracks: Tracks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = np.array([track % 20 for track in tracks.ids])
    with_groups = dataclasses.replace(tracks, groups=own)
    folds, groups = training.assign_folds(with_groups, DataConfig(n_folds=3))
    np.testing.assert_array_equal(groups, own)
    assert all(len(np.unique(folds[own == group])) == 1 for group in range(20))
    summary = fit(config_of(model="knn"), with_groups, tmp_path / "own")
    assert (summary["group_by"], summary["n_groups"]) == ("series (groups.csv)", 20)
    assert f"groups: 20 by series (groups.csv), the largest of {summary['largest_group']}" in capsys.readouterr().err
    summary = fit(config_of(model="knn"), tracks, tmp_path / "none")
    assert (summary["group_by"], summary["n_groups"], summary["largest_group"]) == ("track", N, 1)


def test_a_file_of_groups_that_is_not_complete_is_refused(
    tracks: Tracks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = write_groups(tmp_path / "some.csv", [track for track in tracks.ids if track % 7], lambda track: track % 10)
    without = [track for track in tracks.ids if track % 7 == 0]
    with pytest.raises(DataError) as refused:
        training.assign_folds(tracks, DataConfig(n_folds=3, groups=some))
    text = str(refused.value)
    assert text.startswith(f"{some}: {len(without)} problems\n")
    assert all(f"track {track}: found no row" in text for track in without[:5])
    assert f"track {without[5]}:" not in text
    assert f"and {len(without) - 5} more" in text
    for content, words in (
        ("a,b\n1,x\n", "150 problems"),
        ("a,b\n10.0,x\n", r"line 2: found 10\.0,x"),
        ("a,b\n1001\n", "line 2"),
        ("a,b\n1001, \n", "line 2"),
        ("a,b\n1001,x\n1002,x\n1001,x\n", "line 4: found track 1001 a second time"),
    ):
        (tmp_path / "wrong.csv").write_text(content)
        with pytest.raises(DataError, match=words):
            read_groups(tmp_path / "wrong.csv", tracks.ids)
    with pytest.raises(DataError, match="cannot be read as groups"):
        read_groups(tmp_path / "absent.csv", tracks.ids)
    more = write_groups(tmp_path / "more.csv", [*tracks.ids, 7, 8], lambda track: track % 10)
    assert len(np.unique(read_groups(more, tracks.ids))) == 10
    assert "ignores 2 rows of tracks that are not in this split" in capsys.readouterr().err


def test_logistic_regression_does_not_depend_on_the_number_of_threads(
    fit: Fit,
) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 60)).astype(np.float32) @ generator.normal(size=(60, 60))
    tags = features[:, :8] + 3 * generator.normal(size=(300, 8)) > np.linspace(0, 20, 8)
    before = torch.get_num_threads()
    logits = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            logits.append(Logistic.fit(features.astype(np.float32), tags, C=0.1).logits(features))
    finally:
        torch.set_num_threads(before)
    assert np.abs(logits[0]).max() > 3
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_logistic_regression_is_at_its_minimum(fit: Fit, unit_norm: bool, tmp_path: Path) -> None:
    """As scikit-learn's, tag by tag; read back, it answers the same."""
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(1)
    features = (generator.normal(size=(300, 30)) @ generator.normal(size=(30, 30))).astype(np.float32)
    tags = features[:, :4] + 3 * generator.normal(size=(300, 4)) > np.array([0, 3, 6, 9])
    model = Logistic.fit(features, tags, C=3.0 if unit_norm else 0.2, unit_norm=unit_norm)
    found = model.logits(features)
    scaled = (features - features.mean(0)) / features.std(0)
    if unit_norm:
        scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    for tag in range(4):
        expected = LogisticRegression(C=3.0 if unit_norm else 0.2, tol=1e-10, max_iter=5000).fit(scaled, tags[:, tag])
        np.testing.assert_allclose(found[:, tag], expected.decision_function(scaled), atol=2e-3)
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load_classic(tmp_path / "model.safetensors").logits(features), found)


def test_training_needs_tags(fit: Fit, tracks: Tracks, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a train split"):
        fit(config_of(), dataclasses.replace(tracks, tags=None), tmp_path / "run")


def test_a_run_keeps_metrics_and_tensorboard(fitted_run: Path) -> None:
    lines = [json.loads(line) for line in (fitted_run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line.get("part") == "fold2-copy0"]
    assert [line["step"] for line in epochs] == list(range(1, 13))
    assert ["score" in line for line in epochs] == [False, True] * 6
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert len(list((fitted_run / "tensorboard").glob("*/events.*"))) == 3


def test_predict_prints_tags_and_draws_frames(fitted_run: Path, tracks: Tracks, tmp_path: Path) -> None:
    run = inference.FittedRun.open(fitted_run)
    np.save(tmp_path / "track.npy", tracks.pack.item(3))
    text = predict_file(tmp_path / "track.npy", [run], top=2, plot=tmp_path / "plot.png")
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("tag ")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    probabilities = [float(line.split()[-1]) for line in predict_file(tmp_path / "track.npy", [run]).splitlines()[2:]]
    assert len(probabilities) == TAGS
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities[0] > probabilities[-1]
    (tmp_path / "names.txt").write_text("\n".join(f"name{tag}" for tag in range(TAGS)))
    assert "name" in predict_file(tmp_path / "track.npy", [run], top=1, names=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("one\n")
    with pytest.raises(DataError, match="found 1 lines, expected 6"):
        predict_file(tmp_path / "track.npy", [run], names=tmp_path / "names.txt")
    with pytest.raises(ConfigError, match="--top"):
        predict_file(tmp_path / "track.npy", [run], top=0)
    with pytest.raises(ConfigError, match=r"\.png, \.svg or \.pdf"):
        predict_file(tmp_path / "track.npy", [run], plot=tmp_path / "plot.txt")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn": (lambda path: path.write_bytes(b"\x93NUMPY\x01"), "cannot be read"),
    "flat": (lambda path: np.save(path, np.zeros(8, np.float32)), r"found float32 \[8\]"),
    "empty": (lambda path: np.save(path, np.zeros((0, 8), np.float32)), r"found float32 \[0, 8\]"),
    "integers": (lambda path: np.save(path, np.zeros((3, 8), np.int64)), "found int64"),
    "nan": (lambda path: np.save(path, np.full((3, 8), np.nan)), "NaN"),
    "width": (lambda path: np.save(path, np.zeros((3, 9), np.float32)), "trained on 8 dimensions a frame, found 9"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_predict_refuses_broken_tracks(name: str, fitted_run: Path, tmp_path: Path) -> None:
    write, words = BROKEN[name]
    write(tmp_path / "track.npy")
    with pytest.raises(DataError, match=words):
        predict_file(tmp_path / "track.npy", [inference.FittedRun.open(fitted_run)])


def test_damaged_runs_are_told(fitted_run: Path, tracks: Tracks, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(fitted_run, copy)
    weights = copy / "checkpoints" / "fold1-copy0.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"fold1-copy0\.safetensors: found sha256"):
        inference.FittedRun.open(copy)
    (copy / "digests.json").unlink()  # the file has a digest of its own
    with pytest.raises(DataError, match="do not match their sha256"):
        inference.infer([inference.FittedRun.open(copy)], tracks)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(DataError, match=r"found no checkpoints/\*\.safetensors"):
        inference.infer([inference.FittedRun.open(copy)], tracks)
    (copy / "DONE").unlink()
    with pytest.raises(DataError, match="not finished"):
        inference.FittedRun.open(copy)
