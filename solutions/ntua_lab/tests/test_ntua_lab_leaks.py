"""Nothing of a held-out clip reaches the models of its fold: neither its spectra nor its answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kit_core.config import load_preset, preset_names
from ntua_lab import data as official
from ntua_lab.cli import PRESETS, main
from ntua_lab.config import Config

CNN = (
    "--network.channels", "4", "6", "--input.chunk", "24", "--train.epochs", "2", "--train.batch", "8",
)  # fmt: skip
LSTM = ("--network.hidden", "4", "--train.epochs", "3", "--train.batch", "8", "--train.patience", "1")
TREES = ("--pooled.rounds", "5")

# Every kind of model, on every kind of statistics, for every task; the presets that a case stands for.
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "all members, genre": (
        ("best", *CNN, "--copies", "2", "--members", "network", "prior", "svm", "linear", "ridge", "lightgbm", *TREES,
         "--train.warm-up", "1"),
        ("best", "best-pooled", "short-chunk-cnn", "cnn"),
    ),
    "prior": (("majority",), ("majority",)),
    "full statistics": (("pooled-svm", "--members", "svm", "lightgbm", *TREES), ("pooled-svm", "pooled-lightgbm")),
    "beat statistics, emotion": (
        ("pooled-lightgbm", "--task", "emotion", "--members", "svm", "linear", "ridge", "lightgbm", "prior", *TREES,
         "--pooled.features", "beat"),
        (),
    ),
    "descriptors, emotion": (("best-emotion", *TREES), ("best-emotion",)),
    "early stopping of an LSTM": (
        ("lstm-beat", *LSTM),
        ("lstm-beat", "lstm-chroma", "lstm-fused", "lstm-mel"),
    ),
    "early stopping for each axis": (("lstm-emotion", *LSTM, "--data.group", "clip"), ("lstm-emotion",)),
    "a CNN for each axis": (("cnn-emotion", *CNN), ("cnn-emotion",)),
    "both tasks, learnt weights": (
        ("joint", *CNN, "--train.uncertainty", "--train.emotion-loss", "both", "--train.mixup", "0.3",
         "--train.patience", "1"),
        ("joint",),
    ),
    "three heads": (("multitask", *CNN), ("multitask",)),
    "a transformer": (
        ("ast", "--input.chunk", "16", "--network.hidden", "8", "--network.layers", "1", "--network.heads", "2",
         "--train.epochs", "1", "--train.batch", "8"),
        ("ast",),
    ),
    "a backbone taken over": (("transfer", *CNN, "--axes", "valence"), ("transfer",)),
}  # fmt: skip


@pytest.mark.parametrize("preset", preset_names(PRESETS))
def test_every_preset_has_a_case_with_its_members(preset: str) -> None:
    config = load_preset(Config, PRESETS, preset)
    [(words, _)] = [case for case in CASES.values() if preset in case[1]]
    like = load_preset(Config, PRESETS, words[0])
    named = words[words.index("--members") + 1 :] if "--members" in words else like.members
    assert set(config.members) <= set(named)
    assert (config.task, config.separate, config.transfer) == (like.task, like.separate, like.transfer)
    if "network" in config.members:
        assert config.network.kind == like.network.kind


def change(folder: Path, held: set[str], rng: np.random.Generator) -> None:
    """Give the clips `held` other spectra, genres and emotion values."""
    for path in folder.rglob("*.npy*"):
        if official.clip_id(path.name) in held:
            array = official.read_array(path.read_bytes(), path.name).T
            path.unlink()
            np.save(path.with_name(path.name.removesuffix(".gz")), array[:, ::-1] * rng.uniform(0.3, 0.6))
    for path in folder.rglob("train_labels.txt"):
        lines = path.read_text().splitlines()
        for place, line in enumerate(lines[1:], start=1):
            if official.clip_id(line.replace("\t", ",").split(",")[0].split(".")[0]) not in held:
                continue
            lines[place] = line.split("\t")[0] + "\tJazz" if "\t" in line else line.split(",")[0] + ",0.5,0.01,0.99"
        path.write_text("\n".join(lines) + "\n")


def logged(run: Path) -> list[dict[str, object]]:
    """What the networks of fold 0 wrote down: the losses of every epoch, and so how many there were."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    facts = ("part", "step", "train_loss", "inner_loss", "warm_up_loss")
    return [
        {name: line.get(name) for name in facts}
        for line in lines
        if str(line.get("part")).startswith("0-") or ("warm_up_loss" in line and line["fold"] == "0")
    ]


@pytest.fixture(scope="module")
def start(grouped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to take a backbone from."""
    run = tmp_path_factory.mktemp("start") / "run"
    assert (
        main(["train", "short-chunk-cnn", "--data", str(grouped), "--run", str(run), *CNN, "--data.fold", "none"]) == 0
    )
    return run


@pytest.mark.parametrize("case", CASES)
def test_models_of_a_fold_know_nothing_of_its_held_out_clips(
    case: str, grouped: Path, tmp_path: Path, start: Path
) -> None:
    (preset, *flags), _ = CASES[case]
    settings = ["--data.folds", "2", "--data.fold", "all", *flags]
    settings += ["--start", str(start)] if preset == "transfer" else []
    first = tmp_path / "first"
    assert main(["train", preset, "--data", str(grouped), "--run", str(first), *settings]) == 0
    table = pq.read_table(first / "oof.parquet").to_pydict()
    held = {id_ for id_, fold in zip(table["id"], table["fold"], strict=True) if fold == 0}
    changed = tmp_path / "changed"
    shutil.copytree(grouped, changed)
    change(changed, held, np.random.default_rng(0))
    second = tmp_path / "second"
    assert main(["train", preset, "--data", str(changed), "--run", str(second), *settings]) == 0
    other = pq.read_table(second / "oof.parquet").to_pydict()
    assert other["id"] == table["id"]
    assert other["fold"] == table["fold"]

    def models(run: Path, fold: int) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (run / f"models/fold{fold}").iterdir()}

    assert models(first, 0) == models(second, 0)
    assert logged(first) == logged(second)
    assert bool(logged(first)) == any(name.startswith("network") for name in models(first, 0))
    # The other fold was fitted on the changed clips, so that the change is one that models see.
    assert not [name for name, content in models(second, 1).items() if models(first, 1)[name] == content]


def test_held_out_emotions_do_not_reach_the_values_that_a_blend_gives_them(grouped: Path, tmp_path: Path) -> None:
    """The blended values of a fold lie among the targets of the other clips, whatever its own targets are."""
    run = tmp_path / "run"
    flags = ("--task", "emotion", "--members", "ridge", "svm", "--data.folds", "2", "--pooled.features", "beat")
    data = tmp_path / "data"
    shutil.copytree(grouped, data)
    labels = data / "multitask_dataset/train_labels.txt"
    assert main(["train", "majority", "--data", str(data), "--run", str(tmp_path / "folds"), *flags]) == 0
    table = pq.read_table(tmp_path / "folds/oof.parquet").to_pydict()
    held = {id_ for id_, fold in zip(table["id"], table["fold"], strict=True) if fold == 0}
    lines = labels.read_text().splitlines()
    for place, line in enumerate(lines[1:], start=1):
        if official.clip_id(line.split(",")[0].split(".")[0]) in held:
            lines[place] = line.split(",")[0] + ",0.99,0.99,0.99"
    for path in data.glob("multitask_dataset*/train_labels.txt"):
        path.write_text("\n".join(lines) + "\n")
    assert main(["train", "majority", "--data", str(data), "--run", str(run), *flags]) == 0
    answers = pq.read_table(run / "oof.parquet").to_pydict()
    for axis in ("valence", "energy", "danceability"):
        values = [value for value, fold in zip(answers[axis], answers["fold"], strict=True) if fold == 0]
        assert max(values) < 0.95
