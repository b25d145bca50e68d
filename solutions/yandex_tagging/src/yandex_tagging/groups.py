"""Which tracks belong together (one artist, one series) and so stay in one fold."""

import csv
from pathlib import Path

import numpy as np

from kit_core.errors import DataError, Problems


def read_groups(path: Path, ids: list[int]) -> np.ndarray:
    """Return the group of each track, int64 [n], numbered from 0; a track that the file leaves out is its own group.

    The file has a header and then in its first two columns a track id and any text that names the group; .tsv files are
    separated by tabs, others by commas.

    Raises:
        DataError: the file is absent or no text, a row has no group or its id is no whole number, or no track of the
            data is in it.
    """
    delimiter = "\t" if path.suffix == ".tsv" else ","
    problems = Problems(path, "a whole number and a group in the first two columns", "repair these rows")
    named: dict[int, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter=delimiter), start=1):
                if number == 1 or not row:
                    continue
                if len(row) < 2 or not row[0].isdecimal() or not row[1]:
                    problems.add(f"line {number}", delimiter.join(row[:2]) or "nothing")
                else:
                    named[int(row[0])] = row[1]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as groups ({error}); expected a .csv or .tsv table") from error
    problems.raise_if_any()
    if not any(track in named for track in ids):
        raise DataError(f"{path}: found none of the {len(ids)} tracks; expected their ids in the first column")
    keys = [f"group {named[track]}" if track in named else f"track {track}" for track in ids]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)
