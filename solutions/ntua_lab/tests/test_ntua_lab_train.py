"""Runs through the real command line on made-up spectra: every task, resume, answers, report."""

import json
import shutil
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from kit_core.config import load_preset, preset_names
from kit_core.errors import DataError
from kit_core.run import RunFolder
from kit_core.testing import interrupted_after
from ntua_lab import baseline
from ntua_lab import train as training
from ntua_lab.answers import units_of
from ntua_lab.cli import PRESETS, main
from ntua_lab.config import Config, DataConfig, PooledConfig
from ntua_lab.model import build_network

SMALL = (
    "--network.channels", "4", "6", "--input.chunk", "24", "--train.epochs", "12", "--train.batch", "8",
    "--train.learning-rate", "0.01", "--train.ema", "0",
)  # fmt: skip


def run(preset: str, data: Path, folder: Path, *flags: str) -> dict[str, object]:
    assert main(["train", preset, "--data", str(data), "--run", str(folder), *flags]) == 0
    summary: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("preset", preset_names(PRESETS))
def test_every_preset_is_read_and_its_networks_are_built(preset: str) -> None:
    config = load_preset(Config, PRESETS, preset)
    for unit in units_of(config, 10):
        if unit.member == "network":
            assert sum(p.numel() for p in build_network(config.network, config.input, unit.heads).parameters()) > 1000
    text = (PRESETS / f"{preset}.toml").read_text()
    assert text.startswith("# ")
    assert f"ntua-lab train {preset} " in text


@pytest.mark.parametrize("preset", ["majority", "pooled-svm", "pooled-lightgbm"])
def test_pooled_models_from_data_to_score(
    preset: str, packed: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(preset, packed, tmp_path / "run", "--pooled.rounds", "20")
    answers = pq.read_table(tmp_path / "run/oof.parquet").to_pylist()
    assert summary["n"] == len(answers) == 24
    right = np.mean(
        [max(("Classical", "Electronic", "Rock"), key=lambda k: row[f"p_{k}"]) == row["class"] for row in answers]
    )
    assert right == pytest.approx(summary["score"])
    if preset == "pooled-lightgbm":
        trees = [lgb.Booster(model_file=path).dump_model() for path in (tmp_path / "run/models/fold0").glob("*.txt")]
        assert summary["parameters"] == sum(tree["num_leaves"] for model in trees for tree in model["tree_info"])
    np.testing.assert_allclose([sum(row[f"p_{k}"] for k in _classes()) for row in answers], 1.0, atol=1e-6)
    out = tmp_path / "genres.txt"
    assert main(["infer", "--run", str(tmp_path / "run"), "--data", str(whole), "--out", str(out)]) == 0
    assert main(["check", "--submission", str(out), "--data", str(packed)]) == 0
    capsys.readouterr()
    truth = whole / "fma_genre_spectrograms/test_labels.txt"
    assert main(["evaluate", "--submission", str(out), "--truth", str(truth), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n"] == 8
    if preset == "majority":
        assert report["accuracy"] == 0.5  # four of eight are Rock
    if preset == "pooled-svm":
        assert report["accuracy"] == 1.0


def _classes() -> list[str]:
    return ["Blues", "Classical", "Electronic", "Folk", "Hip-Hop", "Jazz", "Metal", "Pop", "Rock", "Trip-Hop"]


def test_emotion_by_pooled_models_and_an_ensemble(
    packed: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--task", "emotion", "--data.folds", "4")
    one = run("pooled-svm", packed, tmp_path / "a", *flags, "--members", "svm", "linear")
    assert one["metric"] == "spearman"
    assert one["score"] > 0.5  # 16 clips
    assert set(one["score_of_units"]) == {"svm-emotion", "linear-emotion"}
    run("pooled-lightgbm", packed, tmp_path / "b", *flags, "--pooled.rounds", "30")
    out = tmp_path / "solution.txt"
    both = ["--run", str(tmp_path / "a"), "--run", str(tmp_path / "b")]
    assert main(["infer", *both, "--data", str(packed), "--out", str(out)]) == 0
    assert out.read_text().startswith(
        "Id.fused.full.npy.gz,valence,energy,danceability\n200000000.fused.full.npy.gz,0."
    )
    assert main(["check", "--submission", str(out), "--data", str(packed)]) == 0
    plot = tmp_path / "scatter.png"
    capsys.readouterr()
    evaluate = ["evaluate", "--submission", str(out), "--truth", str(whole / "truth.txt"), "--plot", str(plot)]
    assert main([*evaluate, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spearman"] > 0.5
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(["infer", *both, "--data", str(packed), "--task", "genre", "--out", str(out)]) == 2
    assert "no run answers genre" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "flags"),
    [
        ("lstm-beat", ("--network.hidden", "32", "--train.learning-rate", "0.01", "--train.epochs", "60")),
        pytest.param(
            "cnn",
            ("--network.channels", "4", "8", "--train.learning-rate", "0.01", "--train.epochs", "40"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_few_batches_are_learnt_by_heart(preset: str, flags: tuple[str, ...], packed: Path, tmp_path: Path) -> None:
    summary = run(preset, packed, tmp_path / "run", *flags, "--train.overfit-batch", "3", "--train.batch", "6")
    assert summary["metric"] == "overfit_loss"
    assert summary["n"] == 18
    assert summary["score"] < 0.02


def test_a_joint_network_transfer_and_the_report(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    joint = run("joint", packed, runs / "joint", *SMALL, "--data.fold", "all", "--data.folds", "2")
    assert joint["genre"]["accuracy"] > 0.6
    assert joint["emotion"]["spearman"] > 0.4
    short = (*SMALL, "--train.epochs", "1")
    run("short-chunk-cnn", packed, runs / "genre", *short, "--data.fold", "none")
    start = ("--start", str(runs / "genre"))
    run("transfer", packed, runs / "transfer", *short, "--data.folds", "2", "--axes", "valence", *start)
    run("multitask", packed, runs / "multitask", *short, "--data.folds", "2")
    run("pooled-svm", packed, runs / "svm")
    run("pooled-svm", packed, runs / "svr", "--task", "emotion")
    assert main(["train", "transfer", "--data", str(packed), "--run", str(tmp_path / "x"), *SMALL]) == 2
    assert "--start" in capsys.readouterr().err
    other = [*SMALL[:-2], "--network.channels", "4"]
    wrong = ["train", "transfer", "--data", str(packed), "--run", str(tmp_path / "y"), *other, *start]
    assert main(wrong) == 2
    assert "another network or input" in capsys.readouterr().err

    with RunFolder.create(runs / "other", config=DataConfig(), preset="x", data_hashes={}, seed=0) as foreign:
        foreign.finish({"metric": "tau", "score": 0.5})
    capsys.readouterr()
    assert main(["report", "--runs", str(runs), "--out", str(tmp_path / "report")]) == 0
    assert "other: a run of another program" in capsys.readouterr().err
    html = (tmp_path / "report/report.html").read_text()
    for words in ("multitask", "confusion matrix", "Paired differences in accuracy", "true and predicted values"):
        assert words in html
    assert (tmp_path / "report/report.pdf").read_bytes().startswith(b"%PDF")
    assert main(["report", "--runs", str(tmp_path / "report"), "--out", str(tmp_path / "none")]) == 3
    drawn = tmp_path / "maps"
    assert main(["activations", "--run", str(runs / "genre"), "--data", str(packed), "--out", str(drawn)]) == 0
    assert sorted(path.name for path in drawn.iterdir()) == ["block1.png", "block2.png", "input.png"]
    assert main(["activations", "--run", str(runs / "svm"), "--data", str(packed), "--out", str(drawn)]) == 2


def test_a_killed_run_ends_with_the_same_bits(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (
        *SMALL[:-2], "--train.epochs", "5", "--train.ema", "0.9", "--train.mixup", "0.3", "--train.patience", "4",
        "--train.warm-up", "2",
    )  # fmt: skip
    run("short-chunk-cnn", packed, tmp_path / "unbroken", *flags)
    save = training.save_state
    monkeypatch.setattr(training, "save_state", interrupted_after(save, 3))
    train = ["train", "short-chunk-cnn", "--data", str(packed), "--run", str(tmp_path / "broken"), *flags]
    assert main(train) == 130
    monkeypatch.setattr(training, "save_state", save)
    assert not (tmp_path / "broken/DONE").exists()
    assert main([*train, "--resume"]) == 0
    name = "models/fold0/network-genre.safetensors"
    first, second = load_file(tmp_path / "unbroken" / name), load_file(tmp_path / "broken" / name)
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])
    assert not list((tmp_path / "broken/state").glob("*.pt"))


def test_damaged_runs_and_missing_versions(
    packed: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run("pooled-svm", packed, folder)
    infer = ["infer", "--run", str(folder), "--data", str(packed), "--out", str(tmp_path / "x.txt")]
    model = folder / "models/fold0/svm-genre.safetensors"
    whole_model = model.read_bytes()
    model.write_bytes(whole_model[:-5])
    assert main(infer) == 3
    assert "svm-genre.safetensors: found sha256" in capsys.readouterr().err
    (folder / "digests.json").unlink()  # as in a run from before there were digests
    assert main(infer) == 3
    assert "damaged model" in capsys.readouterr().err
    model.write_bytes(whole_model)
    (folder / "models/blend.json").unlink()
    assert main(infer) == 3
    (folder / "DONE").unlink()
    assert main(infer) == 3
    assert not (tmp_path / "x.txt").exists()
    part = tmp_path / "part"
    shutil.copytree(whole / "fma_genre_spectrograms", part / "fma_genre_spectrograms")
    capsys.readouterr()
    assert main(["train", "lstm-beat", "--data", str(part), "--run", str(tmp_path / "z")]) == 3
    assert "no beat version" in capsys.readouterr().err
    assert main(["train", "multitask", "--data", str(part), "--run", str(tmp_path / "w")]) == 2
    assert "found 0 clips with an answer for emotion" in capsys.readouterr().err


def test_one_class_cannot_be_told_apart(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(whole, data)
    mapping = dict.fromkeys(("Rock", "Psych-Rock", "Classical", "Electronic", "Indie-Rock"), "music")
    (data / "class_mapping.json").write_text(json.dumps(mapping))
    train = ["train", "pooled-svm", "--members", "linear", "--data", str(data), "--run", str(tmp_path / "run")]
    assert main(train) == 2
    assert "every clip is of the class 'music'" in capsys.readouterr().err


def test_a_fold_with_one_class_gets_that_class() -> None:
    rng = np.random.default_rng(0)
    model = baseline.fit("linear", rng.standard_normal((20, 3)), np.full(20, 2), 4, PooledConfig(), 0)
    answers = model.answer(rng.standard_normal((5, 3)))
    assert (answers.argmax(axis=1) == 2).all()
    np.testing.assert_allclose(answers.sum(axis=1), 1)


def test_folds_keep_groups_whole_and_limit_draws(packed: Path) -> None:
    groups = [f"artist {i // 3}" for i in range(60)]
    settings = DataConfig(folds=4, limit=10)
    folds = training.assign_folds(groups, settings)
    assert all(len(set(folds[i : i + 3].tolist())) == 1 for i in range(0, 60, 3))
    fitted, held = training.split_fold(folds, 1, settings)
    assert len(fitted) == 10
    assert (folds[held] == 1).all()
    assert (folds[fitted] != 1).all()
    everything, nobody = training.split_fold(folds, "none", DataConfig())
    assert len(everything) == 60
    assert len(nobody) == 0


def test_explore_and_usage(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--data", str(packed), "--out", str(tmp_path / "look")]) == 0
    said = capsys.readouterr().out
    assert "fewest steps" in said
    names = ["step1-mel.png", "step2-beat.png", "step3-chroma.png", "step4-classes.png"]
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == names
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in preset_names(PRESETS))
    assert main(["train", "lstm-beet", "--data", "x", "--run", "y"]) == 2
    assert "did you mean 'lstm-beat'" in capsys.readouterr().err
    assert main(["train", "lstm-beat", "--data", str(tmp_path / "absent"), "--run", str(tmp_path / "run")]) == 3
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_half_a_file_of_trees_is_told_and_not_read(share: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4))
    model = baseline.fit("lightgbm", X, (X[:, 0] > 0).astype(int), 2, PooledConfig(rounds=5), 0)
    model.save(tmp_path / "trees")
    np.testing.assert_allclose(baseline.Trees.load(tmp_path / "trees", 2).answer(X), model.answer(X))
    file = tmp_path / "trees-0.txt"
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: int(share * text.index("end of trees"))], encoding="utf-8")
    with pytest.raises(DataError, match=r"damaged model: trees-0\.txt: found no whole model"):
        baseline.Trees.load(tmp_path / "trees", 2)
