"""The pictures of Russian Art: read the official layout with every check, decode once, read and judge submissions.

    art = load("data")                                   # a folder, a zip, or what `prepare` wrote
    prepare(Path("data"), Path("packed"), workers=2)

The official layout, in a folder or a zip:

    train/<name>, or train.zip    images; what a file is, its content says, not its extension
    train.csv                     image_name<TAB>label_id; also in private_info/, or beside a train.zip given alone
    label_to_id.csv               label_name<TAB>label_id; a name is "Top/Genre", split at the first "/"
    groups.csv                    optional: image_name<TAB>group of every train image; which pictures belong together
    test/<name>, or test.zip      images without labels

Images may also lie bare in the folder or zip. The split "auto" means train where train.csv is there, else test; without
train.csv all images are test images, whatever their folder is called.

The packed form is a folder with `manifest.json`, written last, label_to_id.csv, and for every split: pixels.npy (uint8
[n, size, size, 3]: sRGB, upright, on white, squashed to a square), images.csv, quarantine.csv (files that give no
picture, and why) and conflicts.csv (nearly the same picture under two labels).
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import unicodedata
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from kit_core.atomic import atomic_path, write_json
from kit_core.console import progress, say
from kit_core.errors import ConfigError, DataError, DiskFullError, KitError, Problems
from kit_io.images import ImageError, decode, squash
from kit_io.source import NPY_ERRORS, Source, shown
from kit_io.tables import read_csv, write_csv
from kit_splits.near_duplicates import GRAY_SIDE, connected_groups, perceptual_hashes
from russian_art.groups import BOTH, FOUND, Agreement, compare_groups, content_of, join_groups, near_duplicates

Split = Literal["train", "test"]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

FORMAT = "russian-art-prepared"
FORMAT_VERSION = 2
PIXELS_VERSION = 1  # of what a picture becomes; with it the fingerprint changes, and so do features in a cache
DEFAULT_SIZE = 256  # pixels a side
SMALLEST_SIZE = GRAY_SIDE  # the thumbnails for the search of near-duplicates are made from the squashed picture
IMAGES_PER_PART = 24  # 5 MB at 256 pixels: what a killed `prepare` may lose per worker
PARALLEL_FROM = 8 * IMAGES_PER_PART  # below this, starting processes costs more than it saves
ZIP_NAMES = "cp866"  # of names that are not marked as Unicode: what a Russian Windows writes; ASCII is the same

LABEL_COLUMNS = ("label_name", "label_id")
SUBMISSION_COLUMNS = ("image_name", "label_id")  # of train.csv too
GROUP_COLUMNS = ("image_name", "group")
IMAGE_COLUMNS = ("image_name", "label_id", "group", "aspect", "sha256")
QUARANTINE_COLUMNS = ("image_name", "reason")
CONFLICT_COLUMNS = ("image_name", "label_id", "other_image_name", "other_label_id", "bits")
PART_ARRAYS = ("pixels", "aspect", "sha", "reason", "bits", "thumb", "content", "content_aspect")
SPLIT_FILES = {"pixels.npy", "images.csv", "quarantine.csv", "conflicts.csv"}
NO_IMAGES = (".csv", ".json", ".md", ".npy", ".txt", ".xlsx", ".zip")  # beside images that lie bare

THUMB_SIDE = 8  # of the colours that near-duplicates are compared by

_SPLITS: tuple[Split, ...] = ("train", "test")


# ---------------------------------------------------------------------------------------------------------------------
# In memory


@dataclass(frozen=True)
class Labels:
    """The label list: a label's id is its index in `names`, which are kept raw, since two official ones end in a space.

    Empty where a test set comes without label_to_id.csv. For display and comparison, use `tops`, `genres`, `shown`.
    """

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(top, genre) of every label, without blanks around them."""
        return tuple((top.strip(), genre.strip()) for top, _, genre in (name.partition("/") for name in self.names))

    @cached_property
    def tops(self) -> tuple[str, ...]:
        """Distinct tops, in the order of their first label."""
        return tuple(dict.fromkeys(top for top, _ in self.pairs))

    @cached_property
    def genres(self) -> tuple[str, ...]:
        """Distinct genres, in the order of their first label; one genre may stand under several tops."""
        return tuple(dict.fromkeys(genre for _, genre in self.pairs))

    @cached_property
    def top_of(self) -> Int64:
        """Index into `tops` of every label, int64[n_labels]."""
        return np.array([self.tops.index(top) for top, _ in self.pairs], dtype=np.int64)

    @cached_property
    def genre_of(self) -> Int64:
        """Index into `genres` of every label, int64[n_labels]."""
        return np.array([self.genres.index(genre) for _, genre in self.pairs], dtype=np.int64)

    def shown(self, label_id: int) -> str:
        """A label for people: "Top/Genre" without stray blanks."""
        return "/".join(self.pairs[label_id])


@dataclass(frozen=True, eq=False)
class Art:
    """All pictures of a split.

    names        n file names: in the order of train.csv, or sorted for a test set.
    pixels       uint8[n, size, size, 3], a memory map or an array: sRGB, squashed to a square.
    aspect       float64[n]: width over height before the squash, 1 for a file that gives no picture.
    label        int64[n], or None for a test set.
    group        int64[n]: pictures that belong together have the same number; folds never cut a group.
    labels       the label list.
    broken       file name -> why it gives no picture. Such a test file stays in `names`, its pixels white; such a train
                 file is left out.
    fingerprint  identity of content, labels and size, however the data was read.
    group_by     what the groups are: near-duplicates that were found, or these joined with groups.csv.
    """

    split: Split
    names: list[str]
    pixels: UInt8
    aspect: Float64
    label: Int64 | None
    group: Int64
    labels: Labels
    broken: dict[str, str]
    fingerprint: str
    group_by: str = FOUND

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """Pixels a side."""
        return int(self.pixels.shape[1])

    @cached_property
    def all_names(self) -> list[str]:
        """Every file of the split, readable or not: a submission has one row for each of these."""
        here = set(self.names)
        return self.names + [name for name in self.broken if name not in here]

    def completed(self, label_ids: npt.ArrayLike, fallback: int) -> Int64:
        """Label ids for `all_names`, from those predicted for `names` (int64[n]); broken files get `fallback`."""
        predicted = dict(zip(self.names, np.asarray(label_ids, dtype=np.int64).tolist(), strict=True))
        return np.array([fallback if n in self.broken else predicted[n] for n in self.all_names], dtype=np.int64)


def load(
    path: Path | str, split: Split | Literal["auto"] = "auto", *, size: int | None = None, workers: int | None = None
) -> Art:
    """All pictures of a split, from the official layout or from a prepared folder.

    Official images are decoded by `workers` processes (default: one for a small set, else one a core) to `size` pixels
    a side (default 256), into a temporary file that vanishes with the process; `prepare` does it once and for all.

    Raises:
        ConfigError: a prepared folder of another size than asked for.
        DataError: anything in the layout, a table or a prepared folder is not as it must be.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        if size not in (None, manifest["size"]):
            raise ConfigError(
                f"{path}: prepared at {manifest['size']} pixels a side, asked for {size}; prepare the official data "
                f"with this size, or ask for {manifest['size']}"
            )
        return _load_prepared(path, manifest, split)
    layout = _Layout.of(path)
    plan = _Plan.of(layout, _chosen(layout.splits, split, str(path)))
    if workers is None:
        workers = 1 if len(plan.names) < PARALLEL_FROM else _cores()
    size = _checked_size(DEFAULT_SIZE if size is None else size)
    with tempfile.TemporaryDirectory(prefix="russian-art-") as folder:  # removed while mapped: POSIX keeps the pixels
        out = Path(folder)
        entry, _ = _pack(plan, out, size, workers)
        return _load_split(out, plan.split, entry, size, plan.labels)


def splits_in(path: Path | str) -> tuple[Split, ...]:
    """The splits that a folder, zip or prepared folder holds, in the order train, test.

    Raises:
        DataError: it holds neither.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        return tuple(split for split in _SPLITS if split in manifest["splits"])
    return _Layout.of(path).splits


def stratified_folds(label: Int64, group: Int64, n_folds: int, seed: int = 0) -> Int64:
    """The fold of every picture, int64[n], 0 .. n_folds - 1: labels spread evenly, groups whole.

    Raises:
        ConfigError: fewer than two folds, or fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # here, since workers that decode start without it

    if n_folds < 2 or len(np.unique(group)) < n_folds:
        raise ConfigError(f"{n_folds} folds of {len(np.unique(group))} groups: at least 2, and a group for each")
    if np.bincount(label).max() < n_folds:
        raise ConfigError(f"{n_folds} folds: every label has fewer pictures; ask for fewer folds")
    folds = np.zeros(len(label), dtype=np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # labels with fewer pictures than folds: some folds lack them
        for fold, (_, test) in enumerate(splitter.split(np.zeros(len(label)), label, group)):
            folds[test] = fold
    return folds


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def read_labels(source: Source | Path, member: str | None = None) -> Labels:
    """The label list of a label_to_id.csv.

    Raises:
        DataError: not a TAB-separated UTF-8 table of this header, ids that are not 0 .. n - 1 once each, or names that
            are doubled or not "Top/Genre".
    """
    columns = read_csv(source, member, LABEL_COLUMNS, delimiter="\t")
    file = _table_name(source, member)
    problems = Problems(
        file,
        expected='names "Top/Genre", all different, and each of the ids 0, 1, 2, … once',
        remedy="take label_to_id.csv of the competition as it is",
    )
    by_id: dict[int, str] = {}
    seen: set[tuple[str, str]] = set()
    ids = columns["label_id"]
    for line, (name, text) in enumerate(zip(columns["label_name"], ids, strict=True), start=2):
        label_id = _as_id(text, len(ids))
        top, slash, genre = name.partition("/")
        pair = (top.strip(), genre.strip())
        if label_id is None:
            problems.add(f"line {line}", f"the id {shown(text)!r}, not one of 0 .. {len(ids) - 1}")
        elif label_id in by_id:
            problems.add(f"line {line}", f"the id {label_id} a second time")
        elif not (slash and all(pair)):
            problems.add(f"line {line}", f"the name {shown(name)!r}")
        elif pair in seen:
            problems.add(f"line {line}", f"the name {shown(name)!r} a second time")
        else:
            by_id[label_id] = name
            seen.add(pair)
    if not ids:
        problems.add("the table", "no rows")
    problems.raise_if_any()
    return Labels(tuple(by_id[i] for i in range(len(by_id))))


def read_label_ids(source: Source | Path, member: str | None = None, *, labels: Labels | int) -> dict[str, int]:
    """The rows of a train.csv, of a table of the truth or of a submission: image name -> label id, in their order.

    Raises:
        DataError: not a TAB-separated UTF-8 table of this header, a name that is empty or doubled, or an id outside of
            the label list.
    """
    columns = read_csv(source, member, SUBMISSION_COLUMNS, delimiter="\t")
    n_labels = labels if isinstance(labels, int) else len(labels)
    problems = Problems(
        _table_name(source, member),
        expected=f"one row for each image, with a label id 0 .. {n_labels - 1}",
        remedy="correct or remove these rows",
    )
    rows: dict[str, int] = {}
    seen: set[str] = set()
    for line, (name, text) in enumerate(zip(columns["image_name"], columns["label_id"], strict=True), start=2):
        label_id = _as_id(text, n_labels)
        if not name.strip():
            problems.add(f"line {line}", "an empty image_name")
        elif _key(name) in seen:
            problems.add(f"line {line}", f"{shown(name)} a second time")
        elif label_id is None:
            problems.add(f"line {line} ({shown(name)})", f"the label id {shown(text)!r}")
        else:
            rows[name] = label_id
        seen.add(_key(name))
    problems.raise_if_any()
    return rows


def read_groups(source: Source | Path, member: str | None, names: Sequence[str]) -> list[str]:
    """The group of every one of `names`, in their order, from a groups.csv.

    Raises:
        DataError: not a TAB-separated UTF-8 table of this header, a name that is doubled or unknown, an empty group, or
            names without a row.
    """
    columns = read_csv(source, member, GROUP_COLUMNS, delimiter="\t")
    known = {_key(name) for name in names}
    group_of: dict[str, str] = {}
    problems = Problems(
        _table_name(source, member),
        expected=f"one row for each of the {len(names)} images of train.csv, and no others",
        remedy="complete or correct groups.csv (an image without relatives is a group of its own), or remove the file",
    )
    for line, (name, group) in enumerate(zip(columns["image_name"], columns["group"], strict=True), start=2):
        if _key(name) not in known:
            problems.add(f"line {line}", f"{shown(name)}, which train.csv does not name")
        elif _key(name) in group_of:
            problems.add(f"line {line}", f"{shown(name)} a second time")
        elif not group.strip():
            problems.add(f"line {line} ({shown(name)})", "an empty group")
        group_of.setdefault(_key(name), group)
    for name in names:
        if _key(name) not in group_of:
            problems.add(shown(name), "no row")
    problems.raise_if_any()
    return [group_of[_key(name)] for name in names]


def _as_id(text: str, below: int) -> int | None:
    """The id that a text says in plain digits, None if it says none of 0 .. below - 1."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or text != str(int(text)) or int(text) >= below:
        return None
    return int(text)


def _table_name(source: Source | Path, member: str | None) -> str:
    return str(source) if isinstance(source, Path) else f"{source.name}: {member}"


def _key(name: str) -> str:
    """Names are compared in one Unicode form: macOS splits letters such as "й" in two."""
    return unicodedata.normalize("NFC", name)


# ---------------------------------------------------------------------------------------------------------------------
# The official layout


@dataclass(frozen=True)
class _Images:
    """Where the images of a split lie: file name -> member of the source."""

    source: Source
    members: dict[str, str]


@dataclass(frozen=True)
class _Table:
    """A csv file: a member of a source, or a file of its own."""

    source: Source | Path
    member: str | None


@dataclass(frozen=True)
class _Layout:
    """What a path holds."""

    name: str
    images: dict[Split, _Images]
    train_csv: _Table | None
    labels_csv: _Table | None
    groups_csv: _Table | None

    @staticmethod
    def of(path: Path) -> "_Layout":
        source = _open(path)
        train_csv = _find_table(path, source, "train.csv")
        images: dict[Split, _Images] = {}
        for split in _SPLITS:
            found = _split_images(path, source, split)
            if found is not None:
                images[split] = found
        bare = {m: m for m in source.members() if "/" not in m and not m.lower().endswith(NO_IMAGES)}
        if not images and bare:
            images["test" if train_csv is None else "train"] = _Images(source, bare)
        elif train_csv is None and "train" in images:
            others = images.pop("train")  # without labels, images can only be predicted
            images.setdefault("test", others)
        groups_csv = None if train_csv is None else _find_table(path, source, "groups.csv")
        return _Layout(str(path), images, train_csv, _find_table(path, source, "label_to_id.csv"), groups_csv)

    @property
    def splits(self) -> tuple[Split, ...]:
        found = tuple(split for split in _SPLITS if split in self.images)
        if not found:
            raise DataError(
                f"{self.name}: no images\n  found: an empty folder, or no folder of images\n"
                "  expected: train/ and train.csv, test/, train.zip, test.zip, or bare image files\n"
                "  do: give the folder or zip of the competition as downloaded"
            )
        return found

    def fingerprint(self) -> str:
        """Identity of all files, without reading the images."""
        parts = [f"{split} {images.source.fingerprint()}" for split, images in sorted(self.images.items())]
        for table in (self.train_csv, self.labels_csv, self.groups_csv):
            if table is not None:
                content = (
                    table.source.read_bytes()
                    if isinstance(table.source, Path)
                    else table.source.read(str(table.member))
                )
                parts.append(hashlib.sha256(content).hexdigest())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _open(path: Path) -> Source:
    return Source.open_source(path, keep=(*_SPLITS, "private_info"), name_encoding=ZIP_NAMES)


def _find_table(path: Path, source: Source, name: str) -> _Table | None:
    for member in (name, f"private_info/{name}"):
        if source.has(member):
            return _Table(source, member)
    beside = path.resolve().parent / name  # the official archive holds images alone, the tables come apart
    return _Table(beside, None) if path.is_file() and beside.is_file() else None


def _split_images(path: Path, source: Source, split: Split) -> _Images | None:
    archive = path / f"{split}.zip"
    if not source.members(f"{split}/") and path.is_dir() and archive.is_file():
        source = _open(archive)
        if not source.members(f"{split}/"):
            members = [m for m in source.members() if not m.lower().endswith(NO_IMAGES)]
            return _named(source, {m: m for m in members}) if members else None
    members = source.members(f"{split}/")
    return _named(source, {m.removeprefix(f"{split}/"): m for m in members}) if members else None


def _named(source: Source, members: dict[str, str]) -> _Images:
    problems = Problems(
        source.name,
        expected="images directly in one folder, since tables and submissions name them without a folder",
        remedy="move these files, or name the folder that holds the images",
    )
    seen: dict[str, str] = {}
    for name, member in members.items():
        if "/" in name:
            problems.add(f"member {shown(member)}", "a file in a folder of its own")
        elif _key(name) in seen:
            problems.add(
                f"member {shown(member)}", f"the same name as {shown(seen[_key(name)])} in another Unicode form"
            )
        seen[_key(name)] = member
    problems.raise_if_any()
    return _Images(source, members)


def _chosen(splits: Sequence[Split], split: Split | Literal["auto"], name: str) -> Split:
    chosen = splits[0] if split == "auto" else split
    if chosen in splits:
        return chosen
    missing = "train.csv, or no images for it" if chosen == "train" else "images in test/ or test.zip (is it empty?)"
    raise DataError(
        f"{name}: no {chosen} images\n  found: {', '.join(splits)} images only; no {missing}\n"
        f"  expected: {'train/ and train.csv' if chosen == 'train' else 'test/'}\n"
        "  do: complete the folder, or ask for another split"
    )


@dataclass(frozen=True)
class _Plan:
    """What is to be decoded for one split, in the order of the result, its labels checked."""

    split: Split
    source: Source
    names: list[str]
    members: list[str]
    label: list[int] | None
    labels: Labels
    group: list[str] | None = None
    """Of groups.csv, where there is one."""

    @staticmethod
    def of(layout: _Layout, split: Split) -> "_Plan":
        labels = Labels(())
        if layout.labels_csv is not None:
            labels = read_labels(layout.labels_csv.source, layout.labels_csv.member)
        images = layout.images[split]
        if split == "test":
            names = sorted(images.members)
            return _Plan(split, images.source, names, [images.members[n] for n in names], None, labels)
        if layout.labels_csv is None:
            raise DataError(
                f"{layout.name}: no label_to_id.csv\n  found: train.csv alone\n"
                "  expected: label_to_id.csv (label_name, label_id) beside it\n"
                "  do: take it from the organisers' baseline, or leave train.csv out to predict only"
            )
        assert layout.train_csv is not None  # without it there is no split train
        rows = read_label_ids(layout.train_csv.source, layout.train_csv.member, labels=labels)
        file = _table_name(layout.train_csv.source, layout.train_csv.member)
        problems = Problems(
            file,
            expected=f"one row for each file of {images.source.name}, and no others",
            remedy="correct the table, or complete or clean the folder of the images",
        )
        member_of = {_key(name): member for name, member in images.members.items()}
        known = {_key(name) for name in rows}
        for name in rows:
            if _key(name) not in member_of:
                problems.add(shown(name), "a row, but no such file")
        for name, member in sorted(images.members.items()):
            if _key(name) not in known:
                problems.add(shown(member), "a file, but no row")
        if not rows:
            problems.add("the table", "no rows")
        problems.raise_if_any()
        members = [member_of[_key(name)] for name in rows]
        table = layout.groups_csv
        group = None if table is None else read_groups(table.source, table.member, list(rows))
        return _Plan(split, images.source, list(rows), members, list(rows.values()), labels, group)


# ---------------------------------------------------------------------------------------------------------------------
# The packed form


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did. By split: images, broken (train: left out), groups, and conflicts (pairs of two labels)."""

    out: Path
    size: int
    splits: dict[str, dict[str, int]]
    decoded: int
    """Images decoded now; the others were found in what a stopped run had left."""
    seconds: float
    agreements: dict[str, Agreement] = field(default_factory=dict)
    """Of a split with groups.csv: how its groups and those found in the pixels compare."""

    def __str__(self) -> str:
        parts = [
            f"{counts['images']} {split} pictures in {counts['groups']} groups ({counts['broken']} files give none, "
            f"{counts['conflicts']} pairs have two labels)"
            for split, counts in self.splits.items()
        ]
        now = f"{self.size} pixels a side, {self.decoded} decoded now, {self.seconds:.1f} s"
        lines = [f"{self.out}: {', '.join(parts)}; {now}"]
        lines += [
            f"{split}: {one.groups_given} groups in groups.csv, {one.groups_found} groups found in the pixels, "
            f"{one.groups} with both, the largest of {one.largest_group}\n"
            f"{split}: of {one.pairs_given} pairs in groups.csv the search finds {one.pairs_both} (recall "
            f"{one.recall:.3f}); {one.pairs_found} pairs found (precision {one.precision:.3f})"
            for split, one in self.agreements.items()
        ]
        return "\n".join(lines)


def prepare(data: Path, out: Path, *, size: int = DEFAULT_SIZE, workers: int) -> Prepared:
    """Checks and decodes every split of the official `data` into the folder `out`, squashed to `size` pixels a side.

    Done by `workers` processes. Stopped half-way, it goes on where it was: images of the same content, decoded at the
    same size by the same Pillow, are kept. Finished, it is a look at the manifest.

    Raises:
        ConfigError: `out` holds something else, or lies inside `data`; `workers` or `size` is too small.
        DataError: a table or the layout is not as it must be, or no image at all can be read. Then nothing is left.
    """
    started = time.monotonic()
    data, out = Path(data), Path(out)
    _checked_size(size)
    if workers < 1:
        raise ConfigError(f"workers: found {workers}, expected at least 1")
    if _read_manifest(data) is not None:
        raise ConfigError(f"{data}: this folder is already prepared; use it as it is")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(f"{out}: lies inside the data folder {data}; choose a folder outside it")
    _refuse_foreign(out)
    layout = _Layout.of(data)
    identity = layout.fingerprint()
    manifest = _whole_manifest(out, identity, size)
    decoded = 0
    if manifest is None:
        plans = [_Plan.of(layout, split) for split in layout.splits]
        made = not out.exists()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be made ({error.strerror}); choose another folder") from None
        (out / "manifest.json").unlink(missing_ok=True)  # from here until the end, the folder is not complete
        splits: dict[str, dict[str, Any]] = {}
        try:
            for plan in plans:
                splits[plan.split], new = _pack(plan, out, size, workers)
                decoded += new
        except DiskFullError:  # with more room, the same command goes on from here
            raise
        except DataError:
            _clear(out, made)
            raise
        for split in _SPLITS:
            if split not in splits:  # of other data
                shutil.rmtree(out / split, ignore_errors=True)
        shutil.rmtree(out / "parts", ignore_errors=True)
        labels = plans[0].labels
        (out / "label_to_id.csv").unlink(missing_ok=True)
        if labels.names:
            rows = [(name, str(i)) for i, name in enumerate(labels.names)]
            write_csv(out / "label_to_id.csv", LABEL_COLUMNS, rows, delimiter="\t")
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "size": size,
            "source": str(data),
            "source_fingerprint": identity,
            "splits": splits,
        }
        write_json(out / "manifest.json", manifest)
    counts = {
        split: {key: entry[key] for key in ("images", "broken", "groups", "conflicts")}
        for split, entry in manifest["splits"].items()
    }
    agreements = {
        split: Agreement(**entry["agreement"]) for split, entry in manifest["splits"].items() if "agreement" in entry
    }
    return Prepared(out, size, counts, decoded, time.monotonic() - started, agreements)


def _checked_size(size: int) -> int:
    if not SMALLEST_SIZE <= size <= 4096:
        raise ConfigError(f"size: found {size}, expected {SMALLEST_SIZE} .. 4096 pixels a side")
    return size


@dataclass(frozen=True)
class _Part:
    """Up to 24 images for one worker process, and the file that it writes them to."""

    source: Source
    members: list[str]
    size: int
    file: Path


def _pack(plan: _Plan, out: Path, size: int, workers: int) -> tuple[dict[str, Any], int]:
    """Decodes one split into `out`; returns its entry in the manifest and the number of images decoded now."""
    key = hashlib.sha256(f"{FORMAT_VERSION} {size} {PIL.__version__} {plan.split}".encode()).hexdigest()[:16]
    folder = out / "parts" / f"{plan.split}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(plan.members), IMAGES_PER_PART)
    parts = [
        _Part(plan.source, plan.members[i : i + IMAGES_PER_PART], size, folder / f"{i // IMAGES_PER_PART:05d}.npz")
        for i in starts
    ]
    decoded: list[int] = []

    def one_by_one() -> Iterator[int]:
        for part, new in zip(parts, _in_order(_decode_part, parts, workers), strict=True):
            decoded.append(new)
            yield from range(len(part.members))

    for _ in progress(one_by_one(), total=len(plan.members), label=f"decoding {plan.split} images"):
        pass
    return _assemble(plan, parts, out / plan.split, size), sum(decoded)


def _decode_part(part: _Part) -> int:
    """Writes the file of a part; returns how many of its images were not in it already."""
    n, size = len(part.members), part.size
    kept = _read_part(part.file)
    row_of = {sha.tobytes(): row for row, sha in enumerate(kept["sha"])} if kept else {}
    pixels = np.full((n, size, size, 3), 255, dtype=np.uint8)
    sha = np.zeros((n, 32), dtype=np.uint8)
    aspect = np.ones(n)
    reasons = [""] * n
    new = 0
    for i, member in enumerate(part.members):
        try:
            content = part.source.read(member)
        except DataError as error:  # a damaged member of a zip
            reasons[i] = _what(error)
            new += 1
            continue
        digest = hashlib.sha256(content).digest()
        sha[i] = np.frombuffer(digest, dtype=np.uint8)
        row = row_of.get(digest)
        if kept and row is not None:
            pixels[i], aspect[i], reasons[i] = kept["pixels"][row], kept["aspect"][row], str(kept["reason"][row])
            continue
        new += 1
        try:
            picture = decode(content, name=member, target=size)
            pixels[i], aspect[i] = squash(picture, size), picture.width / picture.height
        except ImageError as error:
            reasons[i] = error.found
    if new or kept is None or len(kept["sha"]) != n:
        gray, thumb = _thumbnails(pixels)
        cut = [content_of(picture, ratio) for picture, ratio in zip(pixels, aspect.tolist(), strict=True)]
        with atomic_path(part.file) as temporary, temporary.open("wb") as file:
            found = {"pixels": pixels, "aspect": aspect, "sha": sha, "reason": np.array(reasons)}
            found["content"], found["content_aspect"] = np.stack([one for one, _ in cut]), np.array([a for _, a in cut])
            np.savez(file, **found, bits=perceptual_hashes(gray), thumb=thumb)  # type: ignore[arg-type]  # all arrays
    return new


def _thumbnails(pixels: UInt8) -> tuple[UInt8, UInt8]:
    """Gray [n, 32, 32] for the hash and colours [n, 8, 8, 3] of pictures [n, size, size, 3]."""
    gray = np.zeros((len(pixels), GRAY_SIDE, GRAY_SIDE), dtype=np.uint8)
    thumb = np.zeros((len(pixels), THUMB_SIDE, THUMB_SIDE, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        small = Image.fromarray(picture).resize((GRAY_SIDE, GRAY_SIDE), Image.Resampling.BOX)
        gray[i] = np.asarray(small.convert("L"))
        thumb[i] = np.asarray(small.reduce(GRAY_SIDE // THUMB_SIDE))
    return gray, thumb


def _read_part(file: Path) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays of a part, None where there is none that is whole."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in PART_ARRAYS}
    except (*NPY_ERRORS, zipfile.BadZipFile):
        return None


def _assemble(plan: _Plan, parts: Sequence[_Part], folder: Path, size: int) -> dict[str, Any]:
    """Joins the parts of a split into its files and returns its entry in the manifest."""
    sha, aspect, reason, bits, thumb, contents, content_aspects = [], [], [], [], [], [], []
    for part in parts:
        arrays = _whole_part(part)
        sha.append(arrays["sha"])
        aspect += [f"{value:.6g}" for value in arrays["aspect"]]
        reason += [str(text) for text in arrays["reason"]]
        bits.append(arrays["bits"])
        thumb.append(arrays["thumb"])
        contents.append(arrays["content"])
        content_aspects.append(arrays["content_aspect"])
    readable = np.array([not text for text in reason])
    if not readable.any():
        problems = Problems(
            plan.source.name, "images", "download the data again; none of its files could be decoded as an image"
        )
        for name, text in zip(plan.names, reason, strict=True):
            problems.add(shown(name), text)
        problems.raise_if_any()
    kept = np.flatnonzero(readable | (plan.split == "test"))  # a test file gets a row, whatever it is
    hexes = [row.tobytes().hex() for row in np.concatenate(sha)]
    pairs, distances = near_duplicates(
        np.concatenate(bits), np.concatenate(thumb), np.concatenate(contents), np.concatenate(content_aspects), hexes,
        readable,
    )  # fmt: skip
    group = connected_groups(len(kept), np.searchsorted(kept, pairs))
    grouping: dict[str, Any] = {"group_by": FOUND}
    if plan.group is not None:
        given = np.unique([plan.group[i] for i in kept], return_inverse=True)[1].astype(np.int64)
        grouping = {"group_by": BOTH, "agreement": asdict(compare_groups(given, group))}
        group = join_groups(given, group)
    names = [plan.names[i] for i in kept]
    label_ids = [str(plan.label[i]) if plan.label is not None else "" for i in kept]

    folder.mkdir(exist_ok=True)
    _write_pixels(folder / "pixels.npy", parts, readable if plan.split == "train" else None, len(kept), size)
    shapes, digests = [aspect[i] for i in kept], [hexes[i] for i in kept]
    rows = zip(names, label_ids, map(str, group.tolist()), shapes, digests, strict=True)
    write_csv(folder / "images.csv", IMAGE_COLUMNS, rows, delimiter="\t")
    broken = [(plan.names[i], reason[i]) for i in np.flatnonzero(~readable)]
    write_csv(folder / "quarantine.csv", QUARANTINE_COLUMNS, broken, delimiter="\t")
    conflicts = [] if plan.label is None else _conflicts(plan.names, plan.label, pairs, distances)
    write_csv(folder / "conflicts.csv", CONFLICT_COLUMNS, conflicts, delimiter="\t")
    if broken:
        what = "left out of training" if plan.split == "train" else "kept as white pictures, so that each gets a row"
        first = "; ".join(f"{shown(name)}: {text}" for name, text in broken[:5])
        more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        say(f"{len(broken)} {plan.split} file(s) give no picture and are {what} ({first}{more})")
    if conflicts:
        first = "; ".join(f"{shown(row[0])} and {shown(row[2])}" for row in conflicts[:5])
        more = f"; and {len(conflicts) - 5} more" if len(conflicts) > 5 else ""
        say(f"{len(conflicts)} pair(s) of nearly the same picture have two labels (conflicts.csv; {first}{more})")
    identity = hashlib.sha256(f"{PIXELS_VERSION} {size} {PIL.__version__}\n{plan.labels.names}\n".encode())
    for name, label_id, i in zip(names, label_ids, kept, strict=True):
        identity.update(f"{name}\t{label_id}\t{hexes[i]}\n".encode())
    return {
        "images": len(kept),
        "broken": len(broken),
        "groups": int(group.max()) + 1,
        "largest_group": int(np.bincount(group).max()),
        **grouping,
        "conflicts": len(conflicts),
        "fingerprint": identity.hexdigest(),
    }


def _whole_part(part: _Part) -> dict[str, npt.NDArray[Any]]:
    arrays = _read_part(part.file)
    if arrays is None or len(arrays["sha"]) != len(part.members):
        raise _damaged(part.file, "not what was written a moment ago")
    return arrays


def _write_pixels(file: Path, parts: Sequence[_Part], chosen: npt.NDArray[np.bool_] | None, n: int, size: int) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, size, size, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        start = 0
        for part in parts:
            pixels = _whole_part(part)["pixels"]
            stop = start + len(pixels)
            stream.write((pixels if chosen is None else pixels[chosen[start:stop]]).tobytes())
            start = stop


def _conflicts(names: Sequence[str], label: Sequence[int], pairs: Int64, distances: Int64) -> list[tuple[str, ...]]:
    """Rows of conflicts.csv: nearly the same picture under two labels."""
    return [
        (names[i], str(label[i]), names[j], str(label[j]), str(distance))
        for (i, j), distance in zip(pairs.tolist(), distances.tolist(), strict=True)
        if label[i] != label[j]
    ]


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, None for anything else; DataError for a prepared folder that is of no use."""
    if not path.is_dir():
        return None
    file = path / "manifest.json"
    if not file.is_file():
        if (path / "parts").is_dir() and list(path.glob("parts/t*-*")):
            raise DataError(
                f"{path}: an unfinished prepared folder\n  found: parts without manifest.json\n"
                "  expected: manifest.json, which is written last\n  do: run prepare again; it goes on where it stopped"
            )
        return None
    try:
        manifest = json.loads(file.read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            return None  # somebody else's manifest
        if manifest["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{file}: found format_version {manifest['format_version']}, expected {FORMAT_VERSION}\n"
                "  do: prepare the official data again with this version of the program"
            )
        whole = isinstance(manifest["size"], int) and isinstance(manifest["source_fingerprint"], str)
        for split, entry in manifest["splits"].items():
            whole &= split in _SPLITS and isinstance(entry["fingerprint"], str)
            whole &= all(isinstance(entry[key], int) for key in ("images", "broken", "groups", "conflicts"))
            whole &= isinstance(entry.get("group_by", ""), str)
            Agreement(**entry.get("agreement", dict.fromkeys(Agreement.__annotations__, 0)))
        if not whole or not manifest["splits"]:
            raise ValueError("values of other types than prepare writes")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if not (path / "label_to_id.csv").is_file() and not list(path.glob("t*/pixels.npy")):
            return None
        raise _damaged(file, f"{type(error).__name__}: {error}") from None
    return manifest


def _whole_manifest(out: Path, identity: str, size: int) -> dict[str, Any] | None:
    """The manifest of `out` if all of it is there and was made of the data of this identity at this size."""
    try:
        manifest = _read_manifest(out)
        if manifest is None or manifest["source_fingerprint"] != identity or manifest["size"] != size:
            return None
        for split in manifest["splits"]:
            _load_prepared(out, manifest, split)
    except DataError:  # broken off or damaged
        return None
    return manifest


def _load_prepared(path: Path, manifest: dict[str, Any], split: Split | Literal["auto"]) -> Art:
    splits: tuple[Split, ...] = tuple(s for s in _SPLITS if s in manifest["splits"])
    chosen = _chosen(splits, split, str(path))
    labels = Labels(())
    if (path / "label_to_id.csv").is_file():
        labels = read_labels(path / "label_to_id.csv")
    elif chosen == "train":
        raise _damaged(path / "label_to_id.csv", "no such file")
    return _load_split(path, chosen, manifest["splits"][chosen], manifest["size"], labels)


def _load_split(path: Path, split: Split, entry: Mapping[str, Any], size: int, labels: Labels) -> Art:
    file = path / split / "pixels.npy"
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    except NPY_ERRORS as error:
        raise _damaged(file, str(error)) from None
    shape = (entry["images"], size, size, 3)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise _damaged(file, f"{pixels.dtype} of shape {pixels.shape}, not uint8 of shape {shape}")
    columns = read_csv(path / split / "images.csv", None, IMAGE_COLUMNS, delimiter="\t")
    quarantine = read_csv(path / split / "quarantine.csv", None, QUARANTINE_COLUMNS, delimiter="\t")
    names = columns["image_name"]
    label = None
    try:
        group = np.array([int(text) for text in columns["group"]], dtype=np.int64)
        aspect = np.array([float(text) for text in columns["aspect"]])
        if split == "train":
            label = np.array([int(text) for text in columns["label_id"]], dtype=np.int64)
    except ValueError as error:
        raise _damaged(path / split / "images.csv", str(error)) from None
    if not (np.isfinite(aspect) & (aspect > 0)).all():
        raise _damaged(path / split / "images.csv", "an aspect that is no positive number")
    counts = (len(names), len(set(names)), len(quarantine["image_name"]))
    if counts != (entry["images"], entry["images"], entry["broken"]):
        raise _damaged(path / split / "images.csv", f"{counts[0]} images, where manifest.json has {entry['images']}")
    if any(len(text) != 64 for text in columns["sha256"]):
        raise _damaged(path / split / "images.csv", "a SHA-256 that is cut")
    if label is not None and (label.min() < 0 or label.max() >= len(labels)):
        raise _damaged(path / split / "images.csv", "a label id outside of label_to_id.csv")
    broken = dict(zip(quarantine["image_name"], quarantine["reason"], strict=True))
    group_by = entry.get("group_by", FOUND)  # folders of older programs hold near-duplicates
    return Art(split, names, pixels, aspect, label, group, labels, broken, entry["fingerprint"], group_by)


def _damaged(file: Path, found: str) -> DataError:
    return DataError(
        f"{file}: damaged\n  found: {found}\n  expected: what prepare wrote\n"
        "  do: remove the prepared folder and prepare the official data again"
    )


def _what(error: DataError) -> str:
    """What was found, for a list, out of a message that `Source.read` made for one file."""
    return str(error).partition(": found ")[2].partition("\n")[0] or str(error)


def _refuse_foreign(out: Path) -> None:
    """ConfigError unless `out` is absent, empty, or holds nothing but what `prepare` writes."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose a folder")
    allowed = {"manifest.json", "label_to_id.csv", "parts", *_SPLITS}
    foreign = [p.name for p in sorted(out.iterdir()) if p.name not in allowed and not p.name.startswith(".")]
    for split in _SPLITS:
        if (out / split).is_dir():
            inside = sorted(p.name for p in (out / split).iterdir())
            foreign += [f"{split}/{name}" for name in inside if name not in SPLIT_FILES and not name.startswith(".")]
    if foreign:
        listed = ", ".join(map(shown, foreign[:3])) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise ConfigError(f"{out}: holds other files ({listed}); choose an empty or a new folder")


def _clear(out: Path, made: bool) -> None:
    """Removes what `prepare` wrote, and the folder too if it was `made` for this."""
    for name in ("parts", *_SPLITS):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("manifest.json", "label_to_id.csv"):
        (out / name).unlink(missing_ok=True)
    if made:
        out.rmdir()


# ---------------------------------------------------------------------------------------------------------------------
# Processes

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_order(function: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int) -> Iterator[_Result]:
    """`map` over processes, at most two tasks a worker under way, so that memory does not grow with their number.

    Processes are spawned: a fork of a process in which torch has started threads may hang.
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


# ---------------------------------------------------------------------------------------------------------------------
# Submissions


def write_submission(path: Path, names: Sequence[str], label_ids: npt.ArrayLike) -> None:
    """Writes image_name and label_id, TAB-separated, one row a file in the order of `names`; atomic.

    Raises:
        ValueError: a name comes twice, or there are not as many labels as names.
    """
    if len(set(names)) != len(names):
        raise ValueError("a file name comes twice")
    ids = np.asarray(label_ids, dtype=np.int64).tolist()
    rows = ((name, str(label_id)) for name, label_id in zip(names, ids, strict=True))
    write_csv(path, SUBMISSION_COLUMNS, rows, delimiter="\t")


def read_submission(path: Path | str, labels: Labels | int) -> dict[str, int]:
    """The rows of a submission: image name -> label id; raises as `read_label_ids`."""
    return read_label_ids(Path(path), labels=labels)


def check_submission(path: Path | str, art_or_names: Art | Sequence[str], labels: Labels | int) -> Int64:
    """The label ids of a submission that the judge would take, int64, in the order of the names (of `all_names`).

    The official script joins truth and submission by row, so that one missing or doubled row spoils all that follow.

    Raises:
        DataError: files are missing, doubled or unknown, an id is outside of the label list, or the table is another.
    """
    names = art_or_names.all_names if isinstance(art_or_names, Art) else list(art_or_names)
    rows = {_key(name): label_id for name, label_id in read_submission(path, labels).items()}
    problems = Problems(
        path,
        f"{len(names)} rows, one for each file, with its name without folder",
        "write the submission again from the same images; files that cannot be decoded need a row too",
    )
    for name in names:
        if _key(name) not in rows:
            problems.add(shown(name), "no row")
    known = {_key(name) for name in names}
    for name in rows:
        if name not in known:
            problems.add(shown(name), "a row for a file that the data does not hold")
    problems.raise_if_any()
    return np.array([rows[_key(name)] for name in names], dtype=np.int64)
