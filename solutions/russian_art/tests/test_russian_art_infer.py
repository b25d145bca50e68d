"""Inference against models that are loaded one by one, prediction, evaluation and the pictures of a run."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
from sklearn.metrics import f1_score

from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from russian_art import infer as inference
from russian_art import train as training
from russian_art.backbones import Weights, create, normalisation, to_images, unsquashed
from russian_art.baseline import Linear
from russian_art.config import BlendConfig, Config, DataConfig, FeaturesConfig, NetworkConfig, ProbeConfig, StageConfig
from russian_art.data import Art, Labels, load, write_submission
from russian_art.evaluate import evaluate_submission, report_text
from russian_art.infer import FittedRun, infer
from russian_art.predict import predict, saliency
from russian_art.sample import write_sample
from russian_art.train import find_all_weights, train

TINY = "test_efficientnet"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "official"
    write_sample(folder, images=100)
    return folder


CONFIGS = {  # between them every kind of member, and every way to join views, copies and members
    "one": Config(
        members=("prior", "pixels", "logistic", "neighbours", "network"),
        data=DataConfig(folds=2),
        probe=ProbeConfig(pixels=8),
        features=FeaturesConfig(backbones=(TINY,), sizes=(48,), flip=True, fit="pad"),
        network=NetworkConfig(
            backbones=(TINY,), size=48, flip_test=True, frozen_parts=2, first=StageConfig(epochs=1, trained="head")
        ),
    ),
    "other": Config(
        members=("network", "svc", "discriminant", "kernel", "lightgbm"),
        seed=7,
        data=DataConfig(folds=3),
        probe=ProbeConfig(rounds=2),
        features=FeaturesConfig(backbones=(TINY,), sizes=(32, 48), levels="all", views="rows", root=True),
        network=NetworkConfig(
            backbones=(TINY,), size=32, head="factorised", second=StageConfig(epochs=1, learning_rate=0.01)
        ),
        blend=BlendConfig(weights="greedy", taus=(0.5,)),
    ),
}


def train_on_sample(name: str, sample: Path, folder: Path) -> Path:
    torch.manual_seed(0)
    save_file(create(TINY, Weights(None, "scratch", "")).state_dict(), folder / f"{TINY}.safetensors")
    art = load(sample, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_plots", lambda *_: None)  # drawing takes longer than all else
        with RunFolder.create(folder / "run", config=CONFIGS[name], preset="x", data_hashes={}, seed=0) as opened:
            train(CONFIGS[name], art, opened, find_all_weights(CONFIGS[name], folder))
    return folder / "run"


@pytest.fixture(scope="module")
def run(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_sample("one", sample, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def other_run(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with other members, folds, features and seed than `run`."""
    return train_on_sample("other", sample, tmp_path_factory.mktemp("other"))


# --- By hand: every model by itself, joined with NumPy ---


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def backbone_of(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = timm.create_model(TINY, num_classes=0)
    model.load_state_dict(weights)
    return model.eval()


def features_by_hand(run: Path, config: Config, art: Art) -> np.ndarray:
    """Features of the frozen backbone, [n, views, width]."""
    wanted, model = config.features, backbone_of(load_tensors(run / "models" / f"backbone-{TINY}.safetensors"))
    found = []
    for mirrored in (False, True)[: 1 + wanted.flip]:
        for size in wanted.sizes:
            pixels = unsquashed(art.pixels, art.aspect, size) if wanted.fit == "pad" else art.pixels
            images = to_images(pixels, size, normalisation(model))
            with torch.no_grad():
                last, stages = model.forward_intermediates(images.flip(3) if mirrored else images)  # type: ignore[operator]  # a method of timm's models
                final = model.forward_head(last, pre_logits=True)  # type: ignore[operator]  # the same
            means = [maps.mean(dim=(2, 3)) for maps in stages] if wanted.levels == "all" else []
            found.append(torch.cat([final, *means], dim=1).numpy())
    views = np.stack(found, axis=1)
    views = np.sign(views) * np.abs(views) ** 0.5 if wanted.root else views
    return views.mean(axis=1, keepdims=True) if wanted.views == "mean" else views


def probe_by_hand(member: str, a: dict[str, np.ndarray], X: np.ndarray, config: Config, n_labels: int) -> np.ndarray:
    """Logits of features [n, width] by the arrays of a stored probe."""
    if member == "lightgbm":
        return np.log(lightgbm.Booster(model_str=a["trees"].tobytes().decode()).predict(X) + 1e-6)
    Z = (X.astype(np.float64) - a["mean"]) / a["scale"]
    if member == "kernel":
        squares = ((Z[:, None] - a["known"][None].astype(np.float64)) ** 2).mean(axis=2)
        return 10 * (np.exp(-config.probe.kernel_gamma * squares) @ a["weight"] + a["bias"])
    if member == "neighbours":
        votes = np.zeros((len(Z), n_labels))
        for i, row in enumerate(Z):
            cosine = a["known"] @ row / np.linalg.norm(row)
            for j in np.argsort(-cosine)[: config.probe.neighbours]:
                votes[i, a["label"][j]] += np.exp(10 * cosine[j])
        return np.log(votes / votes.sum(axis=1, keepdims=True) + 0.005)
    return np.stack([(a["weight"] * row).sum(axis=1) + a["bias"] for row in Z])


def network_by_hand(file: Path, config: Config, labels: Labels, pixels: np.ndarray) -> np.ndarray:
    state = load_tensors(file)
    backbone = backbone_of({name[9:]: value for name, value in state.items() if name.startswith("backbone.")})
    head = {name[5:]: value.double().numpy() for name, value in state.items() if name.startswith("head.")}
    images = to_images(pixels, config.network.size, normalisation(backbone))
    sides = []
    for side in (images, images.flip(3))[: 1 + config.network.flip_test]:
        with torch.no_grad():
            features = backbone(side).double().numpy()
        levels = {
            name: features @ head[f"{name}.weight"].T + head[f"{name}.bias"]
            for name in ("label", "top", "genre")
            if f"{name}.weight" in head
        }
        logits = levels["label"]
        if config.network.head == "factorised":
            logits = logits + levels["top"][:, labels.top_of] + levels["genre"][:, labels.genre_of]
        sides.append(logits)
    return np.mean(sides, axis=0)


def answers_by_hand(run: Path, config: Config, art: Art) -> np.ndarray:
    labels = Labels(tuple(json.loads((run / "models" / "labels.json").read_text())))
    blend = json.loads((run / "models" / "blend.json").read_text())
    edge = art.pixels.shape[1] // config.probe.pixels
    tables = {
        "prior": np.zeros((len(art), 1, 1)),
        "pixels": art.pixels.reshape(len(art), config.probe.pixels, edge, -1, edge, 3).mean(axis=(2, 4)) / 255,
    }
    tables["pixels"] = tables["pixels"].reshape(len(art), 1, -1)
    features = features_by_hand(run, config, art)
    mixed = np.zeros((len(art), len(labels)))
    for i, member in enumerate(config.members):
        if member == "network":
            files = [run / "models" / f"network-{TINY}-fold{fold}.safetensors" for fold in range(config.data.folds)]
            copies = [network_by_hand(file, config, labels, art.pixels) for file in files]
            assert not any(np.allclose(copies[0], copy) for copy in copies[1:])
            logits = np.mean(copies, axis=0)
        else:
            X, arrays = tables.get(member, features), load_file(run / "models" / f"{member}.safetensors")
            views = [probe_by_hand(member, arrays, X[:, view], config, len(labels)) for view in range(X.shape[1])]
            logits = np.mean(views, axis=0)
        mixed += blend["weights"][i] * softmax(logits / blend["temperatures"][i])
    mixed /= np.array(blend["prior"]) ** blend["tau"]
    return mixed / mixed.sum(axis=1, keepdims=True)


def test_inference_equals_the_models_joined_by_hand(
    run: Path, other_run: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, the other, and both; also with more pictures than are held at once, and than a batch holds."""
    art = load(sample, "test")
    one, other = (answers_by_hand(path, CONFIGS[name], art) for path, name in ((run, "one"), (other_run, "other")))
    assert np.abs(one - other).max() > 0.05
    opened = [FittedRun.open(run), FittedRun.open(other_run)]
    monkeypatch.setattr(inference, "BATCH", 4)
    for runs, expected in ((opened[:1], one), (opened[1:], other), (opened, (one + other) / 2)):
        names, ids, found = infer(runs, art)
        assert names == art.names
        np.testing.assert_allclose(found, expected, atol=2e-4)
        np.testing.assert_array_equal(ids, found.argmax(axis=1))
    monkeypatch.setattr(inference, "CHUNK", 7)
    np.testing.assert_allclose(opened[0].probabilities(art.pixels, art.aspect), one, atol=2e-4)


def test_predict_prints_the_numbers_of_infer_with_the_most_likely_first(
    run: Path, other_run: Path, sample: Path
) -> None:
    art, runs = load(sample, "test"), [FittedRun.open(run), FittedRun.open(other_run)]
    _, ids, expected = infer(runs, art)
    labels = runs[0].labels
    chosen = range(4)
    blocks = predict([sample / "test" / art.names[i] for i in chosen], runs, top=len(labels)).split("\n\n")
    for i, block in zip(chosen, blocks, strict=True):
        assert block.startswith(str(sample / "test" / art.names[i]))
        rows = [re.split(r"\s{2,}|\s*\|\s*", line.strip("| ")) for line in block.splitlines() if "%" in line]
        pairs = [(top.strip(), genre.strip()) for top, genre, _ in rows]
        told = [float(share.rstrip("%")) / 100 for _, _, share in rows]
        known = [(top.strip(), genre.strip()) for top, genre in labels.pairs]
        order = [known.index(pair) for pair in pairs]
        assert sorted(order) == list(range(len(labels)))
        assert order[0] == ids[i]
        assert told == sorted(told, reverse=True)
        np.testing.assert_allclose(told, expected[i, order], atol=6e-4)


# --- What else inference and prediction promise ---


def test_inference_gives_one_row_for_every_file_also_for_broken_ones(run: Path, sample: Path) -> None:
    fitted = FittedRun.open(run)
    art = load(sample, "test")
    names, ids, probabilities = infer([fitted, fitted], art)
    assert names == art.all_names
    assert ids.tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    first = art.names[0]
    broken = art
    object.__setattr__(broken, "broken", {first: "cut off"})
    names, ids, probabilities = infer([fitted], broken)
    assert len(names) == len(ids) == len(art)
    prior = np.array(fitted.blend.prior)
    np.testing.assert_allclose(probabilities[names.index(first)], prior)
    assert ids[names.index(first)] == prior.argmax()


def test_inference_on_the_training_pictures_agrees_with_training(run: Path, sample: Path) -> None:
    """The models that were refitted on everything know their own pictures better than the folds did."""
    art = load(sample, "train")
    _, ids, _ = infer([FittedRun.open(run)], art)
    assert art.label is not None
    assert f1_score(art.label, ids, average="macro") > json.loads((run / "summary.json").read_text())["score"]


def test_a_picture_alone_and_among_others_gets_the_same_answer(run: Path, sample: Path) -> None:
    fitted, art = FittedRun.open(run), load(sample, "test")
    alone, among = fitted.probabilities(art.pixels[3:4], art.aspect[3:4]), fitted.probabilities(art.pixels, art.aspect)
    np.testing.assert_allclose(alone[0], among[3], atol=1e-4)


def test_damaged_and_unfinished_runs_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "models" / "logistic.safetensors").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"logistic\.safetensors: found sha256"):
        FittedRun.open(tmp_path / "run")
    (tmp_path / "run" / "digests.json").unlink()  # as in a run from before there were digests
    with pytest.raises(DataError, match="damaged run"):
        FittedRun.open(tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    with pytest.raises(DataError, match="not finished"):
        FittedRun.open(tmp_path / "run")


def test_runs_on_other_labels_are_refused(run: Path, sample: Path) -> None:
    art = load(sample, "test")
    object.__setattr__(art.labels, "names", (*art.labels.names[:-1], "Живопись/Иное"))
    with pytest.raises(DataError, match="labels"):
        infer([FittedRun.open(run)], art)


def test_runs_that_disagree_about_the_labels_are_refused(run: Path, sample: Path) -> None:
    one = FittedRun.open(run)
    other = dataclasses.replace(one, labels=Labels((*one.labels.names[:-1], "Живопись/Иное")))
    with pytest.raises(DataError, match="other labels"):
        infer([one, other], load(sample, "test"))
    with pytest.raises(DataError, match="other labels"):
        predict([next((sample / "test").glob("*.jpg"))], [one, other], top=1)


def test_a_photo_gets_its_categories_with_probabilities(run: Path, sample: Path, tmp_path: Path) -> None:
    photo = next((sample / "test").glob("*.jpg"))
    text = predict([photo, photo], [FittedRun.open(run)], top=3, plot=tmp_path / "plots")
    assert text.count(str(photo)) == 2
    rows = [line for line in text.splitlines() if line.endswith("%")]
    assert len(rows) == 6
    with Image.open(tmp_path / "plots" / f"{photo.stem}.png") as picture:
        assert picture.size == (512, 256)
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(DataError, match="note"):
        predict([tmp_path / "note.txt"], [FittedRun.open(run)], top=3)
    with pytest.raises(DataError, match="absent"):
        predict([tmp_path / "absent.jpg"], [FittedRun.open(run)], top=3)
    with pytest.raises(ConfigError, match="photo"):
        predict([], [FittedRun.open(run)], top=3)


def test_saliency_comes_from_a_probe_where_there_is_no_network(run: Path, sample: Path) -> None:
    fitted = FittedRun.open(run)
    probes = {kind: m for m, kind in zip(fitted.members, fitted.config.members, strict=True) if kind != "network"}
    without = dataclasses.replace(fitted.config, members=tuple(probes))
    for root in (False, True):
        config = dataclasses.replace(without, features=dataclasses.replace(without.features, root=root))
        only = dataclasses.replace(fitted, config=config, members=list(probes.values()))
        heat = saliency(only, load(sample, "test").pixels[0], 0.5, 0)
        assert heat.shape == (48, 24)  # of the picture itself, without the white beside it
        assert 0 <= heat.min() <= heat.max() <= 1
    squashed = dataclasses.replace(without, features=dataclasses.replace(without.features, fit="squash"))
    only = dataclasses.replace(fitted, config=squashed, members=list(probes.values()))
    assert saliency(only, load(sample, "test").pixels[0], 0.5, 0).shape == (48, 48)
    # MobileNetV3 has a layer behind the pooling: what a probe sees is wider than the last maps.
    wide = create("mobilenetv3_small_050", Weights(None, "scratch", ""))
    weight = np.random.default_rng(0).normal(size=(17, 1024))
    probe = Linear(np.zeros(1024), np.ones(1024), weight, np.zeros(17))
    one = dataclasses.replace(without, members=("logistic",))
    only = dataclasses.replace(fitted, config=one, backbones={"wide": wide}, members=[probe])
    assert saliency(only, load(sample, "test").pixels[0], 0.5, 0).shape == (48, 24)
    blind = dataclasses.replace(fitted.config, members=("prior",))
    bare = dataclasses.replace(fitted, config=blind, backbones={}, members=[probes["prior"]])
    with pytest.raises(ConfigError, match="plot"):
        saliency(bare, load(sample, "test").pixels[0], 1.0, 0)


def test_evaluation_equals_scikit_learn(sample: Path, tmp_path: Path) -> None:
    art = load(sample, "test")
    truth = dict(line.split("\t") for line in (sample / "test.csv").read_text().splitlines()[1:])
    generator = np.random.default_rng(0)
    ids = np.array([int(truth[n]) if generator.random() < 0.6 else generator.integers(17) for n in art.all_names])
    write_submission(tmp_path / "submission.csv", art.all_names, ids)
    report, labels = evaluate_submission(tmp_path / "submission.csv", sample / "test.csv")
    true = np.array([int(truth[n]) for n in art.all_names])
    expected = f1_score(true, ids, labels=range(len(labels)), average="macro", zero_division=0)
    assert report["macro_f1"] == pytest.approx(expected)
    assert labels.shown(0) in report_text(report, labels)
    (tmp_path / "truth.csv").write_bytes((sample / "test.csv").read_bytes())
    with pytest.raises(DataError, match="label_to_id"):
        evaluate_submission(tmp_path / "submission.csv", tmp_path / "truth.csv")
    (tmp_path / "truth.csv").write_text("image_name\tlabel_id\n")
    with pytest.raises(DataError, match=r"truth\.csv: found a header and no rows"):
        evaluate_submission(tmp_path / "truth.csv", tmp_path / "truth.csv", sample / "label_to_id.csv")
