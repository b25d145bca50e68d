"""Inference by hand: every stored model answers by itself, and plain NumPy averages folds, copies, members and runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from kit_core.config import config_from_dict
from kit_core.errors import ConfigError, DataError
from kit_io.ragged import RaggedPack
from kit_metrics.multilabel import bootstrap_macro_average_precision, macro_average_precision
from kit_train.config import FabricConfig
from yandex_tagging.config import (
    BlendConfig,
    ClassicConfig,
    Config,
    DataConfig,
    InferConfig,
    NetworkConfig,
    OptimConfig,
)
from yandex_tagging.data import Tracks
from yandex_tagging.infer import FittedRun, infer, network_logits, reader, windows_of
from yandex_tagging.model import TagNet
from yandex_tagging.predict import frame_weights, predict_file

Fit = Callable[..., dict[str, Any]]
CPU = FabricConfig(accelerator="cpu")
CLASSIC = ClassicConfig(statistics=("std", "mean", "max", "min"), rounds=4, leaves=4, feature_share=0.5, neighbours=7)
POOL = {"mean": np.mean, "std": np.std, "max": np.max, "min": np.min}

PRESETS = {
    "trees": "model = 'lightgbm'\n[classic]\nrounds = 4\nleaves = 4\nstatistics = ['std', 'mean']\n",
    "near": "model = 'knn'\n[classic]\nneighbours = 5\nstatistics = ['mean', 'max']\n",
    "net": "seed = 3\n[network]\nencoder = 'none'\nd = 8\nhead = 'frames'\n[optim]\nepochs = 1\nbatch = 16\n",
}
BASE = Config(
    data=DataConfig(n_folds=3),
    classic=CLASSIC,
    network=NetworkConfig(d=8, layers=1, heads=2, ff=8, pooling_heads=2),
    optim=OptimConfig(epochs=1, batch=16, learning_rate=0.02),
    fabric=CPU,
)
RUNS = {
    "lightgbm": replace(BASE, model="lightgbm"),
    "knn": replace(BASE, model="knn"),
    "logistic": replace(BASE, model="logistic"),
    "unit-logistic": replace(BASE, model="logistic", classic=replace(CLASSIC, unit_norm=True, C=3.0)),
    "network": replace(BASE, copies=2),
    "windows": replace(BASE, seed=1, infer=InferConfig(window=6, windows=3, batch=5)),
    "faithful": replace(BASE, faithful=True, network=replace(BASE.network, pooling="last"), seed=2),
    "ensemble": replace(
        BASE, model="ensemble", members=tuple(PRESETS), blend=BlendConfig(rounds=10, shrinkage=2.0), copies=1
    ),
}


@pytest.fixture(scope="module")
def small(make_tracks: Callable[..., Tracks]) -> Tracks:
    tracks = make_tracks(seed=7, n=60)
    return replace(tracks, groups=np.array(tracks.ids) % 14)


@pytest.fixture(scope="module")
def others(make_tracks: Callable[..., Tracks]) -> Tracks:
    """Some tracks of another pack, in another order than there, without tags."""
    tracks = make_tracks(seed=8, n=24)
    rows = np.random.default_rng(0).permutation(24)[:17]
    return replace(tracks, split="test", ids=list(range(17)), rows=rows, tags=None)


@pytest.fixture(scope="module")
def runs(small: Tracks, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "presets").mkdir()
    for name, text in PRESETS.items():
        (folder / "presets" / f"{name}.toml").write_text(f"# {name}\n{text}")
    for name, config in RUNS.items():
        fit(config, small, folder / name, presets=folder / "presets")
    return {name: folder / name for name in RUNS}


# --- by hand


def features_of(tracks: Tracks, statistics: tuple[str, ...]) -> np.ndarray:
    items = [tracks.pack.item(int(row)) for row in tracks.rows]
    return np.stack([np.concatenate([POOL[name](item, axis=0) for name in statistics]) for item in items])


def scaled(tensors: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    return (features - tensors["mean"]) / tensors["deviation"]


def normalised(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def answer_of_trees(tensors: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    texts = tensors["texts"].tobytes().decode().split("tree\nversion")[1:]
    boosters = [lightgbm.Booster(model_str=f"tree\nversion{text}") for text in texts]
    return np.stack([booster.predict(features, raw_score=True) for booster in boosters], 1)


def answer_of_neighbours(tensors: dict[str, np.ndarray], features: np.ndarray, k: int) -> np.ndarray:
    similarity = normalised(scaled(tensors, features)) @ tensors["features"].T
    logits = []
    for row in similarity:
        nearest = np.argsort(-row)[:k]
        weight = np.maximum(row[nearest], 0.01) ** 4
        votes = weight @ tensors["tags"][nearest] / weight.sum()
        share = (k * votes + tensors["tags"].mean(0)) / (k + 1)
        logits.append(np.log(share / (1 - share)))
    return np.array(logits)


def answer_of_network(tensors: dict[str, np.ndarray], tracks: Tracks, config: Config) -> np.ndarray:
    """One track at a time, without padding; of a long track the mean over its windows."""
    net = TagNet(config.network, tracks.pack.dim, tracks.n_tags)
    net.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    net.eval()
    logits = []
    for row in tracks.rows:
        item, window = tracks.pack.item(int(row)), config.infer.window
        starts = [0]
        if window and len(item) > window:
            starts = sorted(set(np.rint(np.linspace(0, len(item) - window, config.infer.windows)).astype(int)))
        parts = [torch.from_numpy(item[start : start + window] if window else item)[None] for start in starts]
        with torch.no_grad():
            logits.append(np.mean([net(x, torch.zeros(x.shape[:2], dtype=torch.bool))[0].numpy() for x in parts], 0))
    return np.array(logits)


def answer(run: Path, tracks: Tracks, fold: int | None = None) -> np.ndarray:
    """Logits of a run: the mean over its models, those of one fold if asked for, or the blend of its members."""
    config = config_from_dict(Config, json.loads((run / "config.json").read_text())["config"], source="run")
    if config.model == "ensemble":
        blend = load_file(run / ("blend.safetensors" if fold is None else f"blend-fold{fold}.safetensors"))
        members = [answer(run / "members" / name, tracks, fold) for name in config.members]
        mean, deviation, weights = blend["mean"], blend["deviation"], blend["weights"]
        z = sum(w * (a - m) / d for a, m, d, w in zip(members, mean, deviation, weights, strict=True))
        return np.asarray(z * (weights * deviation).sum(0) + (weights * mean).sum(0))
    files = sorted((run / "checkpoints").glob("*" if fold is None else f"fold{fold}*"))
    assert len(files) == config.copies * (3 if fold is None else 1)
    answers = []
    for path in files:
        tensors = load_file(path)
        if config.model == "network":
            answers.append(answer_of_network(tensors, tracks, config))
            continue
        features = features_of(tracks, config.classic.statistics)
        if config.model == "lightgbm":
            answers.append(answer_of_trees(tensors, features))
        elif config.model == "knn":
            answers.append(answer_of_neighbours(tensors, features, config.classic.neighbours))
        else:
            x = scaled(tensors, features)
            x = normalised(x) if config.classic.unit_norm else x
            answers.append(x @ tensors["weight"] + tensors["bias"])
    return np.mean(answers, axis=0)


def probabilities(*logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.mean(logits, axis=0))))


# --- the tests


@pytest.mark.parametrize("name", RUNS)
def test_a_run_answers_with_the_mean_of_its_models(name: str, runs: dict[str, Path], others: Tracks) -> None:
    found = infer([FittedRun.open(runs[name])], others)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, probabilities(answer(runs[name], others)), rtol=1e-4, atol=1e-6)
    for fold in range(3):
        only = FittedRun.open(runs[name]).logits(others.pack, others.rows, fold)
        np.testing.assert_allclose(only, answer(runs[name], others, fold), rtol=1e-3, atol=1e-5)
        assert np.abs(probabilities(only) - found).max() > 1e-3


@pytest.mark.parametrize(
    "names", [("network", "windows"), ("logistic", "knn"), ("ensemble", "lightgbm", "faithful")], ids=str
)
def test_several_runs_answer_with_the_mean_of_their_logits(
    names: tuple[str, ...], runs: dict[str, Path], others: Tracks
) -> None:
    found = infer([FittedRun.open(runs[name]) for name in names], others)
    alone = [answer(runs[name], others) for name in names]
    np.testing.assert_allclose(found, probabilities(*alone), rtol=1e-4, atol=1e-6)
    for one in alone:
        assert np.abs(probabilities(one) - found).max() > 1e-2


@pytest.mark.parametrize("name", RUNS)
def test_out_of_fold_logits_are_those_of_the_models_that_did_not_see_the_track(
    name: str, runs: dict[str, Path], small: Tracks
) -> None:
    table = pq.read_table(runs[name] / "oof.parquet").to_pydict()
    assert table["track"] == small.ids
    assert table["group"] == (np.array(small.ids) % 14).tolist()
    assert small.tags is not None
    assert table["tags"] == [np.flatnonzero(row).tolist() for row in small.tags]
    folds = np.array(table["fold"])
    for fold in range(3):
        part = replace(small, ids=[], rows=small.rows[folds == fold])
        expected = answer(runs[name], part, fold)
        np.testing.assert_allclose(np.array(table["logits"])[folds == fold], expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["knn", "ensemble"])
def test_the_summary_is_computed_from_the_out_of_fold_logits_and_the_groups(
    name: str, runs: dict[str, Path], small: Tracks
) -> None:
    summary = json.loads((runs[name] / "summary.json").read_text())
    table = pq.read_table(runs[name] / "oof.parquet").to_pydict()
    logits, folds = np.array(table["logits"], np.float32), np.array(table["fold"])
    assert small.tags is not None
    assert summary["score"] == pytest.approx(macro_average_precision(small.tags, logits))
    assert summary["interval"] == list(bootstrap_macro_average_precision(small.tags, logits, np.array(table["group"])))
    ungrouped = bootstrap_macro_average_precision(small.tags, logits)
    assert np.abs(np.array(summary["interval"]) - ungrouped).max() > 1e-3
    assert summary["score_of_folds"] == {
        str(fold): pytest.approx(macro_average_precision(small.tags[folds == fold], logits[folds == fold]))
        for fold in range(3)
    }
    assert (summary["n"], summary["n_tags"], summary["dim"], summary["folds"]) == (60, 6, 8, 3)
    assert summary["tag_names"] == list(small.tag_names or ())


def test_the_summary_of_an_ensemble_tells_of_its_members(runs: dict[str, Path], small: Tracks) -> None:
    run = runs["ensemble"]
    summary = json.loads((run / "summary.json").read_text())
    weights = load_file(run / "blend.safetensors")["weights"]
    alone = {name: json.loads((run / "members" / name / "summary.json").read_text()) for name in PRESETS}
    assert summary["members"] == {
        name: {"score": alone[name]["score"], "mean_weight": pytest.approx(weights[i].mean())}
        for i, name in enumerate(PRESETS)
    }
    assert summary["parameters"] == sum(one["parameters"] for one in alone.values()) + weights.size
    tables = [pq.read_table(run / "members" / name / "oof.parquet")["logits"].to_pylist() for name in PRESETS]
    equal = np.mean([(np.array(t) - np.mean(t, axis=0)) / np.std(t, axis=0) for t in tables], axis=0)
    assert small.tags is not None
    assert summary["score_of_equal_weights"] == pytest.approx(macro_average_precision(small.tags, equal), abs=1e-6)
    seeds = [json.loads((run / "members" / name / "manifest.json").read_text())["seed"] for name in PRESETS]
    assert seeds == [0, 0, 3]


@pytest.mark.parametrize("name", ["lightgbm", "logistic", "network"])
def test_parameters_are_those_of_one_fold(name: str, runs: dict[str, Path]) -> None:
    found = json.loads((runs[name] / "summary.json").read_text())["parameters"]
    tensors = [load_file(path) for path in (runs[name] / "checkpoints").glob("fold0*")]
    if name == "lightgbm":
        text = tensors[0]["texts"].tobytes().decode()
        dump = [
            lightgbm.Booster(model_str=f"tree\nversion{part}").dump_model() for part in text.split("tree\nversion")[1:]
        ]
        assert found == sum(tree["num_leaves"] for one in dump for tree in one["tree_info"])
    else:
        assert found == sum(array.size for one in tensors for array in one.values())


def table_of(text: str) -> list[tuple[str, float]]:
    rows = [line.rsplit(maxsplit=1) for line in text.splitlines()[2:]]
    return [(name.strip(), float(value)) for name, value in rows]


@pytest.mark.parametrize("names", [("ensemble",), ("network", "knn")], ids=str)
def test_predict_prints_what_infer_answers_with_the_most_likely_first(
    names: tuple[str, ...], runs: dict[str, Path], others: Tracks, tmp_path: Path
) -> None:
    opened = [FittedRun.open(runs[name]) for name in names]
    expected = infer(opened, others)
    for place in range(3):
        np.save(tmp_path / "track.npy", others.pack.item(int(others.rows[place])))
        table = table_of(predict_file(tmp_path / "track.npy", opened))
        assert [value for _, value in table] == pytest.approx(sorted(expected[place], reverse=True), abs=6e-4)
        assert [name for name, _ in table] == [f"tag {tag}" for tag in np.argsort(-expected[place])]
        assert table_of(predict_file(tmp_path / "track.npy", opened, top=2)) == table[:2]
        (tmp_path / "names.txt").write_text("\n".join("abcdef"))
        named = table_of(predict_file(tmp_path / "track.npy", opened, names=tmp_path / "names.txt"))
        assert named == [("abcdef"[int(name[4:])], value) for name, value in table]


def test_frame_weights_are_the_mean_of_all_networks(runs: dict[str, Path], others: Tracks) -> None:
    """Of the ensemble's member, a weight for each tag; of the other runs' attention, the same for all tags."""
    frames, tags = others.pack.item(2), np.array([4, 1])
    expected = []
    for run in (runs["ensemble"] / "members" / "net", runs["network"]):
        config = FittedRun.open(run).config
        for path in sorted((run / "checkpoints").iterdir()):
            net = TagNet(config.network, others.pack.dim, others.n_tags)
            net.load_state_dict({name: torch.from_numpy(array) for name, array in load_file(path).items()})
            with torch.no_grad():
                found = net.eval().frame_weights(torch.from_numpy(frames)[None], torch.zeros(1, len(frames)).bool())[0]
            shared = found.mean(1)[:, None].repeat(1, 2)
            expected.append((found[:, tags] if config.network.head == "frames" else shared).numpy())
    assert len(expected) == 9
    opened = [FittedRun.open(runs[name]) for name in ("ensemble", "network", "knn")]
    found = frame_weights(frames, opened, tags)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)
    with pytest.raises(ConfigError, match="hold no network"):
        frame_weights(frames, opened[2:], tags)


def test_runs_that_do_not_fit_are_refused(runs: dict[str, Path], others: Tracks) -> None:
    opened = FittedRun.open(runs["knn"])
    with pytest.raises(DataError, match="different numbers of tags"):
        infer([opened, replace(opened, n_tags=5)], others)
    pack = RaggedPack.from_items([np.zeros((3, 7), np.float32)], "float32")
    narrow = replace(others, pack=pack, rows=np.zeros(1, int))
    with pytest.raises(DataError, match="trained on 8 dimensions a frame, found 7"):
        infer([opened], narrow)
    with pytest.raises(DataError, match=r"found no checkpoints/fold3\*"):
        opened.logits(others.pack, others.rows, 3)


# --- windows


def test_windows_cover_long_tracks_and_leave_short_ones_whole() -> None:
    track, start, count = windows_of(np.array([5, 30, 11]), 10, 3)
    assert track.tolist() == [0, 1, 1, 1, 2, 2]
    assert start.tolist() == [0, 0, 10, 20, 0, 1]
    assert count.tolist() == [5, 10, 10, 10, 10, 10]
    track, start, count = windows_of(np.array([5, 30]), 0, 3)
    assert (track.tolist(), start.tolist(), count.tolist()) == ([0, 1], [0, 0], [5, 30])


def test_logits_of_windows_are_averaged_whatever_the_batches(small: Tracks) -> None:
    torch.manual_seed(0)
    net = TagNet(BASE.network, 8, 6).train()
    gather = reader(small.pack, torch.device("cpu"))
    lengths = small.pack.lengths
    rows = np.random.default_rng(0).permutation(60)[:40]
    answers = []
    for size in (1, 7, 100):
        config = replace(BASE, infer=InferConfig(window=6, windows=3, batch=size))
        answers.append(network_logits(net, gather, lengths, rows, config, torch.device("cpu")))
        assert net.training  # as it was found
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answers[0], answers[2], rtol=1e-4, atol=1e-5)
    net.eval()
    place = int(np.argmax(lengths[rows]))
    frames = torch.from_numpy(small.pack.item(int(rows[place])))
    starts = np.unique(np.linspace(0, len(frames) - 6, 3).round().astype(int))
    with torch.no_grad():
        by_hand = torch.stack([net(frames[None, s : s + 6], torch.zeros(1, 6, dtype=torch.bool))[0] for s in starts])
    np.testing.assert_allclose(answers[0][place], by_hand.mean(0), rtol=1e-4, atol=1e-5)
