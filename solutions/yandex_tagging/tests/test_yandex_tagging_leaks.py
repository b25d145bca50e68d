"""Nothing of the held-out fold reaches what is fitted without it: models, early choices, and weights of a blend."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from kit_core.config import load_preset, preset_names
from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_train.config import FabricConfig
from yandex_tagging import train as training
from yandex_tagging.blend import Blend
from yandex_tagging.config import PRESETS, BlendConfig, Config, DataConfig, OptimConfig, TeacherConfig
from yandex_tagging.data import Tracks

Fit = Callable[..., dict[str, Any]]
CPU = FabricConfig(accelerator="cpu")
DATA = DataConfig(n_folds=3, fold=0)

# Presets of one name differ from those with -mini, and from one another in sizes, only in what `small_preset` replaces.
FAMILIES = sorted({name.removesuffix("-mini") for name in preset_names(PRESETS)} - {"best"})


def small_preset(name: str) -> Config:
    """A preset of the family, with tiny networks and one epoch."""
    names = preset_names(PRESETS)
    config = load_preset(Config, PRESETS, f"{name}-mini" if f"{name}-mini" in names else name)
    width = {"d": 8, "layers": 1, "heads": 2, "ff": 8, "channels": (8,), "kernels": (3,)}
    hidden = {"input_hidden": 8, "head_hidden": 8, "pooling_heads": 2, "query_ff": 8 if config.network.query_ff else 0}
    return replace(
        config,
        data=replace(config.data, n_folds=3, fold=0),
        classic=replace(config.classic, rounds=3, leaves=4, feature_share=1.0, neighbours=5, workers=1),
        network=replace(config.network, **width, **hidden),
        optim=replace(config.optim, epochs=1, batch=16, swa=min(config.optim.swa, 1)),
        fabric=CPU,
        tensorboard=False,
    )


def changed(tracks: Tracks, held: np.ndarray) -> Tracks:
    """The same tracks with other labels and other frames of those held out."""
    assert tracks.tags is not None
    items = [tracks.pack.item(row) for row in range(len(tracks.pack.lengths))]
    tags = tracks.tags.copy()
    tags[held] = ~tags[held]
    for place in held:
        items[int(tracks.rows[place])] = 100 - 3 * items[int(tracks.rows[place])]
    return replace(tracks, pack=RaggedPack.from_items(items, "float32"), tags=tags)


@pytest.fixture(scope="module")
def small(make_tracks: Callable[..., Tracks]) -> Tracks:
    """Tracks where a tag comes with another, so that labels can be filled in."""
    tracks = make_tracks(seed=5, n=60)
    assert tracks.tags is not None
    tags = tracks.tags.copy()
    tags[:, 2] |= tags[:, 5]
    return replace(tracks, tags=tags)


@pytest.fixture(scope="module")
def folds(small: Tracks) -> np.ndarray:
    return training.assign_folds(small, DATA)[0]


@pytest.fixture
def same_folds(small: Tracks, folds: np.ndarray) -> Iterator[None]:
    """Folds are stratified by the labels; here they stay as they are when labels change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "assign_folds", lambda tracks, _: (folds, np.arange(len(tracks.ids))))
        yield


def stored(run: Path, pattern: str = "checkpoints/*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.glob(pattern))}


def assert_no_leak(
    config: Config, small: Tracks, folds: np.ndarray, fit: Fit, tmp_path: Path, n_models: int = 1
) -> None:
    """Train on both versions of the held-out fold: equal models after as many epochs."""
    held = np.flatnonzero(folds == 0)
    summary = fit(config, small, tmp_path / "a")
    fit(config, changed(small, held), tmp_path / "b")
    models = stored(tmp_path / "a")
    assert len(models) == n_models
    assert stored(tmp_path / "b") == models
    if not summary["selected_on_scored_fold"]:
        epochs = [(tmp_path / run / "metrics.jsonl").read_text().count('"learning_rate"') for run in "ab"]
        assert epochs[0] == epochs[1]


@pytest.mark.usefixtures("same_folds")
@pytest.mark.parametrize("name", FAMILIES)
def test_labels_and_frames_of_the_held_out_fold_change_no_model(
    name: str, small: Tracks, folds: np.ndarray, fit: Fit, tmp_path: Path
) -> None:
    assert_no_leak(small_preset(name), small, folds, fit, tmp_path)


@pytest.mark.usefixtures("same_folds")
@pytest.mark.parametrize("name", ["frames", "knn"])
def test_those_of_a_fitted_fold_do_change_it(
    name: str, small: Tracks, folds: np.ndarray, fit: Fit, tmp_path: Path
) -> None:
    fit(small_preset(name), small, tmp_path / "a")
    fit(small_preset(name), changed(small, np.flatnonzero(folds == 1)), tmp_path / "b")
    assert stored(tmp_path / "a") != stored(tmp_path / "b")


NETWORK = small_preset("frames")
MORE = {
    "parents filled in": replace(NETWORK, data=replace(NETWORK.data, fill_parents=True)),
    "parents in the head": replace(NETWORK, network=replace(NETWORK.network, head="family", pooling="mean")),
    "class alpha": replace(NETWORK, loss=replace(NETWORK.loss, name="focal", class_alpha=True)),
    "noise in deviations of the frames": replace(
        NETWORK, augment=replace(NETWORK.augment, noise=0.5), network=replace(NETWORK.network, standardise=False)
    ),
    "one deviation": replace(NETWORK, network=replace(NETWORK.network, common_scale=True)),
    "EMA of accumulated steps": replace(
        NETWORK, optim=replace(NETWORK.optim, ema=0.9, epochs=2), fabric=replace(CPU, accumulate=2)
    ),
    "SWA": replace(NETWORK, optim=replace(NETWORK.optim, swa=2, epochs=2)),
    "two copies": replace(NETWORK, copies=2),
}


@pytest.mark.usefixtures("same_folds")
@pytest.mark.parametrize("name", MORE)
def test_settings_that_look_at_labels_or_frames_see_those_of_the_fitted_folds(
    name: str, small: Tracks, folds: np.ndarray, fit: Fit, tmp_path: Path
) -> None:
    assert_no_leak(MORE[name], small, folds, fit, tmp_path, MORE[name].copies)


@pytest.mark.usefixtures("same_folds")
def test_a_student_learns_no_label_of_the_held_out_fold_from_its_teacher(
    small: Tracks, folds: np.ndarray, fit: Fit, tmp_path: Path
) -> None:
    """With pseudo-labels it does learn the frames of that fold, but with the answers of models that did not see it."""
    frames = changed(small, np.flatnonzero(folds == 0))
    teacher = small_preset("knn")
    for run, tracks in (("a", small), ("labels", replace(small, tags=frames.tags)), ("both", frames)):
        fit(teacher, tracks, tmp_path / run / "teacher")
        for pseudo_labels in (True, False):
            lesson = TeacherConfig(run=tmp_path / run / "teacher", weight=0.5, pseudo_labels=pseudo_labels)
            fit(replace(NETWORK, teacher=lesson), tracks, tmp_path / run / str(pseudo_labels))
    models = {
        (run, kind): stored(tmp_path / run / kind) for run in ("a", "labels", "both") for kind in ("True", "False")
    }
    assert models["a", "True"] == models["labels", "True"]
    assert models["a", "False"] == models["labels", "False"] == models["both", "False"]
    assert models["a", "True"] != models["both", "True"]


def test_a_choice_on_the_scored_fold_is_told(small: Tracks, blended: Path, fit: Fit, tmp_path: Path) -> None:
    """Every setting that chooses an epoch or a learning rate by the held-out fold marks the run and its ensemble."""
    chosen: dict[str, dict[str, Any]] = {
        "best": {"keep": "best"}, "patience": {"patience": 1}, "plateau": {"schedule": "plateau"}, "last": {},
    }  # fmt: skip
    for name, settings in chosen.items():
        config = replace(NETWORK, optim=OptimConfig(epochs=1, batch=32, **settings))
        assert fit(config, small, tmp_path / name)["selected_on_scored_fold"] is (name != "last")
    assert not training.selects_on_scored_fold(replace(small_preset("knn"), optim=OptimConfig(keep="best")))
    assert json.loads((blended / "run" / "summary.json").read_text())["selected_on_scored_fold"] is False
    presets = write_presets(tmp_path / "presets")
    with (presets / "net.toml").open("a") as file:
        file.write("keep = 'best'\n")
    config = replace(ensemble(BlendConfig(weights="equal")), members=("net", "near"))
    assert fit(config, small, tmp_path / "ensemble", presets=presets)["selected_on_scored_fold"] is True


def test_presets_for_small_data_choose_nothing_on_the_scored_fold() -> None:
    for name in preset_names(PRESETS):
        chosen = training.selects_on_scored_fold(load_preset(Config, PRESETS, name))
        assert chosen == (name == "conformer"), name


# --- blends


def write_presets(folder: Path) -> Path:
    folder.mkdir()
    classic = "[classic]\nneighbours = 5\nstatistics = ['mean', 'max']\n"
    (folder / "near.toml").write_text(f"# near\nmodel = 'knn'\n{classic}")
    (folder / "linear.toml").write_text(f"# linear\nmodel = 'logistic'\n{classic}")
    (folder / "net.toml").write_text(
        "# net\n[network]\nencoder = 'none'\nd = 8\nhead = 'frames'\n[optim]\nepochs = 1\nbatch = 16\n"
    )
    return folder


def ensemble(blend: BlendConfig) -> Config:
    return Config(
        model="ensemble", members=("near", "linear", "net"), blend=blend, data=DataConfig(n_folds=3), fabric=CPU
    )


BLEND = BlendConfig(weights="per-tag", shrinkage=1.0, rounds=20)


@pytest.fixture(scope="module")
def blended(small: Tracks, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blended")
    presets = write_presets(folder / "presets")
    fit(ensemble(BLEND), small, folder / "run", presets=presets)
    return folder


def answers_of(run: Path) -> np.ndarray:
    return np.stack(pq.read_table(run / "oof.parquet")["logits"].to_numpy())


def test_the_weights_of_a_fold_come_from_the_other_folds(blended: Path, small: Tracks) -> None:
    run = blended / "run"
    members = [answers_of(run / "members" / name) for name in ("near", "linear", "net")]
    folds = np.array(pq.read_table(run / "oof.parquet")["fold"].to_pylist())
    assert small.tags is not None
    final = Blend.load(run / "blend.safetensors")
    np.testing.assert_allclose(final.weights, Blend.fit(members, small.tags, **asdict(BLEND)).weights)
    for fold in range(3):
        others, inside = folds != fold, folds == fold
        expected = Blend.fit([one[others] for one in members], small.tags[others], **asdict(BLEND))
        kept = Blend.load(run / f"blend-fold{fold}.safetensors")
        for name in ("mean", "deviation", "weights"):
            np.testing.assert_allclose(getattr(kept, name), getattr(expected, name), err_msg=name)
        assert np.abs(kept.weights - final.weights).max() > 0.03  # which knows the labels of this fold
        np.testing.assert_allclose(
            answers_of(run)[inside], expected.mix([one[inside] for one in members]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("weights", ["global", "per-tag"])
@pytest.mark.parametrize("scale", ["logit", "z-score"])
def test_labels_and_answers_of_a_fold_change_nothing_in_its_blend(
    weights: Any, scale: Any, blended: Path, small: Tracks, folds: np.ndarray, tmp_path: Path
) -> None:
    """The members have finished; their answers to the fold and its labels are changed before they are blended."""
    config = ensemble(BlendConfig(weights=weights, scale=scale, shrinkage=1.0, rounds=10))
    read = training.read_answers

    def read_changed(path: Path, ids: list[int]) -> np.ndarray:
        answers = read(path, ids)
        answers[folds == 0] = 7 - 2 * answers[folds == 0]
        return answers

    assert small.tags is not None
    tags = small.tags.copy()
    tags[folds == 0] = ~tags[folds == 0]
    for name, tracks, reader in (("a", small, read), ("b", replace(small, tags=tags), read_changed)):
        hashes = {"train": small.fingerprint}
        with (
            pytest.MonkeyPatch.context() as patch,
            RunFolder.create(tmp_path / name, config=config, preset="test", data_hashes=hashes, seed=0) as run,
        ):
            patch.setattr(training, "assign_folds", lambda tracks, _: (folds, np.arange(len(tracks.ids))))
            patch.setattr(training, "read_answers", reader)
            shutil.copytree(blended / "run" / "members", tmp_path / name / "members")
            training.train(config, tracks, run, presets=blended / "presets")
    a, b = (stored(tmp_path / run, "blend*.safetensors") for run in "ab")
    assert a["blend-fold0.safetensors"] == b["blend-fold0.safetensors"]
    assert a["blend.safetensors"] != b["blend.safetensors"] or scale == "logit"  # whose scales are 0 and 1
    assert a != b
