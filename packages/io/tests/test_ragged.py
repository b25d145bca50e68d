"""Ragged packs: what is written comes back, a stopped writer goes on, and damage is told in words."""

import errno
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_core.errors import ConfigError, DataError, DiskFullError
from kit_io.ragged import RaggedPack, RaggedWriter, decode, encode, is_finished

DTYPES = ["float16", "float32", "bfloat16"]
TOLERANCE = {"float16": 2**-11, "float32": 0.0, "bfloat16": 2**-8}  # half a unit in the last place, relative


def items_of(lengths: list[int], dim: int = 4, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(length, dim)).astype(np.float32) for length in lengths]


def write(path: Path, items: list[np.ndarray], dtype: str = "float32") -> RaggedPack:
    with RaggedWriter(path, dim=items[0].shape[1], dtype=dtype) as writer:
        for item in items:
            writer.append(item)
    return RaggedPack.open(path)


def stopped(path: Path, items: list[np.ndarray], dtype: str) -> None:
    with RaggedWriter(path, dim=4, dtype=dtype) as writer:
        for item in items:
            writer.append(item)
        raise RuntimeError("power")


@pytest.mark.parametrize("dtype", DTYPES)
def test_items_come_back_within_the_rounding_of_the_dtype(tmp_path: Path, dtype: str) -> None:
    items = items_of([3, 1, 0, 7])
    pack = write(tmp_path / "pack", items, dtype)
    assert (pack.n, pack.dim, pack.lengths.tolist(), pack.offsets.tolist()) == (4, 4, [3, 1, 0, 7], [0, 3, 4, 4, 11])
    worst = 0.0
    for i, item in enumerate(items):
        np.testing.assert_allclose(pack.item(i), item, rtol=TOLERANCE[dtype], atol=1e-7 if TOLERANCE[dtype] else 0)
        worst = max(worst, float(np.abs(pack.item(i) - item).max(initial=0)))
    assert pack.info is not None
    assert pack.info.max_abs_error == pytest.approx(worst)
    pack.verify()


def test_bfloat16_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32) * np.float32(10) ** np.arange(
        -5, 5
    ).repeat(1000)
    values[:3] = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8], np.float32)  # ties go to even
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(decode(encode(values, "bfloat16"), "bfloat16"), expected)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_gather_equals_slicing_by_hand(lengths: list[int], dtype: str, data: st.DataObject) -> None:
    items = items_of(lengths)
    pack = RaggedPack.from_items(items, dtype)
    rows = np.array(data.draw(st.lists(st.integers(0, len(items) - 1), max_size=5)), np.int64)
    start = np.array([data.draw(st.integers(0, lengths[row])) for row in rows], np.int64)
    count = np.array([data.draw(st.integers(0, lengths[r] - s)) for r, s in zip(rows, start, strict=True)], np.int64)
    extra = data.draw(st.integers(0, 3))
    longest = int(count.max(initial=0))
    batch, found = pack.gather(rows, start=start, length=count, pad_to=longest + extra)
    assert batch.shape == (len(rows), longest + extra, 4)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(found, count)
    for place, row in enumerate(rows):
        window = pack.item(row)[start[place] : start[place] + count[place]]
        np.testing.assert_array_equal(batch[place, : count[place]], window)
        assert not batch[place, count[place] :].any()


@settings(max_examples=40, deadline=None)
@given(
    kept=st.lists(st.sampled_from(["batch", "slice", "tensor", "nothing"]), min_size=1, max_size=30),
    seed=st.integers(0, 9),
)
def test_a_batch_that_is_held_never_changes(kept: list[str], seed: int) -> None:
    """The memory of a batch is used again, but only when nobody holds any part of it."""
    torch = pytest.importorskip("torch")
    draws = np.random.default_rng(seed)
    items = items_of(draws.integers(0, 7, 20).tolist())
    pack = RaggedPack.from_items(items)
    held = []
    for how in kept:
        rows = draws.integers(0, 20, draws.integers(1, 8))
        batch, _ = pack.gather(rows)
        part = {
            "batch": lambda batch: batch,
            "slice": lambda batch: batch[1:, ::2].T,
            "tensor": lambda batch: torch.from_numpy(batch)[:1].numpy(),
            "nothing": lambda batch: np.zeros(0),
        }[how](batch)
        held.append((part, part.copy()))
        del batch, part
        for view, expected in held:
            np.testing.assert_array_equal(view, expected)


def test_a_loop_over_batches_writes_to_the_same_two_blocks() -> None:
    pack = RaggedPack.from_items(items_of([3] * 8))
    places = set()
    for _ in range(20):
        batch, _ = pack.gather(np.arange(8))
        places.add(batch.ctypes.data)
    assert len(places) == 2


def test_threads_may_gather_from_one_pack() -> None:
    items = items_of([5] * 64)
    pack = RaggedPack.from_items(items)

    def read(seed: int) -> bool:
        draws = np.random.default_rng(seed)
        for _ in range(200):
            rows = draws.integers(0, 64, 16)
            batch, _ = pack.gather(rows)
            if not np.array_equal(batch, np.stack([items[row] for row in rows])):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(8)))


def test_gather_refuses_what_is_not_there() -> None:
    pack = RaggedPack.from_items(items_of([2, 3]))
    with pytest.raises(IndexError, match="of 2 items"):
        pack.gather(np.array([2]))
    with pytest.raises(IndexError, match="of 2 items"):
        pack.gather(np.array([-1]))
    with pytest.raises(ValueError, match="window 1 to 4, expected 0 to 3"):
        pack.gather(np.array([1]), start=np.array([1]), length=np.array([3]))
    with pytest.raises(ValueError, match="pad_to: found 2"):
        pack.gather(np.array([0, 1]), pad_to=2)
    with pytest.raises(IndexError):
        pack.item(5)


def test_a_pack_pickles_as_its_path(tmp_path: Path) -> None:
    pack = write(tmp_path / "pack", items_of([2] * 500))
    content = pickle.dumps(pack)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).item(7), pack.item(7))
    in_memory = pickle.loads(pickle.dumps(RaggedPack.from_items(items_of([2]))))
    np.testing.assert_array_equal(in_memory.item(0), items_of([2])[0])


def test_an_unfinished_pack_cannot_be_opened_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    items = items_of([5, 2, 9, 4])
    write(tmp_path / "whole", items, "float16")
    with pytest.raises(RuntimeError, match="power"):
        stopped(tmp_path / "part", items[:3], "float16")
    with pytest.raises(DataError, match=r"found no info\.json"):
        RaggedPack.open(tmp_path / "part")
    with (tmp_path / "part" / "values.bin").open("ab") as file:  # what a kill in the middle of an item leaves
        file.write(b"torn")
    with RaggedWriter.resume(tmp_path / "part") as writer:
        assert writer.appended == 3
        writer.append(items[3])
    for name in ("values.bin", "offsets.npy", "info.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == ["info.json", "offsets.npy", "values.bin"]


def test_a_journal_ahead_of_the_values_is_cut_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"):
        stopped(tmp_path / "pack", items_of([3, 2]), "float32")
    values = tmp_path / "pack" / "values.bin"
    values.write_bytes(values.read_bytes()[:-1])
    with RaggedWriter.resume(tmp_path / "pack") as writer:
        assert writer.appended == 1
    assert RaggedPack.open(tmp_path / "pack").lengths.tolist() == [3]


def test_kill_9_loses_at_most_the_last_flush(tmp_path: Path) -> None:
    program = """
import os, signal, sys, numpy as np, kit_io.ragged as ragged
ragged.FLUSH_BYTES = 1000
writer = ragged.RaggedWriter(sys.argv[1], dim=4, dtype="float32")
for i in range(100):
    writer.append(np.full((5, 4), i, np.float32))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "pack")])
    assert done.returncode == -9
    with RaggedWriter.resume(tmp_path / "pack") as writer:
        assert 50 < writer.appended <= 100
        for i in range(writer.appended, 100):
            writer.append(np.full((5, 4), i, np.float32))
    pack = RaggedPack.open(tmp_path / "pack")
    pack.verify()
    assert all((pack.item(i) == i).all() and len(pack.item(i)) == 5 for i in range(100))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(4, np.float32), r"found float32 \[4\], expected floats \[T, 4\]"),
        (np.zeros((2, 3), np.float32), r"\[2, 3\]"),
        (np.zeros((2, 4), np.int64), "int64"),
        (np.array([[None] * 4]), "object"),
    ],
)
def test_items_of_another_form_are_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    with RaggedWriter(tmp_path / "pack", dim=4) as writer, pytest.raises(ValueError, match=words):
        writer.append(array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_leave_no_trace(tmp_path: Path, dtype: str, value: float) -> None:
    broken = np.zeros((3, 4), np.float32)
    broken[2, 1] = value
    with RaggedWriter(tmp_path / "pack", dim=4, dtype=dtype) as writer:
        with pytest.raises(DataError, match=r"item 0: found (nan|inf|-inf) at frame 2, column 1"):
            writer.append(broken)
        writer.append(np.ones((1, 4), np.float32))
    assert RaggedPack.open(tmp_path / "pack").lengths.tolist() == [1]


def test_values_that_float16_cannot_hold_name_a_dtype_that_can(tmp_path: Path) -> None:
    with (
        RaggedWriter(tmp_path / "pack", dim=1) as writer,
        pytest.raises(DataError, match="pack as bfloat16 or float32"),
    ):
        writer.append(np.array([[70_000.0]]))


def test_a_full_disk_says_so_and_keeps_what_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RaggedWriter(tmp_path / "pack", dim=4)
    writer.append(np.ones((2, 4), np.float32))
    writer._flush()

    def no_space(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_flush", lambda: no_space(None))
    monkeypatch.setattr("kit_io.ragged.FLUSH_BYTES", 1)
    with pytest.raises(DiskFullError, match="No space left on device, after 1 items"):
        writer.append(np.ones((2, 4), np.float32))
    with RaggedWriter.resume(tmp_path / "pack") as again:
        assert again.appended == 1


def test_what_a_writer_killed_in_its_first_moment_leaves_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    path.mkdir()
    (path / ".writer.json.0123abcd.tmp").write_text("{")
    with RaggedWriter(path, dim=4) as writer:
        writer.append(np.ones((2, 4), np.float32))
    assert not list(path.glob(".*"))


def test_what_a_writer_killed_at_its_last_step_leaves_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    with RaggedWriter(path, dim=4) as writer:
        writer.append(np.ones((2, 4), np.float32))
        assert not is_finished(path)
    whole = sorted(file.name for file in path.iterdir())
    (path / "journal.bin").write_bytes(b"left")
    (path / "writer.json").write_text("{}")
    assert is_finished(path)
    assert sorted(file.name for file in path.iterdir()) == whole
    assert RaggedPack.open(path).n == 1


def test_an_occupied_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        RaggedWriter(tmp_path, dim=4)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_damage_is_found(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    write(pack, items_of([3, 2]))
    values, info = (pack / "values.bin").read_bytes(), json.loads((pack / "info.json").read_text())

    (pack / "values.bin").write_bytes(values[:-1] + bytes([values[-1] ^ 1]))
    with pytest.raises(DataError, match=r"values\.bin: found sha256"):
        RaggedPack.open(pack).verify()
    (pack / "values.bin").write_bytes(values[:-1])
    with pytest.raises(DataError, match="found 79 bytes, expected 80 bytes"):
        RaggedPack.open(pack)
    (pack / "values.bin").write_bytes(values)
    np.save(pack / "offsets.npy", np.array([0, 9, 5]))
    with pytest.raises(DataError, match="item 1 ends before it begins"):
        _ = RaggedPack.open(pack).lengths
    np.save(pack / "offsets.npy", np.array([0, 5]))
    with pytest.raises(DataError, match=r"offsets\.npy: found int64 \[2\], expected int64 \[3\]"):
        RaggedPack.open(pack)
    (pack / "info.json").write_text(json.dumps(info | {"format_version": 99}))
    with pytest.raises(DataError, match="unknown format_version"):
        RaggedPack.open(pack)
    (pack / "info.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        RaggedPack.open(pack)


@pytest.mark.parametrize(
    "change",
    [{"dim": "4"}, {"dim": None}, {"frames": None}, {"frames": "5"}, {"n": 2.0}, {"n": -1}, {"dtype": []}, {"more": 1}],
)
def test_info_of_other_types_is_told(tmp_path: Path, change: dict[str, object]) -> None:
    write(tmp_path / "pack", items_of([3, 2]))
    info = tmp_path / "pack" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | change))
    with pytest.raises(DataError, match=r"info\.json: found keys or values of another format"):
        RaggedPack.open(tmp_path / "pack")


@pytest.mark.parametrize("change", [{"dim": "four"}, {"dim": None}, {"dim": 0}, {"dtype": []}, {"dtype": "int8"}])
def test_settings_of_a_stopped_writer_of_other_types_are_told(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(RuntimeError, match="power"):
        stopped(tmp_path / "pack", items_of([3]), "float16")
    settings = tmp_path / "pack" / "writer.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
    with pytest.raises(DataError, match=r"writer\.json: found .*pack again"):
        RaggedWriter.resume(tmp_path / "pack")


def test_resume_of_a_finished_or_absent_pack_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "pack", items_of([1]))
    with pytest.raises(DataError, match="the pack is finished"):
        RaggedWriter.resume(tmp_path / "pack")
    with pytest.raises(DataError, match="not an unfinished pack"):
        RaggedWriter.resume(tmp_path / "nothing")


def test_every_finite_half_float_is_decoded_exactly() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    np.testing.assert_array_equal(decode(halves, "float16").view(np.uint32), halves.astype(np.float32).view(np.uint32))
