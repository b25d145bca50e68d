"""Every kind of damaged data and submission: exit code 3, the words that help, and nothing half written."""

import contextlib
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ai4code.data import load, prepare, read_official, splits_in
from ai4code.submission import check_submission, submission_ranks
from kit_core.errors import DataError
from kit_core.testing import refused

GOOD = {"cell_type": {"a": "code", "b": "code", "c": "markdown"}, "source": {"a": "x = 1", "b": "x", "c": "# text"}}
IDS = [f"{i:014x}" for i in range(8)]
FIRST = IDS[0]


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Eight equal notebooks in the official layout."""
    root = tmp_path / "official"
    (root / "train").mkdir(parents=True)
    for id_ in IDS:
        (root / "train" / f"{id_}.json").write_text(json.dumps(GOOD))
    (root / "train_orders.csv").write_text("id,cell_order\n" + "".join(f"{i},a c b\n" for i in IDS))
    (root / "train_ancestors.csv").write_text("id,ancestor_id,parent_id\n" + "".join(f"{i},{i[:8]},\n" for i in IDS))
    return root


def zipped(root: Path) -> Path:
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, file.relative_to(root).as_posix())
    return target


def refused_everywhere(path: Path, *words: str) -> None:
    """By the reader, the stream and prepare, which leaves nothing behind, from the folder and from a zip."""
    out = path.parent / "packed"
    for form in (path, zipped(path)):
        refused(lambda form=form: load(form, workers=1), *words)  # type: ignore[misc]  # a default binds the loop's value
        refused(lambda form=form: list(read_official(form)), *words)  # type: ignore[misc]  # the same
        refused(lambda form=form: prepare(form, out, workers=1), *words)  # type: ignore[misc]  # the same
        assert not out.exists()


def swapped(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


# --- json files

JSON_FAULTS: dict[str, tuple[Callable[[str], str | bytes], tuple[str, ...]]] = {
    "truncated": (lambda t: t[:-20], ("not one whole json object", "char")),
    "empty": (lambda t: "", ("an empty file",)),
    "not json": (lambda t: "<html>", ("not one whole json object",)),
    "two objects": (lambda t: t + t, ("not one whole json object", "Extra data")),
    "an array": (lambda t: f"[{t}]", ("a json array, not an object",)),
    "a number": (lambda t: "1e5000", ("a json number, not an object",)),
    "not UTF-8": (lambda t: t.replace("# text", "# \xe9t\xe9").encode("latin-1"), ("byte 0xe9", "not UTF-8")),
    "UTF-16": (lambda t: t.encode("utf-16"), ("byte 0xff at offset 0", "not UTF-8")),
    "other keys": (swapped('"source"', '"sources"'), ("the keys cell_type, sources", "not cell_type and source")),
    "a third key": (swapped('{"cell_type"', '{"metadata": {}, "cell_type"'), ("the keys metadata, cell_type, source",)),
    "no keys": (lambda t: "{}", ("the keys none",)),
    "a list of cells": (lambda t: '{"cell_type": ["code"], "source": {}}', ('a json array under "cell_type"',)),
    "no cells": (lambda t: '{"cell_type": {}, "source": {}}', ("no cells",)),
    "cell without source": (swapped('"a": "x = 1", ', ""), ("cell a without a source",)),
    "source without cell": (swapped('"a": "x = 1"', '"a": "x = 1", "d": ""'), ("cell d without a cell_type",)),
    "unknown type": (swapped('"markdown"', '"raw"'), ("cell c of the type", '"raw"', '"code" or "markdown"')),
    "null type": (swapped('"markdown"', "null"), ("cell c of the type json null",)),
    "source as lines": (swapped('"x = 1"', '["x = 1"]'), ("a json array as the source of cell a", "not a string")),
    "source a number": (swapped('"x = 1"', "NaN"), ("a json number as the source of cell a",)),
    "doubled cell": (swapped('"a": "x = 1"', '"a": "x = 1", "a": ""'), ("the key a more than once",)),
    "doubled key": (lambda t: t[:-1] + ', "source": {}}', ("the key source more than once",)),
    "markdown before code": (
        swapped('"b": "code", "c": "markdown"', '"c": "markdown", "b": "code"'),
        ("code cell b after a markdown cell",),
    ),
    "blank in a cell id": (lambda t: t.replace('"a"', '"a a"'), ('cell id "a a"', "no row of an order can hold")),
    "empty cell id": (lambda t: t.replace('"a"', '""'), ('cell id ""',)),
    "escape in a cell id": (lambda t: t.replace('"a"', '"\\u001b[2J"'), ("cell id", "x1b")),
    "deep nesting": (lambda t: "[" * 100_000, ("json that cannot be read",)),
    "huge number": (swapped('"x = 1"', "9" * 5_000), ("json that cannot be read",)),
}


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_bad_json(official: Path, fault: str) -> None:
    change, words = JSON_FAULTS[fault]
    file = official / "train" / f"{FIRST}.json"
    changed = change(file.read_text())
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    member = f"notebook {FIRST} (train/{FIRST}.json)"
    refused_everywhere(official, "official", "1 problem", member, "expected: <id>.json", "do: correct", *words)


def test_first_five_and_the_count(official: Path) -> None:
    for id_ in IDS:
        (official / "train" / f"{id_}.json").write_text("{")
    message = refused(lambda: load(official), "8 problems", "... and 3 more", *IDS[:5])
    assert IDS[5] not in message


def test_good_notebooks_are_streamed_before_the_complaint(official: Path) -> None:
    (official / "train" / f"{IDS[3]}.json").write_text("{")
    seen = []

    def stream() -> None:
        for notebook in read_official(official):
            seen.append(notebook.id)

    refused(stream, IDS[3])
    assert seen == [id_ for id_ in IDS if id_ != IDS[3]]


# --- csv files against json files

CSV_FAULTS: dict[str, tuple[str, Callable[[str], str | bytes], tuple[str, ...]]] = {
    "cell missing": ("orders", swapped("a c b", "a b"), (f"notebook {FIRST}", "no cell c in the order")),
    "order empty": ("orders", swapped("a c b", ""), (f"notebook {FIRST}", "no cell a, b, c in the order")),
    "cell unknown": ("orders", swapped("a c b", "a c b d"), ("cell d in the order, unknown to the json",)),
    "cell doubled": ("orders", swapped("a c b", "a c b c"), ("cell c more than once in the order",)),
    "code order": ("orders", swapped("a c b", "b c a"), ("code cell b before a in the order, after it in the json",)),
    "no order": ("orders", swapped(f"{FIRST},a c b\n", ""), (f"train_orders.csv, notebook {FIRST}", "no row, though")),
    "order alone": ("orders", lambda t: t + "1e5000,a c b\n", ("notebook 1e5000", "a row, but no 1e5000.json")),
    "second order": ("orders", lambda t: t + f"{FIRST},a c b\n", ("data row 9", f"notebook {FIRST} a second time")),
    "empty id": ("orders", lambda t: t + ",a c b\n", ("data row 9", "an empty id")),
    "orders header": ("orders", swapped("cell_order", "order"), ("id,order", "id,cell_order")),
    "orders delimiter": ("orders", lambda t: t.replace(",", ";"), ("id;cell_order", "id,cell_order")),
    "orders ragged": ("orders", swapped("a c b", "a,c b"), ("line 2", "3 values")),
    "orders not UTF-8": ("orders", lambda t: t.encode() + b"\xff,a c b\n", ("line 10", "UTF-8")),
    "orders empty": ("orders", lambda t: "", ("empty", "id,cell_order")),
    "no ancestor": ("ancestors", swapped(f"{FIRST},{FIRST[:8]},\n", ""), ("train_ancestors.csv", "no row, though")),
    "ancestor alone": ("ancestors", lambda t: t + "00e1234,0,\n", ("notebook 00e1234", "a row, but no 00e1234.json")),
    "second ancestor": ("ancestors", lambda t: t + f"{FIRST},0,\n", (f"notebook {FIRST} a second time",)),
    "empty ancestor": ("ancestors", swapped(f",{FIRST[:8]},", ",,"), (f"notebook {FIRST}", "an empty ancestor_id")),
    "ancestors header": ("ancestors", swapped("parent_id", "parent"), ("id,ancestor_id,parent_id",)),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_bad_csv(official: Path, fault: str) -> None:
    table, change, words = CSV_FAULTS[fault]
    file = official / f"train_{table}.csv"
    changed = change(file.read_text())
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    refused_everywhere(official, "official", "problem", "expected:", "do:", *words)


def test_missing_files(official: Path) -> None:
    (official / "train" / f"{FIRST}.json").unlink()
    refused_everywhere(official, "2 problems", "a row, but no", f"{FIRST}.json")
    (official / "train_ancestors.csv").unlink()
    refused_everywhere(official, "no train_ancestors.csv", "id,ancestor_id,parent_id", "do:")
    (official / "train_orders.csv").unlink()
    refused(lambda: load(official, "train"), "no train_orders.csv", 'use the split "test"')
    refused(lambda: submission_ranks(official / "train" / f"{IDS[1]}.json", official), "problem")


def test_places_without_notebooks(tmp_path: Path) -> None:
    refused(lambda: load(tmp_path / "absent"), "absent", "No such file", "do:")
    (tmp_path / "empty").mkdir()
    refused(lambda: splits_in(tmp_path / "empty"), "no notebooks", "no files at all", "do:")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.csv").write_text("")
    refused(lambda: load(tmp_path / "other"), "no notebooks", "1 other files (a.csv)", "train/<id>.json")
    (tmp_path / "other" / "train_orders.csv").write_text("id,cell_order\n")
    refused(lambda: load(tmp_path / "other"), "no notebooks", "train/<id>.json")
    refused(lambda: load(tmp_path / "other", "test"), "no notebooks", "test/<id>.json")
    (tmp_path / "text.zip").write_text("no zip at all")
    refused(lambda: load(tmp_path / "text.zip"), "text.zip")


# --- zips


@pytest.mark.parametrize("member", ["../train/evil.json", "/train/evil.json", "train/../../evil.json", "C:\\evil.json"])
def test_zip_with_unsafe_paths(official: Path, member: str) -> None:
    path = zipped(official)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, json.dumps(GOOD))
    refused(lambda: load(path), "official.zip", "evil.json")
    refused(lambda: prepare(path, path.parent / "packed", workers=1), "evil.json")
    assert not (path.parent / "packed").exists()


def test_damaged_zips(official: Path) -> None:
    path = zipped(official)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: load(path), "official.zip", "download it again")
    at = whole.index(b'"x = 1"')
    path.write_bytes(whole[:at] + b'"x = 2"' + whole[at + 7 :])  # stored, not deflated: only the checksum can tell
    refused(lambda: load(path), f"notebook {FIRST} (train/{FIRST}.json)", "CRC")
    refused(lambda: prepare(path, path.parent / "packed", workers=1), "CRC")
    assert not (path.parent / "packed").exists()


# --- prepared folders


@pytest.fixture
def packed(official: Path) -> Path:
    prepare(official, official.parent / "packed", workers=1)
    return official.parent / "packed"


def edited(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_prepared_by_another_version(packed: Path) -> None:
    edited(packed, lambda m: m.update(format_version=99))
    refused(lambda: load(packed), "manifest.json", "format_version 99", "expected 1", "prepare the official data again")


def test_prepared_and_damaged(packed: Path, official: Path) -> None:
    shard, manifest = packed / "train" / "shard-00000.parquet", packed / "manifest.json"
    whole, listing = shard.read_bytes(), manifest.read_bytes()
    hurt = "damaged", "do: remove the prepared folder and prepare the official data again"
    shard.unlink()
    refused(lambda: load(packed), str(shard), "no such file", *hurt)
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:cut])
        refused(lambda: load(packed), str(shard), *hurt)
    shard.write_bytes(whole)

    def count(manifest: dict[str, object]) -> None:
        entry = manifest["splits"]["train"]  # type: ignore[index]  # a manifest is nested
        entry["notebooks"] = entry["shards"][0]["notebooks"] = 9

    edited(packed, count)
    refused(lambda: load(packed), "8 notebooks, where manifest.json has 9", *hurt)
    for change in (
        lambda m: m["splits"]["train"].update(notebooks=9),
        lambda m: m["splits"]["train"]["shards"][0].update(file="../../train/x.parquet"),
        lambda m: m["splits"].update(elsewhere=m["splits"]["train"]),
        lambda m: m.pop("splits"),
        lambda m: m.update(splits=[]),
    ):
        manifest.write_bytes(listing)
        edited(packed, change)
        refused(lambda: load(packed), "manifest.json", *hurt)
    manifest.write_bytes(listing[:-40])
    refused(lambda: load(packed), "manifest.json", *hurt)
    manifest.unlink()
    refused(lambda: load(packed), "unfinished prepared folder", "run prepare again")
    assert prepare(official, packed, workers=1).shards_kept == 1
    assert manifest.read_bytes() == listing
    refused(lambda: load(packed, "test"), "no test notebooks", "found: train")


def test_refused_data_leave_no_shards_of_an_earlier_run(official: Path, packed: Path) -> None:
    (official / "train" / f"{FIRST}.json").write_text("{")
    refused(lambda: prepare(official, packed, workers=1), FIRST)
    assert not [file for file in packed.rglob("*") if file.is_file()]


# --- submissions

SUBMISSION_FAULTS: dict[str, tuple[Callable[[str], str | bytes], tuple[str, ...]]] = {
    "notebook missing": (swapped(f"{FIRST},a b c\n", ""), (f"notebook {FIRST}: found no row", "8 rows")),
    "notebook doubled": (lambda t: t + f"{FIRST},a b c\n", (f"notebook {FIRST} a second time", "data row 9")),
    "notebook unknown": (lambda t: t + "00e1234,a b c\n", ("notebook 00e1234", "that the data does not hold")),
    "id as a float": (swapped(IDS[1], "1.0"), ("notebook 1.0", f"notebook {IDS[1]}: found no row")),
    "cell missing": (swapped("a b c", "a c"), (f"notebook {FIRST}", "no cell b in the order", "code cells belong")),
    "cell doubled": (swapped("a b c", "a b c a"), (f"notebook {FIRST}", "cell a more than once")),
    "cell unknown": (swapped("a b c", "a b c d"), (f"notebook {FIRST}", "cell d in the order, unknown")),
    "cells with commas": (swapped("a b c", '"a,b,c"'), ("cell a,b,c in the order, unknown", "no cell a")),
    "escape in an id": (lambda t: t + "\x1b[2J,a b c\n", ("x1b", "that the data does not hold")),
    "other header": (swapped("id,cell_order", "id,order"), ("id,order", "id,cell_order")),
    "no header": (swapped("id,cell_order\n", ""), ("header", "id,cell_order")),
    "empty": (lambda t: "", ("empty",)),
    "not UTF-8": (lambda t: t.encode() + b"\xe9\n", ("UTF-8", "line 10")),
    "all wrong": (lambda t: t.replace("a b c", "a b"), ("8 problems", "... and 3 more")),
}


@pytest.mark.parametrize("fault", SUBMISSION_FAULTS)
def test_bad_submission(official: Path, fault: str) -> None:
    change, words = SUBMISSION_FAULTS[fault]
    changed = change("id,cell_order\n" + "".join(f"{i},a b c\n" for i in IDS))
    file = official.parent / "s.csv"
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    for truth in (official, official / "train_orders.csv"):
        refused(lambda truth=truth: submission_ranks(file, truth), "s.csv", *words)  # type: ignore[misc]  # a default binds the loop's value
    refused(lambda: check_submission(file, load(official)), "s.csv", "expected:", "do:", *words)
    refused(lambda: check_submission(official.parent / "absent.csv", load(official)), "absent.csv")


def test_bad_truth(official: Path) -> None:
    submission, truth = official.parent / "s.csv", official.parent / "truth.csv"
    submission.write_text("id,cell_order\n" + "".join(f"{i},a b c\n" for i in IDS))
    truth.write_text(submission.read_text().replace(f"{FIRST},a b c", f"{FIRST},b a c"))
    refused(lambda: submission_ranks(submission, truth, official), "truth.csv", FIRST, "code cell b before a")
    truth.write_text(submission.read_text().replace(f"{FIRST},a b c\n", "1e5000,a b c\n"))
    refused(lambda: submission_ranks(submission, truth, official), "truth.csv", FIRST, "1e5000")
    for name in ("train_orders.csv", "train_ancestors.csv"):
        (official / name).unlink()
    refused(lambda: submission_ranks(submission, official), "no truth", "notebooks without orders")


# --- anything at all

edits = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["set", "insert", "delete", "cut"]), st.binary(max_size=4)), max_size=4
)


def mutated(raw: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for where, kind, new in changes:
        at = int(where * len(raw))
        if kind == "cut":
            raw = raw[:at]
        else:
            raw = raw[:at] + (b"" if kind == "delete" else new) + raw[at + (0 if kind == "insert" else len(new)) :]
    return raw


@given(edits, st.sampled_from(["a.json", "train_orders.csv", "train_ancestors.csv"]))
@example([(0.5, "set", b"\x00")], "a.json")
@example([(0.1, "insert", b'"')], "train_orders.csv")
@settings(max_examples=150, deadline=None)
def test_mutated_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, str, bytes]], name: str
) -> None:
    root = tmp_path_factory.mktemp("mutated")
    (root / "a.json").write_text(json.dumps(GOOD))
    (root / "train_orders.csv").write_text("id,cell_order\na,a c b\n")
    (root / "train_ancestors.csv").write_text("id,ancestor_id,parent_id\na,0,\n")
    (root / name).write_bytes(mutated((root / name).read_bytes(), changes))
    with contextlib.suppress(DataError):
        assert load(root).lengths.sum() > 0


@given(edits)
@settings(max_examples=150, deadline=None)
def test_mutated_zips_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("mutated") / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/a.json", json.dumps(GOOD))
        archive.writestr("train_orders.csv", "id,cell_order\na,a c b\n")
        archive.writestr("train_ancestors.csv", "id,ancestor_id,parent_id\na,0,\n")
    path.write_bytes(mutated(path.read_bytes(), changes))
    with contextlib.suppress(DataError):
        assert load(path).lengths.sum() > 0


def test_mutated_shards_are_read_or_refused(packed: Path) -> None:
    """Bytes of a shard turned at random: what is read is what was written, or nothing is."""
    shard = packed / "train" / "shard-00000.parquet"
    whole, good, rng = shard.read_bytes(), load(packed), random.Random(0)
    end_of_pages = len(whole) - 8 - struct.unpack("<i", whole[-8:-4])[0]
    refusals = 0
    for _ in range(200):
        at = rng.randrange(4, end_of_pages)
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            read = load(packed)
        except DataError:
            refusals += 1
        else:
            assert read.ids == good.ids
            assert read.sources.equals(good.sources)
            assert read.cell_ids.equals(good.cell_ids)
    assert refusals > 100
