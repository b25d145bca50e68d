"""Tables out of a summary of any shape: facts, one row for each class or bucket, confusion matrices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_FACT = 4  # items of a list that is shown as one value, such as an interval
MOST_ROWS = 400
LARGEST_WHOLE = 2**53


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number to sort it by, if it is one."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows. `left_out` counts rows beyond the most that a page shows."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left_out: int = 0


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: counts[true][predicted], and each as its share of the true class, 0..1."""

    title: str
    names: tuple[str, ...]
    counts: tuple[tuple[float, ...], ...]

    @property
    def shares(self) -> list[list[float]]:
        """Each count divided by the sum of its row; 0 in rows without any."""
        return [[count / (sum(row) or 1) for count in row] for row in self.counts]


def cell(value: Any) -> Cell:
    """Return a plain value as a cell: floats with four decimals, whole numbers with their thousands set apart."""
    if value is None:
        return Cell("–")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        if abs(value) >= LARGEST_WHOLE:
            return Cell(f"{value:,}"[:40])  # no float holds it exactly, and some of them no float holds at all
        return Cell(f"{value:,}", float(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            return Cell(str(value))
        small = value != 0 and abs(value) < 1e-3
        return Cell(f"{value:.3g}" if small else f"{value:,.4f}".rstrip("0").rstrip("."), value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Cell(", ".join(cell(item).text for item in value))
    return Cell(str(value))


def tables_of(summary: Mapping[str, Any]) -> tuple[list[Table], list[Confusion]]:
    """Return all that a summary holds, as tables in its own order, and its confusion matrices.

    Lists of one length beside a list of names of that length become a row for each name; a mapping of mappings becomes
    a row for each; what is nested deeper gets a table of its own, with the path to it as the title.
    """
    tables: list[Table] = []
    confusions: list[Confusion] = []
    _walk(summary, "", tables, confusions)
    return tables, confusions


def _walk(value: Mapping[str, Any], title: str, tables: list[Table], confusions: list[Confusion]) -> None:
    facts: list[tuple[Cell, ...]] = []
    columns: dict[str, Sequence[Any]] = {}
    inner: list[tuple[str, Mapping[str, Any]]] = []
    matrices: list[tuple[str, Sequence[Any]]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            inner.append((str(key), item))
        elif isinstance(item, list) and item and all(isinstance(row, list) for row in item):
            matrices.append((str(key), item))
        elif isinstance(item, list) and len(item) > LONGEST_FACT and all(map(_is_plain, item)):
            columns[str(key)] = item
        elif _is_plain(item) or (isinstance(item, list) and len(item) <= LONGEST_FACT and all(map(_is_plain, item))):
            facts.append((Cell(_words(str(key))), cell(item)))
    if facts:
        tables.append(_table(title or "Summary", ("", "value"), facts))
    names = {len(items): (key, items) for key, items in columns.items() if all(isinstance(i, str) for i in items)}
    for length in dict.fromkeys(len(items) for items in columns.values()):
        name, labels = names.get(length, ("", [str(i) for i in range(length)]))
        shown = {key: items for key, items in columns.items() if len(items) == length and key != name}
        if not shown:
            continue
        headers = (_words(name) or "number", *map(_words, shown))
        rows = [(Cell(str(labels[i])), *(cell(items[i]) for items in shown.values())) for i in range(length)]
        tables.append(_table(_path(title, "one by one"), headers, rows))
    for key, matrix in matrices:
        size = len(matrix)
        square = all(len(row) == size and all(_is_count(item) for item in row) for row in matrix)
        if "confusion" in key and square and size > 1:
            labels = names.get(size, ("", [str(i) for i in range(size)]))[1]
            counts = tuple(tuple(float(item) for item in row) for row in matrix)
            confusions.append(Confusion(_path(title, key), tuple(map(str, labels)), counts))
    for key, item in inner:
        _mapping(item, _path(title, key), tables, confusions)


def _mapping(value: Mapping[str, Any], title: str, tables: list[Table], confusions: list[Confusion]) -> None:
    entries = list(value.items())
    flat = [(key, item) for key, item in entries if isinstance(item, Mapping)]
    if entries and len(flat) == len(entries) and all(_is_flat(item) for _, item in flat):
        headers = list(dict.fromkeys(str(key) for _, item in flat for key in item))
        rows = [(Cell(str(key)), *(cell(item.get(header)) for header in headers)) for key, item in flat]
        tables.append(_table(title, ("", *map(_words, headers)), rows))
    else:
        _walk(value, title, tables, confusions)


def _table(title: str, headers: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> Table:
    return Table(title, tuple(headers), tuple(rows[:MOST_ROWS]), max(0, len(rows) - MOST_ROWS))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_flat(value: Mapping[str, Any]) -> bool:
    return all(
        _is_plain(item) or (isinstance(item, list) and len(item) <= LONGEST_FACT and all(map(_is_plain, item)))
        for item in value.values()
    )


def _words(key: str) -> str:
    return key.replace("_", " ")


def _path(title: str, key: str) -> str:
    return f"{title} · {_words(key)}" if title else _words(key)
