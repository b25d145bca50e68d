"""Inference, prediction, evaluation and the pictures of a run, on a small run of the generated sample."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import f1_score

from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from russian_art import train as training
from russian_art.backbones import Weights, create
from russian_art.baseline import Linear
from russian_art.config import Config, DataConfig, FeaturesConfig, NetworkConfig, ProbeConfig, StageConfig
from russian_art.data import Labels, load, write_submission
from russian_art.evaluate import evaluate_submission, report_text
from russian_art.infer import FittedRun, infer
from russian_art.predict import predict, read_photo, saliency
from russian_art.sample import write_sample
from russian_art.train import find_all_weights, train

TINY = "test_efficientnet"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "official"
    write_sample(folder, images=100)
    return folder


@pytest.fixture(scope="module")
def run(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of member."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_file(create(TINY, Weights(None, "scratch", "")).state_dict(), folder / f"{TINY}.safetensors")
    config = Config(
        members=("prior", "pixels", "logistic", "neighbours", "network"),
        data=DataConfig(folds=2),
        probe=ProbeConfig(pixels=8),
        features=FeaturesConfig(backbones=(TINY,), sizes=(48,), flip=True, fit="pad"),
        network=NetworkConfig(
            backbones=(TINY,), size=48, flip_test=True, frozen_parts=2, first=StageConfig(epochs=1, trained="head")
        ),
    )
    art = load(sample, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_plots", lambda *_: None)  # drawing takes longer than all else
        with RunFolder.create(folder / "run", config=config, preset="x", data_hashes={}, seed=0) as opened:
            train(config, art, opened, find_all_weights(config, folder))
    return folder / "run"


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


def test_a_photo_gets_its_most_likely_label_first(run: Path, sample: Path) -> None:
    fitted = FittedRun.open(run)
    photo = sorted((sample / "test").iterdir())[0]
    pixels, aspect = read_photo(photo)
    expected = fitted.probabilities(pixels[None], np.array([aspect]))[0]
    lines = [line for line in predict([photo], [fitted], top=3).splitlines() if "%" in line]
    told = [float(line.split("%")[0].split()[-1].lstrip("|")) for line in lines]
    assert told == [round(100 * share, 1) for share in np.sort(expected)[::-1][:3]]
    top, genre = fitted.labels.pairs[int(expected.argmax())]
    assert top in lines[0]
    assert genre in lines[0]
