"""What a fold leaves out changes nothing that answers for it: models, strengths, and the blend."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from safetensors.numpy import load_file

from kit_core.run import RunFolder
from russian_art import train as training
from russian_art.blend import cross_fitted
from russian_art.config import (
    BlendConfig,
    Config,
    DataConfig,
    FeaturesConfig,
    Member,
    NetworkConfig,
    ProbeConfig,
    StageConfig,
)
from russian_art.data import Art, Labels
from russian_art.train import find_all_weights, train

TINY = "test_efficientnet"
MEMBERS: tuple[Member, ...] = get_args(Member)
N = 48
FOLDS = np.arange(N) // 2 % 2
STAGE = StageConfig(epochs=1, learning_rate=1e-2)
NETWORK = NetworkConfig(backbones=(TINY,), size=32, batch=8, frozen_norm=False, second=STAGE)
CONFIG = Config(
    members=MEMBERS,
    data=DataConfig(folds=2),
    features=FeaturesConfig(backbones=(TINY,), sizes=(32,)),
    probe=ProbeConfig(C=(0.01, 0.1), rounds=2, pixels=8),
    network=NETWORK,
    blend=BlendConfig(weights="greedy", taus=(0.0, 0.5, 1.0)),
)
NETWORKS = {
    "from a probe": NetworkConfig(
        backbones=(TINY,), size=32, batch=8, start="probe", first=dataclasses.replace(STAGE, trained="head")
    ),
    "on frozen parts, cropped": dataclasses.replace(NETWORK, frozen_parts=2, views=3, crop=0.5, flip_test=True),
    "running mean": dataclasses.replace(NETWORK, ema=0.9),
}


@pytest.fixture(scope="module")
def art() -> Art:
    generator = np.random.default_rng(0)
    label = np.sort(np.arange(N) % 4)
    pixels = generator.integers(0, 150, (N, 32, 32, 3)) + 25 * label[:, None, None, None]
    return Art(
        split="train",
        names=[f"{i:032x}.jpg" for i in range(N)],
        pixels=pixels.astype(np.uint8),
        aspect=np.ones(N),
        label=label,
        group=np.arange(N) // 2,
        labels=Labels(("Живопись/Портрет", "Живопись/Пейзаж", "Графика/Портрет", "Графика/Пейзаж")),
        broken={},
        fingerprint="made for tests",
    )


def changed(art: Art, fold: int, *, pixels: bool) -> Art:
    """The same data with other labels, in other shares, and on request other pictures in one fold."""
    assert art.label is not None
    inside = fold == FOLDS
    label = np.where(inside, (art.label + 1) % 4, art.label)
    label[np.flatnonzero(inside & (label == 0))[:2]] = 1
    inverted = np.where(inside[:, None, None, None], 255 - art.pixels, art.pixels)
    return dataclasses.replace(
        art, label=label, pixels=inverted if pixels else art.pixels, fingerprint=f"changed {fold} {pixels}"
    )


def run_in(folder: Path, config: Config, art: Art, oof: Path | None = None) -> Path:
    """Train; with `oof` the members' out-of-fold answers are those of another run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "stratified_folds", lambda *_: FOLDS)
        patch.setattr(training, "write_plots", lambda *_: None)
        with RunFolder.create(folder, config=config, preset="x", data_hashes={}, seed=0) as run:
            if oof is not None:
                shutil.copytree(oof, folder / "oof", dirs_exist_ok=True)
            train(config, art, run, find_all_weights(config, None))
    return folder


@pytest.fixture(scope="module")
def hold_outs(art: Art, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that leave fold 0 out: on the data, and with fold 0 or fold 1 changed."""
    folder = tmp_path_factory.mktemp("hold_outs")
    config = dataclasses.replace(CONFIG, data=DataConfig(folds=2, fold=0), blend=BlendConfig(taus=(0.7,)))
    data = {"plain": art, "held out": changed(art, 0, pixels=True), "fitted": changed(art, 1, pixels=True)}
    return {name: run_in(folder / name, config, one) for name, one in data.items()}


@pytest.fixture(scope="module")
def cross_validated(art: Art, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs over both folds: on the data, and with other labels in fold 0."""
    folder = tmp_path_factory.mktemp("cross_validated")
    a, b = (run_in(folder / name, CONFIG, one) for name, one in (("a", art), ("b", changed(art, 0, pixels=False))))
    return a, b


@pytest.mark.parametrize("member", [*MEMBERS, "blend"])
def test_labels_and_pictures_of_the_held_out_fold_change_no_model(hold_outs: dict[str, Path], member: str) -> None:
    files = {"network": f"network-{TINY}-fold0.safetensors", "blend": "blend.json"}
    name = Path("models", files.get(member, f"{member}.safetensors"))
    stored = {run: (folder / name).read_bytes() for run, folder in hold_outs.items()}
    assert stored["plain"] == stored["held out"]
    assert stored["plain"] != stored["fitted"]


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_held_out_changes_no_kind_of_network(kind: str, art: Art, tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, members=("network",), network=NETWORKS[kind], data=DataConfig(folds=2, fold=0), blend=BlendConfig()
    )
    data = {"plain": art, "held out": changed(art, 0, pixels=True)}
    runs = [run_in(tmp_path / name, config, one) for name, one in data.items()]
    one, other = ((run / "models" / f"network-{TINY}-fold0.safetensors").read_bytes() for run in runs)
    assert one == other


@pytest.mark.parametrize("member", MEMBERS)
def test_labels_of_a_fold_change_only_the_answers_for_other_folds(
    cross_validated: tuple[Path, Path], member: str
) -> None:
    unit = f"network-{TINY}" if member == "network" else member
    for fold, same in ((0, True), (1, False)):
        one, other = (run / "oof" / f"{unit}-fold{fold}.safetensors" for run in cross_validated)
        assert (one.read_bytes() == other.read_bytes()) is same


def test_the_strength_of_a_fold_is_chosen_without_it(cross_validated: tuple[Path, Path]) -> None:
    def chosen(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [line["scores"] for line in lines if line.get("fold") == 0 and "scores" in line]

    one, other = (chosen(run) for run in cross_validated)
    assert one
    assert one == other


def test_a_fold_helps_to_choose_no_blend_that_it_is_scored_by(
    cross_validated: tuple[Path, Path], art: Art, tmp_path: Path
) -> None:
    """With the members' answers as they were and other labels in fold 0, only the probabilities of fold 1 change."""
    plain = cross_validated[0]
    again = run_in(tmp_path / "run", CONFIG, changed(art, 0, pixels=False), oof=plain / "oof")
    one, other = (load_file(run / "oof.safetensors")["probabilities"] for run in (plain, again))
    np.testing.assert_array_equal(one[FOLDS == 0], other[FOLDS == 0])
    assert not np.allclose(one[FOLDS == 1], other[FOLDS == 1])


def test_a_fold_never_helps_to_choose_its_own_blend() -> None:
    generator = np.random.default_rng(0)
    label, folds = generator.integers(0, 4, 200), np.arange(200) % 4
    logits = generator.normal(size=(2, 200, 4)) + np.eye(4)[label]
    before = cross_fitted(logits, label, folds, 4, "greedy", (0.0, 1.0))
    changed = np.where(folds == 2, (label + 1) % 4, label)
    after = cross_fitted(logits, changed, folds, 4, "greedy", (0.0, 1.0))
    np.testing.assert_array_equal(before[folds == 2], after[folds == 2])
