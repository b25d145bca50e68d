"""Several processes under gloo: the weights and out-of-fold answers of one, and refusals of what cannot be shared."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from kit_core import interrupt
from kit_train.ranks import share_of_batch
from russian_art.backbones import Normalisation
from russian_art.cli import main
from russian_art.finetune import Images, Inputs, Maps

PROGRAM = Path(__file__).with_name("russian_art_ranks_program.py")
HANG_SECONDS = 900  # more than the busiest machine needs

# Sums of float32 in another order, some 10 steps of Adam, which turns the rounding of small gradients into steps.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

# A backbone with layer normalisation, and without dropout.
STAGES = (
    "seed-mini", "--members", "prior", "network", "--data.folds", "3", "--network.backbones", "test_convnext",
    "--network.size", "32", "--network.batch", "15", "--network.first.epochs", "1", "--network.second.epochs", "2",
    "--network.crop", "0.5", "--network.ema", "0.8", "--network.head", "factorised", "--network.start", "probe",
    "--network.hierarchy-weight", "0.3", "--network.clip", "1", "--network.flip-test",
)  # fmt: skip
FROZEN = (*STAGES, "--network.frozen-parts", "2", "--network.views", "3", "--network.keep", "last")
NORMED = (*STAGES, "--network.backbones", "test_efficientnet", "--network.no-frozen-norm", "--network.keep", "last")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("art")
    assert main(["sample", "--out", str(folder / "sample"), "--images", "90"]) == 0
    packing = ["prepare", "--data", str(folder / "sample"), "--out", str(folder / "data"), "--size", "48"]
    assert main([*packing, "--workers", "1"]) == 0
    return folder / "data"


def train(packed: Path, run: Path, *flags: str) -> list[str]:
    return ["train", *flags, "--data", str(packed), "--run", str(run)]


def program(*words: str, start: tuple[str, ...] = (), stop: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the program in processes of its own; it must end by itself."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "RUSSIAN_ART_STOP": "1" if stop else ""}
    command = [sys.executable, *start, str(PROGRAM), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment)


def weights(run: Path) -> dict[str, np.ndarray]:
    return {
        f"{path.relative_to(run)} {name}": array
        for path in sorted((run / "models").rglob("network-*.safetensors"))
        for name, array in load_file(path).items()
    }


def facts(run: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("train_loss", "train_macro_f1", "valid_loss", "valid_macro_f1")
    return [tuple(line[name] for name in names) for line in lines if "train_loss" in line]


def assert_alike(found: Path, wanted: Path) -> None:
    mine, ones = weights(found), weights(wanted)
    assert mine.keys() == ones.keys()
    for name, array in ones.items():
        np.testing.assert_allclose(mine[name], array, **TOLERANCE, err_msg=name)
    mine, ones = load_file(found / "oof.safetensors"), load_file(wanted / "oof.safetensors")
    for name, array in ones.items():
        np.testing.assert_allclose(mine[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(facts(found), facts(wanted), rtol=1e-3)


def draws(inputs: Inputs, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of one process, and the same put together of the shares of several."""
    rows = np.random.default_rng(0).permutation(20)[:n].astype(np.int64)
    one = inputs.training(rows, torch.Generator().manual_seed(4))
    many = torch.empty_like(one)
    for rank in range(size):
        mine = share_of_batch(np.arange(n), rank, size)
        many[torch.from_numpy(mine.rows)] = inputs.training(rows, torch.Generator().manual_seed(4), mine)
    return one, many


@pytest.mark.parametrize(("n", "size"), [(8, 2), (7, 3), (2, 3)])
def test_a_picture_gets_the_same_draws_whatever_the_number_of_ranks(n: int, size: int) -> None:
    generator, cpu = np.random.default_rng(0), torch.device("cpu")
    pixels = generator.integers(0, 256, (20, 12, 12, 3)).astype(np.uint8)
    images = Images(pixels, 8, Normalisation((0.5,) * 3, (0.5,) * 3), cpu, flip=True, crop=0.3)
    one, many = draws(images, n, size)
    torch.testing.assert_close(many, one)
    assert not torch.equal(draws(dataclasses.replace(images, crop=1.0), n, size)[0], one)
    maps = [torch.from_numpy(generator.normal(size=(20, 4, 2, 2)).astype(np.float32)) for _ in range(3)]
    one, many = draws(Maps(maps, 3, cpu), n, size)
    assert torch.equal(many, one)


@pytest.mark.slow
def test_what_one_process_began_two_end_as_one_would(packed: Path, tmp_path: Path) -> None:
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    assert main(train(packed, one, *STAGES)) == 0
    interrupt.ask()
    try:
        assert main(train(packed, mixed, *STAGES)) == 75
    finally:
        interrupt.withdraw()
    assert len(facts(mixed)) == 1  # the head, by one process; everything, by two
    done = program(*train(packed, mixed, *STAGES, "--fabric.devices", "2", "--resume"))
    assert (done.returncode, done.stdout.count("macro F1 of")) == (0, 1), done.stderr
    assert_alike(mixed, one)


def test_probes_alone_are_refused(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(train(packed, tmp_path / "a", "pixels", "--fabric.devices", "2")) == 2
    assert "fabric.devices: found 2, expected 1: no network in ['pixels']" in capsys.readouterr().err
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():  # as torchrun would start it
        monkeypatch.setenv(name, value)
    assert main(train(packed, tmp_path / "a", "pixels")) == 2
    assert "pixels: works in one process, but 2 were started" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_torchrun_shares_the_frozen_parts_and_rank_0_fits_the_probes(packed: Path, tmp_path: Path) -> None:
    flags = (*FROZEN, "--members", "pixels", "network", "--data.fold", "all", "--data.folds", "2")
    one, three = tmp_path / "one", tmp_path / "three"
    assert main(train(packed, one, *flags)) == 0
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "--")
    done = program(*train(packed, three, *flags), start=torchrun)
    assert (done.returncode, done.stdout.count("macro F1 of")) == (0, 1), done.stderr
    assert_alike(three, one)
    assert (three / "models/pixels.safetensors").exists()
    assert (three / "plots/index.html").exists()


@pytest.mark.slow
def test_batch_normalisation_sees_a_ranks_own_pictures(packed: Path, tmp_path: Path) -> None:
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    assert program(*train(packed, two, *NORMED, "--fabric.devices", "2")).returncode == 0
    stopped = program(*train(packed, again, *NORMED, "--fabric.devices", "2"), stop=True)
    assert stopped.returncode == 75
    assert "stopped after epoch 1" in stopped.stderr
    assert program(*train(packed, again, *NORMED, "--fabric.devices", "2", "--resume")).returncode == 0
    for name, array in weights(two).items():  # with as many ranks a resume is exact
        np.testing.assert_array_equal(weights(again)[name], array, err_msg=name)
    assert main(train(packed, one, *NORMED)) == 0
    assert not all(np.allclose(weights(one)[name], array, **TOLERANCE) for name, array in weights(two).items())
    small = program(*train(packed, tmp_path / "x", *NORMED, "--network.batch", "3", "--fabric.devices", "2"))
    assert small.returncode == 2
    assert "network.batch: found 3 of" in small.stderr
