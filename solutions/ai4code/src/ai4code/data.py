"""The notebooks of AI4Code: read the official layout with every check, and pack it once.

    notebooks = load("AI4Code.zip")                      # or a folder, or what `prepare` wrote
    prepare(Path("AI4Code.zip"), Path("packed"), workers=2)

The official layout, in a folder or a zip (what else lies there, such as sample_submission.csv, is left alone):

    train/<id>.json        {"cell_type": {cell: "code" | "markdown"}, "source": {cell: text}}; the code cells first, in
                           their true order, then the markdown cells, shuffled
    train_orders.csv       id,cell_order               all cells in their true order, separated by blanks
    train_ancestors.csv    id,ancestor_id,parent_id    one ancestor_id for all notebooks of a family of forks
    test/<id>.json         the same, with neither order nor ancestor

The json files may also lie bare in PATH itself. The split "auto" means train where train_orders.csv is there, else
test; without train_orders.csv all notebooks are test notebooks, whatever their folder is called.

The packed form is a folder with `manifest.json`, written last, and one Parquet file for every 2,000 notebooks, one row
a notebook: id, ancestor_id, parent_id, n_code, and the lists cell_id, source, true_rank. Any Parquet reader opens it.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kit_core.atomic import atomic_path, names_in, write_json
from kit_core.console import progress
from kit_core.errors import ConfigError, DataError, DiskFullError, KitError, Problems
from kit_io.source import Source
from kit_io.tables import read_csv

Split = Literal["train", "test"]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

FORMAT = "ai4code-prepared"
FORMAT_VERSION = 1
NOTEBOOKS_PER_SHARD = 2_000  # about 30 MB of text: large enough to compress well, small enough for many workers
PARALLEL_FROM = 3 * NOTEBOOKS_PER_SHARD  # below this, starting processes costs more than it saves
ORDER_COLUMNS = ("id", "cell_order")
ANCESTOR_COLUMNS = ("id", "ancestor_id", "parent_id")

_EXPECTED = (
    '<id>.json files of the form {"cell_type": {cell: "code" | "markdown"}, "source": {cell: text}}, code cells before '
    "markdown cells, and in train_orders.csv and train_ancestors.csv one row for each of them"
)
_REMEDY = "correct or remove these notebooks, in the csv files too, or download the archive again"

_COUNTS = ("notebooks", "cells", "code_cells", "text_bytes")  # of a split and of a shard, in manifest and footer
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("ancestor_id", pa.string()),
        pa.field("parent_id", pa.string()),
        pa.field("n_code", pa.int32(), nullable=False),
        pa.field("cell_id", pa.list_(pa.string()), nullable=False),
        pa.field("source", pa.list_(pa.large_string()), nullable=False),
        pa.field("true_rank", pa.list_(pa.int32())),
    ]
)


# ---------------------------------------------------------------------------------------------------------------------
# In memory


@dataclass(frozen=True, eq=False)
class Notebooks:
    """All notebooks of a split, their cells packed one after the other.

    ids        n notebook ids, sorted.
    ancestors  n ancestor ids (the groups that folds must keep whole), or None for a test set.
    offsets    int64[n + 1]: the cells of notebook i are offsets[i]:offsets[i + 1], the code cells in their true order
               first, then the markdown cells in json order, which says nothing.
    n_code     int64[n]: number of code cells.
    cell_ids   pyarrow StringArray[cells]; unique inside a notebook only.
    sources    pyarrow LargeStringArray[cells]: the text of every cell.
    true_rank  int64[cells]: true position, from 0, inside the notebook; None for a test set.
    """

    ids: list[str]
    ancestors: list[str] | None
    offsets: Int64
    n_code: Int64
    cell_ids: Any
    sources: Any
    true_rank: Int64 | None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> Int64:
        """Cells of every notebook, int64[n]."""
        return np.diff(self.offsets)

    @cached_property
    def n_markdown(self) -> Int64:
        """Markdown cells of every notebook, int64[n]."""
        return self.lengths - self.n_code

    @cached_property
    def is_markdown(self) -> Bool:
        """Type of every cell, bool[cells]."""
        position = np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.lengths)
        return position >= np.repeat(self.n_code, self.lengths)

    def cells(self, index: int) -> list[str]:
        """Cell ids of one notebook, code cells first."""
        start, stop = self.offsets[index : index + 2].tolist()
        return self.cell_ids[start:stop].to_pylist()

    def texts(self, index: int) -> list[str]:
        """Texts of one notebook, aligned with `cells`."""
        start, stop = self.offsets[index : index + 2].tolist()
        return self.sources[start:stop].to_pylist()

    def select(self, indices: Sequence[int] | Int64 | Bool) -> "Notebooks":
        """The notebooks at these indices (or under this mask), in the order given."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        lengths = self.lengths[chosen]
        offsets = offsets_of(lengths)
        cells = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        return Notebooks(
            ids=[self.ids[i] for i in chosen],
            ancestors=None if self.ancestors is None else [self.ancestors[i] for i in chosen],
            offsets=offsets,
            n_code=self.n_code[chosen],
            cell_ids=self.cell_ids.take(pa.array(cells)),
            sources=self.sources.take(pa.array(cells)),
            true_rank=None if self.true_rank is None else self.true_rank[cells],
        )


@dataclass(frozen=True)
class Notebook:
    """One checked notebook: code cells in their true order, then markdown cells in json order."""

    id: str
    cell_ids: list[str]
    sources: list[str]
    n_code: int
    true_rank: list[int] | None = None
    ancestor_id: str | None = None
    parent_id: str | None = None


def load(path: Path | str, split: Split | Literal["auto"] = "auto", *, workers: int | None = None) -> Notebooks:
    """Reads all notebooks of a split into memory, from the official layout or from a prepared folder.

    The official json files are read by `workers` processes (default: one for a small set, else one a core).

    Raises:
        DataError: anything in the layout, a file, or a prepared folder is not as it must be.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        return _load_prepared(path, manifest, split)
    plan = _Plan.of(_open(path), split)
    shards = plan.shards()
    if workers is None:
        workers = 1 if len(plan.ids) < PARALLEL_FROM else _cores()
    tables: deque[pa.Table] = deque()
    with plan.problems() as problems:
        done = _in_order(_shard_table, shards, workers)
        if len(shards) > 1:  # else it is over before a bar could move
            done = progress(done, total=len(shards), label=f"reading {plan.split} notebooks")
        for table, found in done:
            _add_all(problems, found)
            if not len(problems):
                tables.append(table)
    cells = sum(len(t["cell_id"].combine_chunks().flatten()) for t in tables)
    size = sum(_text_bytes(t) for t in tables)
    return _assemble(plan.split, _drained(tables), len(plan.ids), cells, size, str(path))


def load_split(
    path: Path | str, split: Split | Literal["auto"] = "auto", *, workers: int | None = None
) -> tuple[Notebooks, Split]:
    """Loads the notebooks to answer, and says which split they are; "auto" prefers test, the split of a submission."""
    splits = splits_in(path)
    chosen: Split = split if split != "auto" else ("test" if "test" in splits else "train")
    return load(path, chosen, workers=workers), chosen


def read_official(path: Path | str, split: Split | Literal["auto"] = "auto") -> Iterator[Notebook]:
    """Yields the notebooks of an official folder or zip one after the other, sorted by id, checked.

    Raises:
        DataError: at once when the csv files and the json files do not name the same notebooks; for faults inside json
            files after the last good notebook, with the count of all.
    """
    plan = _Plan.of(_open(path), split)
    with plan.problems() as problems:
        for shard in plan.shards():
            for notebook, found in shard.notebooks():
                _add_all(problems, found)
                if notebook is not None:
                    yield notebook


def splits_in(path: Path | str) -> tuple[Split, ...]:
    """The splits that a folder, zip or prepared folder holds, in the order train, test.

    Raises:
        DataError: it holds neither.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        return tuple(split for split in _SPLITS if split in manifest["splits"])
    return _Layout.of(_open(path)).splits


def fingerprint(path: Path | str) -> str:
    """Identity of the official data, the same whether it is read directly or from what `prepare` made of it."""
    manifest = _read_manifest(Path(path))
    return _open(path).fingerprint() if manifest is None else str(manifest["source_fingerprint"])


# ---------------------------------------------------------------------------------------------------------------------
# The official layout

_SPLITS: tuple[Split, ...] = ("train", "test")


def official_source(path: Path | str) -> Source | None:
    """The folder or zip at `path` for reading, or None where it is a prepared folder."""
    return None if _read_manifest(Path(path)) is not None else _open(path)


def _open(path: Path | str) -> Source:
    return Source.open_source(path, keep=_SPLITS)


@dataclass(frozen=True)
class _Layout:
    """Which members of a source are notebooks of which split."""

    source: Source
    train: dict[str, str]  # notebook id -> member
    test: dict[str, str]
    orders: bool  # train_orders.csv is there

    @staticmethod
    def of(source: Source) -> "_Layout":
        folders: dict[str, dict[str, str]] = {"train": {}, "test": {}, "": {}}
        for member in source.members(suffix=".json"):
            folder, _, name = member.rpartition("/")
            if folder in folders:
                folders[folder][name.removesuffix(".json")] = member
        orders = source.has("train_orders.csv")
        train, test, bare = folders["train"], folders["test"], folders[""]
        if not train and not test:  # bare files belong to whichever split this is
            train, test = (bare, {}) if orders else ({}, bare)
        elif not test and not orders:  # without orders, notebooks can only be predicted
            train, test = {}, train
        return _Layout(source, train, test, orders)

    @property
    def splits(self) -> tuple[Split, ...]:
        found: list[Split] = []
        if self.orders:
            found.append("train")
        if self.test:
            found.append("test")
        if not found:
            raise self._nothing("train/<id>.json, test/<id>.json or bare <id>.json files")
        return tuple(found)

    def notebooks(self, split: Split) -> dict[str, str]:
        members = self.train if split == "train" else self.test
        if not members:
            raise self._nothing(f"{split}/<id>.json files")
        return members

    def _nothing(self, expected: str) -> DataError:
        members = self.source.members()
        found = f"{len(members)} other files ({some(members)})" if members else "no files at all"
        return DataError(
            f"{self.source.name}: no notebooks\n  found: {found}\n  expected: {expected}\n"
            "  do: give the folder or zip of the competition as downloaded, or another split"
        )


@dataclass(frozen=True)
class _Plan:
    """What is to be read for one split: the notebooks, sorted, with the csv rows that belong to them."""

    source: Source
    split: Split
    ids: list[str]
    members: dict[str, str]
    orders: dict[str, str] | None
    ancestors: dict[str, tuple[str, str]] | None

    @staticmethod
    def of(source: Source, split: Split | Literal["auto"]) -> "_Plan":
        """Reads the csv files and holds their ids against the json files."""
        layout = _Layout.of(source)
        chosen: Split = layout.splits[0] if split == "auto" else split
        orders_csv = _csv(source, "train_orders.csv", ORDER_COLUMNS) if chosen == "train" else {}
        members = layout.notebooks(chosen)
        ids = sorted(members)
        orders: dict[str, str] | None = None
        ancestors: dict[str, tuple[str, str]] | None = None
        problems = Problems(source.name, _EXPECTED, _REMEDY)
        if chosen == "train":
            file = "train_orders.csv"
            orders = keyed(problems, file, orders_csv["id"], orders_csv["cell_order"])
            same_ids(problems, file, orders, members)
            file = "train_ancestors.csv"
            columns = _csv(source, file, ANCESTOR_COLUMNS)
            pairs = list(zip(columns["ancestor_id"], columns["parent_id"], strict=True))
            ancestors = keyed(problems, file, columns["id"], pairs)
            same_ids(problems, file, ancestors, members)
            for id_, (ancestor, _) in ancestors.items():
                if not ancestor.strip():
                    problems.add(f"{file}, notebook {id_}", "an empty ancestor_id")
        problems.raise_if_any()
        return _Plan(source, chosen, ids, members, orders, ancestors)

    def shards(self) -> list["_Shard"]:
        return [self._shard(start) for start in range(0, len(self.ids), NOTEBOOKS_PER_SHARD)]

    def _shard(self, start: int) -> "_Shard":
        ids = self.ids[start : start + NOTEBOOKS_PER_SHARD]
        return _Shard(
            source=self.source,
            ids=ids,
            members=[self.members[i] for i in ids],
            orders=None if self.orders is None else [self.orders[i] for i in ids],
            ancestors=None if self.ancestors is None else [self.ancestors[i] for i in ids],
        )

    @contextmanager
    def problems(self) -> Iterator[Problems]:
        problems = Problems(self.source.name, _EXPECTED, _REMEDY)
        yield problems
        problems.raise_if_any()


_Found = list[tuple[str, str]]  # (where, what was found)


@dataclass(frozen=True)
class _Shard:
    """Up to 2,000 notebooks, with all that a worker process needs to read and check them."""

    source: Source
    ids: list[str]
    members: list[str]
    orders: list[str] | None
    ancestors: list[tuple[str, str]] | None
    file: Path | None = None  # where to write it
    metadata: dict[str, str] = field(default_factory=dict)

    def notebooks(self) -> Iterator[tuple[Notebook | None, _Found]]:
        for row, (id_, member) in enumerate(zip(self.ids, self.members, strict=True)):
            try:
                cell_ids, sources, n_code = _parse(self.source.read(member))
            except DataError as error:
                yield None, [(f"notebook {id_} ({member})", _what(error))]
                continue
            true_rank = None
            if self.orders is not None:
                tokens = self.orders[row].split()
                found = order_faults(tokens, cell_ids, n_code)
                if found:
                    yield None, [(f"notebook {id_} (its order against {member})", text) for text in found]
                    continue
                position = {cell: rank for rank, cell in enumerate(tokens)}
                true_rank = [position[cell] for cell in cell_ids]
            ancestor, parent = (None, None) if self.ancestors is None else self.ancestors[row]
            yield Notebook(id_, cell_ids, sources, n_code, true_rank, ancestor, parent), []


def _parse(raw: bytes) -> tuple[list[str], list[str], int]:
    """One json file as (cell ids, texts, number of code cells); DataError holding what was found instead."""
    try:
        content = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise DataError(f"byte 0x{raw[error.start]:02x} at offset {error.start}, which is not UTF-8") from None
    except json.JSONDecodeError as error:
        text = "an empty file" if not raw.strip() else f"text that is not one whole json object ({error})"
        raise DataError(text) from None
    except (ValueError, RecursionError) as error:  # absurd numbers, absurd nesting
        raise DataError(f"json that cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"a json {_json_name(content)}, not an object")
    if content.keys() != {"cell_type", "source"}:
        raise DataError(f"the keys {some(content) or 'none'}, not cell_type and source")
    types, texts = content["cell_type"], content["source"]
    for key, value in content.items():
        if not isinstance(value, dict):
            raise DataError(f'a json {_json_name(value)} under "{key}", not an object')
    if not types:
        raise DataError("no cells")
    if types.keys() != texts.keys():
        only_type, only_text = types.keys() - texts.keys(), texts.keys() - types.keys()
        parts = [f"cell {some(sorted(only_type))} without a source"] if only_type else []
        parts += [f"cell {some(sorted(only_text))} without a cell_type"] if only_text else []
        raise DataError(", ".join(parts))
    cell_ids = list(types)
    joined = " ".join(cell_ids)
    if joined.split() != cell_ids or not joined.isprintable():
        bad = [f'"{shown(cell)}"' for cell in cell_ids if cell.split() != [cell] or not cell.isprintable()]
        raise DataError(f"cell id {some(bad)}, which no row of an order can hold")
    kinds = list(types.values())
    n_code = kinds.count("code")
    if kinds != ["code"] * n_code + ["markdown"] * (len(kinds) - n_code):
        for cell, kind in types.items():
            if kind != "code" and kind != "markdown":
                name = f'"{shown(kind)}"' if isinstance(kind, str) else f"json {_json_name(kind)}"
                raise DataError(f'cell {cell} of the type {name}, not "code" or "markdown"')
        late = next(cell for cell in cell_ids[n_code:] if types[cell] == "code")
        raise DataError(f"code cell {late} after a markdown cell")
    sources = [texts[cell] for cell in cell_ids]
    for cell, text in zip(cell_ids, sources, strict=True):
        if not isinstance(text, str):
            raise DataError(f"a json {_json_name(text)} as the source of cell {cell}, not a string")
    return cell_ids, sources, n_code


def _what(error: DataError) -> str:
    """What was found, for a list of problems, out of a message that `Source.read` made for one."""
    return str(error).partition(": found ")[2].partition("\n")[0] or str(error)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise DataError(f"the key {some(_repeated(key for key, _ in pairs))} more than once in an object")
    return content


def order_faults(order: Sequence[str], cell_ids: Sequence[str], n_code: int | None) -> list[str]:
    """What keeps `order` from being an order of these cells, one line for each kind of fault; empty when nothing does.

    With `n_code` given, the first `n_code` of `cell_ids` must also keep their order.
    """
    position = {cell: rank for rank, cell in enumerate(order)}
    faults = []
    if len(position) != len(order):
        faults.append(f"cell {some(_repeated(order))} more than once in the order")
    if position.keys() != set(cell_ids):
        missing = [cell for cell in cell_ids if cell not in position]
        unknown = sorted(position.keys() - set(cell_ids))
        faults += [f"no cell {some(missing)} in the order"] if missing else []
        faults += [f"cell {some(unknown)} in the order, unknown to the json"] if unknown else []
    if not faults and n_code:
        ranks = [position[cell] for cell in cell_ids[:n_code]]
        for i in range(1, n_code):
            if ranks[i] < ranks[i - 1]:
                return [f"code cell {cell_ids[i]} before {cell_ids[i - 1]} in the order, after it in the json"]
    return faults


def _csv(source: Source, file: str, columns: Sequence[str]) -> dict[str, list[str]]:
    if not source.has(file):
        raise DataError(
            f"{source.name}: no {file}\n  expected: {file} ({','.join(columns)}) beside the folder of the notebooks\n"
            '  do: take it from the archive of the competition; for notebooks without orders use the split "test"'
        )
    return read_csv(source, file, columns)


_T = TypeVar("_T")


def keyed(problems: Problems, file: str, ids: list[str], values: list[_T]) -> dict[str, _T]:
    """The rows by id; a doubled id is a problem, and so is an empty one."""
    rows: dict[str, _T] = {}
    for number, (id_, value) in enumerate(zip(ids, values, strict=True), start=1):
        if id_ in rows or not id_.strip():
            found = f"notebook {shown(id_)} a second time" if id_ in rows else "an empty id"
            problems.add(f"{file}, data row {number}", found)
        else:
            rows[id_] = value
    return rows


def same_ids(problems: Problems, file: str, rows: Mapping[str, object], members: Mapping[str, str]) -> None:
    for id_ in sorted(rows.keys() - members.keys()):
        problems.add(f"{file}, notebook {shown(id_)}", f"a row, but no {shown(id_)}.json")
    for id_ in sorted(members.keys() - rows.keys()):
        problems.add(f"{file}, notebook {id_}", f"no row, though {members[id_]} is there")


def _add_all(problems: Problems, found: _Found) -> None:
    for where, what in found:
        problems.add(where, what)


def _repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


def some(values: Iterable[object]) -> str:
    """The first three, and how many more."""
    listed = [shown(str(value)) for value in values]
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def shown(text: str) -> str:
    """Fit for a message: one line, not too long."""
    return (text if text.isprintable() else repr(text))[:60]


def _json_name(value: object) -> str:
    if value is None:
        return "null"
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names[type(value)]


# ---------------------------------------------------------------------------------------------------------------------
# The packed form


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did: counts a split, shards found finished from an earlier run, and the time."""

    out: Path
    splits: dict[str, dict[str, int]]  # split -> {"notebooks": n, "cells": n, "code_cells": n}
    shards: int
    shards_kept: int
    seconds: float


def prepare(data: Path, out: Path, *, workers: int) -> Prepared:
    """Checks every split of the official `data` and packs it into the folder `out`.

    Done by `workers` processes, each holding one shard of 2,000 notebooks. Stopped half-way, it goes on where it was:
    finished shards of the same data are kept. Finished, it is a look at the manifest and the shards' footers.

    Raises:
        ConfigError: `out` holds something else, or lies inside `data`, or `workers` is not positive.
        DataError: a file of the data is not as it must be. Then nothing is left in `out`.
    """
    started = time.monotonic()
    data, out = Path(data), Path(out)
    if workers < 1:
        raise ConfigError(f"workers: found {workers}, expected at least 1")
    if _read_manifest(data) is not None:
        raise ConfigError(f"{data}: this folder is already prepared; use it as it is")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(f"{out}: lies inside the data folder {data}; choose a folder outside it")
    _refuse_foreign(out)

    source = _open(data)
    identity = source.fingerprint()
    whole = _whole_manifest(out, identity)
    if whole is not None:
        kept = sum(len(entry["shards"]) for entry in whole["splits"].values())
        return Prepared(out, _counts(whole), kept, kept, time.monotonic() - started)
    plans = [_Plan.of(source, split) for split in _Layout.of(source).splits]
    shards: list[_Shard] = []
    for plan in plans:
        for number, shard in enumerate(plan.shards()):
            metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "source_fingerprint": identity}
            metadata |= {"split": plan.split, "shard": str(number), "notebooks": str(len(shard.ids))}
            file = out / plan.split / f"shard-{number:05d}.parquet"
            shards.append(replace(shard, file=file, metadata=metadata))
    finished = [_is_finished(shard) for shard in shards]
    (out / "manifest.json").unlink(missing_ok=True)  # from here until the end, the folder is not complete
    todo = [shard for shard, done in zip(shards, finished, strict=True) if not done]
    made = not out.exists()
    try:
        for plan in plans:
            (out / plan.split).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be made ({error.strerror}); choose another folder") from None
    try:
        with plans[0].problems() as problems:
            results = _in_order(_write_shard, todo, workers)
            for found in progress(results, total=len(todo), label="packing shards") if todo else ():
                _add_all(problems, found)
    except DiskFullError:  # with more room, the same command goes on from here
        raise
    except DataError:
        _clear(out, made)
        raise
    manifest = _manifest(source, identity, shards)
    _remove_others(out, shards)
    write_json(out / "manifest.json", manifest)
    return Prepared(out, _counts(manifest), len(shards), sum(finished), time.monotonic() - started)


def _whole_manifest(out: Path, identity: str) -> dict[str, Any] | None:
    """The manifest of `out` if all of it is there and was made of the data of this identity."""
    try:
        manifest = _read_manifest(out)
        if manifest is None or manifest["source_fingerprint"] != identity:
            return None
        for entry in manifest["splits"].values():
            _shard_files(out, entry)
    except DataError:  # broken off or damaged: `prepare` keeps the shards that are whole
        return None
    return manifest


def _counts(manifest: dict[str, Any]) -> dict[str, dict[str, int]]:
    keys = ("notebooks", "cells", "code_cells")
    return {split: {key: entry[key] for key in keys} for split, entry in manifest["splits"].items()}


def _manifest(source: Source, identity: str, shards: list[_Shard]) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for shard in shards:
        assert shard.file is not None
        footer = _footer(shard.file)
        entry = splits.setdefault(shard.metadata["split"], {**dict.fromkeys(_COUNTS, 0), "shards": []})
        row = {key: int(footer[key]) for key in _COUNTS}
        entry["shards"].append({"file": f"{shard.file.parent.name}/{shard.file.name}", **row})
        for key in _COUNTS:
            entry[key] += row[key]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "source": source.name,
        "source_fingerprint": identity,
        "splits": splits,
    }


def _shard_table(shard: _Shard) -> tuple[Any, _Found]:
    """Reads and checks one shard: (table of `_SCHEMA`, what is wrong)."""
    rows: list[Notebook] = []
    problems: _Found = []
    for notebook, found in shard.notebooks():
        problems += found
        if notebook is not None and not problems:
            rows.append(notebook)
    if problems:
        return None, problems
    offsets = pa.array(offsets_of(np.array([len(row.cell_ids) for row in rows], np.int64)), pa.int32())
    texts = [text for row in rows for text in row.sources]
    try:
        sources = pa.array(texts, pa.large_string())
    except UnicodeEncodeError:  # half of a surrogate pair, as broken emoji leave it: no UTF-8 can hold it
        sources = pa.array([t.encode("utf-8", "replace").decode() for t in texts], pa.large_string())
    ranks = [rank for row in rows if row.true_rank is not None for rank in row.true_rank]
    columns = [
        pa.array([row.id for row in rows], pa.string()),
        pa.array([row.ancestor_id for row in rows], pa.string()),
        pa.array([row.parent_id for row in rows], pa.string()),
        pa.array([row.n_code for row in rows], pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.array([cell for row in rows for cell in row.cell_ids], pa.string())),
        pa.ListArray.from_arrays(offsets, sources),
        pa.nulls(len(rows), pa.list_(pa.int32()))
        if shard.orders is None
        else pa.ListArray.from_arrays(offsets, pa.array(ranks, pa.int32())),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA), []


def _write_shard(shard: _Shard) -> _Found:
    assert shard.file is not None
    table, problems = _shard_table(shard)
    if problems:
        return problems
    counts = {
        "cells": str(len(table["cell_id"].combine_chunks().flatten())),
        "code_cells": str(int(np.sum(table["n_code"].to_numpy()))),
        "text_bytes": str(_text_bytes(table)),
    }
    table = table.replace_schema_metadata({"ai4code": json.dumps(shard.metadata | counts)})
    with atomic_path(shard.file) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    pa.default_memory_pool().release_unused()  # or the next shard's memory comes on top
    return []


def _footer(file: Path) -> dict[str, str]:
    """The description inside a shard; DataError when the file is not a whole shard."""
    try:
        raw = pq.read_schema(file).metadata[b"ai4code"]
        footer: dict[str, str] = json.loads(raw)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from None
    return footer


def _is_finished(shard: _Shard) -> bool:
    assert shard.file is not None
    if not shard.file.is_file():
        return False
    try:
        return shard.metadata.items() <= _footer(shard.file).items()
    except DataError:
        return False


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, None for anything else; DataError for a prepared folder that is of no use."""
    if not path.is_dir():
        return None
    file = path / "manifest.json"
    if not file.is_file():
        if any(path.glob("t*/shard-*.parquet")):
            raise DataError(
                f"{path}: an unfinished prepared folder\n  found: shards without manifest.json\n"
                "  expected: manifest.json, which is written last\n  do: run prepare again; it goes on where it stopped"
            )
        return None
    try:
        manifest = json.loads(file.read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            return None  # somebody else's manifest
        version = manifest["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"{file}: found format_version {version}, expected {FORMAT_VERSION}\n"
                "  do: prepare the official data again with this version of the program"
            )
        str(manifest["source_fingerprint"])
        for split, entry in manifest["splits"].items():
            if split not in _SPLITS or any(entry[k] != sum(s[k] for s in entry["shards"]) for k in _COUNTS):
                raise ValueError(f"counts of the split {split} that do not add up")
            if any(Path(s["file"]).parent != Path(split) for s in entry["shards"]):
                raise ValueError(f"a shard of the split {split} outside its folder")
    except UnicodeDecodeError:
        return None
    except json.JSONDecodeError as error:
        if any(path.glob("t*/shard-*.parquet")):
            raise _damaged(file, str(error)) from None
        return None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from None
    return manifest


def _load_prepared(path: Path, manifest: dict[str, Any], split: Split | Literal["auto"]) -> Notebooks:
    splits: dict[str, Any] = manifest["splits"]
    if split == "auto":
        split = "train" if "train" in splits else "test"
    if split not in splits:
        raise DataError(
            f"{path}: no {split} notebooks\n  found: {', '.join(splits)}\n  expected: {split}\n"
            f"  do: prepare data that holds {split}/<id>.json, or ask for another split"
        )
    entry = splits[split]
    tables = map(_read_shard, _shard_files(path, entry))
    return _assemble(split, tables, entry["notebooks"], entry["cells"], entry["text_bytes"], str(path))


def _shard_files(path: Path, entry: dict[str, Any]) -> list[Path]:
    """The files of a split; DataError unless all are there and hold as much as the manifest says."""
    files = []
    for shard in entry["shards"]:
        file = path / shard["file"]
        if not file.is_file():
            raise _damaged(file, "no such file, though manifest.json names it")
        footer = _footer(file)
        for key in _COUNTS:
            if footer.get(key) != str(shard[key]):
                raise _damaged(file, f"{footer.get(key)} {key}, where manifest.json has {shard[key]}")
        files.append(file)
    return files


def _read_shard(file: Path) -> Any:
    try:
        table = pq.read_table(file, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, str(error)) from None
    if not table.schema.equals(_SCHEMA):
        raise _damaged(file, f"the columns {some(table.schema.names)}")
    return table


def _damaged(file: Path, found: str) -> DataError:
    return DataError(
        f"{file}: damaged\n  found: {found}\n  expected: what prepare wrote\n"
        "  do: remove the prepared folder and prepare the official data again"
    )


def _assemble(split: Split, tables: Iterator[Any], notebooks: int, cells: int, text_bytes: int, name: str) -> Notebooks:
    """One `Notebooks` from shard tables, copied one by one into arrays of the final size: no text is held twice."""
    ids: list[str] = []
    ancestors: list[str] = []
    lengths, n_code = np.zeros(notebooks, np.int64), np.zeros(notebooks, np.int64)
    ends, text = np.zeros(cells + 1, np.int64), np.empty(text_bytes, np.uint8)
    true_rank = np.zeros(cells, np.int64) if split == "train" else None
    cell_ids: list[Any] = []
    cell, byte = 0, 0
    for table in tables:
        first = len(ids)
        ids += table["id"].to_pylist()
        if split == "train":
            ancestors += table["ancestor_id"].to_pylist()
        column = table["cell_id"].combine_chunks()
        values = table["source"].combine_chunks().flatten()
        stop = cell + len(values)
        begin, data = _large_string_parts(values)
        if stop > cells or byte + len(data) > text_bytes or len(ids) > notebooks:
            raise _damaged(Path(name), "more cells or text in the shards than in manifest.json")
        lengths[first : len(ids)] = column.value_lengths().to_numpy(zero_copy_only=False)
        n_code[first : len(ids)] = table["n_code"].to_numpy()
        cell_ids.append(column.flatten())
        ends[cell + 1 : stop + 1] = begin[1:] - begin[0] + byte
        text[byte : byte + len(data)] = data
        if true_rank is not None:
            ranks = table["true_rank"].combine_chunks().flatten()
            if len(ranks) != len(values) or table["ancestor_id"].null_count:
                raise _damaged(Path(name), "train notebooks without an order or an ancestor")
            true_rank[cell:stop] = ranks.to_numpy(zero_copy_only=False)
        cell, byte = stop, byte + len(data)
    if (len(ids), cell, byte) != (notebooks, cells, text_bytes) or lengths.sum() != cells or np.any(n_code > lengths):
        raise _damaged(Path(name), f"{len(ids)} notebooks and {cell} cells, not {notebooks} and {cells}")
    return Notebooks(
        ids=ids,
        ancestors=ancestors if split == "train" else None,
        offsets=offsets_of(lengths),
        n_code=n_code,
        cell_ids=pa.concat_arrays(cell_ids) if cell_ids else pa.array([], pa.string()),
        sources=pa.LargeStringArray.from_buffers(cells, pa.py_buffer(ends), pa.py_buffer(text)),
        true_rank=true_rank,
    )


def _large_string_parts(values: Any) -> tuple[Int64, npt.NDArray[np.uint8]]:
    """Offsets int64[n + 1] and the bytes that they span, of a LargeStringArray that may be a slice."""
    _, offsets, data = values.buffers()
    if offsets is None or offsets.size == 0:
        return np.zeros(len(values) + 1, np.int64), np.empty(0, np.uint8)
    begin = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    content = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[begin[0] : begin[-1]]
    return begin, content


def _text_bytes(table: Any) -> int:
    return len(_large_string_parts(table["source"].combine_chunks().flatten())[1])


def offsets_of(lengths: Int64) -> Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _refuse_foreign(out: Path) -> None:
    """ConfigError unless `out` is absent, empty, or holds nothing but what `prepare` writes."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose a folder")
    foreign = [name for name in names_in(out) if name not in {"manifest.json", *_SPLITS}]
    for split in _SPLITS:
        if (out / split).is_dir():
            foreign += [f"{split}/{name}" for name in names_in(out / split) if not name.startswith((".", "shard-"))]
    if foreign:
        raise ConfigError(f"{out}: holds other files ({some(foreign)}); choose an empty or a new folder")


def _clear(out: Path, made: bool) -> None:
    """Removes what `prepare` wrote, and the folder too if it was `made` for this."""
    for split in _SPLITS:
        shutil.rmtree(out / split, ignore_errors=True)
    (out / "manifest.json").unlink(missing_ok=True)
    if made:
        out.rmdir()


def _remove_others(out: Path, shards: list[_Shard]) -> None:
    """Removes what an earlier, larger or broken-off run left."""
    ours = {shard.file for shard in shards}
    for split in _SPLITS:
        for file in (out / split).glob("*"):
            if file not in ours:
                file.unlink()


# ---------------------------------------------------------------------------------------------------------------------
# Processes

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_order(function: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int) -> Iterator[_Result]:
    """`map` over processes, at most two tasks a worker under way, so that memory does not grow with their number.

    Processes are spawned: a fork of a process in which torch or Arrow has started threads may hang.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    waiting: deque[Future[_Result]] = deque()
    try:
        for task in tasks:
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
            waiting.append(executor.submit(function, task))
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise KitError(
            f"a worker process ended abruptly ({error}); the machine may be out of memory.\n"
            "  do: run the command again (finished parts are kept), with fewer workers"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends the worker with it: orphans of a killed parent would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _drained(tables: deque[Any]) -> Iterator[Any]:
    while tables:
        yield tables.popleft()
