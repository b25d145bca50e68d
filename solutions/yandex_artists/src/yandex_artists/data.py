"""Tracks and their artists: read the official layout with every check, pack it once, write and judge submissions.

    tracks = load("data", "train")                       # a folder, a zip, a tar.gz, or what `prepare` wrote
    prepare(Path("data"), Path("packed"))

The official layout, in a folder or an archive:

    train_meta.tsv    trackid<TAB>artistid<TAB>archive_features_path
    test_meta.tsv     trackid<TAB>archive_features_path            (a hold-out may have artistid too; it is not read)
    features          archive_features_path below some folder: float [C, T], channels first, one .npy for each track;
                      or train_features.tar.gz and test_features.tar.gz, which are read as a stream and never unpacked

The folder of the features is found, not asked for: the paths in the tables begin below it. Their parts say which fold a
training track is in (the official folds, ten sets of artists without a common one) and are otherwise never used.

The packed form is a folder with `manifest.json`, written last, and for every split tracks.tsv and a `kit_io.ragged`
pack of the features, time first.
"""

import contextlib
import hashlib
import io
import json
import re
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kit_core.atomic import atomic_path, write_json
from kit_core.console import progress, say
from kit_core.errors import ConfigError, DataError, DiskFullError, Problems
from kit_io.ragged import VALUES, Dtype, RaggedPack, RaggedWriter, is_finished
from kit_io.source import JSON_ERRORS, NPY_ERRORS, Source, refuse, shown, unsafe_name
from kit_io.tables import read_csv, write_csv
from kit_io.tar import is_tar, read_tar
from kit_splits.folds import group_folds

Split = Literal["train", "test"]
Int64 = npt.NDArray[np.int64]

FORMAT = "yandex-artists-prepared"
FORMAT_VERSION = 1
ANSWERS = 100  # neighbours that a submission names for each query
MAX_FRAMES = 81  # of the official data
OFFICIAL_FOLDS = 10

SPLITS: tuple[Split, ...] = ("train", "test")
META_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train_meta.tsv", "train_sample_meta.tsv"),
    "test": ("test_meta.tsv",),
}
FEATURE_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train_features", "train_features_sample"),
    "test": ("test_features",),
}
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
META_COLUMNS: dict[Split, tuple[str, ...]] = {
    "train": ("trackid", "artistid", "archive_features_path"),
    "test": ("trackid", "archive_features_path"),
}
TRUTH_COLUMNS = ("trackid", "artistid")
TRACK_COLUMNS = ("trackid", "artistid", "fold", "row")  # of the packed form; artistid and fold may be empty
NUMBER = re.compile("[0-9]{1,18}")
LINE = re.compile("([0-9]{1,18})\t([0-9]{1,18}(?: [0-9]{1,18})*)")
LARGEST = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max), "bfloat16": float(np.finfo(np.float32).max)}


# ---------------------------------------------------------------------------------------------------------------------
# In memory


@dataclass(frozen=True, eq=False)
class Tracks:
    """All tracks of a split, in the order of its table.

    ids          n track ids.
    pack         features of the tracks, time first; `rows` says which item belongs to which track.
    rows         int64[n].
    artists      int64[n], 0 .. number of artists - 1; None for a test split.
    artist_ids   the official id of every artist; None for a test split.
    folds        int64[n], the official folds, no artist in two of them; None where the paths do not give them.
    fingerprint  identity of ids, artists and features as packed, however the data was read.
    """

    split: Split
    ids: list[int]
    pack: RaggedPack
    rows: Int64
    artists: Int64 | None
    artist_ids: list[int] | None
    folds: Int64 | None
    fingerprint: str

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self.ids)

    @property
    def channels(self) -> int:
        """Numbers of each frame."""
        return int(self.pack.dim)


def load(path: Path | str, split: Split = "train", *, dtype: Dtype = "float16", max_frames: int = MAX_FRAMES) -> Tracks:
    """All tracks of a split, from the official layout or from a prepared folder.

    Official features are packed as `dtype` into a temporary folder that vanishes with the process; `prepare` does it
    once and for all. A prepared folder has its dtype already.

    Raises:
        DataError: anything in the layout, a table, an array or a prepared folder is not as it must be.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        return _load_prepared(path, manifest, split)
    layout = _Layout.of(path)
    with tempfile.TemporaryDirectory(prefix="yandex-artists-") as folder:  # removed while mapped: POSIX keeps it
        out = Path(folder)
        entry = _pack(layout, split, out / split, dtype, max_frames)
        return _load_split(out, split, entry)


def splits_in(path: Path | str) -> tuple[Split, ...]:
    """The splits that a folder, an archive or a prepared folder holds, in the order train, test.

    Raises:
        DataError: it holds neither.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        return tuple(split for split in SPLITS if split in manifest["splits"])
    return _Layout.of(path).splits


def track_ids(path: Path | str, split: Split) -> list[int]:
    """The track ids of a split, in the order of its table, without a look at the features.

    Raises:
        DataError: no such split, or a table that is not as it must be.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        return _load_prepared(path, manifest, split).ids
    layout = _Layout.of(path)
    if split not in layout.metas:
        raise _no_split(path, layout.splits, split)
    return layout.metas[split].ids


def as_ids(tracks: Tracks, neighbours: Int64) -> Int64:
    """Track ids for rows int64[n, k] into the tracks."""
    ids: Int64 = np.array(tracks.ids, dtype=np.int64)[neighbours]
    return ids


def validation_folds(tracks: Tracks, n_folds: int = OFFICIAL_FOLDS, seed: int = 0) -> Int64:
    """The fold of every track, int64[n], artists whole: the official ten, joined where fewer are asked for, or our own.

    Raises:
        ConfigError: a test split, fewer than two folds, or fewer artists than folds.
    """
    if tracks.artists is None:
        raise ConfigError("folds need a train split, with artists")
    if tracks.folds is not None and 2 <= n_folds <= OFFICIAL_FOLDS:
        return tracks.folds % n_folds
    return group_folds(tracks.artists, n_folds, seed=seed)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


@dataclass(frozen=True)
class _Meta:
    """One table: track ids, the path of the features of each, and for a train split the artist of each."""

    name: str
    ids: list[int]
    paths: list[str]
    artists: list[int] | None


def _read_meta(content: Source | Path, member: str | None, split: Split) -> _Meta:
    name = str(content) if isinstance(content, Path) else f"{content.name}: {member}"
    columns = _read_tsv(content, member, META_COLUMNS[split])
    ids = _numbers(name, "trackid", columns["trackid"])
    artists = _numbers(name, "artistid", columns["artistid"]) if split == "train" else None
    paths = columns["archive_features_path"]
    problems = Problems(
        name,
        expected="rows, each with a trackid and a path below the folder of the features that no other row has",
        remedy="take the table of the competition as it is, or correct these rows",
    )
    if not ids:
        problems.add("the table", "no rows")
    first_of: dict[int, int] = {}
    path_of: dict[str, int] = {}
    for line, (track, path) in enumerate(zip(ids, paths, strict=True), start=2):
        fault = unsafe_name(path) if path.strip() else "an empty path"
        if track in first_of:
            problems.add(f"line {line}", f"the trackid {track} a second time, after line {first_of[track]}")
        elif path in path_of:
            problems.add(f"line {line}", f"the path {shown(path)} a second time, after line {path_of[path]}")
        elif fault:
            problems.add(f"line {line}, path {shown(path)}", fault)
        first_of.setdefault(track, line)
        path_of.setdefault(path, line)
    problems.raise_if_any()
    return _Meta(name, ids, paths, artists)


def read_truth(path: Path) -> dict[str, list[Any]]:
    """A table with trackid and artistid: integers `trackid`, `artistid`, and texts `subset` where that column is there.

    Raises:
        DataError: not a TAB-separated UTF-8 table with these columns, ids that are no integers, or a doubled track.
    """
    columns: dict[str, list[Any]] = dict(_read_tsv(path, None, TRUTH_COLUMNS))
    for column in TRUTH_COLUMNS:
        columns[column] = _numbers(str(path), column, columns[column])
    problems = Problems(path, "each track once", "remove the doubled rows")
    for track, count in Counter(columns["trackid"]).items():
        if count > 1:
            problems.add(f"trackid {track}", f"{count} rows")
    if not columns["trackid"]:
        problems.add("the table", "no rows")
    problems.raise_if_any()
    return {key: columns[key] for key in (*TRUTH_COLUMNS, "subset") if key in columns}


def _read_tsv(content: Source | Path, member: str | None, needed: Sequence[str]) -> dict[str, list[str]]:
    """A TAB-separated table with at least the columns `needed`, in any order."""
    name = str(content) if isinstance(content, Path) else f"{content.name}: {member}"
    if isinstance(content, Path) and not content.is_file():
        refuse(name, "the file", "no such file", expected="a TAB-separated table", remedy="check the spelling")
    with content.open("rb") if isinstance(content, Path) else content.open_binary(str(member)) as stream:
        first = stream.readline(4096)
    if first.endswith(b"\r\n"):
        refuse(
            name,
            "line ends",
            "CR LF, as Windows programs write them",
            expected="LF alone, as in the official files",
            remedy="take the file as downloaded, or convert it (`dos2unix`, `sed -i 's/\\r$//'`)",
        )
    header = first.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\n").split("\t")
    fits = set(needed) <= set(header) and len(set(header)) == len(header)
    return read_csv(content, member, header if fits else needed, delimiter="\t")


def _numbers(name: str, column: str, texts: Sequence[str]) -> list[int]:
    problems = Problems(name, f"a whole number as {column}, in plain digits", "correct these rows")
    for line, text in enumerate(texts, start=2):
        if not NUMBER.fullmatch(text):
            problems.add(f"line {line}", f"the {column} {shown(text)!r}")
    problems.raise_if_any()
    return [int(text) for text in texts]


# ---------------------------------------------------------------------------------------------------------------------
# The official layout


@dataclass(frozen=True)
class _Layout:
    """What a path holds: the tables, and where the features of each split are."""

    path: Path
    metas: dict[Split, _Meta]
    features: dict[Split, "Source | Path"]  # a folder or zip; or a tar, to be read as a stream

    @staticmethod
    def of(path: Path) -> "_Layout":
        if path.is_file() and is_tar(path):
            return _Layout._of_tar(path)
        source = _open(path)
        metas: dict[Split, _Meta] = {}
        features: dict[Split, Source | Path] = {}
        for split in SPLITS:
            found = [name for name in META_NAMES[split] if source.has(name)]
            if found:
                metas[split] = _read_meta(source, found[0], split)
                features[split] = _features_beside(path, source, split)
        if not metas and path.is_file():
            metas = _metas_beside(path)
            features = dict.fromkeys(metas, source)
        return _Layout(path, _some(path, metas), features)

    @staticmethod
    def _of_tar(path: Path) -> "_Layout":
        names = {name: split for split in SPLITS for name in META_NAMES[split]}
        metas: dict[Split, _Meta] = {}
        with tempfile.TemporaryDirectory(prefix="yandex-artists-") as folder:
            for member, content in read_tar(path, lambda member: member.rpartition("/")[2] in names):
                base = member.rpartition("/")[2]
                file = Path(folder, base)
                file.write_bytes(content)
                try:
                    metas.setdefault(names[base], _read_meta(file, None, names[base]))
                except DataError as error:  # the temporary copy is nobody's business
                    raise DataError(str(error).replace(str(file), f"{path}: {member}")) from None
        metas = metas or _metas_beside(path)
        return _Layout(path, _some(path, metas), dict.fromkeys(metas, path))

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if split in self.metas)

    def fingerprint(self, split: Split) -> str:
        """Identity of the input of a split, without reading the features."""
        meta, features = self.metas[split], self.features[split]
        digest = hashlib.sha256(repr((meta.ids, meta.paths, meta.artists)).encode())
        if isinstance(features, Source):
            digest.update(features.fingerprint().encode())
        else:
            status = features.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()


def _open(path: Path) -> Source:
    return Source.open_source(path, keep=tuple(name for names in FEATURE_NAMES.values() for name in names))


def _some(path: Path, metas: dict[Split, _Meta]) -> dict[Split, _Meta]:
    if not metas:
        raise DataError(
            f"{path}: no tracks\n  found: neither train_meta.tsv nor test_meta.tsv\n"
            "  expected: the tables of the competition, in the folder or archive, or beside an archive of features\n"
            "  do: name the folder that holds them"
        )
    return metas


def _metas_beside(path: Path) -> dict[Split, _Meta]:
    """The tables beside an archive: of the split that its name tells, or else of both."""
    told = [split for split in SPLITS if path.name.startswith(split)] or list(SPLITS)
    metas: dict[Split, _Meta] = {}
    for split in told:
        for name in META_NAMES[split]:
            file = path.resolve().parent / name
            if file.is_file():
                metas.setdefault(split, _read_meta(file, None, split))
    return metas


def _features_beside(path: Path, source: Source, split: Split) -> Source | Path:
    """The archive of the features in the folder, unless the folder holds arrays itself."""
    if path.is_dir() and not any(source.members(f"{name}/", ".npy") for name in FEATURE_NAMES[split]):
        for name in FEATURE_NAMES[split]:
            for suffix in ARCHIVES:
                archive = path / (name + suffix)
                if archive.is_file():
                    return archive if is_tar(archive) else _open(archive)
    return source


def _contents(meta: _Meta, features: Source | Path, skip: int) -> Iterator[tuple[int, str, bytes | None]]:
    """Row of the table, name for messages and content of each file of features that the table names.

    The order is that of the table, or of the archive where it is a stream. The content of the first `skip` is None.
    """
    row_of = {path: row for row, path in enumerate(meta.paths)}
    if isinstance(features, Source):
        prefix = _prefix(meta, features)
        done = 0
        for row, path in enumerate(meta.paths):
            if features.has(prefix + path):
                content = features.read(prefix + path) if done >= skip else None
                yield row, f"{features.name}: {prefix + path}", content
                done += 1
        return
    prefix_of_stream: str | None = None

    def row_for(member: str) -> int | None:
        nonlocal prefix_of_stream
        if prefix_of_stream is not None:
            inside = member.startswith(prefix_of_stream)
            return row_of.get(member.removeprefix(prefix_of_stream)) if inside else None
        rest = member
        while rest:
            if rest in row_of:
                prefix_of_stream = member.removesuffix(rest)
                return row_of[rest]
            rest = rest.partition("/")[2]
        return None

    for done, (member, content) in enumerate(read_tar(features, lambda member: row_for(member) is not None)):
        named = row_for(member)
        assert named is not None  # it was wanted
        yield named, f"{features}: {member}", None if done < skip else content


def _prefix(meta: _Meta, source: Source) -> str:
    """The folder below which most of the first paths are found."""
    votes: Counter[str] = Counter()
    sought = meta.paths[:: max(1, len(meta.paths) // 50)]
    endings = {path.rpartition("/")[2] for path in sought}
    for member in source.members(suffix=".npy"):
        if member.rpartition("/")[2] in endings:
            votes.update(member.removesuffix(path) for path in sought if f"/{member}".endswith(f"/{path}"))
    return votes.most_common(1)[0][0] if votes else ""


# ---------------------------------------------------------------------------------------------------------------------
# The packed form


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did. By split: tracks, artists (0 for test), channels, frames, largest rounding error."""

    out: Path
    splits: dict[str, dict[str, Any]]
    seconds: float


def prepare(data: Path, out: Path, *, dtype: Dtype = "float16", max_frames: int = MAX_FRAMES) -> Prepared:
    """Checks every split of the official `data` and packs it, time first, into the folder `out`.

    Stopped half-way, it goes on behind the last whole track. Finished, it is a look at the manifest. Memory stays flat.

    Raises:
        ConfigError: `out` holds something else, or lies inside `data`.
        DataError: a table, an array or the layout is not as it must be. Then nothing is left.
    """
    started = time.monotonic()
    data, out = Path(data), Path(out)
    if _read_manifest(data) is not None:
        raise ConfigError(f"{data}: this folder is already prepared; use it as it is")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(f"{out}: lies inside the data folder {data}; choose a folder outside it")
    _refuse_foreign(out)
    layout = _Layout.of(data)
    identity = {split: f"{layout.fingerprint(split)} {dtype} {max_frames}" for split in layout.splits}
    manifest = _whole_manifest(out, identity)
    if manifest is None:
        made = not out.exists()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be made ({error.strerror}); choose another folder") from None
        (out / "manifest.json").unlink(missing_ok=True)  # from here until the end, the folder is not complete
        if _begun(out) != identity:  # what an earlier run left is of other data
            _clear(out, made=False)
            write_json(out / "begun.json", identity)
        try:
            splits = {split: _pack(layout, split, out / split, dtype, max_frames) for split in layout.splits}
        except DiskFullError:  # with more room, the same command goes on from here
            raise
        except DataError:
            _clear(out, made)
            raise
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "identity": identity, "splits": splits}
        write_json(out / "manifest.json", manifest)
    (out / "begun.json").unlink(missing_ok=True)  # also where an earlier call was killed right before
    return Prepared(out, manifest["splits"], time.monotonic() - started)


def _pack(layout: _Layout, split: Split, folder: Path, dtype: Dtype, max_frames: int) -> dict[str, Any]:
    """Packs one split into a folder; returns its entry in the manifest."""
    if split not in layout.metas:
        raise _no_split(layout.path, layout.splits, split)
    meta, features = layout.metas[split], layout.features[split]
    problems = Problems(
        features.name if isinstance(features, Source) else features,
        expected=f"an array of floats [channels, frames] for each track of {meta.name}, with 1 to {max_frames} frames, "
        "finite, and equally many channels in all",
        remedy="complete or repair the features, or correct the table; longer tracks of other data: "
        "`prepare --max-frames`; values too large for float16: `prepare --dtype bfloat16`",
    )
    writer: RaggedWriter | None = None
    entry_of = np.full(len(meta.ids), -1, dtype=np.int64)
    finished = RaggedPack.open(folder / "features") if is_finished(folder / "features") else None
    if finished is None and (folder / "features" / "writer.json").exists():
        writer = RaggedWriter.resume(folder / "features")
        say(f"{folder}: goes on behind {writer.appended} packed tracks")
    kept = finished.n if finished is not None else writer.appended if writer is not None else 0
    shape: tuple[int, str] | None = None if writer is None else (writer.dim, "the tracks packed before")
    item = 0
    with contextlib.ExitStack() as open_writer:  # left by an exception, a writer saves what is whole
        if writer is not None:
            open_writer.enter_context(writer)
        found = _contents(meta, features, kept)
        for row, name, content in progress(found, total=len(meta.ids), label=f"packing {split} tracks"):
            entry_of[row] = item
            item += 1
            if content is None:
                continue
            array, fault = _read_array(content, shape, dtype, max_frames)
            if array is None:
                problems.add(name.rpartition(": ")[2], fault)
            elif not len(problems):  # after the first fault the pack will be thrown away
                if writer is None:
                    writer = RaggedWriter(folder / "features", dim=array.shape[0], dtype=dtype)
                    open_writer.enter_context(writer)
                    shape = (array.shape[0], name)
                writer.append(array.T)
        for row in np.flatnonzero(entry_of < 0).tolist():
            problems.add(f"track {meta.ids[row]}, {meta.paths[row]}", "no such file")
        problems.raise_if_any()
    pack = finished or RaggedPack.open(folder / "features")
    _say_unnamed(meta, features)

    folds = _official_folds(meta)
    rows = [
        (
            str(track),
            "" if meta.artists is None else str(meta.artists[row]),
            "" if folds is None else str(folds[row]),
            str(entry_of[row]),
        )
        for row, track in enumerate(meta.ids)
    ]
    write_csv(folder / "tracks.tsv", TRACK_COLUMNS, rows, delimiter="\t")
    return {
        "tracks": len(meta.ids),
        "artists": 0 if meta.artists is None else len(set(meta.artists)),
        "channels": pack.dim,
        "frames": int(pack.offsets[-1]),
        "rounding_error": 0.0 if pack.info is None else pack.info.max_abs_error,
        "fingerprint": _fingerprint(rows, entry_of, pack),
    }


def _no_split(path: Path, splits: Sequence[Split], split: Split) -> DataError:
    return DataError(
        f"{path}: no {split} tracks\n  found: {', '.join(splits)} only\n"
        f"  expected: {split}_meta.tsv\n  do: complete the folder, or ask for the other split"
    )


def _read_array(
    content: bytes, shape: tuple[int, str] | None, dtype: Dtype, max_frames: int
) -> tuple[npt.NDArray[Any] | None, str]:
    """One file of features [C, T], or None and what is wrong with it."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        size, fortran, kind = read_header(stream)
    except NPY_ERRORS as error:
        text = str(error).partition("\n")[0]
        return None, f"no .npy file ({shown(text)})" if content else "no bytes at all"
    if kind.hasobject:
        return None, "an array of Python objects"
    if kind.kind != "f" or kind.itemsize > 8:
        return None, f"an array of {kind}, not of floats"
    if len(size) != 2:
        return None, f"an array of shape {size}"
    channels, frames = size
    if frames == 0 or channels == 0:
        return None, f"an empty array of shape {size}"
    if shape is not None and frames == shape[0] != channels:
        return None, f"shape {size}: transposed, frames before channels"
    if frames > max_frames:
        hint = "; is it transposed?" if channels <= max_frames else ""
        return None, f"shape {size}: {frames} frames{hint}"
    if shape is not None and channels != shape[0]:
        return None, f"{channels} channels, where {shape[1].rpartition(': ')[2]} has {shape[0]}"
    data = memoryview(content)[stream.tell() :]
    if len(data) != channels * frames * kind.itemsize:
        return None, f"{len(data)} bytes of values for shape {size} of {kind} (truncated?)"
    array = np.frombuffer(data, kind).reshape(size, order="F" if fortran else "C")
    largest = float(np.abs(array).max())
    if not np.isfinite(largest):
        return None, f"{int((~np.isfinite(array)).sum())} values that are not finite"
    if largest > LARGEST[dtype]:
        return None, f"values up to {largest:.4g}, which {dtype} cannot hold"
    return array.astype(kind.newbyteorder("="), copy=False), ""


def read_track(path: Path) -> npt.NDArray[Any]:
    """One file of features, floats [C, T], with any number of frames.

    Raises:
        DataError: no such file, or it is no array of finite floats with two dimensions.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: found {error.strerror}\n  expected: a .npy file\n  do: check the spelling"
        ) from None
    array, fault = _read_array(content, None, "float32", max_frames=1 << 30)
    if array is None:
        raise DataError(
            f"{path}: no track\n  found: {fault}\n  expected: finite floats [channels, frames] in a .npy file\n"
            "  do: write it with numpy.save"
        )
    return array


def _say_unnamed(meta: _Meta, features: Source | Path) -> None:
    if isinstance(features, Source):
        prefix = _prefix(meta, features)
        known = {prefix + path for path in meta.paths}
        others = [m for m in features.members(prefix, ".npy") if m not in known and prefix]
        if others:
            say(f"{features.name}: {len(others)} arrays below {prefix} that {meta.name} does not name (left out): "
                f"{', '.join(map(shown, others[:3]))}")  # fmt: skip


def _official_folds(meta: _Meta) -> list[int] | None:
    """The first part of each path, where it is a digit everywhere and no artist has two of them."""
    if meta.artists is None:
        return None
    firsts = [path.partition("/")[0] for path in meta.paths]
    if not all(len(first) == 1 and first.isdigit() and first.isascii() for first in firsts):
        return None
    fold_of: dict[int, str] = {}
    whole = all(fold_of.setdefault(artist, first) == first for artist, first in zip(meta.artists, firsts, strict=True))
    return [int(first) for first in firsts] if whole and len(set(firsts)) == OFFICIAL_FOLDS else None


def _fingerprint(rows: Sequence[tuple[str, ...]], entry_of: Int64, pack: RaggedPack) -> str:
    """The same for the same content, in whatever order an archive had it."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {pack.dtype} {pack.dim}\n".encode())
    checksum = np.zeros(pack.n, dtype=np.int64)
    assert pack.path is not None, "it was opened from a folder"
    with (pack.path / VALUES).open("rb") as values:  # not through the map, whose pages would stay in memory
        for item, frames in enumerate(pack.lengths.tolist()):
            checksum[item] = zlib.crc32(values.read(frames * pack.dim * pack.values.itemsize))
    for row, item in zip(rows, entry_of.tolist(), strict=True):
        digest.update(f"{row[0]} {row[1]} {row[2]} {checksum[item]} {pack.lengths[item]}\n".encode())
    return digest.hexdigest()


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, None for anything else; DataError for a prepared folder that is of no use."""
    if not path.is_dir():
        return None
    file = path / "manifest.json"
    if not file.is_file():
        if (path / "begun.json").is_file():
            raise DataError(
                f"{path}: an unfinished prepared folder\n  found: begun.json without manifest.json\n"
                "  expected: manifest.json, which is written last\n  do: run prepare again; it goes on where it stopped"
            )
        return None
    try:
        manifest = json.loads(file.read_bytes())
    except JSON_ERRORS as error:
        if not (path / "train").is_dir() and not (path / "test").is_dir():
            return None  # somebody else's
        raise _damaged(file, str(error)) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{file}: found format_version {manifest.get('format_version')}, expected {FORMAT_VERSION}\n"
            "  do: prepare the official data again with this version of the program"
        )
    splits = manifest.get("splits")
    if not isinstance(splits, dict) or not splits or not set(splits) <= set(SPLITS):
        raise _damaged(file, "no splits")
    if not all(isinstance(e, dict) and isinstance(e.get("fingerprint"), str) for e in splits.values()):
        raise _damaged(file, "a split without fingerprint")
    return manifest


def _whole_manifest(out: Path, identity: dict[Split, str]) -> dict[str, Any] | None:
    """The manifest of `out` if all of it is there and was made of this data in this way."""
    try:
        manifest = _read_manifest(out)
        if manifest is None or manifest.get("identity") != identity:
            return None
        for split in manifest["splits"]:
            _load_prepared(out, manifest, split)
    except DataError:  # broken off or damaged
        return None
    return manifest


def _begun(out: Path) -> Any:
    try:
        return json.loads((out / "begun.json").read_bytes())
    except (OSError, *JSON_ERRORS):
        return None


def _load_prepared(path: Path, manifest: dict[str, Any], split: Split) -> Tracks:
    if split not in manifest["splits"]:
        raise DataError(
            f"{path}: no {split} tracks\n  found: {', '.join(manifest['splits'])} only\n"
            f"  expected: the split {split}\n  do: prepare data that has {split}_meta.tsv, or ask for the other split"
        )
    return _load_split(path, split, manifest["splits"][split])


def _load_split(path: Path, split: Split, entry: dict[str, Any]) -> Tracks:
    pack = RaggedPack.open(path / split / "features")
    file = path / split / "tracks.tsv"
    columns = read_csv(file, None, TRACK_COLUMNS, delimiter="\t")
    try:
        ids = [int(text) for text in columns["trackid"]]
        rows = np.array([int(text) for text in columns["row"]], dtype=np.int64)
        artists = artist_ids = folds = None
        if split == "train":
            distinct, artists = np.unique([int(text) for text in columns["artistid"]], return_inverse=True)
            artists, artist_ids = artists.astype(np.int64), distinct.tolist()
            if columns["fold"][0]:
                folds = np.array([int(text) for text in columns["fold"]], dtype=np.int64)
    except (ValueError, IndexError, OverflowError) as error:
        raise _damaged(file, str(error)) from None
    if len(ids) != entry.get("tracks") or pack.n != len(ids) or not np.array_equal(np.sort(rows), np.arange(len(ids))):
        raise _damaged(file, f"{len(ids)} tracks, where manifest.json has {entry.get('tracks')} and the pack {pack.n}")
    return Tracks(split, ids, pack, rows, artists, artist_ids, folds, entry["fingerprint"])


def _damaged(file: Path, found: str) -> DataError:
    return DataError(
        f"{file}: damaged\n  found: {found}\n  expected: what prepare wrote\n"
        "  do: remove the prepared folder and prepare the official data again"
    )


def _refuse_foreign(out: Path) -> None:
    """ConfigError unless `out` is absent, empty, or holds nothing but what `prepare` writes."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose a folder")
    allowed = {"manifest.json", "begun.json", *SPLITS}
    foreign = [p.name for p in sorted(out.iterdir()) if p.name not in allowed and not p.name.startswith(".")]
    for split in SPLITS:
        if (out / split).is_dir():
            inside = sorted(p.name for p in (out / split).iterdir())
            foreign += [f"{split}/{n}" for n in inside if n not in ("features", "tracks.tsv") and not n.startswith(".")]
    if foreign:
        listed = ", ".join(map(shown, foreign[:3])) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise ConfigError(f"{out}: holds other files ({listed}); choose an empty or a new folder")


def _clear(out: Path, made: bool) -> None:
    """Removes what `prepare` wrote, and the folder too if it was `made` for this."""
    for split in SPLITS:
        shutil.rmtree(out / split, ignore_errors=True)
    for name in ("manifest.json", "begun.json"):
        (out / name).unlink(missing_ok=True)
    if made:
        out.rmdir()


# ---------------------------------------------------------------------------------------------------------------------
# Submissions


@dataclass(frozen=True, eq=False)
class Submission:
    """Queries, int64[n], and the track ids that each names, the best first, int64[n, K]; -1 fills shorter lines.

    `repeated` are the queries of lines that came again.
    """

    queries: Int64
    neighbours: Int64
    repeated: tuple[int, ...] = ()


def write_submission(path: Path, query_ids: Sequence[int] | Int64, neighbours: Int64) -> None:
    r"""Writes a line `query<TAB>id1 id2 ... id100` for each query, LF at its end, no header; atomic.

    Args:
        neighbours: int64[n, 100], track ids, the best first.

    Raises:
        ValueError: another number of neighbours, a doubled query, or a query with itself or an id twice.
    """
    queries = np.asarray(query_ids, dtype=np.int64)
    if neighbours.shape != (len(queries), ANSWERS):
        raise ValueError(f"found neighbours of shape {neighbours.shape}, expected ({len(queries)}, {ANSWERS})")
    ordered = np.sort(neighbours, axis=1)
    if len(np.unique(queries)) != len(queries):
        raise ValueError("a query comes twice")
    if (ordered[:, 1:] == ordered[:, :-1]).any() or (neighbours == queries[:, None]).any():
        raise ValueError("a query names itself, or an id twice")
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        for query, row in zip(queries.tolist(), neighbours.tolist(), strict=True):
            file.write(f"{query}\t{' '.join(map(str, row))}\n")


def read_submission(path: Path | str) -> Submission:
    """Read the lines of a submission, of any lengths, as the judge parses them.

    White space at the end of a line is cut off, a carriage return included; of a query with two lines the last counts.

    Raises:
        DataError: no such file, not ASCII, or lines of another form than `query<TAB>id id ...`.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: found {error.strerror}\n  expected: a submission\n  do: check the spelling"
        ) from None
    problems = Problems(
        path,
        expected="lines `query<TAB>id1 id2 ...`: whole numbers, one TAB, ids separated by single spaces",
        remedy="write the file with `infer`, or correct these lines",
    )
    found: dict[int, list[int]] = {}
    repeated: list[int] = []
    lines = content.decode("ascii", "replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        line = line.rstrip()
        match = LINE.fullmatch(line)
        if match is None:
            problems.add(f"line {number}", _fault_of_line(line))
            continue
        query = int(match[1])
        if query in found:
            repeated.append(query)
        found[query] = [int(part) for part in match[2].split(" ")]
    if not lines:
        problems.add("the file", "no lines")
    problems.raise_if_any()
    width = max(map(len, found.values()))
    neighbours = np.array([row + [-1] * (width - len(row)) for row in found.values()], dtype=np.int64)
    return Submission(np.array(list(found), dtype=np.int64), neighbours, tuple(repeated))


def _fault_of_line(line: str) -> str:
    if "\t" not in line:
        return f"no TAB ({shown(line[:40])!r})" if line else "an empty line"
    if line.count("\t") > 1:
        return "more than one TAB"
    return f"something else than whole numbers ({shown(line[:40])!r})"


def check_submission(path: Path | str, tracks_or_ids: Tracks | Sequence[int]) -> Int64:
    """Rows [n, K] into the tracks, int64, in the order of the tracks: what the judge reads; -1 fills shorter lines.

    What the judge takes is taken: fewer than 100 ids, or more (those behind the hundredth other track do not count),
    the query itself (dropped), an id twice (counted twice), no line for a query (scored 0), an unknown query (ignored).
    `submission_warnings` and `line_warnings` name these.

    Raises:
        DataError: the file has another form, or an unknown id stands among those that count.
    """
    ids = _ids(tracks_or_ids)
    submission = read_submission(path)
    problems = Problems(
        path, expected=f"ids of the {len(ids)} tracks", remedy="write the submission again with `infer`, from this data"
    )
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]

    def rows_of(values: Int64) -> Int64:
        place = np.minimum(np.searchsorted(ordered, values), len(ids) - 1)
        return np.where(ordered[place] == values, order[place], -1)

    query_rows = rows_of(submission.queries)
    asked = query_rows >= 0
    listed, rows = submission.neighbours[asked], rows_of(submission.neighbours[asked])
    others = np.cumsum((listed >= 0) & (listed != submission.queries[asked, None]), axis=1)
    unknown = (listed >= 0) & (rows < 0)
    for line in np.flatnonzero((unknown & (others <= ANSWERS)).any(axis=1)).tolist():
        first = listed[line][unknown[line]][0]
        problems.add(f"query {submission.queries[asked][line]}", f"the id {first}, which the data does not hold")
    problems.raise_if_any()
    rows[np.cumsum(unknown, axis=1) > 0] = -1  # behind the hundredth, where nothing counts
    out = np.full((len(ids), rows.shape[1]), -1, dtype=np.int64)
    out[query_rows[asked]] = rows
    return out


def submission_warnings(rows: Int64) -> list[str]:
    """What the judge takes although it gains nothing, or loses, in rows [n, K] of `check_submission`."""
    queries = np.arange(len(rows))
    own = (rows == queries[:, None]).any(axis=1)
    others = (rows >= 0).sum(axis=1) - (rows == queries[:, None]).sum(axis=1)
    ordered = np.sort(rows, axis=1)
    repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    absent = (rows < 0).all(axis=1)
    found = (
        (absent, "are missing; the judge scores such a query 0"),
        (repeated, "name an id more than once; the judge counts every one, so the score may exceed 1"),
        (own, "name the query itself, which the judge drops"),
        (
            (others < min(ANSWERS, len(rows) - 1)) & ~absent,
            f"name fewer than {min(ANSWERS, len(rows) - 1)} other tracks",
        ),
        (others > ANSWERS, f"name more than {ANSWERS} other tracks; those behind do not count"),
    )
    return [f"{where.sum()} of {len(rows)} lines {text}" for where, text in found if where.any()]


def line_warnings(path: Path | str, tracks_or_ids: Tracks | Sequence[int]) -> list[str]:
    """What the judge passes over in the lines of a submission: queries that come again, and unknown ones."""
    submission = read_submission(path)
    unknown = np.setdiff1d(submission.queries, _ids(tracks_or_ids)).tolist()
    found = (
        (list(submission.repeated), "name a query a second time; the last line of a query counts"),
        (unknown, "name a query that the data does not hold; the judge ignores them"),
    )
    return [f"{len(queries)} lines {text} (the first: {queries[0]})" for queries, text in found if queries]


def _ids(tracks_or_ids: Tracks | Sequence[int]) -> Int64:
    return np.array(tracks_or_ids.ids if isinstance(tracks_or_ids, Tracks) else tracks_or_ids, dtype=np.int64)


def too_few(n: int) -> DataError:
    """The error for a gallery in which nobody has 100 others."""
    return DataError(
        f"the gallery is too small: found {n} tracks, expected at least {ANSWERS + 1}: a submission names {ANSWERS} "
        "others for each\n  do: give the whole test set"
    )
