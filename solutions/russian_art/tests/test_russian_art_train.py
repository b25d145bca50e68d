"""Training: what a fold keeps, an exact way back after an interruption, LP-FT, and what a run folder holds."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.numpy import load_file
from sklearn.metrics import f1_score

from kit_core.config import load_preset, preset_names
from kit_core.errors import ConfigError
from kit_core.run import RunFolder
from kit_core.testing import interrupted_after
from kit_metrics import bootstrap_macro_f1
from russian_art import finetune
from russian_art import train as training
from russian_art.backbones import Weights, placed
from russian_art.baseline import fit_logistic
from russian_art.cli import PRESETS
from russian_art.config import Config, DataConfig, FeaturesConfig, NetworkConfig, ProbeConfig, StageConfig
from russian_art.data import Art, Labels, stratified_folds
from russian_art.finetune import Images, Maps, fit_network, make_inputs, make_network, random_crops, score_rows
from russian_art.infer import FittedRun
from russian_art.train import find_all_weights, needed_backbones, train, units_of

TINY = "test_efficientnet"
SCRATCH = Weights(None, "scratch", "scratch")
NAMES = ("Живопись/Портрет", "Живопись/Пейзаж ", "Графика/Портрет", "Графика/Пейзаж")


@pytest.fixture(scope="module")
def art() -> Art:
    """Eighty pictures of four labels, told apart by colour and brightness of one half."""
    generator = np.random.default_rng(0)
    label = np.sort(np.arange(80) % 4)
    pixels = generator.integers(0, 120, (80, 32, 32, 3))
    pixels[..., 0] += np.where(label % 2, 110, 0)[:, None, None]
    pixels[:, :16] += np.where(label // 2, 100, 0)[:, None, None, None]
    return Art(
        split="train",
        names=[f"{i:032x}.jpg" for i in range(80)],
        pixels=np.minimum(pixels, 255).astype(np.uint8),
        aspect=np.linspace(0.5, 2, 80),
        label=label,
        group=np.arange(80) // 2,
        labels=Labels(NAMES),
        broken={},
        fingerprint="made for tests",
    )


def network_config(**changes: Any) -> NetworkConfig:
    settings = {
        "backbones": (TINY,), "size": 32, "batch": 16, "frozen_norm": False,
        "first": StageConfig(epochs=2, trained="head", learning_rate=1e-2),
        "second": StageConfig(epochs=2, optimizer="sgd", learning_rate=1e-2, schedule="cosine", warmup_share=0.2),
    }  # fmt: skip
    return NetworkConfig(**(settings | changes))


class StopHereError(Exception):
    pass


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else; one test asks for the plots."""
    if "with_plots" not in request.fixturenames:
        monkeypatch.setattr(training, "write_plots", lambda *_: None)


@pytest.fixture
def with_plots() -> None:
    """Ask for the plots."""


def fit(
    config: NetworkConfig, art: Art, folder: Path, stop_after: int | None = None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Fit one network on one split; `stop_after` interrupts it in the epoch after so many were validated."""
    assert art.label is not None
    lines: list[dict[str, Any]] = []

    def log(**values: Any) -> None:
        if stop_after is not None and len(lines) == stop_after:
            raise StopHereError
        lines.append(values)

    network = make_network(config, TINY, SCRATCH, art.labels.top_of, art.labels.genre_of, seed=0)
    inputs = make_inputs(config, network, art.pixels, seed=0)
    fold = np.arange(80) // 2 % 4
    logits = fit_network(
        config, network, inputs, art.label, art.labels.top_of, np.flatnonzero(fold), np.flatnonzero(fold == 0),
        C=0.1, seed=3, state_path=folder / "state.pt", weights_path=folder / "weights.safetensors", log=log,
    )  # fmt: skip
    return logits, lines


INTERRUPTED = {
    "plain": network_config(),
    "everything random": network_config(
        ema=0.9, dropout=0.2, crop=0.5, start="probe", head="factorised", hierarchy_weight=0.3
    ),
    "frozen parts": network_config(frozen_parts=2, views=4, crop=0.6, flip_test=True, keep="last"),
}


@pytest.fixture(scope="module")
def unbroken(
    request: pytest.FixtureRequest, art: Art, tmp_path_factory: pytest.TempPathFactory
) -> tuple[NetworkConfig, np.ndarray, list[dict[str, Any]], bytes]:
    """A configuration, and the logits, log and weights of its training without an interruption."""
    folder, config = tmp_path_factory.mktemp("unbroken"), INTERRUPTED[request.param]
    logits, lines = fit(config, art, folder)
    return config, logits, lines, (folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("unbroken", "stop_after"),
    [
        *(("plain", stop) for stop in (2, 3, 4)),  # in the first stage, between the stages, in the second
        *(("everything random", stop) for stop in (2, 3, 4)),
        ("frozen parts", 4),  # of which a resumed run makes the maps again, whatever the stop
    ],
    indirect=["unbroken"],
)
def test_an_interrupted_network_ends_with_the_same_bits(
    unbroken: tuple[NetworkConfig, np.ndarray, list[dict[str, Any]], bytes], art: Art, tmp_path: Path, stop_after: int
) -> None:
    config, logits, lines, weights = unbroken
    with pytest.raises(StopHereError):
        fit(config, art, tmp_path, stop_after)
    resumed, more = fit(config, art, tmp_path)
    np.testing.assert_array_equal(logits, resumed)
    assert len(more) == len(lines) - stop_after  # finished epochs are not trained again
    assert lines[-len(more) :] == more
    assert (tmp_path / "weights.safetensors").read_bytes() == weights
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.parametrize("frozen_parts", [0, 3])
@pytest.mark.parametrize("head", ["linear", "factorised"])
def test_lp_ft_starts_at_exactly_the_score_of_the_probe(art: Art, tmp_path: Path, frozen_parts: int, head: str) -> None:
    assert art.label is not None
    config = network_config(start="probe", head=head, frozen_parts=frozen_parts, frozen_norm=True)
    _, lines = fit(config, art, tmp_path)
    network = make_network(config, TINY, SCRATCH, art.labels.top_of, art.labels.genre_of, seed=0)
    images = make_inputs(dataclasses.replace(config, frozen_parts=0), network, art.pixels, seed=0)
    with torch.inference_mode():
        features = network.backbone(images.plain(np.arange(80))).numpy()
    fold = np.arange(80) // 2 % 4
    probe = fit_logistic(features[fold > 0], art.label[fold > 0], 4, 0.1)
    expected = f1_score(art.label[fold == 0], probe.logits(features[fold == 0]).argmax(axis=1), average="macro")
    assert lines[0]["epoch"] == 0
    assert lines[0]["valid_macro_f1"] == pytest.approx(expected, abs=1e-12)


def test_the_validation_is_never_augmented(art: Art) -> None:
    config = network_config(crop=0.5, flip=True)
    network = make_network(config, TINY, SCRATCH, art.labels.top_of, art.labels.genre_of, seed=0)
    inputs = make_inputs(config, network, art.pixels, seed=0)
    rows = np.arange(20)
    alone = score_rows(network, inputs, rows, flip_test=False)
    torch.manual_seed(1)
    np.testing.assert_array_equal(score_rows(network, inputs, rows, flip_test=False), alone)
    assert not torch.equal(inputs.training(rows, torch.Generator().manual_seed(0)), inputs.plain(rows))


def test_maps_in_memory_give_what_the_whole_network_gives(art: Art) -> None:
    config = network_config(frozen_parts=3, views=3, flip_test=True)
    network = make_network(config, TINY, SCRATCH, art.labels.top_of, art.labels.genre_of, seed=0)
    maps = make_inputs(config, network, art.pixels, seed=0)
    assert isinstance(maps, Maps)
    images = make_inputs(dataclasses.replace(config, frozen_parts=0), network, art.pixels, seed=0)
    assert isinstance(images, Images)
    rows = np.arange(70, 80)
    found, expected = (score_rows(network, one, rows, flip_test=True) for one in (maps, images))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    drawn = maps.training(rows, torch.Generator().manual_seed(0))
    known = torch.stack([one[70:] for one in maps.maps])
    assert all(any(torch.equal(drawn[i], known[view, i]) for view in range(3)) for i in range(10))


@pytest.mark.slow  # Dynamo takes seconds
def test_compiled_training_is_the_same_and_compiles_once_a_stage(
    art: Art, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo alone, without the machine code behind it: shapes are fixed, so no batch and no second fold compiles."""
    graphs: list[object] = []

    def counted(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        graphs.append(inputs)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend=counted))
    torch.compiler.reset()
    config = network_config(compile=True, keep="last")
    for name in ("first fold", "second fold"):
        (tmp_path / name).mkdir()
        logits, _ = fit(config, art, tmp_path / name)
        if name == "first fold":
            after_one = len(graphs)
    torch.compiler.reset()
    assert after_one >= 2  # the head alone, then everything
    assert len(graphs) == after_one
    monkeypatch.undo()
    (tmp_path / "plain").mkdir()
    np.testing.assert_allclose(logits, fit(dataclasses.replace(config, compile=False), art, tmp_path / "plain")[0])


def test_training_in_bfloat16_keeps_the_weights_in_float32(art: Art, tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    slow = {"first": StageConfig(epochs=1, trained="head", learning_rate=1e-3), "second": StageConfig(epochs=1)}
    config = network_config(precision="bfloat16", start="probe", frozen_norm=True, **slow)
    network = make_network(config, TINY, SCRATCH, art.labels.top_of, art.labels.genre_of, seed=0)
    network.head.label.register_forward_hook(lambda *call: seen.append(call[2].dtype))  # type: ignore[union-attr]  # a module
    score_rows(
        network, make_inputs(config, network, art.pixels, 0), np.arange(4), flip_test=False, precision="bfloat16"
    )
    assert seen == [torch.bfloat16]
    logits, lines = fit(config, art, tmp_path)
    assert np.isfinite(logits).all()
    assert lines[0]["valid_macro_f1"] > 0.4  # that of the probe, judged in bfloat16
    assert {tensor.dtype for tensor in finetune.load_file(tmp_path / "weights.safetensors").values()} <= {
        torch.float32,
        torch.int64,
    }


def test_images_and_networks_are_laid_out_channels_last(art: Art) -> None:
    network = make_network(network_config(), TINY, SCRATCH, art.labels.top_of, art.labels.genre_of, seed=0)
    inputs = make_inputs(network_config(crop=0.5), network, art.pixels, seed=0)
    for batch in (inputs.plain(np.arange(3)), inputs.training(np.arange(3), torch.Generator().manual_seed(0))):
        assert batch.is_contiguous(memory_format=torch.channels_last)
    assert placed(network, "cpu").backbone.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]  # a module


@pytest.mark.parametrize("axis", [2, 3])
def test_crops_stay_inside_the_picture(axis: int) -> None:
    """Beyond its border the last row or column would be repeated."""
    shape = [1, 1, 1, 1]
    shape[axis] = 40
    ramp = torch.arange(40.0).reshape(shape).expand(200, 3, 40, 40).contiguous()
    steps = random_crops(ramp, 0.25, torch.Generator().manual_seed(0)).diff(dim=axis)
    assert float(steps.narrow(axis, 1, 37).min()) > 0.2


def test_crops_keep_the_share_of_the_area() -> None:
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)  # the value is the place, so its range is the width
    cropped = random_crops(ramp, 0.25, torch.Generator().manual_seed(0))
    width = cropped.amax(dim=(1, 2, 3)) - cropped.amin(dim=(1, 2, 3))
    assert width.min() > 0.4
    assert width.max() <= 1
    torch.testing.assert_close(
        random_crops(ramp, 1.0, torch.Generator().manual_seed(0)).mean(), ramp.mean(), atol=0.05, rtol=0
    )


def run_config(**changes: Any) -> Config:
    settings: dict[str, Any] = {
        "members": ("logistic", "discriminant", "network"),
        "data": DataConfig(folds=2),
        "features": FeaturesConfig(backbones=(TINY,), sizes=(32,), flip=True, levels="all", views="rows"),
        "network": network_config(second=StageConfig(epochs=1, learning_rate=1e-3)),
    }
    return Config(**(settings | changes))


def run_in(folder: Path, config: Config, art: Art, resume: bool = False) -> dict[str, Any]:
    with RunFolder.create(folder, config=config, preset="x", data_hashes={}, seed=0, resume=resume) as run:
        return train(config, art, run, find_all_weights(config, None))


@pytest.mark.usefixtures("with_plots")
def test_a_run_keeps_out_of_fold_answers_that_give_its_score(art: Art, tmp_path: Path) -> None:
    summary = run_in(tmp_path / "run", run_config(), art)
    oof = load_file(tmp_path / "run" / "oof.safetensors")
    assert oof["probabilities"].shape == (80, 4)
    np.testing.assert_allclose(oof["probabilities"].sum(axis=1), 1)
    expected = f1_score(oof["label"], oof["probabilities"].argmax(axis=1), average="macro", labels=range(4))
    assert summary["score"] == pytest.approx(expected)
    assert set(summary["score_of_members"]) == {"logistic", "discriminant", f"network-{TINY}"}
    for group in np.unique(art.group):
        assert len(np.unique(oof["fold"][oof["group"] == group])) == 1
    assert summary["score"] > 0.6
    np.testing.assert_array_equal(oof["label"], art.label)  # type: ignore[arg-type]  # it has labels
    np.testing.assert_array_equal(oof["group"], art.group)
    for member, score in summary["score_of_members"].items():
        one = f1_score(oof["label"], oof[f"logits/{member}"].argmax(axis=1), average="macro")
        assert score == pytest.approx(one)
    width = json.loads((tmp_path / "run" / "summary.json").read_text())["parameters"]
    backbone = timm.create_model(TINY, num_classes=0)
    in_stages = sum(info["num_chs"] for info in backbone.feature_info)
    probes = 2 * 4 * (backbone.num_features + in_stages + 1)
    network = sum(p.numel() for p in backbone.parameters()) + 4 * (backbone.num_features + 1)
    assert summary["parameters"] == width == probes + network
    page = (tmp_path / "run" / "plots" / "index.html").read_text(encoding="utf-8")
    wrong = int((oof["label"] != oof["probabilities"].argmax(axis=1)).sum())
    assert f"The surest of {wrong} mistakes" in page
    assert page.count("<figure>") == min(wrong, 48)
    for name in ("tops.png", "labels.png", "confusion.png"):
        assert f'src="{name}"' in page
        with Image.open(tmp_path / "run" / "plots" / name) as picture:
            assert min(picture.size) > 150
            assert np.asarray(picture.convert("L")).std() > 20  # something is drawn


def test_a_killed_run_is_resumed_to_the_same_answers(art: Art, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_in(tmp_path / "whole", run_config(), art)
    save = finetune._save_state
    monkeypatch.setattr(finetune, "_save_state", interrupted_after(save, 4))  # in the second fold
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "killed", run_config(), art)
    monkeypatch.setattr(finetune, "_save_state", save)
    resumed = run_in(tmp_path / "killed", run_config(), art, resume=True)
    for name in ("oof.safetensors", "models/blend.json", f"models/network-{TINY}-fold1.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert whole["report"] == resumed["report"]


def test_a_single_fold_scores_only_its_pictures(art: Art, tmp_path: Path) -> None:
    summary = run_in(tmp_path / "run", run_config(members=("pixels", "prior"), data=DataConfig(fold=1, folds=4)), art)
    assert summary["n"] == 20
    assert summary["folds"] == "fold 1 of 4"


def test_a_transformer_answers_at_the_size_that_it_was_trained_at(art: Art, tmp_path: Path) -> None:
    still = {"first": StageConfig(), "second": StageConfig()}
    network = network_config(backbones=("vit_tiny_patch16_224",), **still)  # made for 224 px, used at 32
    run_in(tmp_path / "run", run_config(members=("network",), data=DataConfig(fold=0, folds=2), network=network), art)
    oof = load_file(tmp_path / "run" / "oof.safetensors")
    held = stratified_folds(art.label, art.group, 2, DataConfig().seed) == 0  # type: ignore[arg-type]  # it has labels
    found = FittedRun.open(tmp_path / "run").probabilities(art.pixels[held], art.aspect[held])
    np.testing.assert_allclose(found, oof["probabilities"], atol=1e-5)


@pytest.mark.parametrize("seed", [0, 5])
def test_every_fold_of_a_network_gets_its_rows_and_a_seed_of_its_own_and_the_interval_keeps_groups(
    seed: int, art: Art, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[np.ndarray, np.ndarray, dict[str, Any]]] = []
    answers = np.random.default_rng(0).normal(size=(80, 4))

    def pretended(*args: Any, **settings: Any) -> np.ndarray:
        fitted, held = args[5:7]
        calls.append((fitted, held, settings))
        np.testing.assert_array_equal(args[3], art.label)  # type: ignore[arg-type]  # it has labels
        return answers[held]

    monkeypatch.setattr(finetune, "fit_network", pretended)
    config = run_config(members=("network",), seed=seed, data=DataConfig(folds=3), probe=ProbeConfig(C=(0.7, 1.0)))
    summary = run_in(tmp_path / "run", config, art)
    folds = stratified_folds(art.label, art.group, 3, DataConfig().seed)  # type: ignore[arg-type]  # it has labels
    assert [settings["seed"] for _, _, settings in calls] == [1000 * seed, 1000 * seed + 1, 1000 * seed + 2]
    assert {settings["C"] for _, _, settings in calls} == {0.7}
    for fold, (fitted, held, settings) in enumerate(calls):
        np.testing.assert_array_equal(fitted, np.flatnonzero(folds != fold))
        np.testing.assert_array_equal(held, np.flatnonzero(folds == fold))
        assert settings["weights_path"].name == f"network-{TINY}-fold{fold}.safetensors"
    oof = load_file(tmp_path / "run" / "oof.safetensors")
    np.testing.assert_array_equal(oof["fold"], folds)
    np.testing.assert_array_equal(oof[f"logits/network-{TINY}"], answers)
    predicted = oof["probabilities"].argmax(axis=1)
    assert summary["interval"] == list(bootstrap_macro_f1(oof["label"], predicted, 4, oof["group"]))
    assert summary["interval"] != list(bootstrap_macro_f1(oof["label"], predicted, 4))  # rows one by one


def test_a_test_split_cannot_be_trained_on(art: Art, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.csv"):
        run_in(tmp_path / "run", run_config(members=("pixels",)), dataclasses.replace(art, label=None))


@pytest.mark.parametrize("preset", preset_names(PRESETS))
def test_every_preset_is_a_configuration(preset: str) -> None:
    config = load_preset(Config, PRESETS, preset)
    assert units_of(config)
    for name in needed_backbones(config):
        assert timm.is_model(name.split(".")[0])
        assert "." not in name or name in timm.list_pretrained(name.split(".")[0] + "*")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Config(), "features.backbones"),
        (lambda: Config(members=("network",)), "network.backbones"),
        (lambda: Config(members=()), "members"),
        (lambda: Config(members=("pixels",), data=DataConfig(fold=9)), "data.fold"),
        (lambda: run_config(features=FeaturesConfig(backbones=(TINY,), sizes=())), "sizes"),
        (lambda: run_config(network=network_config(ema=1.0)), "ema"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Config], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_an_epoch_chosen_on_the_scored_fold_is_told(art: Art, tmp_path: Path) -> None:
    for keep, told in (("best", True), ("last", False)):
        config = run_config(members=("network",), network=network_config(keep=keep), data=DataConfig(fold=0, folds=2))
        assert run_in(tmp_path / keep, config, art)["selected_on_scored_fold"] is told
    for preset in preset_names(PRESETS):
        expected = preset in ("seed", "official-baseline")  # whose recipes do so
        assert load_preset(Config, PRESETS, preset).selects_on_scored_fold is expected, preset
