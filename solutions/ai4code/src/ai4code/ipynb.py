"""One Jupyter notebook: from an .ipynb file to the cells that a model orders, and back, with nothing lost.

    notebook = read_ipynb(Path("analysis.ipynb"))
    order = ...  # cell ids, from a model that was given notebook.to_notebooks()
    print("\\n".join(describe(notebook, order)))
    write_ipynb(Path("ordered.ipynb"), notebook, order)

The file is kept as parsed, and writing only puts its cells in another order: outputs, metadata, attachments and the
format version stay as they are. (A notebook of format 1 to 3 is converted to 4 first.) Raw cells are neither code nor
markdown: each stays right behind the cell that it follows, and raw cells at the head of the file stay there.
"""

import json
import re
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nbformat
import numpy as np
import pyarrow as pa

from ai4code.data import Notebooks
from kit_core.atomic import write_bytes
from kit_core.errors import DataError, Problems

FORMAT = 4  # the major version of nbformat that is written
IDS_FROM_MINOR = 5  # cells have ids since nbformat 4.5, and must not have them before
CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
SHOWN_CHARACTERS = 70  # of a cell's first line, so that a line of `describe` fits a terminal

EXPECTED = 'a Jupyter notebook: JSON in UTF-8 with "nbformat" 4 (or older) and a list of "cells", one of them code'
REMEDY = "open the file in Jupyter, save it as a notebook and give that"


@dataclass(frozen=True)
class IpynbCell:
    """A code or markdown cell. `places`: its index among all cells of the file, then those of raw cells behind it."""

    id: str
    kind: Literal["code", "markdown"]
    text: str
    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class IpynbNotebook:
    """A notebook as read.

    document  the parsed file, in format 4.
    cells     the code and markdown cells in the order of the file; their ids differ from each other.
    head      indices of the raw cells before the first of them.
    indent    blanks a level in the file, None for one line.
    """

    path: Path
    document: dict[str, Any]
    cells: tuple[IpynbCell, ...]
    head: tuple[int, ...]
    indent: int | None

    @property
    def order(self) -> list[str]:
        """Cell ids in the order of the file."""
        return [cell.id for cell in self.cells]

    def to_notebooks(self) -> Notebooks:
        """The set of this one notebook: code cells first, then markdown cells, each in the order of the file."""
        cells = sorted(self.cells, key=lambda cell: cell.kind == "markdown")  # a stable sort
        return Notebooks(
            ids=[self.path.name],
            ancestors=None,
            offsets=np.array([0, len(cells)], dtype=np.int64),
            n_code=np.array([sum(cell.kind == "code" for cell in cells)], dtype=np.int64),
            cell_ids=pa.array([cell.id for cell in cells], type=pa.string()),
            sources=pa.array([_without_surrogates(cell.text) for cell in cells], type=pa.large_string()),
            true_rank=None,
        )


@dataclass(frozen=True)
class Misplaced:
    """A markdown cell that an order moves.

    position, new_position  its place among code and markdown cells, from 1, in the file and in the order.
    code_cells_passed       code cells that it moves past, negative towards the head; 0: it moves among its neighbours.
    """

    cell: IpynbCell
    position: int
    new_position: int
    code_cells_passed: int

    @property
    def is_down(self) -> bool:
        """Whether it moves towards the end."""
        return self.code_cells_passed > 0 or (not self.code_cells_passed and self.new_position > self.position)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_ipynb(path: Path) -> IpynbNotebook:
    """Read a notebook of nbformat 1 to 4.

    Cells without an id, or with one that is not allowed or already taken, get one: "cell-3" for the third.

    Raises:
        DataError: no such file, not UTF-8, not JSON, not a notebook, a format still unknown, no code cell, or cells
            that are neither code, markdown nor raw or have no source.
    """
    text = _read_text(path)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise _refused(path, f"no JSON: {error}") from error
    except RecursionError as error:
        raise _refused(path, "JSON nested too deeply") from error
    document = _as_format_4(path, document, text)
    _check(path, document["cells"])
    _complete_ids(document)

    head: list[int] = []
    cells: list[IpynbCell] = []
    names = _cell_names(document["cells"])
    for place, cell in enumerate(document["cells"]):
        if cell["cell_type"] != "raw":
            cells.append(IpynbCell(names[place], cell["cell_type"], _joined(cell["source"]), (place,)))
        elif cells:
            last = cells[-1]
            cells[-1] = IpynbCell(last.id, last.kind, last.text, (*last.places, place))
        else:
            head.append(place)
    if not any(cell.kind == "code" for cell in cells):
        counts = f"{len(cells)} markdown and {len(document['cells']) - len(cells)} raw cells"
        raise _refused(path, f"{counts if document['cells'] else 'no cells'}, no code cell to order by")
    first_indent = re.match(r'\s*\{\r?\n( +)"', text)
    return IpynbNotebook(path, document, tuple(cells), tuple(head), len(first_indent[1]) if first_indent else None)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(path, f"bytes that are not UTF-8, at {error.start}") from error
    except IsADirectoryError as error:
        raise _refused(path, "a folder") from error
    except OSError as error:
        raise _refused(path, (error.strerror or str(error)).lower()) from error


def _as_format_4(path: Path, document: Any, text: str) -> dict[str, Any]:
    if not isinstance(document, dict) or not {"cells", "worksheets"} & document.keys() or "nbformat" not in document:
        keys = ", ".join(map(repr, list(document)[:5])) or "no keys" if isinstance(document, dict) else "no object"
        raise _refused(path, f"JSON, but no notebook ({keys})")
    version = document["nbformat"]
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise _refused(path, f'"nbformat" {version!r}')
    if version < FORMAT:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nbformat tells that it gives ids; ours replace them
                converted = json.loads(nbformat.writes(nbformat.reads(text, as_version=FORMAT)))
        except Exception as error:  # whatever an old broken file runs into: AttributeError, KeyError, ValidationError
            reason = str(error).splitlines()[:1]
            raise _refused(path, f'"nbformat" {version} that cannot be converted: {"".join(reason)}') from error
        for cell in converted["cells"]:
            cell.pop("id", None)  # drawn at random
        return converted
    if not isinstance(document.get("cells"), list):
        raise _refused(path, f'"nbformat" {FORMAT} without a list of "cells"')
    return document


def _check(path: Path, cells: list[Any]) -> None:
    problems = Problems(path, EXPECTED, REMEDY)
    for number, cell in enumerate(cells, start=1):
        if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
            kind = cell.get("cell_type") if isinstance(cell, dict) else cell
            problems.add(f"cell {number}", f"the cell type {kind!r:.40}")
        elif not _is_text(cell.get("source")):
            problems.add(f"cell {number}", f"the source {cell.get('source')!r:.40}, no text and no list of lines")
    problems.raise_if_any()


def _is_text(source: object) -> bool:
    return isinstance(source, str) or (isinstance(source, list) and all(isinstance(line, str) for line in source))


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _cell_names(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """One name a cell, all different: the first use of a valid id, else "cell-N"."""
    names: list[str | None] = []
    taken: set[str] = set()
    for cell in cells:
        name = cell.get("id")
        if isinstance(name, str) and CELL_ID.fullmatch(name) and name not in taken:
            names.append(name)
            taken.add(name)
        else:
            names.append(None)
    complete = []
    for number, name in enumerate(names, start=1):
        if name is None:
            name = f"cell-{number}"
            while name in taken:
                name += "-"
            taken.add(name)
        complete.append(name)
    return complete


def _complete_ids(document: dict[str, Any]) -> None:
    minor = document.get("nbformat_minor")
    if isinstance(minor, int) and minor >= IDS_FROM_MINOR:
        for cell, name in zip(document["cells"], _cell_names(document["cells"]), strict=True):
            cell["id"] = name


def _without_surrogates(text: str) -> str:
    """Halves of surrogate pairs, as broken emoji leave them in JSON, become U+FFFD: no UTF-8 can hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _refused(path: Path, found: str) -> DataError:
    return DataError(f"{path}: not a usable notebook\n  found: {found}\n  expected: {EXPECTED}\n  do: {REMEDY}")


# ---------------------------------------------------------------------------------------------------------------------
# What an order changes


def misplaced(notebook: IpynbNotebook, order: Sequence[str]) -> list[Misplaced]:
    """The fewest markdown cells whose move turns the order of the file into `order`, in the order of the file.

    `order` holds every cell id once, the code cells in their order. The cells not returned are the longest subsequence
    common to both orders that holds every code cell: markdown cells which keep their gap between code cells and form,
    inside it, a longest increasing subsequence.

    Raises:
        ValueError: `order` is no permutation of the cell ids or changes the order of the code cells.
    """
    _require_permutation(notebook, order)
    cells = {cell.id: cell for cell in notebook.cells}
    if [name for name in order if cells[name].kind == "code"] != [c.id for c in notebook.cells if c.kind == "code"]:
        raise ValueError("the order of the code cells is changed")
    place = {name: number for number, name in enumerate(notebook.order)}
    new_place = {name: number for number, name in enumerate(order)}
    gap, new_gap = _gaps(notebook.order, cells), _gaps(order, cells)
    stays: set[str] = set()
    by_gap: dict[int, list[str]] = {}
    for name in order:
        if cells[name].kind == "markdown" and gap[name] == new_gap[name]:
            by_gap.setdefault(gap[name], []).append(name)
    for names in by_gap.values():
        stays.update(names[i] for i in _longest_increasing([place[name] for name in names]))
    return [
        Misplaced(cell, place[cell.id] + 1, new_place[cell.id] + 1, new_gap[cell.id] - gap[cell.id])
        for cell in notebook.cells
        if cell.kind == "markdown" and cell.id not in stays
    ]


def _gaps(order: Sequence[str], cells: Mapping[str, IpynbCell]) -> dict[str, int]:
    """For every cell, the number of code cells before it."""
    gaps, code_cells = {}, 0
    for name in order:
        gaps[name] = code_cells
        code_cells += cells[name].kind == "code"
    return gaps


def _longest_increasing(values: Sequence[int]) -> list[int]:
    """Indices of a longest increasing subsequence of different values (patience sorting)."""
    tails: list[int] = []  # smallest last value of an increasing subsequence of length 1, 2, ...
    tail_at: list[int] = []
    before: list[int] = []
    for index, value in enumerate(values):
        length = bisect_left(tails, value)
        before.append(tail_at[length - 1] if length else -1)
        tails[length : length + 1] = [value]
        tail_at[length : length + 1] = [index]
    chain = []
    index = tail_at[-1] if tail_at else -1
    while index >= 0:
        chain.append(index)
        index = before[index]
    return chain[::-1]


def describe(notebook: IpynbNotebook, order: Sequence[str]) -> list[str]:
    """Lines for a person: every cell in `order`, with an arrow and its old place where it moved, and a sum.

    Raises:
        ValueError: as `misplaced`.
    """
    moved = {found.cell.id: found for found in misplaced(notebook, order)}
    cells = {cell.id: cell for cell in notebook.cells}
    width = len(str(len(order)))
    lines = []
    for number, name in enumerate(order, start=1):
        found = moved.get(name)
        arrow = " " if found is None else "↓" if found.is_down else "↑"
        line = f"{number:>{width}} {arrow} {cells[name].kind:<8}  {_first_line(cells[name].text)}"
        lines.append(line if found is None else f"{line}   <- was {found.position}{_passed(found.code_cells_passed)}")
    markdown = sum(cell.kind == "markdown" for cell in notebook.cells)
    lines.append(f"{len(moved)} of {markdown} markdown cells look misplaced" if moved else "no cell looks misplaced")
    return lines


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "(empty)")
    printable = "".join(c if c.isprintable() else " " for c in line)  # no control sequences to the terminal
    return printable if len(printable) <= SHOWN_CHARACTERS else printable[: SHOWN_CHARACTERS - 1] + "…"


def _passed(code_cells: int) -> str:
    if not code_cells:
        return ", among its neighbours"
    return (
        f", {'down' if code_cells > 0 else 'up'} past {abs(code_cells)} code cell{'s' if abs(code_cells) > 1 else ''}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_ipynb(path: Path, notebook: IpynbNotebook, order: Sequence[str]) -> None:
    """Write the notebook with its cells in `order`, atomically; everything else is kept.

    Raises:
        ValueError: `order` is no permutation of the cell ids.
        DataError: the notebook, in whatever order, breaks the schema of its format; nothing is written.
        ConfigError: `path` is a folder or cannot be written.
    """
    _require_permutation(notebook, order)
    cells = {cell.id: cell for cell in notebook.cells}
    places = [*notebook.head, *(place for name in order for place in cells[name].places)]
    document = {**notebook.document, "cells": [notebook.document["cells"][place] for place in places]}
    try:
        nbformat.validate(document, relax_add_props=True)  # unknown keys are kept, as Jupyter does
    except Exception as error:  # ValidationError, or what the validator itself stumbles over
        raise DataError(
            f"{notebook.path}: cannot be written as a valid notebook; nothing was written\n"
            f"  found: {str(error).splitlines()[0]}\n  expected: a notebook as the schema of nbformat "
            f"{document.get('nbformat')}.{document.get('nbformat_minor')} has it\n  do: {REMEDY}"
        ) from error
    try:
        data = json.dumps(document, indent=notebook.indent, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold, but only as an escape
        data = json.dumps(document, indent=notebook.indent).encode("ascii")
    write_bytes(path, data + b"\n")


def _require_permutation(notebook: IpynbNotebook, order: Sequence[str]) -> None:
    if sorted(order) != sorted(notebook.order):
        raise ValueError(
            f"the order holds {len(order)} cell ids and is no permutation of the {len(notebook.cells)} given"
        )
