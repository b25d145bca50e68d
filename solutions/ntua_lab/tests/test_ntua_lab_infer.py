"""Inference by hand: every stored model by itself, averaged in NumPy; and what `predict` prints."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from scipy.stats import percentileofscore, spearmanr

from ntua_lab import data as official
from ntua_lab import predict as prediction
from ntua_lab.cli import main
from ntua_lab.config import AXES, InputConfig, NetworkConfig
from ntua_lab.data import Clips
from ntua_lab.features import statistics_of
from ntua_lab.infer import FittedRun, answer_all
from ntua_lab.model import build_network

NETWORK = (
    "--network.channels", "4", "6", "--input.chunk", "24", "--train.epochs", "2", "--train.batch", "8",
    "--train.ema", "0",
)  # fmt: skip
FOLDS = ("--data.fold", "all", "--data.folds", "2")
# name -> preset and flags; the two of each task differ in members, seed and folds
RUNS: dict[str, tuple[str, ...]] = {
    "genre": ("best", "--members", "network", "svm", "ridge", "lightgbm", "--copies", "2", "--pooled.rounds", "5",
              "--pooled.features", "beat", *NETWORK, *FOLDS),
    "genre 2": ("best-pooled", "--members", "linear", "prior", "--pooled.features", "full", "--seed", "1",
                "--data.fold", "all", "--data.folds", "3"),
    "emotion": ("cnn-emotion", "--members", "network", "ridge", "svm", *NETWORK, *FOLDS),
    "emotion 2": ("best-emotion", "--members", "lightgbm", "linear", "prior", "--pooled.features", "full",
                  "--pooled.rounds", "5", "--seed", "3", "--data.fold", "all", "--data.folds", "3"),
    "joint": ("lstm-beat", "--task", "joint", "--network.hidden", "4", "--train.epochs", "2", "--train.patience", "0",
              "--train.learning-rate", "0.03", "--data.fold", "none"),
    "one emotion": ("pooled-svm", "--task", "emotion", "--data.fold", "1", "--data.folds", "3"),
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(packed: Path) -> Clips:
    return official.load(packed)


@pytest.fixture(scope="module")
def runs(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a name to its run folder; each is trained once."""
    root = tmp_path_factory.mktemp("runs")

    @cache
    def run_of(name: str) -> Path:
        preset, *flags = RUNS[name]
        assert main(["train", preset, "--data", str(packed), "--run", str(root / name), *flags]) == 0
        return root / name

    return run_of


# --- by hand


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def of_machine(path: Path, table: np.ndarray) -> np.ndarray:
    """Answers of a kernel machine, a linear model or a constant, from its arrays."""
    part = load_arrays(path)
    x = np.clip((table.astype(np.float64) - part["mean"]) / part["scale"], -10, 10)
    gamma, sharpness = float(part["gamma"][0]), float(part["sharpness"][0])
    if gamma:
        distances = ((x[:, None] - part["anchors"][None]) ** 2).sum(axis=2)
        x = np.exp(-gamma * distances)
    scores = x @ part["weights"] + part["bias"]
    return softmax(sharpness * scores) if sharpness else scores


def of_network(path: Path, spectra: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Answers of a network by head: the mean over the windows of each clip, one window after another."""
    with safe_open(path, "numpy") as file:
        [metadata] = file.metadata().values()
    header = json.loads(json.loads(metadata)["header"])
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in header["network"].items()}
    input_ = InputConfig(**header["input"])
    network = build_network(NetworkConfig(**tuples), input_, header["heads"])
    network.load_state_dict(load_file(path))
    network.eval()
    found: dict[str, list[np.ndarray]] = {name: [] for name in header["heads"]}
    for one in spectra:
        whole = torch.from_numpy(np.ascontiguousarray(one[input_.version][:128].T))
        size = input_.chunk or len(whole)
        starts = np.round(np.linspace(0, max(0, len(whole) - size), max(1, -(-len(whole) // size)))).astype(int)
        each: dict[str, list[np.ndarray]] = {name: [] for name in found}
        for start in starts:
            x = whole[None, start : start + size]
            mask = torch.zeros(1, x.shape[1], dtype=torch.bool)
            with torch.no_grad():
                logits = network((x - network.mean) / network.scale, mask)
            for name, value in logits.items():
                each[name].append((value.softmax(dim=1) if name == "genre" else value.sigmoid())[0].double().numpy())
        for name, values in each.items():
            found[name].append(np.mean(values, axis=0))
    return {name: np.stack(values) for name, values in found.items()}


@dataclass
class ByHand:
    """The stored models of one run."""

    path: Path
    clips: Clips

    def __post_init__(self) -> None:
        self.config: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        self.config = self.config.get("config", self.config)
        self.classes = len(self.clips.classes)

    def table(self, spectra: list[dict[str, np.ndarray]]) -> np.ndarray:
        kind = self.config["pooled"]["features"]
        if kind == "task":
            kind = "descriptors" if self.config["task"] == "emotion" else "wide"
        return np.stack([statistics_of(kind, one["full"], one["beat"]) for one in spectra])

    def of_fold(self, folder: Path, spectra: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Answers of each unit, [n, classes + 3]: NaN where it says nothing."""
        found: dict[str, np.ndarray] = {}
        names = {path.stem if path.suffix == ".safetensors" else path.stem[:-2] for path in folder.iterdir()}
        for name in sorted(names):
            member, heads, *_ = name.split("-")
            if member == "network":
                by_head = of_network(folder / f"{name}.safetensors", spectra)
            else:
                table = np.zeros((len(spectra), 1)) if self.config["members"] == ["prior"] else self.table(spectra)
                if member == "lightgbm":
                    trees = [lgb.Booster(model_file=path) for path in sorted(folder.glob(f"{name}-?.txt"))]
                    outputs = [np.asarray(one.predict(table)) for one in trees]
                    answers = outputs[0] if heads == "genre" else np.stack(outputs, axis=1)
                else:
                    answers = of_machine(folder / f"{name}.safetensors", table)
                axes = AXES if heads == "emotion" else (heads,)
                by_head = {"genre": answers} if heads == "genre" else dict(zip(axes, answers.T, strict=True))
            found[name] = np.full((len(spectra), self.classes + 3), np.nan)
            for head, values in by_head.items():
                columns = slice(self.classes) if head == "genre" else self.classes + AXES.index(head)
                found[name][:, columns] = values
        return found

    def spectra(self, indices: Any) -> list[dict[str, np.ndarray]]:
        return [{version: self.clips.spectra(int(i), version) for version in ("full", "beat")} for i in indices]  # type: ignore[arg-type]  # versions

    def units(self, spectra: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Answers of each unit, the mean over the folds."""
        folds = [
            self.of_fold(folder, spectra) for folder in sorted((self.path / "models").iterdir()) if folder.is_dir()
        ]
        return {name: np.mean([fold[name] for fold in folds], axis=0) for name in folds[0]}

    def oof(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Answers of each unit to the clips that its fold has not seen, and their indices, in the order of the file."""
        table = pq.read_table(self.path / "oof.parquet").to_pydict()
        indices = np.array([self.clips.ids.index(id_) for id_ in table["id"]])
        fold = np.array(table["fold"])
        found: dict[str, np.ndarray] = {}
        for number in np.unique(fold):
            rows = np.flatnonzero(fold == number)
            for name, answers in self.of_fold(self.path / f"models/fold{number}", self.spectra(indices[rows])).items():
                found.setdefault(name, np.zeros((len(fold), self.classes + 3)))[rows] = answers
        return found, indices

    def blended(self, units: dict[str, np.ndarray], places: dict[str, np.ndarray], targets: np.ndarray) -> np.ndarray:
        """Probabilities averaged; of values the mean place among the out-of-fold values `places`, as a target."""
        blended = np.full(next(iter(units.values())).shape, np.nan)
        for column in range(self.classes + 3):
            saying = [name for name in units if np.isfinite(units[name][:, column]).all()]
            if not saying:
                continue
            blended[:, column] = np.mean([units[name][:, column] for name in saying], axis=0)
            if column < self.classes or len(saying) == 1 or not places:
                continue
            shares = [
                [percentileofscore(places[name][:, column], value, "mean") / 100 for value in units[name][:, column]]
                for name in saying
            ]
            blended[:, column] = np.quantile(targets[:, column - self.classes], np.mean(shares, axis=0))
        blended[:, self.classes :] = np.clip(blended[:, self.classes :], 0, 1)
        return blended

    def answer(self, spectra: list[dict[str, np.ndarray]]) -> np.ndarray:
        if (self.path / "oof.parquet").exists():
            places, _ = self.oof()
        else:
            places = {}
        with_answers = [i for i in self.clips.with_answers("emotion").tolist() if self.clips.splits[i] == "train"]
        return self.blended(self.units(spectra), places, self.clips.emotion[with_answers].astype(np.float64))


def indices_of(clips: Clips, task: str) -> np.ndarray:
    found = [
        i
        for i in range(len(clips))
        if (clips.sets[i], clips.splits[i]) == (task, "test") and (task == "emotion" or clips.label[i] >= 0)
    ]
    return np.array(found)


def infer(paths: list[Path], data: Path, out: Path, task: str = "auto") -> list[list[str]]:
    """The rows that `infer` writes."""
    flags = [word for path in paths for word in ("--run", str(path))]
    assert main(["infer", *flags, "--data", str(data), "--task", task, "--out", str(out)]) == 0
    return [line.replace("\t", ",").split(",") for line in out.read_text().splitlines()[1:]]


@pytest.mark.parametrize("names", [("emotion",), ("emotion 2",), ("emotion", "emotion 2"), ("joint", "one emotion")])
def test_emotions_are_the_mean_of_folds_units_and_runs(
    names: tuple[str, ...], runs: Any, packed: Path, clips: Clips, tmp_path: Path
) -> None:
    indices = indices_of(clips, "emotion")
    hands = [ByHand(runs(name), clips) for name in names]
    each = [hand.answer(hand.spectra(indices))[:, -3:] for hand in hands]
    rows = infer([runs(name) for name in names], packed, tmp_path / "out.txt", "emotion")
    assert [row[0].split(".")[0] for row in rows] == [clips.ids[i] for i in indices]
    written = np.array([[float(value) for value in row[1:]] for row in rows])
    np.testing.assert_allclose(written, np.mean(each, axis=0), atol=2e-6)
    if len(names) > 1:
        assert np.abs(each[0] - each[1]).max() > 0.01  # else one run alone would pass


@pytest.mark.parametrize("names", [("genre",), ("genre 2",), ("genre", "genre 2"), ("genre 2", "joint")])
def test_genres_are_the_mean_of_folds_units_and_runs(
    names: tuple[str, ...], runs: Any, packed: Path, clips: Clips, tmp_path: Path
) -> None:
    indices = indices_of(clips, "genre")
    hands = [ByHand(runs(name), clips) for name in names]
    each = [hand.answer(hand.spectra(indices))[:, : len(clips.classes)] for hand in hands]
    expected = np.mean(each, axis=0)
    found = answer_all([FittedRun.open(runs(name)) for name in names], clips, indices, "genre")
    np.testing.assert_allclose(found, expected, atol=2e-6)
    rows = infer([runs(name) for name in names], packed, tmp_path / "out.txt", "genre")
    assert [row[0].split(".")[0] for row in rows] == [clips.ids[i] for i in indices]
    assert [row[1] for row in rows] == [clips.classes[k] for k in expected.argmax(axis=1)]
    if len(names) > 1:
        assert np.abs(each[0] - each[1]).max() > 0.01


def test_models_of_a_run_and_of_its_folds_differ(runs: Any, clips: Clips) -> None:
    """Else an answer of one model alone would equal the mean."""
    hand = ByHand(runs("genre"), clips)
    spectra = hand.spectra(indices_of(clips, "genre"))
    folds = [hand.of_fold(runs("genre") / f"models/fold{fold}", spectra) for fold in (0, 1)]
    names = ["lightgbm-genre", "network-genre", "network-genre-copy2", "ridge-genre", "svm-genre"]
    assert sorted(folds[0]) == sorted(folds[1]) == names
    answers = [fold[name][:, : len(clips.classes)] for fold in folds for name in names]
    for place, one in enumerate(answers):
        assert all(np.abs(one - other).max() > 1e-3 for other in answers[:place])


@pytest.mark.parametrize("name", ["genre", "emotion", "emotion 2", "one emotion"])
def test_out_of_fold_answers_are_those_of_models_that_had_not_seen_the_clip(name: str, runs: Any, clips: Clips) -> None:
    hand = ByHand(runs(name), clips)
    units, indices = hand.oof()
    table = pq.read_table(runs(name) / "oof.parquet").to_pydict()
    fold = np.array(table["fold"])
    values = clips.emotion.astype(np.float64)
    train = [i for i in clips.with_answers("emotion").tolist() if clips.splits[i] == "train"]
    columns = [*(f"p_{k}" for k in clips.classes), *AXES]
    for number in np.unique(fold):
        rows = fold == number
        fitted = values[[i for i in train if i not in set(indices[rows].tolist())]]  # targets of the fold's own clips
        expected = hand.blended({key: answers[rows] for key, answers in units.items()}, units, fitted)
        found = np.stack([np.array(table[column], float)[rows] for column in columns], axis=1)
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert [clips.classes[clips.label[i]] if clips.label[i] >= 0 else None for i in indices] == table["class"]
    for axis, column in zip(AXES, clips.emotion[indices].T, strict=True):
        np.testing.assert_array_equal(np.array(table[f"true_{axis}"], np.float32), column)


@pytest.mark.parametrize("name", ["genre", "emotion", "emotion 2"])
def test_a_run_reports_its_units_and_the_size_of_its_models(name: str, runs: Any, clips: Clips) -> None:
    summary = json.loads((runs(name) / "summary.json").read_text())
    units, indices = ByHand(runs(name), clips).oof()
    assert sorted(summary["units"]) == sorted(units)
    for unit, score in summary.get("score_of_units", {}).items():
        if "genre" in unit:
            answers = units[unit][:, : len(clips.classes)].argmax(axis=1)
            assert score == pytest.approx((answers == clips.label[indices]).mean())
        else:
            truth, answers = clips.emotion[indices], units[unit][:, -3:]
            each = [spearmanr(truth[:, k], answers[:, k]).statistic if np.ptp(answers[:, k]) else 0.0 for k in range(3)]
            assert score == pytest.approx(np.mean(each))
    assert ("score_of_units" in summary) == (name != "emotion")  # one unit an axis has no score of all
    size = sum(
        sum(array.size for array in load_arrays(path).values())
        if path.suffix == ".safetensors"
        else sum(tree["num_leaves"] for tree in lgb.Booster(model_file=path).dump_model()["tree_info"])
        for path in (runs(name) / "models/fold0").iterdir()
    )
    assert summary["parameters"] == size
    assert (summary["n"], summary["seconds"] > 0) == (len(indices), True)


def numbers(text: str, head: str) -> dict[str, float]:
    """The rows of one printed table, in their order."""
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return {line.split()[0]: float(line.split()[1]) for line in lines}


def test_predict_prints_what_infer_answers_the_most_likely_first(
    runs: Any, clips: Clips, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A song of three clips, which are made clips of the data."""
    soundfile.write(tmp_path / "song.wav", np.random.default_rng(0).standard_normal(90 * 4000) * 0.1, 4000)
    indices = indices_of(clips, "genre")[[0, 1, 4]]
    parts = iter(indices.tolist())

    def next_clip(_: np.ndarray) -> SimpleNamespace:
        index = next(parts)
        return SimpleNamespace(full=clips.spectra(index, "full"), beat=clips.spectra(index, "beat"), tempo=100.0)

    monkeypatch.setattr(prediction, "lab_spectra", next_clip)
    names = ("genre", "genre 2", "joint", "emotion", "one emotion")
    capsys.readouterr()
    flags = [word for name in names for word in ("--run", str(runs(name)))]
    assert main(["predict", str(tmp_path / "song.wav"), *flags]) == 0
    said = capsys.readouterr().out
    assert next(parts, None) is None  # all three were asked for
    assert "3 clips, about 100 beats" in said
    answers = {name: FittedRun.open(runs(name)).answer(clips, indices).mean(axis=0) for name in names}
    shares = np.mean([answers[name][:-3] for name in ("genre", "genre 2", "joint")], axis=0)
    printed = numbers(said, "probability")
    assert printed == pytest.approx(dict(zip(clips.classes, shares, strict=True)), abs=6e-4)
    assert list(printed.values()) == sorted(printed.values(), reverse=True)
    assert len(set(printed.values())) > 3
    values = np.mean([answers[name][-3:] for name in ("joint", "emotion", "one emotion")], axis=0)
    assert numbers(said, "value") == pytest.approx(dict(zip(AXES, values, strict=True)), abs=6e-4)
    bars = {line.split()[0]: line.count("#") for line in said.splitlines() if "#" in line}
    assert bars[max(printed, key=lambda k: printed[k])] == round(30 * max(shares))
