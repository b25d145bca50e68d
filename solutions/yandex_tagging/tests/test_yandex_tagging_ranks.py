"""Two processes under gloo: the weights and out-of-fold logits of one, and refusals of what cannot be shared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from kit_core import interrupt
from yandex_tagging.cli import main

PROGRAM = Path(__file__).with_name("yandex_tagging_ranks_program.py")
HANG_SECONDS = 600

# Sums of float32 in another order, some 20 steps of Adam, which turns the rounding of small gradients into steps.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}

# Without dropout and augmentation, whose draws differ from rank to rank. Batches of 15 give the ranks unlike shares.
SMALL = (
    "--data.n-folds", "3", "--data.fold", "0", "--network.d", "16", "--network.input-hidden", "16",
    "--network.dropout", "0", "--network.head-dropout", "0", "--augment.longest", "0", "--augment.frame-drop", "0",
    "--augment.mixup", "0", "--optim.epochs", "3", "--optim.batch", "15", "--fabric.accelerator", "cpu",
)  # fmt: skip
SETTINGS = {
    "mean": ("--fabric.accumulate", "2", "--optim.ema", "0.9", "--optim.keep", "best", "--optim.evaluate-every", "1"),
    "sum": ("--loss.sum-over-tracks", "--loss.name", "focal", "--optim.swa", "2", "--infer.window", "20"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    assert main(["sample", "--out", str(folder / "sample"), "--tracks", "120"]) == 0
    assert main(["prepare", "--data", str(folder / "sample"), "--out", str(folder / "data"), "--workers", "1"]) == 0
    return folder / "data"


def train(data: Path, run: Path, *flags: str, preset: str = "frames-mini") -> list[str]:
    return ["train", preset, *flags, "--data", str(data), "--run", str(run)]


def program(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the program in processes of its own; it must end by itself."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, str(PROGRAM), *words]
    environment |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment)


def epochs(run: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["learning_rate"]) for line in lines if "loss" in line]


def assert_alike(found: Path, wanted: Path) -> None:
    for path in (wanted / "checkpoints").iterdir():
        mine = load_file(found / "checkpoints" / path.name)
        for name, array in load_file(path).items():
            if name == "head.score.bias":  # softmax forgets it: Adam turns the rounding of its gradient into steps
                continue
            np.testing.assert_allclose(mine[name], array, **TOLERANCE, err_msg=name)
    tables = [pq.read_table(run / "oof.parquet").to_pydict() for run in (found, wanted)]
    assert tables[0]["track"] == tables[1]["track"]
    np.testing.assert_allclose(tables[0]["logits"], tables[1]["logits"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(epochs(found), epochs(wanted), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_what_one_process_began_two_end_as_one_would(name: str, data: Path, tmp_path: Path) -> None:
    flags = (*SMALL, *SETTINGS[name])
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    assert main(train(data, one, *flags)) == 0
    interrupt.ask()
    try:
        assert main(train(data, mixed, *flags)) == 75
    finally:
        interrupt.withdraw()
    assert not (mixed / "metrics.jsonl").exists()  # it stopped inside the first epoch
    done = program(*train(data, mixed, *flags), "--fabric.devices", "2", "--resume")
    assert (done.returncode, done.stdout.count("macro AP")) == (0, 1), done.stderr
    assert [epoch for epoch, *_ in epochs(mixed)] == [1, 2, 3]  # rank 0 alone writes
    assert_alike(mixed, one)


@pytest.mark.slow
def test_batch_normalisation_gets_two_tracks_or_more_on_each_rank(data: Path, tmp_path: Path) -> None:
    """Of the 53 fitted tracks each epoch has two batches of 25; the last three tracks are too few for two ranks."""
    flags = (*SMALL, "--network.head", "linear", "--network.pooled-norm", "batch", "--optim.batches", "random",
             "--optim.batch", "25", "--fabric.devices", "2")  # fmt: skip
    done = program(*train(data, tmp_path / "run", *flags))
    assert (done.returncode, done.stdout.count("macro AP")) == (0, 1), done.stderr
    assert pq.read_table(tmp_path / "run" / "oof.parquet").num_rows == 80 - 53
    weights = load_file(tmp_path / "run" / "checkpoints" / "fold0-copy0.safetensors")
    assert weights["pooled_norm.num_batches_tracked"] == 3 * 2


def test_models_without_a_network_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = train(data, tmp_path / "run", "--data.n-folds", "3", preset="knn")
    assert main([*words, "--fabric.devices", "2"]) == 2
    assert "fabric.devices: found 2, expected 1: `knn` is no network" in capsys.readouterr().err
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():  # as torchrun would start it
        monkeypatch.setenv(name, value)
    assert main(words) == 2
    assert "works in one process, but 2 were started" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
