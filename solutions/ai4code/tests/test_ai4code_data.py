"""Reading, packing, submissions and the arrays for the metrics, on good input (bad input has a file of its own)."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai4code import data
from ai4code.data import Notebooks, fingerprint, load, prepare, read_official, splits_in
from ai4code.submission import check_submission, predicted_true_ranks, read_orders, submission_ranks, write_submission
from kit_core.errors import ConfigError, DataError

# id -> cells in true order, as (cell id, type, text); some ids are such as a guessing reader takes for numbers.
CORPUS = {
    "1e5000": [("00e1234", "markdown", "# Title"), ("12345678", "code", "1"), ("0x10", "code", "x = '''\n\n'''")],
    "00112233445566": [("nan", "code", "import a"), ("1e5", "markdown", "Load"), ("true", "code", "a.load()")],
    "abcdef01234567": [
        ("c0", "code", "p()"),
        ("m0", "markdown", "zwölf 🎈 \u0000"),
        ("m1", "markdown", "last"),
        ("c1", "code", ""),
    ],
}
ANCESTORS = {"1e5000": "1e3", "00112233445566": "0001", "abcdef01234567": "0001"}
Official = Callable[..., Path]


def official_json(cells: list[tuple[str, str, str]]) -> str:
    """Code in order, then markdown reversed, as a shuffle would leave it."""
    shown = [c for c in cells if c[1] == "code"] + [c for c in cells[::-1] if c[1] != "code"]
    return json.dumps({"cell_type": {c[0]: c[1] for c in shown}, "source": {c[0]: c[2] for c in shown}})


def order_rows(corpus: dict[str, list[tuple[str, str, str]]]) -> str:
    return "id,cell_order\n" + "".join(f"{i},{' '.join(c[0] for c in cells)}\n" for i, cells in corpus.items())


def write_corpus(root: Path, corpus: dict[str, list[tuple[str, str, str]]] = CORPUS, folder: str = "train") -> Path:
    """The official layout; without the csv files when `folder` is not train."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for id_, cells in corpus.items():
        (root / folder / f"{id_}.json").write_text(official_json(cells), encoding="utf-8")
    if folder == "train":
        (root / "train_orders.csv").write_text(order_rows(corpus))
        rows = "".join(f"{i},{ANCESTORS.get(i, 'ff')},\n" for i in corpus)
        (root / "train_ancestors.csv").write_text("id,ancestor_id,parent_id\n" + rows)
    return root


def zipped(root: Path, target: Path, top: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, top + file.relative_to(root).as_posix())
    return target


def assert_same(one: Notebooks, two: Notebooks) -> None:
    assert one.ids == two.ids
    assert one.ancestors == two.ancestors
    assert one.cell_ids.equals(two.cell_ids)
    assert one.sources.equals(two.sources)
    np.testing.assert_array_equal(one.offsets, two.offsets)
    np.testing.assert_array_equal(one.n_code, two.n_code)
    np.testing.assert_array_equal(one.true_rank, two.true_rank)


def tau(true_rank: np.ndarray, offsets: np.ndarray) -> float:
    """The competition's formula, pair by pair."""
    inversions = pairs = 0
    for start, stop in pairwise(offsets):
        ranks = true_rank[start:stop]
        inversions += sum(ranks[i] > ranks[j] for j in range(len(ranks)) for i in range(j))
        pairs += len(ranks) * (len(ranks) - 1)
    return 1 - 4 * inversions / pairs


# --- reading


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a top folder", "prepared"])
def test_every_form_gives_the_corpus(tmp_path: Path, form: str) -> None:
    path = write_corpus(tmp_path / "official")
    (path / "LICENSES").mkdir()
    (path / "LICENSES" / "a.json").write_text("not a notebook")
    (path / "SOURCES.csv").write_text("whatever")
    (path / "sample_submission.csv").write_text("id,cell_order\n")
    if form.startswith("zip"):
        path = zipped(path, tmp_path / "a.zip", "AI4Code/" if "top" in form else "")
    if form == "prepared":
        prepare(path, tmp_path / "packed", workers=1)
        path = tmp_path / "packed"
    notebooks = load(path)
    assert splits_in(path) == ("train",)
    assert notebooks.ids == sorted(CORPUS)
    assert len(notebooks) == 3
    assert notebooks.ancestors == [ANCESTORS[i] for i in sorted(CORPUS)]
    assert notebooks.true_rank is not None
    for index, id_ in enumerate(notebooks.ids):
        cells = CORPUS[id_]
        shown = [c for c in cells if c[1] == "code"] + [c for c in cells[::-1] if c[1] != "code"]
        assert notebooks.cells(index) == [c[0] for c in shown]
        assert notebooks.texts(index) == [c[2] for c in shown]
        start, stop = notebooks.offsets[index : index + 2]
        assert notebooks.true_rank[start:stop].tolist() == [cells.index(c) for c in shown]
        assert notebooks.is_markdown[start:stop].tolist() == [c[1] == "markdown" for c in shown]
        assert notebooks.n_code[index] == sum(c[1] == "code" for c in cells)
        assert notebooks.n_markdown[index] == sum(c[1] == "markdown" for c in cells)


def test_splits_and_where_their_files_may_lie(tmp_path: Path) -> None:
    both = write_corpus(write_corpus(tmp_path / "both"), {"f00d": [("a", "code", "x")]}, "test")
    assert splits_in(both) == ("train", "test")
    assert load(both).ids == load(both, "train").ids == sorted(CORPUS)
    test = load(both, "test")
    assert (test.ids, test.ancestors, test.true_rank) == (["f00d"], None, None)

    only_test = write_corpus(tmp_path / "only_test", folder="test")
    only_train = write_corpus(tmp_path / "only_train")
    for name in ("train_orders.csv", "train_ancestors.csv"):
        (only_train / name).unlink()
    bare = write_corpus(tmp_path / "bare", folder=".")
    for path in (only_test, only_train, bare):
        for form in (path, zipped(path, tmp_path / f"{path.name}.zip")):
            assert splits_in(form) == ("test",)
            assert load(form).ids == sorted(CORPUS)
            assert load(form).true_rank is None

    for name in ("train_orders.csv", "train_ancestors.csv"):
        (bare / name).write_text((both / name).read_text())
    assert splits_in(bare) == ("train",)
    assert_same(load(bare), load(both))


def test_stream_gives_the_same_notebooks(tmp_path: Path) -> None:
    path = write_corpus(tmp_path)
    notebooks = load(path)
    streamed = list(read_official(path))
    assert [n.id for n in streamed] == notebooks.ids
    assert [n.cell_ids for n in streamed] == [notebooks.cells(i) for i in range(3)]
    assert [n.sources for n in streamed] == [notebooks.texts(i) for i in range(3)]
    assert [n.ancestor_id for n in streamed] == notebooks.ancestors
    assert [rank for n in streamed for rank in n.true_rank or []] == notebooks.true_rank.tolist()  # type: ignore[union-attr]  # a train split


def test_unusual_notebooks_are_read(tmp_path: Path) -> None:
    many = [(f"{i:08x}", "code" if i % 3 else "markdown", f"cell {i}") for i in range(1_000)]
    corpus = {
        "no_markdown": [("a", "code", "x"), ("b", "code", "y")],
        "one_code": [("a", "code", "x")],
        "no_code": [("a", "markdown", "x"), ("b", "markdown", "y")],
        "one_of_each": [("b", "markdown", "y"), ("a", "code", "x")],
        "empty": [("a", "code", ""), ("b", "markdown", " \n\t"), ("c", "markdown", "![](attachment:a.png)")],
        "thousand": many,
    }
    path = write_corpus(tmp_path / "official", corpus)
    prepare(path, tmp_path / "packed", workers=1)
    for notebooks in (load(path), load(tmp_path / "packed")):
        by_id = {id_: i for i, id_ in enumerate(notebooks.ids)}
        assert notebooks.lengths[by_id["thousand"]] == 1_000
        assert notebooks.texts(by_id["empty"]) == ["", "![](attachment:a.png)", " \n\t"]
        assert notebooks.n_code[[by_id["no_code"], by_id["one_code"]]].tolist() == [0, 1]
        assert notebooks.n_markdown[[by_id["no_markdown"], by_id["one_of_each"]]].tolist() == [0, 1]
        orders = {id_: [c[0] for c in cells] for id_, cells in corpus.items()}
        packed = predicted_true_ranks(notebooks, orders)
        assert tau(packed.true_rank, packed.offsets) == 1.0


def test_byte_order_marks_line_ends_and_broken_emoji(tmp_path: Path) -> None:
    path = write_corpus(tmp_path)
    file = path / "train" / "1e5000.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"# Title", b"# \\ud83d Title"))
    orders = path / "train_orders.csv"
    orders.write_bytes(b"\xef\xbb\xbf" + orders.read_bytes().replace(b"\n", b"\r\n"))
    notebooks = load(path)
    assert notebooks.texts(notebooks.ids.index("1e5000"))[-1] == "# ? Title"  # half of a surrogate pair is no character


def test_select(tmp_path: Path) -> None:
    notebooks = load(write_corpus(tmp_path))
    for chosen in ([2, 0], np.array([2, 0]), np.array([True, False, True]), []):
        part = notebooks.select(chosen)
        indices = np.flatnonzero(chosen).tolist() if np.asarray(chosen).dtype == bool else list(chosen)
        assert part.ids == [notebooks.ids[i] for i in indices]
        assert part.ancestors == [notebooks.ancestors[i] for i in indices]  # type: ignore[index]  # a train split
        for new, old in enumerate(indices):
            assert part.cells(new) == notebooks.cells(old)
            assert part.texts(new) == notebooks.texts(old)
            ranks, expected = (
                n.true_rank[n.offsets[k] : n.offsets[k + 1]]  # type: ignore[index]  # a train split
                for n, k in ((part, new), (notebooks, old))
            )
            np.testing.assert_array_equal(ranks, expected)
    assert_same(notebooks.select(range(3)), notebooks)


@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.text(st.characters(codec="utf-8"), max_size=5)), min_size=1), max_size=4
    )
)
@settings(max_examples=25, deadline=None)
def test_any_texts_survive_packing(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[list[tuple[bool, str]]]
) -> None:
    corpus = {
        f"n{i}": [(f"{i}-{j}", "code" if code else "markdown", text) for j, (code, text) in enumerate(cells)]
        for i, cells in enumerate(drawn)
    } or CORPUS
    root = tmp_path_factory.mktemp("any")
    path = write_corpus(root / "official", corpus)
    prepare(path, root / "packed", workers=1)
    notebooks = load(path)
    assert_same(load(root / "packed"), notebooks)
    for i, id_ in enumerate(notebooks.ids):
        assert dict(zip(notebooks.cells(i), notebooks.texts(i), strict=True)) == {c[0]: c[2] for c in corpus[id_]}


# --- packing


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "NOTEBOOKS_PER_SHARD", 2)


def numbered(n: int) -> dict[str, list[tuple[str, str, str]]]:
    return {f"{i:04x}": [(f"c{i}", "code", f"code {i}"), (f"m{i}", "markdown", f"text {i}")] for i in range(n)}


@pytest.mark.usefixtures("small_shards")
def test_prepare_in_processes_equals_reading_alone(tmp_path: Path) -> None:
    path = write_corpus(write_corpus(tmp_path / "official", numbered(7)), numbered(3), "test")
    summary = prepare(path, tmp_path / "packed", workers=2)
    assert summary.splits == {
        "train": {"notebooks": 7, "cells": 14, "code_cells": 7},
        "test": {"notebooks": 3, "cells": 6, "code_cells": 3},
    }
    assert (summary.shards, summary.shards_kept) == (6, 0)
    assert splits_in(tmp_path / "packed") == ("train", "test")
    for split in ("train", "test"):
        alone = load(path, split, workers=1)
        assert_same(load(tmp_path / "packed", split), alone)
    assert_same(load(path, "test", workers=2), alone)
    assert fingerprint(tmp_path / "packed") == fingerprint(path)


@pytest.mark.usefixtures("small_shards")
def test_prepare_again_keeps_what_is_finished(tmp_path: Path) -> None:
    path, packed = write_corpus(tmp_path / "official", numbered(7)), tmp_path / "packed"
    prepare(path, packed, workers=1)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in packed.rglob("*.*")}
    assert prepare(path, packed, workers=1).shards_kept == 4
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in packed.rglob("*.*")} == before

    (packed / "train" / "shard-00001.parquet").unlink()
    broken = packed / "train" / "shard-00002.parquet"
    broken.write_bytes(broken.read_bytes()[:-10])
    (packed / "manifest.json").unlink()
    (packed / "train" / ".shard-00002.parquet.1234.tmp").write_bytes(b"left by a kill")
    assert prepare(path, packed, workers=1).shards_kept == 2
    assert {file: file.read_bytes() for file in packed.rglob("*.*")} == {file: b for file, (_, b) in before.items()}


@pytest.mark.usefixtures("small_shards")
def test_prepare_replaces_the_shards_of_other_data(tmp_path: Path) -> None:
    first, second = write_corpus(tmp_path / "1", numbered(7)), write_corpus(tmp_path / "2")
    prepare(first, tmp_path / "packed", workers=1)
    assert prepare(second, tmp_path / "packed", workers=1).shards_kept == 0
    assert_same(load(tmp_path / "packed"), load(second))
    assert len(list((tmp_path / "packed" / "train").iterdir())) == 2


def test_shards_are_plain_parquet(tmp_path: Path) -> None:
    prepare(write_corpus(tmp_path / "official"), tmp_path / "packed", workers=1)
    rows = pq.read_table(tmp_path / "packed" / "train" / "shard-00000.parquet").to_pylist()
    assert rows[0] == {
        "id": "00112233445566",
        "ancestor_id": "0001",
        "parent_id": "",
        "n_code": 2,
        "cell_id": ["nan", "true", "1e5"],
        "source": ["import a", "a.load()", "Load"],
        "true_rank": [0, 2, 1],
    }


def is_running(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_killed_prepare_leaves_no_workers_and_goes_on(tmp_path: Path) -> None:
    path, packed = write_corpus(tmp_path / "official", numbered(400)), tmp_path / "packed"
    program = f"""
        import time
        from pathlib import Path
        from ai4code import data
        data.NOTEBOOKS_PER_SHARD = 2
        data.prepare(Path({str(path)!r}), Path({str(packed)!r}), workers=2)
        """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(packed.glob("train/shard-*.parquet"))) < 3:
        assert process.poll() is None, "prepare ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)

    with pytest.raises(DataError, match="unfinished prepared folder"):
        load(packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "NOTEBOOKS_PER_SHARD", 2)
        summary = prepare(path, packed, workers=1)
    assert 3 <= summary.shards_kept < summary.shards
    assert_same(load(packed), load(path))
    assert not list(packed.rglob("*.tmp"))


def test_prepare_refuses_places_that_are_not_its_own(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "official")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "mine", tmp_path / "file", path, path / "packed", write_corpus(tmp_path / "other")):
        with pytest.raises(ConfigError, match="choose"):
            prepare(path, out, workers=1)
    with pytest.raises(ConfigError, match="workers"):
        prepare(path, tmp_path / "packed", workers=0)
    prepare(path, tmp_path / "packed", workers=1)
    with pytest.raises(ConfigError, match="already prepared"):
        prepare(tmp_path / "packed", tmp_path / "again", workers=1)
    assert not (tmp_path / "again").exists()
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    assert_same(load(tmp_path / "other"), load(path))


# --- submissions


def test_submission_round_trip(tmp_path: Path) -> None:
    notebooks = load(write_corpus(tmp_path / "official"))
    given = [notebooks.cells(i) for i in range(3)]
    write_submission(tmp_path / "s.csv", notebooks.ids, given)
    assert (tmp_path / "s.csv").read_text().splitlines()[:2] == ["id,cell_order", "00112233445566,nan true 1e5"]
    assert read_orders(tmp_path / "s.csv") == dict(zip(notebooks.ids, given, strict=True))
    assert check_submission(tmp_path / "s.csv", notebooks) == dict(zip(notebooks.ids, given, strict=True))


def test_judge_takes_any_order_of_code_cells(tmp_path: Path) -> None:
    notebooks = load(write_corpus(tmp_path / "official"))
    backwards = [notebooks.cells(i)[::-1] for i in range(3)]
    write_submission(tmp_path / "s.csv", notebooks.ids[::-1], backwards[::-1])
    assert check_submission(tmp_path / "s.csv", notebooks) == dict(zip(notebooks.ids, backwards, strict=True))


def test_failed_submission_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_submission(tmp_path / "s.csv", ["a", "b"], [["x"]])
    assert not list(tmp_path.iterdir())


def test_ranks_of_a_submission_by_hand(tmp_path: Path) -> None:
    corpus = {"a": [("m", "markdown", ""), ("c", "code", ""), ("d", "code", "")], "b": [("e", "code", "")]}
    notebooks = load(write_corpus(tmp_path / "official", corpus))
    packed = predicted_true_ranks(notebooks, {"a": ["c", "m", "d"], "b": ["e"]})
    assert packed.true_rank.tolist() == [1, 0, 2, 0]
    assert packed.is_markdown is not None
    assert packed.is_markdown.tolist() == [False, True, False, False]
    assert packed.offsets.tolist() == [0, 3, 4]
    assert packed.groups == ["ff", "ff"]
    assert tau(packed.true_rank, packed.offsets) == pytest.approx(1 / 3)


def test_truth_in_every_form_gives_the_same_ranks(tmp_path: Path) -> None:
    """A folder, a zip, the prepared folder, the csv with or without data; of train and of a sample's test split."""
    for split in ("train", "test"):
        other = {"0f0f": [("a", "code", "x"), ("b", "markdown", "y")]}
        root = tmp_path / split
        path = write_corpus(root / "official", CORPUS if split == "train" else other)
        write_corpus(path, other if split == "train" else CORPUS, "test")
        (path / "test_orders.csv").write_text(order_rows(other if split == "train" else CORPUS))
        prepare(path, root / "packed", workers=1)
        notebooks = load(path, split)
        orders = {id_: notebooks.cells(i)[::-1] for i, id_ in enumerate(notebooks.ids)}
        write_submission(root / "s.csv", list(orders), orders.values())
        csv = path / f"{split}_orders.csv"
        full = submission_ranks(root / "s.csv", path)
        forms = [(zipped(path, root / "a.zip"), None), (csv, path), (csv, root / "packed")]
        forms += [(root / "packed", None)] if split == "train" else []  # a prepared folder never holds hidden truth
        for truth, cells_from in forms:
            packed = submission_ranks(root / "s.csv", truth, cells_from)
            np.testing.assert_array_equal(packed.true_rank, full.true_rank)
            np.testing.assert_array_equal(packed.is_markdown, full.is_markdown)
            np.testing.assert_array_equal(packed.offsets, full.offsets)
            assert packed.groups == full.groups
        alone = submission_ranks(root / "s.csv", csv)
        assert alone.is_markdown is None
        assert tau(alone.true_rank, alone.offsets) == tau(full.true_rank, full.offsets)
        assert notebooks.true_rank is None or split == "train"


# --- the real corpus


def real_corpus() -> Path:
    root = next((p for p in Path(__file__).resolve().parents if (p / "poetry.lock").exists()), Path("/"))
    path = root.parent / "shared" / "data" / "ai4code-mini" / "ai4code-mini.zip"
    if not path.exists():
        pytest.skip("the real corpus ../shared/data/ai4code-mini is not here")
    return path


@pytest.mark.data
def test_real_corpus_straight_from_the_zip_and_packed(tmp_path: Path) -> None:
    path = real_corpus()
    notebooks = load(path)
    assert (len(notebooks), len(set(notebooks.ancestors or ()))) == (1_911, 595)
    assert (notebooks.offsets[-1], notebooks.n_markdown.sum()) == (74_401, 36_844)
    assert all(len(id_) == 14 for id_ in notebooks.ids)
    summary = prepare(path, tmp_path / "packed", workers=2)
    assert summary.splits == {"train": {"notebooks": 1_911, "cells": 74_401, "code_cells": 37_557}}
    assert_same(load(tmp_path / "packed"), notebooks)
