"""The tracks of Yandex Cup 2023: read the official layout with every check, and pack it once.

    tracks = load("yandex-cup", "train")                 # a folder or archive, or what `prepare` wrote
    prepare(Path("yandex-cup"), Path("packed"))

The official layout (what else lies there, such as sample_submission.csv, is left alone):

    train.csv                 track,tags     49734,"5,6,9,26,32,55,96": the tags of a track, numbered from 0
    test.csv                  track          the tracks to answer, in the order of the submission
    track_embeddings/<id>.npy float32 or float16 [T, D], one row for each fragment of the track; D is 768
    tag_names.txt             optional: line k names tag k
    groups.csv                optional: track,group for every track of train.csv; folds keep a group whole

The csv files and the embeddings may lie in a folder or a zip; the embeddings also in `track_embeddings.tar.gz` or .tar
beside the csv files, with or without a folder inside, read in one pass; the csv files also in `data.tar.gz`.

The packed form is a folder: `embeddings` (a `kit_io.ragged` pack of all tracks), `ids.npy` (the track of each item),
the csv files as they were, and `manifest.json`, written last.
"""

import atexit
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from kit_core.atomic import atomic_path, write_bytes, write_json
from kit_core.console import progress, say
from kit_core.errors import ConfigError, DataError, DiskFullError, Problems
from kit_io.ragged import WRITER, Dtype, RaggedPack, RaggedWriter, is_finished
from kit_io.source import JSON_ERRORS, NPY_ERRORS, Source, shown
from kit_io.tables import read_csv
from kit_io.tar import is_tar, read_tar
from yandex_tagging.groups import read_groups

Split = Literal["train", "test"]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

FORMAT = "yandex-tagging-prepared"
FORMAT_VERSION = 1
COLUMNS: dict[Split, tuple[str, ...]] = {"train": ("track", "tags"), "test": ("track",)}
EMBEDDINGS = "track_embeddings"
ARCHIVES = tuple(EMBEDDINGS + suffix for suffix in (".tar.gz", ".tgz", ".tar"))
TABLES_ARCHIVE = "data.tar.gz"
TAG_NAMES, GROUPS = "tag_names.txt", "groups.csv"
TABLE_FILES = ("train.csv", "test.csv", TAG_NAMES, GROUPS)
MOST_TAGS = 256  # of the competition; only a file of names allows others
LONGEST_FRAMES = 10_000  # a sanity limit: the longest official track has 404
FLOAT16_LIMIT = 65_520  # what rounds to infinity
LARGE = 5_000  # tracks, from which packing takes long enough for a remark
AHEAD = 4  # tracks for each thread that are read before they are needed

_EXPECTED = "for each row of the csv files one <id>.npy, float32 or float16 [T, D], with one D and finite values"
_REMEDY = "correct or remove these tracks, in the csv files too, or download the embeddings again"
_EXPECTED_TABLE = {
    "train": 'rows such as 49734,"5,6,9": a track by its number, each once, and its tags as whole numbers from 0',
    "test": "one track a row, by its number, each once",
}


# ---------------------------------------------------------------------------------------------------------------------
# In memory


@dataclass(frozen=True, eq=False)
class Tracks:
    """The tracks of one split, in the order of its csv file.

    ids        the n track numbers.
    pack       embeddings of these tracks, and of others: track i is item rows[i].
    rows       int64[n].
    tags       bool[n, n_tags], or None for a test set.
    n_tags     number of tags of the data; 0 where there are neither training rows nor names to tell it.
    tag_names  a name for each tag, or None.
    groups     int64[n], equal for tracks that belong together; None without groups.csv, and for a test set.
    fingerprint  tells this version of the data from another.
    """

    split: Split
    ids: list[int]
    pack: RaggedPack
    rows: Int64
    tags: Bool | None
    n_tags: int
    tag_names: tuple[str, ...] | None
    groups: Int64 | None
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> Int64:
        """Frames of every track, int64[n]."""
        return self.pack.lengths[self.rows]


def load(path: Path | str, split: Split = "train") -> Tracks:
    """Opens the tracks of a split: at once from a prepared folder; from the official layout after packing all of it.

    Packed for the moment, the data lies in a temporary folder until the program ends, as float16.

    Raises:
        DataError: anything in the layout, a file, or a prepared folder is not as it must be.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is None:
        layout = _Layout.of(path)
        layout.require(split)
        path = _packed_for_now(layout)
        manifest = _read_manifest(path)
        assert manifest is not None, "just written"
    return _load_prepared(path, manifest, split)


def splits_in(path: Path | str) -> tuple[Split, ...]:
    """The splits that a folder, archive or prepared folder holds, in the order train, test.

    Raises:
        DataError: it holds neither.
    """
    manifest = _read_manifest(Path(path))
    if manifest is not None:
        return tuple(split for split in get_args(Split) if split in manifest["splits"])
    return _Layout.of(Path(path)).splits


def read_wanted(path: Path | str, split: Split) -> tuple[list[int], int]:
    """Returns the tracks of a split, in the order of its csv file, and the number of tags, 0 where nothing tells it.

    Looks at no embeddings.

    Raises:
        DataError: there is no such split, or a csv file is not as it must be.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        if split not in manifest["splits"]:
            raise _no_split(str(path), split, manifest["splits"])
        n_tags = int(manifest["n_tags"])
        return _read_table(split, path / f"{split}.csv", None, n_tags or None).ids, n_tags
    layout = _Layout.of(path)
    layout.require(split)
    tables = layout.read()
    return tables[split].ids, layout.count_tags(tables)


def fingerprint(path: Path | str) -> str:
    """Identity of the official data, the same whether it is read directly or from what `prepare` made of it."""
    manifest = _read_manifest(Path(path))
    return _Layout.of(Path(path)).fingerprint if manifest is None else str(manifest["source_fingerprint"])


# ---------------------------------------------------------------------------------------------------------------------
# The csv files


class _Table(NamedTuple):
    ids: list[int]
    tags: list[Int64] | None  # of each track, rising, each once


def read_truth(path: Path, n_tags: int | None = None) -> tuple[list[int], Bool]:
    """Reads a csv `track,tags` as (ids, bool[n, tags]); `n_tags` None: as many tags as the largest says.

    Raises:
        DataError: the file is not as train.csv must be, or has a tag from `n_tags` up.
    """
    table = _read_table("train", path, None, n_tags)
    assert table.tags is not None
    return table.ids, _tag_matrix(table.tags, _n_tags(table) if n_tags is None else n_tags)


def _read_table(split: Split, source: Source | Path, member: str | None, most_tags: int | None) -> _Table:
    """Reads train.csv or test.csv; `most_tags`: tags must be below."""
    columns = read_csv(source, member, COLUMNS[split])
    name = str(source) if isinstance(source, Path) else f"{source.name}: {member}"
    problems = Problems(name, _EXPECTED_TABLE[split], "repair these rows, or take the file from the official archive")
    ids: list[int] = []
    seen: set[int] = set()
    for line, text in enumerate(columns["track"], start=2):
        track = track_number(text)
        if track is None:
            problems.add(f"line {line}", f"track {shown(text) or 'without a number'}")
        elif track in seen:
            problems.add(f"line {line}", f"track {track} a second time")
        else:
            seen.add(track)
            ids.append(track)
    tags = None
    if split == "train":
        tags, repeated = [], 0
        limit = MOST_TAGS if most_tags is None else most_tags
        for line, text in enumerate(columns["tags"], start=2):
            parts = text.split(",")
            if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
                bad = next(part for part in parts if not (part.isascii() and part.isdigit() and len(part) < 10))
                problems.add(f"line {line}", f"the tag {shown(bad)!r}" if text else "no tags")
                continue
            numbers = np.unique(np.array(parts, dtype=np.int64))
            repeated += len(numbers) < len(parts)
            if numbers[-1] >= limit:
                problems.add(f"line {line}", f"tag {numbers[-1]}, above the {limit} tags that there are")
            tags.append(numbers)
        if repeated:
            say(f"{name}: {repeated} row{'' if repeated == 1 else 's'} with a tag that comes twice; it counts once")
    problems.raise_if_any()
    if not ids:
        raise DataError(f"{name}: no tracks\n  expected: {_EXPECTED_TABLE[split]}\n  do: take the official file")
    return _Table(ids, tags)


def track_number(text: str) -> int | None:
    """A track number as the organisers write it: digits alone, no zeros in front."""
    if not (text.isascii() and text.isdigit()) or len(text) > 15 or (text[0] == "0" and text != "0"):
        return None
    return int(text)


def _n_tags(table: _Table) -> int:
    return 0 if table.tags is None else 1 + max(int(numbers[-1]) for numbers in table.tags)


def _tag_matrix(tags: list[Int64], n_tags: int) -> Bool:
    matrix = np.zeros((len(tags), n_tags), dtype=np.bool_)
    matrix[np.repeat(np.arange(len(tags)), [len(numbers) for numbers in tags]), np.concatenate(tags)] = True
    return matrix


def read_tag_names(content: bytes, name: str) -> tuple[str, ...]:
    """Names of tags, one a line, from the bytes of a file called `name` in messages.

    Raises:
        DataError: no UTF-8, or a line without a name.
    """
    try:
        lines = tuple(line.strip() for line in content.decode("utf-8-sig").rstrip().splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: found bytes that are no UTF-8 at {error.start}; save the file as UTF-8") from None
    if not lines or not all(lines):
        raise DataError(f"{name}: found an empty line; expected line k to name tag k, from 0")
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# The official layout


class _Item(NamedTuple):
    """The embeddings of one track: its number, where it lies, and how to get its bytes."""

    track: int
    member: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class _Embeddings:
    """Where the npy files are: in a source (`names`: member of each track), or in a tar that is read in its order."""

    source: Source | None
    names: dict[int, str]
    strays: list[str]
    doubled: list[str]
    tar: Path | None

    def items(self, tracks: Sequence[int], skip: int, found: "_Found") -> Iterator[_Item]:
        """Yields those of `tracks`, without the first `skip`; the order is the same at every call."""
        if self.tar is None:
            source = self.source
            assert source is not None
            found.strays += self.strays
            found.doubled += self.doubled
            found.unlisted = len(self.names.keys() - set(tracks))
            found.tracks += [track for track in tracks if track in self.names]
            for track in found.tracks[skip:]:
                member = self.names[track]
                yield _Item(track, member, lambda member=member: source.read(member))  # type: ignore[misc]  # a default binds the loop's value
            return
        wanted, seen = set(tracks), set[int]()

        def choose(member: str) -> bool:
            track = _track_of(member)
            if track is None:
                found.strays.append(member)
            elif track not in wanted:
                found.unlisted += 1
            elif track in seen:
                found.doubled.append(member)
            else:
                seen.add(track)
                found.tracks.append(track)
                return len(found.tracks) > skip
            return False

        for member, content in read_tar(self.tar, choose):
            yield _Item(found.tracks[-1], member, lambda content=content: content)  # type: ignore[misc]  # as above


@dataclass
class _Found:
    """What a pass over the embeddings met: tracks in order, names that are no tracks, tracks twice or without a row."""

    tracks: list[int] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unlisted: int = 0


def _track_of(member: str) -> int | None:
    base = member.rpartition("/")[2]
    return track_number(base.removesuffix(".npy")) if base.endswith(".npy") else None


@dataclass(frozen=True)
class _Layout:
    """The official data at one place: its csv files and its embeddings."""

    name: str
    tables: dict[str, tuple[Source | Path, str | None]]  # file -> as `read_csv` takes it
    embeddings: _Embeddings
    fingerprint: str

    @staticmethod
    def of(path: Path) -> "_Layout":
        """Looks what is there.

        Raises:
            DataError: neither train.csv nor test.csv.
        """
        if path.is_file() and is_tar(path):
            folder = path.parent
            tables: dict[str, tuple[Source | Path, str | None]] = {
                file: (folder / file, None) for file in TABLE_FILES if (folder / file).is_file()
            }
            others = [file.name for file in folder.iterdir() if file.suffix == ".tsv"]
            tar = path if path.name != TABLES_ARCHIVE else _first([folder / archive for archive in ARCHIVES])
            return _Layout._checked(path, tables, others, _Embeddings(None, {}, [], [], tar), folder / TABLES_ARCHIVE)
        source = Source.open_source(path, keep=(EMBEDDINGS,))
        members = source.members()
        top = (
            "data/"
            if "train.csv" not in members and any(m in members for m in ("data/train.csv", "data/test.csv"))
            else ""
        )
        tables = {file: (source, top + file) for file in TABLE_FILES if top + file in members}
        others = [member for member in members if member.endswith(".tsv")]
        tar = None if path.is_file() else _first([path / (top + archive) for archive in ARCHIVES])
        folders = [f"{prefix}{EMBEDDINGS}/" for prefix in dict.fromkeys([top, ""])]
        inside = [member for member in members if member.startswith(tuple(folders))]
        bare = [member for member in members if "/" not in member and _track_of(member) is not None]
        chosen = inside or bare
        names: dict[int, str] = {}
        strays, doubled = [], []
        for member in chosen:
            track = _track_of(member)
            if track is None:
                strays.append(member)
            elif track in names:
                doubled.append(member)
            else:
                names[track] = member
        if names and tar is not None:
            say(f"{path}: reads the {len(names)} files in place of {tar.name}; remove them to read the archive")
            tar = None
        embeddings = _Embeddings(source, names, strays, doubled, tar)
        return _Layout._checked(path, tables, others, embeddings, path / (top + TABLES_ARCHIVE))

    @staticmethod
    def _checked(
        path: Path,
        tables: dict[str, tuple[Source | Path, str | None]],
        others: list[str],
        embeddings: _Embeddings,
        tables_archive: Path,
    ) -> "_Layout":
        if not tables.keys() & {"train.csv", "test.csv"} and tables_archive.is_file():
            tables |= _unpack_tables(tables_archive)
        for split in ("train", "test"):
            wrong = [other for other in others if other.rpartition("/")[2] == f"{split}.tsv"]
            if wrong and f"{split}.csv" not in tables:
                raise DataError(
                    f"{path}: 1 problem\n  {split}.csv: found {wrong[0]} in its place\n"
                    f"  expected: {split}.csv with the header {','.join(COLUMNS[split])}\n"
                    f"  do: rename {split}.tsv; its columns must be separated by commas"
                )
        if not tables.keys() & {"train.csv", "test.csv"}:
            raise DataError(
                f"{path}: found neither train.csv nor test.csv\n"
                f"  expected: train.csv, test.csv and {EMBEDDINGS}/<id>.npy or {ARCHIVES[0]}\n"
                "  do: name the folder or archive of the competition's data"
            )
        digest = hashlib.sha256()
        for file in sorted(tables):
            digest.update(f"{file}\0".encode() + hashlib.sha256(_content(tables[file])).digest())
        if embeddings.tar is not None:
            status = embeddings.tar.stat()
            digest.update(f"{status.st_size}\0{status.st_mtime_ns}".encode())
        elif embeddings.source is not None:
            digest.update(embeddings.source.fingerprint().encode())
        return _Layout(str(path), tables, embeddings, digest.hexdigest())

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in get_args(Split) if f"{split}.csv" in self.tables)

    def require(self, split: Split) -> None:
        if split not in self.splits:
            raise _no_split(self.name, split, self.splits)

    def require_embeddings(self) -> None:
        if not self.embeddings.names and self.embeddings.tar is None:
            raise DataError(
                f"{self.name}: found no embeddings\n"
                f"  expected: {EMBEDDINGS}/<id>.npy, or {ARCHIVES[0]} beside the csv files\n"
                "  do: put the embeddings there, unpacked or as downloaded"
            )

    def read(self) -> dict[Split, _Table]:
        """Reads the csv files, which must not share a track.

        Raises:
            DataError: a file is not as it must be.
        """
        names = self.tag_names()
        found = {
            split: _read_table(split, *self.tables[f"{split}.csv"], None if names is None else len(names))
            for split in self.splits
        }
        if len(found) == 2:
            problems = Problems(self.name, "tracks either in train.csv or in test.csv", "take both from one archive")
            for track in sorted(set(found["train"].ids) & set(found["test"].ids)):
                problems.add(f"track {track}", "a row in both")
            problems.raise_if_any()
        return found

    def count_tags(self, tables: dict[Split, _Table]) -> int:
        names = self.tag_names()
        return len(names) if names is not None else max(_n_tags(table) for table in tables.values())

    def tag_names(self) -> tuple[str, ...] | None:
        if TAG_NAMES not in self.tables:
            return None
        return read_tag_names(_content(self.tables[TAG_NAMES]), f"{self.name}: {TAG_NAMES}")


def _first(paths: list[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _content(place: tuple[Source | Path, str | None]) -> bytes:
    source, member = place
    if isinstance(source, Source):
        assert member is not None
        return source.read(member)
    return source.read_bytes()


def _unpack_tables(archive: Path) -> dict[str, tuple[Source | Path, str | None]]:
    """The csv files out of data.tar.gz, in a temporary folder."""
    folder = _temporary_folder()
    tables: dict[str, tuple[Source | Path, str | None]] = {}
    for member, content in read_tar(archive, lambda member: member.rpartition("/")[2] in TABLE_FILES):
        file = folder / member.rpartition("/")[2]
        file.write_bytes(content)
        tables[file.name] = (file, None)
    return tables


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="yandex-tagging-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _no_split(name: str, split: Split, splits: Iterable[str]) -> DataError:
    return DataError(
        f"{name}: no {split}.csv\n  found: {', '.join(f'{there}.csv' for there in splits)}\n"
        f"  expected: {split}.csv with the header {','.join(COLUMNS[split])}\n"
        f"  do: put {split}.csv beside the others, or ask for another split"
    )


# ---------------------------------------------------------------------------------------------------------------------
# One npy file


class _BadFileError(Exception):
    """What is wrong with one file."""


def _decode(content: bytes) -> npt.NDArray[Any]:
    """The frames of a track out of the bytes of its npy file, nothing unpickled."""
    if not content:
        raise _BadFileError("no bytes at all")
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise _BadFileError(f"a .npy file of version {version[0]}.{version[1]}")
        shape, fortran, dtype = readers[version](stream)
    except NPY_ERRORS as error:
        text = str(error).partition("\n")[0]
        raise _BadFileError(f"a damaged or truncated .npy header ({shown(text)})") from None
    if dtype.hasobject:
        raise _BadFileError("dtype object (pickled Python objects)")
    if dtype not in (np.dtype(np.float32), np.dtype(np.float16)) and dtype.newbyteorder() not in (
        np.dtype(np.float32),
        np.dtype(np.float16),
    ):
        raise _BadFileError(f"dtype {dtype}")
    if len(shape) != 2:
        raise _BadFileError(f"an array of {len(shape)} dimension{'' if len(shape) == 1 else 's'}, shape {shape}")
    announced, there = shape[0] * shape[1] * dtype.itemsize, len(content) - stream.tell()
    if there != announced:
        kind = "a truncated file" if there < announced else "more than one array"
        raise _BadFileError(f"{there:,} bytes of values where the header announces {announced:,} ({kind})")
    if not 1 <= shape[0] <= LONGEST_FRAMES:
        raise _BadFileError(f"{shape[0]:,} frames (T)")
    if shape[1] < 1:
        raise _BadFileError("no dimensions (D = 0)")
    array = np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    finite = np.isfinite(array)
    if not finite.all():
        frame, column = np.argwhere(~finite)[0]
        raise _BadFileError(f"{array[frame, column]} in frame {frame}, dimension {column}")
    return array


# ---------------------------------------------------------------------------------------------------------------------
# The packed form


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did; `kept`: tracks that an earlier, stopped run had packed already."""

    out: Path
    tracks: dict[str, int]
    n_tags: int
    dim: int
    frames: int
    dtype: str
    max_abs_error: float
    kept: int
    seconds: float


def prepare(data: Path, out: Path, *, dtype: Dtype = "float16", workers: int | None = None) -> Prepared:
    """Checks the official `data` and packs it into the folder `out`, in one pass and flat memory.

    `workers` threads read and check (default: one a core); the pack is written in the order of the archive, or of the
    csv files. Stopped half-way (killed, disk full), it goes on where it was; finished, it is a look at the manifest.

    Raises:
        ConfigError: `out` holds something else or other data, or lies inside `data`.
        DataError: a file of the data is not as it must be, and then nothing is left in `out`; or the disk is full, and
            then what is packed stays for the next call.
    """
    started = time.monotonic()
    data, out = Path(data), Path(out)
    if _read_manifest(data) is not None:
        raise ConfigError(f"{data}: this folder is already prepared; use it as it is")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(f"{out}: lies inside the data folder {data}; choose a folder outside it")
    layout = _Layout.of(data)
    kept = _prepare(layout, out, dtype, workers)
    manifest = _read_manifest(out)
    assert manifest is not None, "just written"
    counts = {split: entry["tracks"] for split, entry in manifest["splits"].items()}
    seen = {key: manifest[key] for key in ("n_tags", "dim", "frames", "dtype", "max_abs_error")}
    return Prepared(out, counts, **seen, kept=kept, seconds=time.monotonic() - started)


def _prepare(layout: _Layout, out: Path, dtype: Dtype, workers: int | None) -> int:
    """Packs into `out`, and returns how many tracks were packed already."""
    state = {"fingerprint": layout.fingerprint, "dtype": dtype}
    _refuse_foreign(out)
    try:
        return _prepare_checked(layout, out, state, dtype, workers)
    except OSError as error:  # of the place of the pack: what reads the data raises DataError
        raise _disk_full(out, error) from error


def _prepare_checked(layout: _Layout, out: Path, state: dict[str, str], dtype: Dtype, workers: int | None) -> int:
    manifest = _read_manifest(out) if (out / "manifest.json").exists() else None
    if manifest is not None:
        if {"fingerprint": manifest["source_fingerprint"], "dtype": manifest["dtype"]} != state:
            raise ConfigError(
                f"{out}: holds other data, or the same with another dtype; remove it or name another place"
            )
        RaggedPack.open(out / "embeddings")
        (out / "state.json").unlink(missing_ok=True)  # of a call that was killed right before
        return sum(entry["tracks"] for entry in manifest["splits"].values())
    tables = layout.read()
    layout.require_embeddings()
    tracks = [track for table in tables.values() for track in table.ids]
    if layout.embeddings.tar is None:  # the files are known, so that a missing one is told before an hour has passed
        files = layout.embeddings
        _refuse_wrong(tracks, _Found(list(files.names), [], files.doubled), Problems(layout.name, _EXPECTED, _REMEDY))
    if _read_json(out / "state.json") != state:
        _clear(out)
    made = not out.exists()
    write_json(out / "state.json", state)
    try:
        for file, place in layout.tables.items():
            write_bytes(out / file, _content(place))
        if GROUPS in layout.tables and "train" in tables:
            read_groups(out / GROUPS, tables["train"].ids)
        kept, found = _pack(layout, tracks, out, dtype, workers)
    except (_CannotWriteError, DiskFullError):  # with more room, the same command goes on from here
        raise
    except DataError:
        _clear(out)
        if made:
            out.rmdir()
        raise
    if found.strays:
        say(f"{layout.name}: leaves out {len(found.strays)} files that are no <id>.npy ({_some(found.strays)})")
    if found.unlisted:
        say(f"{layout.name}: leaves out {found.unlisted} tracks without a row in the csv files")
    write_json(out / "manifest.json", _manifest(layout, tables, out, dtype))
    (out / "state.json").unlink()
    return kept


class _CannotWriteError(DataError):
    """The place of the pack, not the data: what is there stays, for another call."""


def _disk_full(out: Path, error: OSError) -> _CannotWriteError:
    cause = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return _CannotWriteError(
        f"{out}: 1 problem\n  the packed form: found that it cannot be written ({cause})\n"
        "  expected: room for all embeddings, half of the official size as float16\n"
        "  do: free space and run the same command again; it goes on where it stopped"
    )


def _pack(layout: _Layout, tracks: list[int], out: Path, dtype: Dtype, workers: int | None) -> tuple[int, _Found]:
    """Writes `embeddings` and `ids.npy`; returns how many tracks were there already, and what the pass met."""
    folder = out / "embeddings"
    found = _Found()
    if is_finished(folder) and (out / "ids.npy").exists():  # stopped between the pack and the manifest
        return len(np.load(out / "ids.npy")), found
    packer = _Packer(folder, layout.name, dtype)
    kept = packer.appended
    workers = _cores() if workers is None else workers
    pending: deque[Future[None]] = deque()
    items = layout.embeddings.items(tracks, kept, found)
    with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(1) as appender:
        try:
            for item in progress(items, total=len(tracks) - kept, label="packing tracks"):
                decoded = readers.submit(_read_item, item)
                pending.append(appender.submit(packer.append, item, decoded))
                while len(pending) > AHEAD * workers:
                    pending.popleft().result()
            while pending:
                pending.popleft().result()
            _refuse_wrong(tracks, found, packer.problems)
            with atomic_path(out / "ids.npy") as temporary, temporary.open("wb") as file:
                np.save(file, np.array(found.tracks, dtype=np.int64))
            packer.close()
        finally:
            for future in pending:
                future.cancel()
            appender.submit(packer.abandon).result()  # after what is still being appended; a closed pack stays
    return kept, found


def _read_item(item: _Item) -> npt.NDArray[Any] | str:
    """The frames of a track, or what is wrong with its file."""
    try:
        return _decode(item.read())
    except _BadFileError as fault:
        return str(fault)
    except DataError as error:  # a damaged member of a zip, an unreadable file
        return str(error).partition(": found ")[2].partition("\n")[0] or str(error)


class _Packer:
    """Appends tracks one after the other, called from one thread at a time; collects what is wrong with them."""

    def __init__(self, folder: Path, name: str, dtype: Dtype) -> None:
        self._folder, self._dtype = folder, dtype
        self._writer: RaggedWriter | None = None
        self._first = "the tracks before"
        self.problems = Problems(name, _EXPECTED, _REMEDY)
        if (folder / WRITER).exists():
            self._writer = RaggedWriter.resume(folder)
        elif folder.exists():
            shutil.rmtree(folder)

    @property
    def appended(self) -> int:
        return 0 if self._writer is None else self._writer.appended

    def append(self, item: _Item, decoded: Future[npt.NDArray[Any] | str]) -> None:
        array = decoded.result()
        where = f"track {item.track} ({item.member})"
        if isinstance(array, str):
            self.problems.add(where, array)
            return
        if (
            self._dtype == "float16"
            and array.dtype != np.float16
            and (top := float(np.abs(array).max())) >= FLOAT16_LIMIT
        ):
            self.problems.add(where, f"values up to {top:.6g}, which float16 cannot hold (pack with --dtype float32)")
            return
        if self._writer is None:
            self._writer = RaggedWriter(self._folder, dim=array.shape[1], dtype=self._dtype)
            self._first = item.member
        if array.shape[1] != self._writer.dim:
            self.problems.add(where, f"D = {array.shape[1]}, but {self._writer.dim} in {self._first}")
        elif not len(self.problems):  # else nothing will come of it, and the rest is only checked
            with _writing():
                self._writer.append(array)

    def close(self) -> None:
        assert self._writer is not None, "there is at least one track"
        with _writing():
            self._writer.close()
        self._writer = None

    def abandon(self) -> None:
        """Save what is whole; nothing after `close`."""
        if self._writer is not None:
            self._writer.__exit__(RuntimeError, None, None)


class _writing:  # noqa: N801  # a context manager, named as it reads
    """Marks that it is the place which failed, not the data."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError):
            raise _CannotWriteError(str(error)) from error


def _refuse_wrong(tracks: Sequence[int], found: _Found, problems: Problems) -> None:
    """Raises what is wrong with files, tracks without a file, and tracks with two."""
    there = set(found.tracks)
    for track in tracks:
        if track not in there:
            problems.add(f"track {track}", f"a row, but no {track}.npy")
    for member in found.doubled:
        problems.add(f"track {_track_of(member)}", f"a second file, {shown(member)}")
    problems.raise_if_any()


def _manifest(layout: _Layout, tables: dict[Split, _Table], out: Path, dtype: Dtype) -> dict[str, Any]:
    pack = RaggedPack.open(out / "embeddings")
    ids = np.load(out / "ids.npy")
    n_tags = layout.count_tags(tables)
    assert pack.info is not None, "it was opened from a folder"
    splits = {}
    for split, table in tables.items():
        lengths = pack.lengths[_rows(ids, table.ids)]
        splits[split] = {
            "tracks": len(table.ids),
            "frames": int(lengths.sum()),
            "shortest": int(lengths.min()),
            "longest": int(lengths.max()),
        }
        if table.tags is not None:
            counts = _tag_matrix(table.tags, n_tags).sum(axis=0)
            splits[split] |= {"positives": int(counts.sum()), "tags_without_a_track": int((counts == 0).sum())}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "source": layout.name,
        "source_fingerprint": layout.fingerprint,
        "dim": pack.dim,
        "n_tags": n_tags,
        "frames": pack.info.frames,
        "dtype": dtype,
        "max_abs_error": pack.info.max_abs_error,
        "splits": splits,
        "sha256": {file: hashlib.sha256((out / file).read_bytes()).hexdigest() for file in layout.tables},
    }


def _rows(ids: Int64, tracks: Sequence[int]) -> Int64:
    """The place of each of `tracks` among `ids`."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids, np.array(tracks, dtype=np.int64), sorter=order)].astype(np.int64)


def _read_json(path: Path) -> Any:
    """None for what is no JSON file."""
    with suppress(OSError, *JSON_ERRORS):
        return json.loads(path.read_bytes())
    return None


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, None for anything else; DataError for a prepared folder that is of no use."""
    if not path.is_dir():
        return None
    manifest = _read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        state = _read_json(path / "state.json")
        if isinstance(state, dict) and state.keys() == {"fingerprint", "dtype"}:
            raise DataError(
                f"{path}: an unfinished prepared folder\n  found: no manifest.json\n"
                "  expected: manifest.json, which is written last\n  do: run prepare again; it goes on where it stopped"
            )
        return None
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path / 'manifest.json'}: found format_version {manifest.get('format_version')}, "
            f"expected {FORMAT_VERSION}\n"
            "  do: prepare the official data again with this version of the program"
        )
    needed = ("source_fingerprint", "dim", "n_tags", "frames", "dtype", "max_abs_error", "splits", "sha256")
    missing = [key for key in needed if key not in manifest]
    if missing:
        raise _damaged(path / "manifest.json", f"no {', '.join(missing)}")
    return manifest


def _load_prepared(path: Path, manifest: dict[str, Any], split: Split) -> Tracks:
    splits = manifest["splits"]
    if split not in splits:
        raise _no_split(str(path), split, splits)
    for file, digest in manifest["sha256"].items():
        try:
            found = hashlib.sha256((path / file).read_bytes()).hexdigest()
        except OSError as error:
            raise _damaged(path / file, error.strerror or str(error)) from None
        if found != digest:
            raise _damaged(path / file, "another content than when it was packed")
    pack = RaggedPack.open(path / "embeddings")
    try:
        ids = np.load(path / "ids.npy", allow_pickle=False)
    except NPY_ERRORS as error:
        raise _damaged(path / "ids.npy", str(error)) from None
    if ids.shape != (pack.n,) or ids.dtype != np.int64 or pack.dim != manifest["dim"]:
        raise _damaged(path / "ids.npy", f"{ids.dtype} {ids.shape} for a pack of {pack.n} tracks with D = {pack.dim}")
    n_tags = int(manifest["n_tags"])
    table = _read_table(split, path / f"{split}.csv", None, n_tags or None)
    if len(table.ids) != splits[split]["tracks"] or not set(table.ids) <= set(ids.tolist()):
        raise _damaged(path / f"{split}.csv", "other tracks than in the pack")
    names, groups = path / TAG_NAMES, path / GROUPS
    return Tracks(
        split=split,
        ids=table.ids,
        pack=pack,
        rows=_rows(ids, table.ids),
        tags=None if table.tags is None else _tag_matrix(table.tags, n_tags),
        n_tags=n_tags,
        tag_names=read_tag_names(names.read_bytes(), str(names)) if TAG_NAMES in manifest["sha256"] else None,
        groups=read_groups(groups, table.ids) if split == "train" and GROUPS in manifest["sha256"] else None,
        fingerprint=str(manifest["source_fingerprint"]),
    )


_packed: dict[str, Path] = {}  # fingerprint -> the temporary folder of this process


def _packed_for_now(layout: _Layout) -> Path:
    if layout.fingerprint not in _packed:
        folder = _temporary_folder()
        if len(layout.embeddings.names) > LARGE or layout.embeddings.tar is not None:
            say(f"{layout.name}: packs all tracks for this call alone; `prepare` does it once for all calls")
        _prepare(layout, folder, "float16", None)
        _packed[layout.fingerprint] = folder
    return _packed[layout.fingerprint]


_OURS = {"manifest.json", "state.json", "ids.npy", "embeddings", *TABLE_FILES}


def _refuse_foreign(out: Path) -> None:
    """ConfigError unless `out` is absent, empty, or holds nothing but what `prepare` writes."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose a folder")
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if there and ((foreign := sorted(there - _OURS)) or not there & {"manifest.json", "state.json"}):
        raise ConfigError(
            f"{out}: holds other files ({_some(foreign or sorted(there))}); choose an empty or a new folder"
        )


def _clear(out: Path) -> None:
    """Removes what `prepare` wrote."""
    shutil.rmtree(out / "embeddings", ignore_errors=True)
    for file in _OURS - {"embeddings"}:
        (out / file).unlink(missing_ok=True)


def _damaged(file: Path, found: str) -> DataError:
    return DataError(
        f"{file}: damaged\n  found: {found}\n  expected: what prepare wrote\n"
        "  do: remove the prepared folder and prepare the official data again"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _some(values: Sequence[object]) -> str:
    """The first three, and how many more."""
    more = f" and {len(values) - 3} more" if len(values) > 3 else ""
    return ", ".join(shown(str(value)) for value in values[:3]) + more
