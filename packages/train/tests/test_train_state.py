"""States and weights: a resumed loop has the same bits, and damage is told in words; packs on a device."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from kit_train.batches import random_batches
from kit_train.config import FabricConfig
from kit_train.device_pack import to_device
from kit_train.fabric import launch
from kit_train.state import load_state, mixed_seed, restore_rng, rng_state, save_state
from kit_train.track import NoTracker, Tracker
from kit_train.weights import load_weights, save_weights


class StoppedError(Exception):
    """The loop below was asked to die."""


def toy_loop(path: Path, epochs: int, die_after: int | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train with dropout, momentum and all three generators; returns weights and what each epoch drew."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    fabric = launch(FabricConfig(accelerator="cpu"))
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
    model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), 0.01))
    x = torch.linspace(-1, 1, 80).reshape(20, 4)
    epoch, drawn = 0, []
    if path.exists():
        state = load_state(path)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        restore_rng(state["rng"])
        epoch, drawn = state["epoch"], state["drawn"]
    while epoch < epochs:
        model.train()
        for rows in random_batches(20, 6, mixed_seed(0, epoch)):
            loss = (model(x[rows]) - x[rows].sum(1, keepdim=True)).square().mean()
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        drawn.append(random.random() + np.random.normal() + float(torch.rand(1)))
        epoch += 1
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng_state()}
        save_state(path, state | {"epoch": epoch, "drawn": drawn})
        if epoch == die_after:
            raise StoppedError
    return net.state_dict(), drawn


def test_a_resumed_loop_has_the_same_bits(tmp_path: Path) -> None:
    expected, drawn = toy_loop(tmp_path / "whole.pt", 5)
    for epoch in (1, 3, 4):
        with pytest.raises(StoppedError):
            toy_loop(tmp_path / "part.pt", 5, die_after=epoch)
    found, drawn_again = toy_loop(tmp_path / "part.pt", 5)
    assert drawn_again == drawn
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(expected["0.weight"], toy_loop(tmp_path / "short.pt", 4)[0]["0.weight"])


def test_restored_generators_repeat() -> None:
    random.seed(3)
    np.random.seed(3)
    np.random.normal()  # leaves half of a pair of normal numbers behind, which is state too
    torch.manual_seed(3)
    state = rng_state()
    first = (random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.rand(3).tolist())
    restore_rng(state)
    assert (random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.rand(3).tolist()) == first


def test_mixed_seeds_are_spread() -> None:
    seeds = {mixed_seed(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert mixed_seed(1, 2) == mixed_seed(1, 2) != mixed_seed(2, 1)
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("keep", [0, 10, 500, -1])
def test_a_torn_state_is_told(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"x": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"state\.pt: cannot be read as a saved state"):
        load_state(path)


def test_a_flipped_byte_is_told_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"x": torch.arange(300.0), "epoch": 3})
    content = path.read_bytes()
    told = 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            state = load_state(path)
        except DataError:
            told += 1
        else:
            assert torch.equal(state["x"], torch.arange(300.0))
            assert state["epoch"] == 3
    assert told > len(content) / 7 / 3


def test_a_foreign_state_is_told_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"x": 1}, path)
    with pytest.raises(DataError, match="another program's file"):
        load_state(path)
    torch.save(SimpleNamespace(x=1), path)  # an object, which would need code to be run
    with pytest.raises(DataError, match="UnpicklingError"):
        load_state(path)
    with pytest.raises(DataError, match="no saved state"):
        load_state(tmp_path / "nothing.pt")


def test_weights_come_back_with_their_header(tmp_path: Path) -> None:
    tied = nn.Linear(3, 3)
    tensors: dict[str, torch.Tensor] = {
        "a": tied.weight, "b": tied.weight, "half": torch.arange(3).bfloat16(), "count": torch.tensor(7),
        "turned": torch.arange(6.0).reshape(2, 3).T, "none": torch.zeros(0, 2), "flag": torch.tensor([True, False]),
    }  # fmt: skip
    save_weights(tmp_path / "w.safetensors", tensors, {"layers": 3, "names": ["ä"]})
    found, header = load_weights(tmp_path / "w.safetensors")
    assert header == {"layers": 3, "names": ["ä"]}
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in tensors.items())
    save_weights(tmp_path / "m.safetensors", tied, {})
    assert load_weights(tmp_path / "m.safetensors")[0].keys() == {"weight", "bias"}


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    contents = set()
    for number in range(8):  # each time with another order of what is a hash table inside
        save_weights(tmp_path / f"{number}", {"x": torch.arange(3.0), "y": torch.zeros(2)}, {"layers": 3, "width": 4})
        contents.add((tmp_path / f"{number}").read_bytes())
    assert len(contents) == 1


def test_weights_of_the_first_layout_are_still_read(tmp_path: Path) -> None:
    tensors = {"x": torch.arange(3.0)}
    save_weights(tmp_path / "new", tensors, {"layers": 3})
    with safe_open(tmp_path / "new", framework="pt") as file:
        entries = json.loads(file.metadata()["kit_train"])
    save_file(tensors, tmp_path / "old", metadata=entries)
    found, header = load_weights(tmp_path / "old")
    assert torch.equal(found["x"], tensors["x"])
    assert header == {"layers": 3}


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"x": torch.arange(100.0)}, {"n": 1})
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(DataError, match="do not match their sha256"):
        load_weights(path)
    path.write_bytes(content[:-3])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_weights(path)
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_weights(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="found format_version None, expected '1'"):
        load_weights(path)
    with pytest.raises(DataError, match="no such file of weights"):
        load_weights(tmp_path / "nothing")


def test_a_tracker_writes_lines_and_tensorboard(tmp_path: Path) -> None:
    with (
        RunFolder.create(tmp_path / "run", config=FabricConfig(), preset="p", data_hashes={}, seed=0) as run,
        Tracker(run, tensorboard=True, prefix="fold1") as tracker,
    ):
        tracker.log(1, loss=0.5, note="text")
        tracker.log(2, loss=float("nan"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"part": "fold1", "step": 1, "loss": 0.5, "note": "text"},
        {"part": "fold1", "step": 2, "loss": None},
    ]
    assert list((tmp_path / "run" / "tensorboard" / "fold1").glob("events.*"))
    with NoTracker() as nothing:
        nothing.log(1, loss=1.0)


def test_fabric_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"fabric\.devices: found 0"):
        FabricConfig(devices=0)
    fabric = launch(FabricConfig(accelerator="cpu", precision="bfloat16"))
    model = fabric.setup(nn.Linear(2, 2))
    assert model(torch.ones(1, 2)).dtype == torch.float32  # Fabric gives losses full precision
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="found no CUDA device"):
            launch(FabricConfig(accelerator="gpu"))


class ArrayPack:
    """The least that a pack is: values, offsets and windows without checks."""

    def __init__(self, items: list[np.ndarray], dtype: str) -> None:
        values = np.concatenate(items)
        self.dtype = dtype
        self.values: Any = values.astype(np.float16) if dtype == "float16" else values
        if dtype == "bfloat16":
            self.values = (values.view(np.uint32) >> 16).astype(np.uint16)  # cut off: exact for the values below
        self.offsets = np.concatenate([[0], np.cumsum([len(item) for item in items])])
        self.values.setflags(write=False)

    def windows(self, rows: Any, start: Any = None, length: Any = None, pad_to: Any = None) -> Any:
        """Return what the real pack returns."""
        begin = np.zeros(len(rows), np.int64) if start is None else start
        count = np.diff(self.offsets)[rows] - begin if length is None else length
        return self.offsets[rows] + begin, count, pad_to or int(count.max(initial=0))


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_a_device_pack_gathers_windows_with_zeros_behind(dtype: str) -> None:
    items = [np.arange(length * 2, dtype=np.float32).reshape(length, 2) / 4 for length in (3, 1, 5)]
    pack = to_device(ArrayPack(items, dtype), "cpu")
    x, lengths = pack.gather(np.array([2, 0, 1]))
    assert (x.shape, x.dtype, lengths.tolist()) == ((3, 5, 2), torch.float32, [5, 3, 1])
    for place, row in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(x[place, : len(items[row])], items[row])
        assert not x[place, len(items[row]) :].any()
    x, lengths = pack.gather(np.array([2, 0]), start=np.array([1, 2]), length=np.array([2, 1]), pad_to=4)
    assert (x.shape, lengths.tolist()) == ((2, 4, 2), [2, 1])
    np.testing.assert_array_equal(x[0, :2], items[2][1:3])
    np.testing.assert_array_equal(x[1, :1], items[0][2:])
    assert not x[0, 2:].any()
