"""The official layout from a table of clips and a file of features for each: other music, made usable here.

    yandex-artists clips --table clips.csv --features beat/train --features beat/test --out layout --distinct track
    yandex-artists prepare --data layout --out packed --max-frames 128

Clips may be longer or shorter than the official 61 to 81 frames and have other channels: `prepare` takes what it finds.
"""

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kit_core.atomic import atomic_dir
from kit_core.errors import ConfigError, Problems
from kit_io.source import READ_ERRORS, reason, shown
from kit_io.tables import read_csv, write_csv
from yandex_artists.data import META_COLUMNS, NUMBER


@dataclass(frozen=True)
class Clips:
    """What was written: tracks and artists, and the clips of the table that were left out."""

    out: Path
    tracks: int
    artists: int
    without_features: int
    without_artist: int
    further_of_a_track: int


def write_layout(table: Path, folders: Sequence[Path], out: Path, distinct: str | None = None) -> Clips:
    """Writes train_meta.tsv and train_features/ of a table of clips into the new folder `out`.

    A clip with an empty artist, with `artist_known` 0 where there is such a column, or without a file is left out and
    counted. Artists are numbered by first appearance, and the first part of a path is the artist's number modulo 10, as
    in the official data.

    Args:
        table: csv with columns id (a number) and artist.
        folders: of files ID.*.npy or ID.*.npy.gz, floats [channels, frames]; the first file found for an id counts.
        distinct: column of which every value is kept once, such as the track that several clips were cut from.

    Raises:
        ConfigError: `out` is not empty, or a folder does not exist.
        DataError: the table lacks a column, has ids that are no numbers or come twice, or a file cannot be read.
    """
    absent = [folder for folder in folders if not folder.is_dir()]
    if absent:
        raise ConfigError(f"{absent[0]}: no such folder; --features names folders of .npy files")
    columns = _columns(table, ("id", "artist", *((distinct,) if distinct else ())))
    file_of: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.iterdir()):
            if file.name.endswith((".npy", ".npy.gz")):
                file_of.setdefault(file.name.partition(".")[0], file)
    problems = Problems(
        table, "whole numbers as ids, each once, and files of features that can be read", "correct these rows"
    )
    known = columns.get("artist_known", ["1"] * len(columns["id"]))
    artists: dict[str, int] = {}
    written: set[str] = set()
    seen: set[str] = set()  # of the column `distinct`
    rows: list[tuple[str, str, str]] = []
    left = {"features": 0, "artist": 0, "further": 0}
    with atomic_dir(out) as target:
        for line, clip in enumerate(columns["id"]):
            artist = columns["artist"][line].strip()
            if not artist or known[line] == "0":
                left["artist"] += 1
            elif clip not in file_of:
                left["features"] += 1
            elif distinct and columns[distinct][line] in seen:
                left["further"] += 1
            elif not NUMBER.fullmatch(clip):
                problems.add(f"row {line + 1}", f"the id {shown(clip)!r}")
            elif clip in written:
                problems.add(f"row {line + 1}", f"the id {clip!r} a second time")
            else:
                try:
                    array = _read(file_of[clip])
                except READ_ERRORS as error:
                    problems.add(f"{file_of[clip]}", reason(error))
                    continue
                written.add(clip)
                if distinct:
                    seen.add(columns[distinct][line])
                number = artists.setdefault(artist, len(artists) + 1)
                path = f"{number % 10}/{clip[-1]}/{clip.zfill(2)[-2]}/{clip}.npy"
                (target / "train_features" / path).parent.mkdir(parents=True, exist_ok=True)
                np.save(target / "train_features" / path, array)
                rows.append((clip, str(number), path))
        if not rows:
            problems.add("the table", "no clip with an artist and features")
        problems.raise_if_any()
        write_csv(target / "train_meta.tsv", META_COLUMNS["train"], rows, delimiter="\t")
    return Clips(Path(out), len(rows), len(artists), left["features"], left["artist"], left["further"])


def _columns(table: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """A csv with at least the columns `needed`."""
    header: Sequence[str] = needed
    if table.is_file():
        with table.open(encoding="utf-8", errors="replace") as file:
            found = file.readline().rstrip("\r\n").removeprefix("\ufeff").split(",")
        header = found if set(needed) <= set(found) else needed
    return read_csv(table, None, header)


def _read(file: Path) -> npt.NDArray[Any]:
    content = file.read_bytes()
    content = gzip.decompress(content) if file.name.endswith(".gz") else content
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
