"""The lab's spectra and labels: read the official layout with every check, pack it once, write and judge answers.

    clips = load("data")                                  # the official folder or zip, or what `prepare` wrote
    prepare(Path("data"), Path("packed"), workers=2)

The official layout, in a folder or a zip; each of the four folders may be absent, and `fma_` may be left out:

    fma_genre_spectrograms[_beat]/{train,test}/N.fused.full.npy[.gz]     float [140, T]: 128 mel rows in dB, 12 chroma
    fma_genre_spectrograms[_beat]/{train,test}_labels.txt                Id, Genre
    multitask_dataset[_beat]/{train,test}/N.fused.full.npy[.gz]
    multitask_dataset[_beat]/train_labels.txt                            Id, valence, energy, danceability in 0..1
    class_mapping.json      optional: raw genre -> class, null to drop; without it the lab's own 20 -> 10
    clips.csv               optional: id, and what else is known; `artist` and `track` become groups, `raw` the genre of
                            clips that no list names

Lists are separated by tabs or commas. Their ids are spelt in four ways (`N`, `N.fused.full.npy.gz`,
`N.full.fused.npy.gz`, `N.beatsync.fused.npy.gz`); what counts is the part before the first dot.

The packed form is a folder with `manifest.json`, written last, `clips.json`, and a pack [frames, 140] for each version,
float16: mel is stored to 1/32 dB, chroma to 1/4096.
"""

import csv
import gzip
import io
import json
import math
import re
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kit_core.atomic import names_in, write_json
from kit_core.config import did_you_mean
from kit_core.console import progress, say
from kit_core.errors import ConfigError, DataError, DiskFullError, Problems
from kit_io.ragged import RaggedPack, RaggedWriter, is_finished
from kit_io.source import JSON_ERRORS, NPY_ERRORS, Source
from kit_io.tables import read_csv, write_csv
from ntua_lab.config import AXES

ROWS, MEL_ROWS = 140, 128
MOST_BYTES = 1 << 28  # of one unfolded array: more than an hour of spectra in 64 bits
FORMAT, FORMAT_VERSION = "ntua-lab-prepared", 1
Set = Literal["genre", "emotion"]
Version = Literal["full", "beat"]
Split = Literal["train", "test"]
VERSIONS: tuple[Version, ...] = get_args(Version)
SPLITS: tuple[Split, ...] = get_args(Split)
FOLDERS: dict[Set, tuple[str, ...]] = {
    "genre": ("fma_genre_spectrograms", "genre_spectrograms"),
    "emotion": ("multitask_dataset",),
}
SUFFIX = {"full": "", "beat": "_beat"}
COLUMNS: dict[Set, tuple[str, ...]] = {"genre": ("Id", "Genre"), "emotion": ("Id", *AXES)}
SUBMISSION_ID = "Id.fused.full.npy.gz"  # the first column of the lab's solution.txt; the 2020 edition had `Id`
ID = re.compile(r"[\w-]+")
AT_ONCE = 64  # arrays that are decoded ahead: enough for the threads, little memory
EXPECTED_ARRAY = "arrays of floats [140, T] with T of 1 or more: 128 mel rows, then 12 chroma rows"

Int64 = NDArray[np.int64]
Floats = NDArray[np.float32]


# ---------------------------------------------------------------------------------------------------------------------
# In memory


@dataclass(frozen=True, eq=False)
class Clips:
    """All clips of a data set, and the packs that hold their spectra.

    ids       n clip ids: the part of a file name before the first dot.
    sets      n times "genre" or "emotion": the folder that a clip comes from.
    splits    n times "train" or "test".
    raw       n raw genres; "" where none is known.
    label     int64[n]: class of every clip among `classes`; −1 for clips without a genre or with a dropped one.
    emotion   float32[n, 3]: valence, energy, danceability in 0..1; NaN where unknown.
    track     n tracks, from clips.csv; the clip's own id where nothing is known.
    artist    n artists, from clips.csv; the track where no artist is known, so that folds by artist keep it whole.
    classes   names of the classes, sorted.
    mapping   raw genre -> class, None for a dropped one.
    packs     for every version a pack [frames, 140] of the clips in `rows`.
    rows      for every version int64[n]: the clip's item in the pack, −1 where it has none.
    """

    ids: list[str]
    sets: list[str]
    splits: list[str]
    raw: list[str]
    label: Int64
    emotion: Floats
    artist: list[str]
    track: list[str]
    classes: tuple[str, ...]
    mapping: dict[str, str | None]
    packs: dict[Version, RaggedPack]
    rows: dict[Version, Int64]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, set_: Set | None = None, split: Split | None = None) -> Int64:
        """Return the indices of the clips of a set and split."""
        return np.array(
            [i for i in range(len(self)) if set_ in (None, self.sets[i]) and split in (None, self.splits[i])], np.int64
        )

    def with_answers(self, task: Set) -> Int64:
        """Return the indices of the clips that have a class, or all three emotion values."""
        return np.flatnonzero(self.label >= 0 if task == "genre" else np.isfinite(self.emotion).all(axis=1))

    def spectra(self, index: int, version: Version) -> Floats:
        """Return one clip, float32[140, frames].

        Raises:
            DataError: the data holds no such version of this clip.
        """
        self.need(version, np.array([index]))
        return self.packs[version].item(int(self.rows[version][index])).T

    def need(self, version: Version, indices: Int64) -> None:
        """Check that these clips have a version.

        Raises:
            DataError: some have not, the first five with their number.
        """
        problems = Problems(
            "spectra", f"the {version} version of every clip", f"add the folders {_names(version)}, or train on another"
        )
        rows = self.rows.get(version, np.full(len(self), -1, np.int64))
        for index in indices[rows[indices] < 0].tolist():
            problems.add(f"clip {self.ids[index]}", f"no {version} version")
        problems.raise_if_any()

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The groups that folds can keep whole, by name: clip, track, artist."""
        return {"clip": self.ids, "track": self.track, "artist": self.artist}


def clip_id(text: str) -> str:
    """Return the clip that any of the four spellings names: the part before the first dot."""
    return text.strip().partition(".")[0]


def _names(version: str) -> str:
    return " and ".join(f"{names[0]}{SUFFIX[version]}" for names in FOLDERS.values())


# ---------------------------------------------------------------------------------------------------------------------
# The official layout


@dataclass(frozen=True)
class _Clip:
    """One clip of the plan: its answers, and where its spectra lie."""

    id: str
    set: Set
    split: Split
    raw: str
    emotion: tuple[float, ...] | None
    members: dict[Version, str]


@dataclass(frozen=True)
class _Plan:
    """What is to be packed, checked as far as the lists go."""

    source: Source
    clips: list[_Clip]
    mapping: dict[str, str | None]
    known: dict[str, "_Known"]

    @staticmethod
    def of(path: Path) -> "_Plan":
        """Read lists and folders of a source and hold them against one another."""
        keep = {f"{name}{suffix}" for names in FOLDERS.values() for name in names for suffix in SUFFIX.values()}
        source = Source.open_source(path, keep=keep)
        mapping = _read_mapping(source)
        known = _read_known(source, mapping)
        clips: list[_Clip] = []
        for set_, names in FOLDERS.items():
            found: dict[Version, str] = {}
            for version in VERSIONS:
                for name in names:
                    if source.members(prefix=f"{name}{SUFFIX[version]}/"):
                        found.setdefault(version, f"{name}{SUFFIX[version]}")
            if found:
                clips += _plan_set(source, set_, found, mapping, {id_: one.raw for id_, one in known.items()})
        if not clips:
            raise DataError(
                f"{source.name}: no spectra\n  found: {_some(source.members())}\n"
                f"  expected: folders {_names('full')}, with or without {SUFFIX['beat']}, that hold train and test\n"
                "  do: give the folder or zip of the lab's data as downloaded"
            )
        return _Plan(source, clips, mapping, known)


def _plan_set(
    source: Source,
    set_: Set,
    folders: dict[Version, str],
    mapping: Mapping[str, str | None],
    raw_of: Mapping[str, str],
) -> Iterator[_Clip]:
    """Yield the clips of one set: its lists read, the two versions held against one another."""
    for split in SPLITS:
        members = {version: _arrays(source, f"{folder}/{split}/") for version, folder in folders.items()}
        members = {version: found for version, found in members.items() if found}
        lists = {}
        for version, folder in folders.items():
            name = f"{folder}/{split}_labels.txt"
            if source.has(name):
                lists[version] = (name, _read_list(source, name, set_, mapping))
        if not members and not lists:
            continue
        files = {id_ for found in members.values() for id_ in found}
        if not lists and split == "train":
            raise DataError(
                f"{source.name}: no list of the train clips\n  found: {_some(sorted(files))}\n  expected: "
                f"{next(iter(folders.values()))}/train_labels.txt with the columns {', '.join(COLUMNS[set_])}\n"
                "  do: download the lists of the lab beside the spectra"
            )
        if split == "test" and files and lists and not any(files & rows.keys() for _, rows in lists.values()):
            for name, rows in lists.values():
                say(
                    f"{source.name}: {name}: found {len(rows)} rows, none for the {len(files)} clips there, so it "
                    "belongs to other clips; these count as unlabelled, unless clips.csv names their `raw` genre"
                )
            lists = {}
        problems = Problems(
            source.name,
            "one array for every row, and the same ids and answers in the lists of both versions",
            "download what is missing, or remove the rows",
        )
        answers: dict[str, Any] = {}
        for name, rows in lists.values():
            for id_, answer in rows.items():
                if answers.setdefault(id_, answer) != answer:
                    problems.add(f"{name}, clip {id_}", f"{_show(answer)}, and {_show(answers[id_])} in the other list")
        if not answers:  # a test part whose answers are kept back
            answers = {id_: raw_of.get(id_) if set_ == "genre" else None for id_ in files}
        for version, folder in folders.items():
            missing = [id_ for id_ in answers if id_ not in members.get(version, {})]
            for id_ in missing:
                where = lists[version][0] if version in lists else f"{folder}/{split}"
                problems.add(f"{where}, clip {id_}", f"a row, but no file {folder}/{split}/{id_}.fused.full.npy[.gz]")
            spare = [id_ for id_ in members.get(version, {}) if id_ not in answers]
            if spare:
                say(f"{source.name}: {folder}/{split}: {len(spare)} files have no row and are left out: {_some(spare)}")
        problems.raise_if_any()
        for id_ in sorted(answers):
            answer = answers[id_]
            yield _Clip(
                id=id_,
                set=set_,
                split=split,
                raw=answer if isinstance(answer, str) else "",
                emotion=answer if isinstance(answer, tuple) else None,
                members={version: found[id_] for version, found in members.items()},
            )


def _arrays(source: Source, folder: str) -> dict[str, str]:
    """Return id -> member of the arrays in a folder; an unpacked .npy goes before its own .npy.gz."""
    found: dict[str, str] = {}
    for member in source.members(prefix=folder):
        name = member.removeprefix(folder)
        if "/" not in name and name.endswith((".npy", ".npy.gz")):
            found.setdefault(clip_id(name), member)  # sorted, so that .npy comes before .npy.gz
    return found


def _read_list(source: Source, name: str, set_: Set, mapping: Mapping[str, str | None]) -> dict[str, Any]:
    """Read a list: id -> raw genre, or id -> three values."""
    columns = COLUMNS[set_]
    with source.open_text(name) as text:
        header = text.readline()
    table = read_csv(source, name, columns, delimiter="\t" if "\t" in header else ",")
    expected = "one row for each clip with a genre of the class mapping"
    if set_ == "emotion":
        expected = "one row for each clip with valence, energy and danceability in 0..1"
    problems = Problems(f"{source.name}: {name}", expected, "repair these rows, or download the list again")
    rows: dict[str, Any] = {}
    for line, values in enumerate(zip(*(table[column] for column in columns), strict=True), start=2):
        id_ = clip_id(values[0])
        where = f"line {line}, clip {id_ or '(none)'}"
        if not ID.fullmatch(id_):
            problems.add(where, f"the id {values[0]!r}")
        elif id_ in rows:
            problems.add(where, "a second row")
        elif set_ == "genre":
            if values[1] not in mapping:
                problems.add(where, f"the genre {values[1]!r}{did_you_mean(values[1], mapping)}")
            rows[id_] = values[1]
        else:
            numbers = tuple(to_number(value) for value in values[1:])
            for axis, text_, number in zip(AXES, values[1:], numbers, strict=True):
                if not 0.0 <= number <= 1.0:
                    problems.add(where, f"{axis} {text_!r}")
            rows[id_] = numbers
    problems.raise_if_any()
    if not rows:
        raise DataError(
            f"{source.name}: {name}: found a header and no rows\n  expected: {expected}\n  do: download it again"
        )
    return rows


def to_number(text: str) -> float:
    """Return the number that a text says, NaN where it says none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def lab_mapping() -> dict[str, str | None]:
    """Return the lab's own mapping: 20 raw genres, 15 of them in 10 classes, 5 dropped."""
    mapping: dict[str, str | None] = json.loads((resources.files("ntua_lab") / "class_mapping.json").read_text("utf-8"))
    return mapping


def _read_mapping(source: Source) -> dict[str, str | None]:
    if not source.has("class_mapping.json"):
        return lab_mapping()
    return _checked_mapping(source.read("class_mapping.json"), f"{source.name}: class_mapping.json")


def _checked_mapping(content: bytes, name: str) -> dict[str, str | None]:
    try:
        mapping = json.loads(content)
    except JSON_ERRORS as error:
        raise DataError(f"{name}: found no JSON ({error}), expected raw genre -> class or null; repair it") from error
    if (
        not isinstance(mapping, dict)
        or not mapping
        or not all(value is None or (isinstance(value, str) and value) for value in mapping.values())
        or not any(mapping.values())
        or "\\ud" in ascii([*mapping, *mapping.values()])  # halves of characters, which no file can hold
    ):
        raise DataError(f"{name}: expected an object, raw genre -> class or null, with a class at least; repair it")
    return mapping


def classes_of(mapping: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the classes that a mapping leads to, sorted: the one label encoder of all splits."""
    return tuple(sorted({name for name in mapping.values() if name is not None}))


@dataclass(frozen=True)
class _Known:
    """What clips.csv says of a clip; "" where it says nothing."""

    artist: str
    track: str
    raw: str


def _read_known(source: Source, mapping: Mapping[str, str | None]) -> dict[str, _Known]:
    """Read artist, track and raw genre of every clip from clips.csv, where there is one."""
    if not source.has("clips.csv"):
        return {}
    with source.open_text("clips.csv") as text:
        try:
            header = next(csv.reader(text), [])
        except csv.Error as error:
            raise DataError(
                f"{source.name}: clips.csv: found {error}, expected a line of column names; repair it"
            ) from error
    if "id" not in header:
        raise DataError(f"{source.name}: clips.csv: found the columns {header}, expected `id` among them; repair it")
    table = read_csv(source, "clips.csv", header)
    columns = [table.get(column) or [""] * len(table["id"]) for column in ("artist", "track", "raw")]
    return {
        clip_id(id_): _Known(artist, track, raw if raw in mapping else "")
        for id_, artist, track, raw in zip(table["id"], *columns, strict=True)
    }


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _show(answer: Any) -> str:
    return ", ".join(f"{value:g}" for value in answer) if isinstance(answer, tuple) else repr(answer)


# ---------------------------------------------------------------------------------------------------------------------
# Arrays


def read_array(content: bytes, name: str) -> Floats:
    """Return the spectra of one file, .npy or .npy.gz, as float32[T, 140].

    Raises:
        ValueError: what is wrong with the content, in words that follow "found".
    """
    if name.endswith(".gz"):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as unfolded:
                content = unfolded.read(MOST_BYTES + 1)
        except (EOFError, zlib.error, OSError) as error:
            raise ValueError(f"{len(content)} bytes that are no whole gzip file ({error})") from error
        if len(content) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes when unfolded (a decompression bomb)")
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except NPY_ERRORS as error:
        raise ValueError(f"{len(content)} bytes that are no whole .npy file") from error
    shape = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 2 and array.shape[1] == ROWS and array.shape[0] != ROWS:
        raise ValueError(f"{shape}, time first")
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[0] != ROWS or not array.shape[1]:
        raise ValueError(shape)
    values = array.T.astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{bad} values of {values.size} that are not finite")
    return values


def _read_all(plan: _Plan, clips: Sequence[_Clip], version: Version, workers: int, problems: Problems) -> Iterator[Any]:
    """Yield the arrays of clips in their order, decoded by threads; a faulty one is noted and yields None."""

    def read(clip: _Clip) -> Any:
        member = clip.members[version]
        try:
            return read_array(plan.source.read(member), member)
        except (ValueError, DataError) as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(clips), AT_ONCE):
            some = clips[start : start + AT_ONCE]
            for clip, array in zip(some, pool.map(read, some), strict=True):
                if isinstance(array, str):
                    problems.add(clip.members[version], array)
                    array = None
                yield array


# ---------------------------------------------------------------------------------------------------------------------
# The packed form


def prepare(data: Path, out: Path, *, workers: int = 1) -> str:
    """Check the official data and pack it into `out`; goes on where it was stopped, does nothing when it is done.

    Returns:
        One line that says what lies there now.

    Raises:
        DataError: anything in the layout is not as it must be; then nothing stays behind.
        ConfigError: `out` holds something else.
    """
    plan = _Plan.of(data)
    manifest = _read_manifest(out)
    if manifest is not None and manifest["fingerprint"] == plan.source.fingerprint():
        (out / "begun.json").unlink(missing_ok=True)  # of a call that was killed right before
        return f"{out}: complete already, {manifest['clips']} clips"
    begun = {"fingerprint": plan.source.fingerprint()}
    going_on = _begin(out, begun)
    try:
        rows: dict[str, list[int]] = {}
        for version in VERSIONS:
            clips = [clip for clip in plan.clips if version in clip.members]
            if clips:
                _pack(plan, clips, version, out / version, workers, going_on)
                places = {id(clip): place for place, clip in enumerate(clips)}
                rows[version] = [places.get(id(clip), -1) for clip in plan.clips]
    except DiskFullError:  # with more room, the same command goes on from here
        raise
    except DataError:
        shutil.rmtree(out)
        raise
    known = [plan.known.get(clip.id, _Known("", "", "")) for clip in plan.clips]
    write_json(
        out / "clips.json",
        {
            "id": [clip.id for clip in plan.clips],
            "set": [clip.set for clip in plan.clips],
            "split": [clip.split for clip in plan.clips],
            "raw": [clip.raw for clip in plan.clips],
            "emotion": [None if clip.emotion is None else list(clip.emotion) for clip in plan.clips],
            "artist": [one.artist or one.track or clip.id for clip, one in zip(plan.clips, known, strict=True)],
            "track": [one.track or clip.id for clip, one in zip(plan.clips, known, strict=True)],
            "rows": rows,
            "mapping": plan.mapping,
        },
    )
    stamp = {"format": FORMAT, "format_version": FORMAT_VERSION, "clips": len(plan.clips), "versions": list(rows)}
    write_json(out / "manifest.json", stamp | begun)
    (out / "begun.json").unlink()
    counts = ", ".join(
        f"{sum(clip.set == set_ and clip.split == split for clip in plan.clips)} {set_} {split}"
        for set_ in FOLDERS
        for split in SPLITS
    )
    return f"{out}: {len(plan.clips)} clips ({counts}), versions {', '.join(rows)}"


def _begin(out: Path, begun: dict[str, str]) -> bool:
    """Make the folder, or find the one that a stopped run left; returns whether there is something to go on with."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose a folder")
    found = names_in(out) if out.exists() else []
    if not found:
        write_json(out / "begun.json", begun)
        return False
    marker = out / "begun.json"
    if not marker.is_file():
        what = "data of another source" if "manifest.json" in found else f"other files ({_some(found)})"
        raise ConfigError(f"{out}: holds {what}; choose an empty or a new folder")
    if json.loads(marker.read_text(encoding="utf-8")) != begun:
        raise ConfigError(f"{out}: holds a part of other data; remove it, or choose a new folder")
    return True


def _pack(plan: _Plan, clips: list[_Clip], version: Version, path: Path, workers: int, going_on: bool) -> None:
    if going_on and is_finished(path):
        return
    if going_on and (path / "writer.json").exists():
        writer = RaggedWriter.resume(path)
    else:
        shutil.rmtree(path, ignore_errors=True)  # of a writer that was killed in its first moment
        writer = RaggedWriter(path, dim=ROWS, dtype="float16")
    problems = Problems(plan.source.name, EXPECTED_ARRAY, "download these files again, or compute them again")
    rest = clips[writer.appended :]
    with writer:
        arrays = _read_all(plan, rest, version, workers, problems)
        for array in progress(arrays, total=len(rest), label=f"packing, {version}"):
            if array is not None and not len(problems):
                writer.append(array)
        problems.raise_if_any()


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a prepared folder; None where there is none.

    Raises:
        DataError: it is of another format, or the packing was not finished.
    """
    if (path / "begun.json").is_file() and not (path / "manifest.json").is_file():
        return None
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except JSON_ERRORS as error:
        raise _damaged(path / "manifest.json", str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path / 'manifest.json'}: found format_version {manifest.get('format_version')!r}, expected "
            f"{FORMAT_VERSION}; prepare the data again"
        )
    missing = [key for key in ("fingerprint", "clips", "versions") if key not in manifest]
    if missing:
        raise _damaged(path / "manifest.json", f"no {', '.join(missing)}")
    return manifest


def _damaged(path: Path, found: str) -> DataError:
    return DataError(
        f"{path}: damaged\n  found: {found}\n  expected: what prepare wrote\n"
        "  do: remove the prepared folder and prepare the data again"
    )


def load(path: Path | str) -> Clips:
    """Open a prepared folder, or read the official layout into a temporary one.

    Raises:
        DataError: anything in the layout, a file or a prepared folder is not as it must be.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest is not None:
        return _open_prepared(path, manifest["fingerprint"])
    if (path / "begun.json").is_file():
        raise DataError(f"{path}: packing was stopped before its end; run `ntua-lab prepare` again, it goes on")
    folder = tempfile.mkdtemp(prefix="ntua-lab-")
    try:
        packed = Path(folder) / "packed"
        prepare(path, packed)
        clips = load(packed)
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(clips, shutil.rmtree, folder, ignore_errors=True)  # the packs are maps of its files
    return clips


def _open_prepared(path: Path, fingerprint: str) -> Clips:
    try:
        table = json.loads((path / "clips.json").read_text(encoding="utf-8"))
        mapping = table["mapping"]
        classes = classes_of(mapping)
        number = {name: index for index, name in enumerate(classes)}
        clips = Clips(
            ids=table["id"],
            sets=table["set"],
            splits=table["split"],
            raw=table["raw"],
            label=np.array([number.get(mapping.get(raw) or "", -1) for raw in table["raw"]], np.int64),
            emotion=np.array([value or [math.nan] * 3 for value in table["emotion"]], np.float32).reshape(-1, 3),
            artist=table["artist"],
            track=table["track"],
            classes=classes,
            mapping=mapping,
            packs={version: RaggedPack.open(path / version) for version in table["rows"]},
            rows={version: np.array(rows, np.int64) for version, rows in table["rows"].items()},
            fingerprint=fingerprint,
        )
    except (OSError, *JSON_ERRORS, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path / "clips.json", f"{type(error).__name__}: {error}") from error
    for version, rows in clips.rows.items():
        if len(rows) != len(clips) or (len(rows) and rows.max() >= clips.packs[version].n):
            raise _damaged(path / version, f"{clips.packs[version].n} items for {len(clips)} clips")
    return clips


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def write_genres(path: Path, ids: Sequence[str], names: Sequence[str]) -> None:
    """Write genres in the layout of the lab's own lists: tab separated, `Id`, `Genre`."""
    rows = ((f"{id_}.fused.full.npy.gz", name) for id_, name in zip(ids, names, strict=True))
    write_csv(path, COLUMNS["genre"], rows, delimiter="\t")


def write_emotions(path: Path, ids: Sequence[str], values: NDArray[Any]) -> None:
    """Write the lab's solution.txt: values float[n, 3] in the order valence, energy, danceability."""
    rows = (
        (f"{id_}.fused.full.npy.gz", *(f"{value:.6f}" for value in row))
        for id_, row in zip(ids, np.clip(values, 0.0, 1.0).tolist(), strict=True)
    )
    write_csv(path, (SUBMISSION_ID, *AXES), rows)


@dataclass(frozen=True, eq=False)
class Answers:
    """A list of answers: genres (`names`, raw or class names) or emotion values float64[n, 3]."""

    task: Set
    ids: list[str]
    names: list[str] | None = None
    values: NDArray[np.float64] | None = None


def read_answers(path: Path) -> Answers:
    """Read a list of genres or of emotion values, told apart by the header.

    Raises:
        DataError: neither header, no rows, doubled ids, values that are no finite numbers in 0..1.
    """
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a list of genres or emotion values") from error
    delimiter = "\t" if "\t" in header else ","
    columns = header.lstrip("\ufeff").split(delimiter)
    task: Set = "genre" if columns[1:] == ["Genre"] else "emotion"
    if columns[0] not in ("Id", SUBMISSION_ID) or columns[1:] not in (["Genre"], list(AXES)):
        raise DataError(
            f"{path}: header: found {header[:80]!r}\n  expected: {','.join((SUBMISSION_ID, *AXES))} or Id<TAB>Genre\n"
            "  do: write the file by `ntua-lab infer`, or give it this header"
        )
    table = read_csv(path, None, columns, delimiter=delimiter)
    problems = Problems(path, "one row for each clip; emotion values in 0..1", "write the file again")
    ids = [clip_id(text) for text in table[columns[0]]]
    if not ids:
        problems.add("the list", "a header and no rows")
    seen: set[str] = set()
    for line, id_ in enumerate(ids, start=2):
        if id_ in seen:
            problems.add(f"line {line}, clip {id_}", "a second row")
        seen.add(id_)
    if task == "genre":
        problems.raise_if_any()
        return Answers("genre", ids, names=table["Genre"])
    values = np.array([[to_number(text) for text in table[axis]] for axis in AXES]).T.reshape(-1, 3)
    for row, column in np.argwhere(~((values >= 0) & (values <= 1))).tolist():
        problems.add(f"line {row + 2}, clip {ids[row]}", f"{AXES[column]} {table[AXES[column]][row]!r}")
    problems.raise_if_any()
    return Answers("emotion", ids, values=values)


def check_submission(path: Path, ids: Sequence[str], classes: Sequence[str]) -> Answers:
    """Return answers to exactly these clips, in their order; genres are class names.

    Raises:
        DataError: clips are missing, doubled or unknown, or names are no classes.
    """
    answers = read_answers(path)
    problems = Problems(
        path, f"{len(ids)} rows, one for every clip", "write it again from the same data by `ntua-lab infer`"
    )
    place = {id_: row for row, id_ in enumerate(answers.ids)}
    for id_ in ids:
        if id_ not in place:
            problems.add(f"clip {id_}", "no row")
    wanted = set(ids)
    for row, id_ in enumerate(answers.ids):
        if id_ not in wanted:
            problems.add(f"line {row + 2}, clip {id_}", "a row for a clip that the data does not hold")
        elif answers.names is not None and answers.names[row] not in classes:
            problems.add(f"line {row + 2}, clip {id_}", f"the class {answers.names[row]!r}")
    problems.raise_if_any()
    order = [place[id_] for id_ in ids]
    names = None if answers.names is None else [answers.names[row] for row in order]
    return Answers(answers.task, list(ids), names, None if answers.values is None else answers.values[order])


def find_mapping(truth: Path) -> dict[str, str | None]:
    """Return the class mapping that lies beside a list or in the folder above; else the lab's own."""
    for folder in truth.resolve().parents[:2]:
        if (folder / "class_mapping.json").is_file():
            path = folder / "class_mapping.json"
            return _checked_mapping(path.read_bytes(), str(path))
    return lab_mapping()
