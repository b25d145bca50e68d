"""Submissions in the official form: written and read fast, and judged before the judge does.

    track,prediction
    17730,"0.0287,0.0016,...,0.0021"        a probability for each tag, tag 0 first, in one quoted field

One row for each track of test.csv, in its order; at most 250 MB.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from kit_core.atomic import atomic_path
from kit_core.errors import DataError, Problems
from kit_io.source import shown
from yandex_tagging.data import track_number

Float32 = npt.NDArray[np.float32]

SUBMISSION_COLUMNS = ("track", "prediction")
LARGEST_SUBMISSION = 250_000_000  # bytes, the judge's limit
_EXPECTED_SUBMISSION = 'track,prediction and rows such as 17730,"0.0287,0.0016": a probability for each tag, in quotes'
_AGAIN = "write the submission again, one row for each of them"
_ROWS_AT_ONCE = 256  # about a megabyte of text: it stays in the processor's cache


def write_submission(path: Path, ids: Sequence[int], probabilities: Float32) -> None:
    """Writes the official form: header track,prediction; the probabilities float32[n, n_tags] in one quoted field.

    Each number has the fewest digits that give the same float32 again. Whole or not at all.

    Raises:
        ValueError: shapes that do not fit, or values that are NaN or outside 0..1.
        DataError: more than the 250 MB that the judge takes; nothing is written then.
    """
    table = np.ascontiguousarray(probabilities, dtype=np.float32)
    if table.ndim != 2 or len(ids) != len(table) or not table.size:
        raise ValueError(f"probabilities of shape {table.shape} for {len(ids)} tracks")
    if not (table.min() >= 0 and table.max() <= 1):  # also false for NaN
        raise ValueError("probabilities must lie in 0..1 and not be NaN")
    pieces = [f"{','.join(SUBMISSION_COLUMNS)}\n".encode()]
    for start in range(0, len(table), _ROWS_AT_ONCE):
        numbers = orjson.dumps(table[start : start + _ROWS_AT_ONCE], option=orjson.OPT_SERIALIZE_NUMPY)
        rows = numbers[2:-2].split(b"],[")
        pieces.append(
            b"".join(b'%d,"%b"\n' % row for row in zip(ids[start : start + _ROWS_AT_ONCE], rows, strict=True))
        )
    size = sum(map(len, pieces))
    if size > LARGEST_SUBMISSION:
        raise DataError(
            f"{path}: not written\n  found: {size:,} bytes\n"
            f"  expected: at most {LARGEST_SUBMISSION:,}, the judge's limit\n"
            "  do: answer the tracks of test.csv alone"
        )
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(pieces)


def read_submission(path: Path) -> tuple[list[int], Float32]:
    """Reads a submission: track numbers in the order of the file, and float32[n, tags].

    Raises:
        DataError: another header, a row without its quoted field, a track that is no whole number (`10178.0`), rows
            with unequal numbers of probabilities, or something else than numbers between 0 and 1.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected {_EXPECTED_SUBMISSION}") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n")
    if b"+" in raw:  # 1e+00
        raw = raw.replace(b"e+", b"e").replace(b"E+", b"E")
    if not raw.endswith(b"\n") or raw.endswith(b"\n\n"):
        raw = raw.rstrip(b"\n") + b"\n"
    start = raw.index(b"\n") + 1
    header = raw[: start - 1].decode("utf-8", "replace")
    if header != ",".join(SUBMISSION_COLUMNS):
        raise DataError(
            f"{path}: 1 problem\n  header: found {shown(header) or 'nothing'}\n  expected: {_EXPECTED_SUBMISSION}\n"
            "  do: write the header track,prediction"
        )
    if start == len(raw):
        raise DataError(f"{path}: found no rows\n  expected: {_EXPECTED_SUBMISSION}\n  do: write a row for each track")
    width = raw.count(b",", start, raw.index(b"\n", start))
    if width < 1:
        _refuse_rows(path, raw[start:], 1)
    pieces = []
    at = start
    while at < len(raw):
        stop = raw.index(b"\n", min(at + _ROWS_AT_ONCE * width * 12, len(raw)) - 1) + 1  # about 12 bytes a number
        pieces.append(raw[at:stop])
        at = stop
    with ThreadPoolExecutor(2) as threads:  # NumPy and pyarrow let another thread work meanwhile
        parsed = list(threads.map(lambda piece: _parse_rows(piece, width), pieces))
    whole = [piece for piece in parsed if piece is not None]
    if len(whole) < len(pieces):
        _refuse_rows(path, raw[start:], width)
    return [track for ids, _ in whole for track in ids], np.concatenate([values for _, values in whole])


def _parse_rows(text: bytes, width: int) -> tuple[list[int], Float32] | None:
    """Rows of a track and `width` numbers, all at once; None when anything is not as it must be.

    The numbers become one array of texts without copying them one by one, which pyarrow turns into floats.
    """
    codes = np.frombuffer(text, np.uint8)
    special = np.flatnonzero(codes < ord("-"))  # all that separates: `,` `"` and line ends are smaller than any digit
    row = np.frombuffer(b',"' + b"," * (width - 1) + b'"\n', np.uint8)
    if len(special) % len(row) or width < 1:
        return None
    places = special.reshape(-1, len(row))
    if not (codes[places] == row).all() or not (np.diff(places[:, [0, 1, -2, -1]])[:, ::2] == 1).all():
        return None
    n = len(places)
    ends = places - np.arange(len(special)).reshape(places.shape)  # once the separators are taken out
    offsets = np.zeros(n * (width + 1) + 1, np.int64)
    offsets[1:] = np.delete(ends, [1, width + 2], axis=1).ravel()
    bare = pa.py_buffer(text.translate(None, b',"\n'))
    texts = pa.LargeStringArray.from_buffers(n * (width + 1), pa.py_buffer(offsets), bare)
    try:
        ids = pc.cast(texts.take(pa.array(np.arange(0, len(texts), width + 1))), pa.int64()).to_pylist()
        values = pc.cast(texts, pa.float32()).to_numpy().reshape(n, width + 1)[:, 1:]
    except pa.ArrowInvalid:
        return None
    if not (values.min() >= 0 and values.max() <= 1) or min(ids) < 0:  # the first also for NaN
        return None
    return ids, values


def _refuse_rows(path: Path, body: bytes, width: int) -> NoReturn:
    """Goes through the rows one by one to say what is wrong.

    Raises:
        DataError: always.
    """
    problems = Problems(
        path,
        f"{_EXPECTED_SUBMISSION}; {width} of them, as in the first row, in 0..1",
        "write these rows again; ids as whole numbers, no NaN",
    )
    for line, text in enumerate(body.decode("utf-8", "replace").split("\n")[:-1], start=2):
        track, comma, rest = text.partition(",")
        fields = rest[1:-1].split(",")
        if track_number(track) is None:
            problems.add(f"line {line}", f"track {shown(track) or 'without a number'}")
        elif not comma or len(rest) < 2 or rest[0] != '"' or rest[-1] != '"' or '"' in rest[1:-1]:
            problems.add(f"line {line}", "no prediction in double quotes")
        elif len(fields) != width:
            problems.add(f"line {line}", f"{len(fields)} probabilities")
        else:
            bad = next((field for field in fields if not _is_probability(field)), None)
            if bad is not None:
                problems.add(f"line {line}", f"the probability {shown(bad) or '(empty)'}")
    problems.raise_if_any()
    raise DataError(
        f"{path}: found numbers in an unusual form\n  expected: {_EXPECTED_SUBMISSION}\n  do: write plain decimals"
    )


def _is_probability(text: str) -> bool:
    try:
        return text.strip() == text and 0 <= float(text) <= 1
    except ValueError:
        return False


def check_submission(path: Path, ids: Sequence[int], n_tags: int = 0) -> Float32:
    """Returns the probabilities float32[n, n_tags] of a submission that the judge would take for these tracks.

    `ids` are the tracks in the order of test.csv; `n_tags` 0: as many as the first row has.

    Raises:
        DataError: as `read_submission`; more than 250 MB; missing, doubled or unknown tracks, another order, or another
            number of tags.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size > LARGEST_SUBMISSION:
        raise DataError(
            f"{path}: found {size:,} bytes\n  expected: at most {LARGEST_SUBMISSION:,}, the judge's limit\n"
            "  do: write fewer digits; float32 needs nine at most"
        )
    found, values = read_submission(path)
    if n_tags and values.shape[1] != n_tags:
        raise DataError(
            f"{path}: 1 problem\n  every row: found {values.shape[1]} probabilities\n"
            f"  expected: {n_tags}, one for each tag of the data\n  do: write tag 0 to {n_tags - 1} in each row"
        )
    problems = Problems(path, f"the {len(ids)} tracks to answer, each once, in the order of their csv file", _AGAIN)
    _compare_ids(problems, found, ids)
    problems.raise_if_any()
    return values


def _compare_ids(problems: Problems, ids: Sequence[int], expected: Sequence[int]) -> None:
    counts = Counter(ids)
    for track, count in counts.items():
        if count > 1:
            problems.add(f"track {track}", f"{count} rows")
    for track in counts.keys() - set(expected):
        problems.add(f"track {track}", "a row, but it is not to be answered")
    for track in expected:
        if track not in counts:
            problems.add(f"track {track}", "no row")
    if not len(problems):
        for line, (track, other) in enumerate(zip(ids, expected, strict=True), start=2):
            if track != other:
                problems.add(f"line {line}", f"track {track} where {other} comes")


def align_submission(path: Path, ids: Sequence[int]) -> Float32:
    """Returns the probabilities of exactly these tracks, float32[n, tags], in their order, whatever that of the file.

    Raises:
        DataError: as `read_submission`, or missing, doubled or unknown tracks.
    """
    found, values = read_submission(path)
    problems = Problems(path, f"the {len(ids)} tracks of the truth, each once", _AGAIN)
    place = {track: row for row, track in enumerate(found)}
    _compare_ids(problems, sorted(found), sorted(ids))
    problems.raise_if_any()
    return values[[place[track] for track in ids]]
