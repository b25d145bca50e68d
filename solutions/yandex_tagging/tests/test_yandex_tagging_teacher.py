"""A student learns from labels and from a teacher, and no label of the fold left out reaches it on either way."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from yandex_tagging import train as training
from yandex_tagging.cli import main
from yandex_tagging.config import BlendConfig, Config, DataConfig, NetworkConfig, OptimConfig, TeacherConfig
from yandex_tagging.data import Tracks, load, prepare
from yandex_tagging.sample import write_sample
from yandex_tagging.teacher import lesson_of, open_teacher

DATA = DataConfig(n_folds=3)
STUDENT = Config(
    data=DATA,
    network=NetworkConfig(encoder="none", d=16, head="frames"),
    optim=OptimConfig(epochs=2, batch=32, learning_rate=5e-3),
)
ENSEMBLE = Config(model="ensemble", members=("near", "linear", "net"), blend=BlendConfig(rounds=3), data=DATA)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_sample(folder / "sample", 150)
    prepare(folder / "sample", folder / "packed")
    return folder / "packed"


@pytest.fixture(scope="module")
def tracks(data: Path) -> Tracks:
    return load(data, "train")


def fit(config: Config, tracks: Tracks, path: Path, **more: Any) -> dict[str, Any]:
    hashes = {"train": tracks.fingerprint}
    with RunFolder.create(path, config=config, preset="test", data_hashes=hashes, seed=config.seed) as run:
        return training.train(config, tracks, run, **more)


def fit_teacher(tracks: Tracks, folder: Path) -> Path:
    presets = folder / "presets"
    presets.mkdir(parents=True)
    classic = "[classic]\nneighbours = 5\nstatistics = ['mean', 'max']\n"
    (presets / "near.toml").write_text(f"# near\nmodel = 'knn'\n{classic}")
    (presets / "linear.toml").write_text(f"# linear\nmodel = 'logistic'\n{classic}")
    (presets / "net.toml").write_text(
        "# net\n[network]\nencoder = 'none'\nd = 16\nhead = 'frames'\n[optim]\nepochs = 4\nlearning_rate = 0.005\n"
    )
    fit(ENSEMBLE, tracks, folder / "run", presets=presets)
    return folder / "run"


@pytest.fixture(scope="module")
def teacher(tracks: Tracks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_teacher(tracks, tmp_path_factory.mktemp("teacher"))


def test_targets_are_labels_mixed_with_answers_and_answers_alone(teacher: Path, tracks: Tracks, data: Path) -> None:
    assert tracks.tags is not None
    folds, _ = training.assign_folds(tracks, DATA)
    fitted, held = np.flatnonzero(folds != 1), np.flatnonzero(folds == 1)
    tags, test = tracks.tags[fitted], load(data, "test")
    config = TeacherConfig(run=teacher, weight=0.25)
    opened = open_teacher(config, tracks, folds)

    lesson = lesson_of(opened, config, tracks, test, fitted, tags, held, 1)
    assert len(lesson.rows) == len(lesson.targets) == len(tracks) + len(test)
    assert lesson.rows.tolist() == [*tracks.rows[fitted], *tracks.rows[held], *test.rows]
    assert lesson.targets.dtype == np.float32
    assert lesson.targets.min() >= 0
    assert lesson.targets.max() <= 1
    # To a fold that it did not see, a run answers what it kept as its out-of-fold logits.
    kept = training.read_answers(teacher / "oof.parquet", tracks.ids)[held]
    np.testing.assert_allclose(lesson.targets[len(fitted) :][: len(held)], 1 / (1 + np.exp(-kept)), atol=1e-5)
    mixed = lesson.targets[: len(fitted)]
    assert mixed[tags].min() >= 0.75
    assert mixed[~tags].max() <= 0.25
    assert len(np.unique(mixed)) > 100

    labelled = lesson_of(opened, dataclasses.replace(config, pseudo_labels=False), tracks, test, fitted, tags, held, 1)
    np.testing.assert_array_equal(labelled.targets, mixed)
    alone = lesson_of(None, TeacherConfig(), tracks, test, fitted, tags, held, 1)
    np.testing.assert_array_equal(alone.targets, tags)
    np.testing.assert_array_equal(alone.rows, tracks.rows[fitted])


def test_a_teacher_of_other_folds_or_other_data_is_refused(teacher: Path, tracks: Tracks, tmp_path: Path) -> None:
    config = TeacherConfig(run=teacher)
    folds, _ = training.assign_folds(tracks, dataclasses.replace(DATA, seed=5))
    with pytest.raises(ConfigError, match=r"has other folds \(\d+ tracks; track \d+: found \d, expected \d;"):
        open_teacher(config, tracks, folds)
    with pytest.raises(ConfigError, match="was fitted on other data"):
        open_teacher(config, dataclasses.replace(tracks, fingerprint="another"), folds)
    with pytest.raises(DataError):
        open_teacher(TeacherConfig(run=tmp_path), tracks, folds)
    folds, _ = training.assign_folds(tracks, DATA)
    fold0 = fit(dataclasses.replace(STUDENT, data=DataConfig(n_folds=3, fold=0)), tracks, tmp_path / "fold0")
    assert fold0["folds"] == 0
    opened = open_teacher(TeacherConfig(run=tmp_path / "fold0"), tracks, folds)
    assert opened is not None
    with pytest.raises(DataError, match=r"found no checkpoints/fold1\*"):
        opened.logits(tracks.pack, tracks.rows, 1)


def test_a_student_learns_by_the_command_line(
    teacher: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "frames-mini", "--data", str(data), "--data.n-folds", "3", "--data.fold", "0"]
    few = ["--optim.epochs", "1", "--fabric.accelerator", "cpu"]
    assert main([*train, *few, "--run", str(tmp_path / "run"), "--teacher.run", str(teacher)]) == 0
    assert len(RunFolder.open(tmp_path / "run").manifest["data"]["teacher"]) == 64
    assert main([*train, *few, "--run", str(tmp_path / "none"), "--teacher.run", str(tmp_path / "absent")]) == 3
    assert not (tmp_path / "none").exists()
    assert main([*train, *few, "--run", str(tmp_path / "out"), "--teacher.run", str(teacher), "--data.seed", "9"]) != 0
    assert "other folds" in capfd.readouterr().err
    other = ["train", "knn", *train[2:], "--run", str(tmp_path / "knn"), "--teacher.run", str(teacher)]
    assert main(other) != 0
    assert "no network" in capfd.readouterr().err
