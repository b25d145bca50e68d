"""Which tracks belong together (one artist, one series) and so stay in one fold."""

import csv
from pathlib import Path

import numpy as np

from kit_core.console import say
from kit_core.errors import DataError, Problems


def read_groups(path: Path, ids: list[int]) -> np.ndarray:
    """Return the group of each track, int64 [n], numbered from 0.

    The file has a header and then in its first two columns a track id and any text that names the group; .tsv files are
    separated by tabs, others by commas. It must name every track once; rows of other tracks are counted and ignored, so
    that one file serves the training and the test split.

    Raises:
        DataError: the file is absent or no text; a row has no group, its id is no whole number, or its track was named
            before; or a track of the data is not in it.
    """
    delimiter = "\t" if path.suffix == ".tsv" else ","
    problems = Problems(path, "a track number and a group in the first two columns, each track once", "fix these rows")
    named: dict[int, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter=delimiter), start=1):
                if number == 1 or not row:
                    continue
                if len(row) < 2 or not (row[0].isascii() and row[0].isdecimal()) or not row[1].strip():
                    problems.add(f"line {number}", delimiter.join(row[:2]) or "nothing")
                elif int(row[0]) in named:
                    problems.add(f"line {number}", f"track {int(row[0])} a second time")
                else:
                    named[int(row[0])] = row[1].strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as groups ({error}); expected a .csv or .tsv table") from error
    problems.raise_if_any()
    missing = Problems(
        path, "a row for every track of the data", "name the group of each; a track alone is its own group"
    )
    for track in ids:
        if track not in named:
            missing.add(f"track {track}", "no row")
    missing.raise_if_any()
    others = len(named) - len(set(ids))
    if others:
        say(f"{path}: ignores {others} row{'' if others == 1 else 's'} of tracks that are not in this split")
    return np.unique([named[track] for track in ids], return_inverse=True)[1].astype(np.int64)
