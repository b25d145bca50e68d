"""Several processes under gloo: the weights and out-of-fold answers of one, and refusals of what cannot be shared."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from kit_core import interrupt
from ntua_lab import train as training
from ntua_lab.cli import main
from ntua_lab.config import AXES

PROGRAM = Path(__file__).with_name("ntua_lab_ranks_program.py")
HANG_SECONDS = 900  # more than the busiest machine needs

# Sums of float32 in another order, some 15 steps of Adam, which turns the rounding of small gradients into steps.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

EVERYTHING = (
    "lstm-beat", "--task", "joint", "--data.folds", "3", "--network.hidden", "12", "--network.dropout", "0",
    "--train.epochs", "3", "--train.batch", "7", "--train.patience", "3", "--train.emotion-loss", "both",
    "--train.uncertainty", "--train.mixup", "0.3", "--train.time-mask", "0.2", "--train.band-mask", "8",
    "--train.tilt", "0.3", "--train.ema", "0.8", "--fabric.accumulate", "2",
)  # fmt: skip
TRANSFORMER = (
    "ast", "--members", "network", "svm", "--data.fold", "all", "--data.folds", "2", "--input.chunk", "32",
    "--network.hidden", "16", "--network.heads", "2", "--network.layers", "1", "--network.dropout", "0",
    "--train.epochs", "3", "--train.batch", "8", "--train.patience", "2",
)  # fmt: skip
CNN = (
    "short-chunk-cnn", "--network.channels", "4", "6", "--input.chunk", "24", "--train.epochs", "2",
    "--train.batch", "8", "--train.warm-up", "1",
)  # fmt: skip


def train(packed: Path, run: Path, *flags: str) -> list[str]:
    return ["train", *flags, "--data", str(packed), "--run", str(run)]


def program(*words: str, start: tuple[str, ...] = (), stop: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the program in processes of its own; it must end by itself."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "NTUA_LAB_STOP": "1" if stop else ""}
    command = [sys.executable, *start, str(PROGRAM), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment)


def weights(run: Path) -> dict[str, np.ndarray]:
    return {
        f"{path.relative_to(run)} {name}": array
        for path in sorted((run / "models").rglob("network-*.safetensors"))
        for name, array in load_file(path).items()
    }


def answers(run: Path) -> np.ndarray:
    table = pq.read_table(run / "oof.parquet")
    return np.stack([table[name].to_numpy() for name in table.column_names if name.startswith("p_") or name in AXES])


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("train_loss", "inner_loss") if name in line]


def assert_alike(found: Path, wanted: Path) -> None:
    mine, ones = weights(found), weights(wanted)
    assert mine.keys() == ones.keys()
    for name, array in ones.items():
        if not name.endswith("attn.qkv.bias"):  # that of the keys has no effect, and its gradient is rounding alone
            np.testing.assert_allclose(mine[name], array, **TOLERANCE, err_msg=name)
    np.testing.assert_allclose(answers(found), answers(wanted), **TOLERANCE)
    np.testing.assert_allclose(losses(found), losses(wanted), rtol=1e-4)


@pytest.mark.parametrize(("n", "size"), [(6, 2), (7, 3), (2, 3), (1, 2)])
def test_gradients_of_a_loss_between_clips_are_those_of_the_whole_batch(
    n: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(n, 4, 3), torch.zeros(n, 4, dtype=torch.bool)
    layer = nn.Linear(3, 4)

    def answer(x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        out = layer(x.mean(1))
        return {"genre": out[:, :3], "energy": out[:, 3]}

    def loss_of(logits: dict[str, Tensor]) -> Tensor:
        return logits["genre"].logsumexp(0).prod() * logits["energy"].square().sum()  # no mean over clips

    tables: dict[int, Tensor] = {}

    def gather(parts: list[Tensor], padded: Tensor) -> None:
        tables[len(tables)] = padded
        for part, table in zip(parts, known, strict=True):
            part.copy_(table)

    def fabric(rank: int) -> SimpleNamespace:  # all that is asked of one
        return SimpleNamespace(global_rank=rank, world_size=size)

    monkeypatch.setattr(training.dist, "all_gather", gather)
    known = [torch.zeros(-(-n // size), 4)] * size
    for rank in range(size):  # once to learn what each rank would send
        training._logits_of_batch(answer, x, mask, fabric(rank))
    known = list(tables.values())
    parts = []
    for rank in range(size):
        found = training._logits_of_batch(answer, x, mask, fabric(rank))
        for name, logits in answer(x, mask).items():
            torch.testing.assert_close(found[name], logits)
        parts.append(torch.cat([g.ravel() for g in torch.autograd.grad(loss_of(found), layer.parameters())]))
    expected = torch.cat([g.ravel() for g in torch.autograd.grad(loss_of(answer(x, mask)), layer.parameters())])
    torch.testing.assert_close(torch.stack(parts).mean(0), expected)


@pytest.mark.slow
def test_what_one_process_began_two_end_as_one_would(packed: Path, tmp_path: Path) -> None:
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    assert main(train(packed, one, *EVERYTHING)) == 0
    interrupt.ask()
    try:
        assert main(train(packed, mixed, *EVERYTHING)) == 75
    finally:
        interrupt.withdraw()
    done = program(*train(packed, mixed, *EVERYTHING, "--fabric.devices", "2", "--resume"))
    assert (done.returncode, done.stdout.count("held out")) == (0, 1), done.stderr
    assert_alike(mixed, one)


def test_what_has_no_batches_to_share_is_refused(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(train(packed, tmp_path / "a", "pooled-svm", "--fabric.devices", "2")) == 2
    assert "fabric.devices: found 2, expected 1: no network in ['svm']" in capsys.readouterr().err
    assert main(train(packed, tmp_path / "a", "cnn", "--train.overfit-batch", "1", "--fabric.devices", "2")) == 2
    assert "learnt by heart" in capsys.readouterr().err
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():  # as torchrun would start it
        monkeypatch.setenv(name, value)
    assert main(train(packed, tmp_path / "a", "pooled-svm")) == 2
    assert "pooled-svm: works in one process, but 2 were started" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_torchrun_shares_windows_and_rank_0_makes_the_rest(packed: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    assert main(train(packed, one, *TRANSFORMER)) == 0
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "--")
    done = program(*train(packed, three, *TRANSFORMER), start=torchrun)
    assert (done.returncode, done.stdout.count("held out")) == (0, 1), done.stderr
    assert_alike(three, one)
    assert (three / "models/fold0/svm-genre.safetensors").exists()


@pytest.mark.slow
def test_batch_normalisation_sees_a_ranks_own_clips(packed: Path, tmp_path: Path) -> None:
    two, again = tmp_path / "two", tmp_path / "again"
    assert program(*train(packed, two, *CNN, "--fabric.devices", "2")).returncode == 0
    stopped = program(*train(packed, again, *CNN, "--fabric.devices", "2"), stop=True)
    assert stopped.returncode == 75
    assert "stopped after epoch 1" in stopped.stderr
    whole = train(packed, again, *CNN, "--resume")
    assert program(*whole, "--fabric.devices", "2").returncode == 0
    for name, array in weights(two).items():  # with as many ranks a resume is exact
        np.testing.assert_array_equal(weights(again)[name], array, err_msg=name)
    one, fewer = tmp_path / "one", tmp_path / "fewer"
    assert main(train(packed, one, *CNN)) == 0
    assert not all(np.allclose(weights(one)[name], array, **TOLERANCE) for name, array in weights(two).items())
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=0.2)
    assert program(*train(packed, fewer, *CNN, "--fabric.devices", "2"), stop=True).returncode == 75
    assert main(train(packed, fewer, *CNN, "--resume")) == 0  # and one process ends what two began
    small = program(*train(packed, tmp_path / "x", *CNN, "--train.batch", "3", "--fabric.devices", "2"))
    assert small.returncode == 2
    assert "train.batch: found 3 clips of" in small.stderr
