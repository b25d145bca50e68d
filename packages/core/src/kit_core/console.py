"""What a person watches while a command works: progress, remarks (both on stderr) and plain tables."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

PLAIN_EVERY_SECONDS = 10.0


def progress(iterable: Iterable[T], *, total: int | None = None, label: str) -> Iterator[T]:
    """Pass the items on, showing a bar on a terminal, and elsewhere a line at the start, every 10 s and at the end.

    `total` is taken from the iterable where it has a length. Everything goes to stderr.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=label, file=sys.stderr, dynamic_ncols=True)
        return
    say(f"{label}: started" if total is None else f"{label}: 0/{total}")
    started = shown = time.monotonic()
    done = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= PLAIN_EVERY_SECONDS:
            shown = now
            say(f"{label}: {_count(done, total)}, {now - started:.0f} s")
    say(f"{label}: {_count(done, total)}, done in {time.monotonic() - started:.1f} s")


def say(text: str) -> None:
    """Write one line to stderr at once, above any progress bar."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def render_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an aligned plain-text table without a final newline; columns that hold only numbers are set to the right.

    Cells are shown by `str` (None as an empty cell): give floats as strings, rounded as they shall be read.

    Raises:
        ValueError: a row has another width than the headers.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    for number, row in enumerate(cells):
        if len(row) != len(headers):
            raise ValueError(f"row {number} has {len(row)} cells, expected {len(headers)}")
    columns = [[header, *(row[i] for row in cells)] for i, header in enumerate(headers)]
    widths = [max(len(cell) for cell in column) for column in columns]
    to_right = [any(column[1:]) and all(_is_number(cell) for cell in column[1:] if cell) for column in columns]
    lines = []
    for row in [list(headers), ["-" * width for width in widths], *cells]:
        aligned = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, to_right, strict=True)]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def _count(done: int, total: int | None) -> str:
    return f"{done}" if total is None else f"{done}/{total}" + (f" ({100 * done / total:.0f} %)" if total else "")


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix("%").strip())
    except ValueError:
        return False
    return True
