"""A folder of sound files → spectra in the lab's official layout, in parallel.

    extract_folder(Path("songs"), Path("data"), labels=Path("songs.csv"), workers=2)

`labels` is a CSV with the column `file` (relative to the folder) and any of `split` (train or test), `genre`,
`valence`, `energy`, `danceability`, `artist`. A file with a genre goes to the genre folders, one with emotion values or
with neither to the multitask folders; without a split the former are for training, the last for the test. Emotion
values of test files are not written, as in the lab. Every file is cut into clips.
"""

import csv
import gzip
import io
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit_audio import SAMPLE_RATE, SUFFIXES, cut, decode, lab_spectra
from kit_audio.spectra import SHORTEST_SECONDS
from kit_core.atomic import atomic_dir, write_json
from kit_core.console import progress, say
from kit_core.errors import ConfigError, DataError, Problems
from kit_io.tables import read_csv, write_csv
from ntua_lab.config import AXES
from ntua_lab.data import COLUMNS, FOLDERS, SUFFIX, VERSIONS, Set, lab_mapping, to_number

KNOWN_COLUMNS = ("file", "split", "genre", *AXES, "artist")
FIRST_ID: dict[Set, int] = {"genre": 10_000, "emotion": 100_000_000}  # 5 and 9 digits, as in the lab's data
COMPRESSION = 3  # of gzip; higher levels take longer than all the rest for a few percent
ANSWER_FORMAT = "{:.4f}"


@dataclass(frozen=True)
class Song:
    """One sound file and what is known of it; `emotion` is None where nothing is."""

    file: str
    split: str = "train"
    genre: str = ""
    emotion: tuple[float, ...] | None = None
    artist: str = ""

    @property
    def sets(self) -> tuple[Set, ...]:
        """The folders that its clips go to."""
        if not self.genre:
            return ("emotion",)
        return ("genre", "emotion") if self.emotion is not None else ("genre",)


@dataclass(frozen=True)
class _Task:
    """What a worker needs of one file."""

    path: Path
    number: int
    clip_seconds: float
    folder: Path


@dataclass(frozen=True)
class _Done:
    """The clips of one file: (start, seconds) each, or what was wrong with it."""

    clips: list[tuple[float, float]]
    rate: int = 0
    refused: str = ""


def extract_folder(
    audio: Path, out: Path, *, labels: Path | None = None, clip_seconds: float = 30.0, workers: int = 1
) -> str:
    """Write the spectra of all clips of all files below `audio`; returns one line that says how many.

    Raises:
        DataError: no sound files, a row without a file, wrong labels, or files that are no sound, silent or shorter
            than 3 seconds; then nothing is written.
        ConfigError: `out` exists and is not empty, or clips of less than 3 seconds are asked for.
    """
    if not clip_seconds >= SHORTEST_SECONDS:
        raise ConfigError(f"clip_seconds: found {clip_seconds:g}, expected {SHORTEST_SECONDS:g} or more")
    songs = find_songs(audio, labels)
    problems = Problems(audio, f"sound of {SHORTEST_SECONDS:g} s or more, not silent", "repair or remove these files")
    with atomic_dir(out) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        tasks = [_Task(audio / song.file, number, clip_seconds, scratch) for number, song in enumerate(songs)]
        done = list(progress(_run(tasks, workers), total=len(tasks), label="extract, files"))
        for song, one in zip(songs, done, strict=True):
            if one.refused:
                problems.add(song.file, one.refused)
        problems.raise_if_any()
        rows = _place(folder, songs, done)
        scratch.rmdir()
        _write_lists(folder, songs, rows)
    _remark(songs, done, clip_seconds)
    counts = {set_: sum(row[1] == set_ for row in rows) for set_ in FOLDERS}
    return f"{out}: {counts['genre']} genre clips and {counts['emotion']} multitask clips of {len(songs)} files"


def find_songs(audio: Path, labels: Path | None) -> list[Song]:
    """List the sound files below a folder, sorted, with what the labels say of them.

    Raises:
        DataError: no such folder or no sound files in it; labels with unknown columns, rows without files, splits other
            than train and test, train rows without any answer, values outside 0..1 or only some of the three.
    """
    if not audio.is_dir():
        raise DataError(f"{audio}: found no such folder, expected a folder with {', '.join(SUFFIXES)} files")
    files = sorted(
        path.relative_to(audio).as_posix()
        for path in audio.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise DataError(
            f"{audio}: found no sound files, expected {', '.join(SUFFIXES)}; name the folder that holds them"
        )
    if labels is None:
        return [Song(file, split="test") for file in files]
    known = _read_labels(labels, set(files))
    unknown = [file for file in files if file not in known]
    if unknown:
        say(f"{labels}: {len(unknown)} files have no row and become test clips without answers, such as {unknown[0]}")
    return [known.get(file, Song(file, split="test")) for file in files]


def _read_labels(path: Path, files: set[str]) -> dict[str, Song]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a CSV with the column file") from error
    strange = [column for column in header if column not in KNOWN_COLUMNS]
    if "file" not in header or strange or len(set(header)) != len(header):
        raise DataError(
            f"{path}: header: found {','.join(header)!r}\n  expected: file and any of {', '.join(KNOWN_COLUMNS[1:])}\n"
            "  do: rename or remove the other columns"
        )
    table = read_csv(path, None, header)
    expected = "one row for each file; split train (with a genre or values) or test; values in 0..1"
    problems = Problems(path, expected, "repair these rows")
    songs: dict[str, Song] = {}
    for line in range(len(table["file"])):
        value = {column: table[column][line].strip() if column in table else "" for column in KNOWN_COLUMNS}
        name, where = value["file"], f"line {line + 2}, {value['file'] or '(no file)'}"
        if name not in files:
            problems.add(where, "a row, but no such sound file")
        elif name in songs:
            problems.add(where, "a second row")
        given = [value[axis] for axis in AXES]
        answered = bool(value["genre"]) or any(given)
        split = value["split"] or ("train" if answered else "test")
        if split not in ("train", "test"):
            problems.add(where, f"the split {split!r}")
        elif split == "train" and not answered:
            problems.add(where, "the split 'train' without a genre and without values")
        numbers = tuple(to_number(text) for text in given)
        if any(given) and not all(0.0 <= number <= 1.0 for number in numbers):
            problems.add(where, f"the values {', '.join(map(repr, given))}")
        songs[name] = Song(name, split, value["genre"], numbers if any(given) else None, value["artist"])
    problems.raise_if_any()
    return songs


def _run(tasks: Sequence[_Task], workers: int) -> Iterator[_Done]:
    """Work through the files in their order, in processes that begin clean (a fork of numba's threads may hang)."""
    if workers <= 1 or len(tasks) <= 1:
        yield from map(_extract_file, tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_extract_file, tasks)


def _extract_file(task: _Task) -> _Done:
    """Write both versions of every clip of a file as NUMBER-CLIP-VERSION.npy.gz."""
    try:
        sound = decode(task.path)
    except DataError as error:
        lines = str(error).splitlines()
        return _Done([], refused=lines[0].partition(": found ")[2])
    if sound.seconds < SHORTEST_SECONDS:
        return _Done([], refused=f"{sound.seconds:.2f} s of sound")
    clips: list[tuple[float, float]] = []
    for start, stop in cut(len(sound.samples), clip_seconds=task.clip_seconds):
        samples = sound.samples[start:stop]
        if len(samples) < SHORTEST_SECONDS * SAMPLE_RATE or not samples.any():
            continue  # a silent part of a song, or a rest that is too short for the lowest bands
        spectra = lab_spectra(samples)
        for version, array in (("full", spectra.full), ("beat", spectra.beat)):
            _write_array(task.folder / f"{task.number}-{len(clips)}-{version}.npy.gz", array)
        clips.append((start / SAMPLE_RATE, len(samples) / SAMPLE_RATE))
    return _Done(clips, sound.source_rate) if clips else _Done([], refused="digital silence")


def _write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(gzip.compress(buffer.getvalue(), COMPRESSION, mtime=0))  # no time: the same bytes each time


def _place(folder: Path, songs: Sequence[Song], done: Sequence[_Done]) -> list[tuple[str, ...]]:
    """Give every clip an id and move its arrays into the official folders; returns the rows of clips.csv."""
    rows: list[tuple[str, ...]] = []
    counts = dict.fromkeys(FOLDERS, 0)
    for number, (song, one) in enumerate(zip(songs, done, strict=True)):
        for clip, (start, seconds) in enumerate(one.clips):
            for set_ in song.sets:
                id_ = str(FIRST_ID[set_] + counts[set_])
                counts[set_] += 1
                for version in VERSIONS:
                    target = folder / f"{FOLDERS[set_][0]}{SUFFIX[version]}" / song.split / f"{id_}.fused.full.npy.gz"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source = folder / "scratch" / f"{number}-{clip}-{version}.npy.gz"
                    if set_ == song.sets[-1]:
                        source.replace(target)
                    else:
                        target.write_bytes(source.read_bytes())
                rows.append(
                    (id_, set_, song.split, song.genre, song.artist, song.file, f"{start:.2f}", f"{seconds:.2f}")
                )
    return rows


def _write_lists(folder: Path, songs: Sequence[Song], rows: Sequence[tuple[str, ...]]) -> None:
    """Write the lists as the lab spells them, clips.csv, and a class mapping where the lab's does not do."""
    by_file = {song.file: song for song in songs}
    columns = ("id", "set", "split", "raw", "artist", "track", "start", "seconds")
    write_csv(folder / "clips.csv", columns, rows)
    for split in ("train", "test"):
        genres = [(row[0], row[3]) for row in rows if row[1] == "genre" and row[2] == split]
        for version in VERSIONS:
            name = f"{FOLDERS['genre'][0]}{SUFFIX[version]}/{split}_labels.txt"
            spelling = "beatsync.fused" if version == "beat" else "full.fused" if split == "test" else "fused.full"
            if genres:
                spelt = ((f"{id_}.{spelling}.npy.gz", genre) for id_, genre in genres)
                write_csv(folder / name, COLUMNS["genre"], spelt, delimiter="\t")
            values = [(row[0], by_file[row[5]].emotion) for row in rows if row[1] == "emotion" and row[2] == split]
            name = f"{FOLDERS['emotion'][0]}{SUFFIX[version]}/{split}_labels.txt"
            if values and split == "train":
                answered = ((id_, *map(ANSWER_FORMAT.format, known)) for id_, known in values if known is not None)
                write_csv(folder / name, COLUMNS["emotion"], answered)
    genres_found = {song.genre for song in songs if song.genre}
    if genres_found - lab_mapping().keys():
        write_json(folder / "class_mapping.json", {name: name for name in sorted(genres_found)})


def _remark(songs: Sequence[Song], done: Sequence[_Done], clip_seconds: float) -> None:
    short = [seconds for one in done for _, seconds in one.clips if seconds < clip_seconds - 0.1]
    if short:
        say(f"{len(short)} clips are shorter than {clip_seconds:g} s, the shortest has {min(short):.1f} s")
    narrow = [song.file for song, one in zip(songs, done, strict=True) if one.rate < SAMPLE_RATE]
    if narrow:
        say(f"{len(narrow)} files are sampled below {SAMPLE_RATE} Hz, so their upper bands are empty: {narrow[0]} ...")
