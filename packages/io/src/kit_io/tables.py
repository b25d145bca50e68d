"""Small tables as CSV, in the strict form that competitions use: every value stays the text that it is.

Ids such as `00e1234` or `1e5000` look like numbers to a guessing reader; here nothing is guessed.
"""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn, Protocol

from kit_core.atomic import atomic_path
from kit_core.errors import Problems
from kit_io.source import READ_ERRORS, Source, checked_text, reason, refuse, shown

COMMON_DELIMITERS = ",;\t| "


def read_csv(
    source: Source | Path, member: str | None, columns: Sequence[str], delimiter: str = ","
) -> dict[str, list[str]]:
    """Read a whole CSV file, from a member of a source or from a file of its own (`member` is None), as lists of texts.

    Returns one list of rows for each column. The header must be exactly `columns`, in this order; a byte order mark,
    any kind of line end, and empty lines at the end are accepted. A value has at most 131,072 characters: a longer one
    is in practice a quote that is never closed.

    Raises:
        DataError: the file is absent, is no UTF-8, holds a NUL or broken quotes, has another header (the message tells
            when another delimiter would fit), or rows with too few or too many values.
    """
    name = str(source) if isinstance(source, Path) else f"{source.name}: {member}"
    with _open_text(source, member, name) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            _check_header(next(reader, None), name, columns, delimiter)
            return _read_rows(reader, name, columns)
        except csv.Error as error:
            refuse(
                name,
                f"line {reader.line_num}",
                f"broken CSV ({error})",
                expected="fields with line breaks or delimiters in double quotes, quotes inside them doubled",
                remedy='look for a quote (") that is not closed near this line',
            )


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[str]], delimiter: str = ",") -> int:
    r"""Write a header and rows of texts as UTF-8 with "\n" line ends, whole or not at all; returns the number of rows.

    Raises:
        ValueError: a row has not one value for each column.
        DataError: a value cannot be written as text: half of a surrogate pair, or a NUL.
        ConfigError: the path cannot be written.
    """
    number = 0  # of the row, the header being row 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        plain = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        # Some Python versions leave a lone "\r" without quotes if line ends are "\n"; readers would end the row there.
        quoting = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for number, row in enumerate(itertools.chain([columns], rows)):  # the last number is the result
            if len(row) != len(columns):
                raise ValueError(f"row {number} has {len(row)} values for {len(columns)} columns")
            try:
                text = "".join(row)
                if "\0" in text:
                    _refuse_character(path, number, "\0")
                (quoting if "\r" in text else plain).writerow(row)
            except UnicodeEncodeError as error:
                _refuse_character(path, number, error.object[error.start])
    return number


def _refuse_character(path: str | Path, number: int, character: str) -> NoReturn:
    refuse(
        str(path),
        f"row {number}",
        f"a character that text files cannot hold ({character!a})",
        expected="Unicode text without NUL",
        remedy="repair the value where it comes from",
    )


def _open_text(source: Source | Path, member: str | None, name: str) -> IO[str]:
    if isinstance(source, Source):
        if member is None:
            raise ValueError("a table in a source needs the name of its member")
        return source.open_text(member)
    if member is not None:
        raise ValueError("a path has no members; open it with Source.open_source")
    try:
        return checked_text(source.open("rb"), name)
    except READ_ERRORS as error:
        refuse(name, "the file", reason(error), expected="a readable CSV file", remedy="check path and permissions")


class _Reader(Protocol):
    """What `csv.reader` returns; its own type has no public name."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...


def _check_header(header: list[str] | None, name: str, columns: Sequence[str], delimiter: str) -> None:
    if header == list(columns):
        return
    found = delimiter.join(header or [])
    remedy = "name the file with these columns, or repair its first line"
    for other in COMMON_DELIMITERS.replace(delimiter, ""):
        if len(columns) > 1 and found.split(other) == list(columns):
            remedy = f"its columns are separated by {other!r}: write the file with {delimiter!r} instead"
    refuse(name, "header", shown(found) or "nothing", expected=shown(delimiter.join(columns)), remedy=remedy)


def _read_rows(reader: _Reader, name: str, columns: Sequence[str]) -> dict[str, list[str]]:
    expected = f"one value for each column ({shown(', '.join(columns))})"
    problems = Problems(name, expected, remedy="repair these rows, or download the file again")
    rows: list[list[str]] = []
    empty: list[int] = []  # numbers of empty lines that no row has followed yet: at the end of the file they do no harm
    line = reader.line_num + 1  # where the row begins; `line_num` is where it ends, and values may hold line breaks
    for row in reader:
        if not row:
            empty.append(line)
        else:
            for number in empty:
                problems.add(f"line {number}", "an empty line")
            empty.clear()
            if len(row) == len(columns):
                rows.append(row)
            else:
                problems.add(f"line {line}", f"{len(row)} value{'' if len(row) == 1 else 's'}")
        line = reader.line_num + 1
    problems.raise_if_any()
    return {column: [row[index] for row in rows] for index, column in enumerate(columns)}
