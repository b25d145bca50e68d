"""Generated data in the official layout, made from what is installed anyway, so that nothing need be downloaded.

    write_sample(Path("sample"), notebooks=160)          # a second or two

The modules of numpy, scipy, scikit-learn and the standard library hold real prose beside the real code that it tells
of. A notebook is a stretch of one module: its docstring is the title, each documented function a section of heading,
description, code in pieces with their comments as text between them, and the examples of the docstring. All notebooks
of a module have one ancestor, and no module stands on both sides of train and test.

The text is neither Kaggle's nor like it: scores on it say that the program works, nothing else.
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import random
import re
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ai4code.data import ANCESTOR_COLUMNS, ORDER_COLUMNS
from kit_core.atomic import atomic_dir
from kit_core.errors import ConfigError
from kit_io.tables import write_csv

LIBRARIES = ("numpy", "scipy", "sklearn")
FEWEST_NOTEBOOKS = 10  # fewer leave no test notebooks worth the name, and no folds
MODULE_NOTEBOOKS = 3  # at most, so that a large module does not rule the sample
MIN_CELLS, MAX_CELLS = 4, 40
CODE_LINES = 12  # longer pieces are split where a statement begins
TEXT_CHARACTERS = 25  # shorter comments stay in the code
PROSE_CHARACTERS = 700
NOT_FOR_READERS = {
    "tests",
    "test",
    "conftest",
    "site-packages",
    "dist-packages",
    "lib2to3",
    "pydoc_data",
    "__pycache__",
}

Cell = tuple[str, str]  # ("code" | "markdown", text)


@dataclass(frozen=True)
class Sample:
    """What was written: notebooks for training and for test, and their cells."""

    out: Path
    train: int
    test: int
    cells: int


def write_sample(out: Path, notebooks: int = 160, seed: int = 0) -> Sample:
    """Writes `notebooks` notebooks, a fifth of them as test, in the official layout into the new folder `out`.

    Beside the official files lies test_orders.csv, the truth that a competition would hide. The same seed and the same
    versions of the libraries give the same files.

    Raises:
        ConfigError: `out` exists and is not empty, or `notebooks` is below 10 or above what the libraries give.
    """
    if notebooks < FEWEST_NOTEBOOKS:
        raise ConfigError(f"notebooks: found {notebooks}, expected at least {FEWEST_NOTEBOOKS}")
    wanted = {"test": round(notebooks / 5), "train": notebooks - round(notebooks / 5)}
    split = "test"
    orders: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    given: dict[str, list[str]] = {}
    ancestors: dict[str, str] = {}
    total_cells = 0
    with atomic_dir(out) as folder:
        for name in wanted:
            (folder / name).mkdir()
        for module, file in _shuffled(_modules(), seed):
            if len(orders[split]) == wanted[split]:
                if split == "train":
                    break
                split = "train"  # the rest of the last module is left out, not trained on
            rng = random.Random(f"{seed} {module}")
            for part, cells in enumerate(_notebooks(module, file, rng)):
                if len(orders[split]) == wanted[split]:
                    break
                id_ = _hex(f"{seed} {module} {part}", 14)
                content, order = _official(cells, rng)
                (folder / split / f"{id_}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
                orders[split][id_] = order
                given[id_] = list(content["source"])
                ancestors[id_] = _hex(module, 8)
                total_cells += len(cells)
        if len(orders["train"]) < wanted["train"]:
            there = len(orders["train"]) + len(orders["test"])
            raise ConfigError(f"notebooks: found {notebooks}, expected at most {there}, all that the libraries give")
        for name in wanted:
            rows = [(id_, " ".join(order)) for id_, order in sorted(orders[name].items())]
            write_csv(folder / f"{name}_orders.csv", ORDER_COLUMNS, rows)
        write_csv(
            folder / "train_ancestors.csv", ANCESTOR_COLUMNS, [(i, ancestors[i], "") for i in sorted(orders["train"])]
        )
        rows = [(id_, " ".join(given[id_])) for id_ in sorted(orders["test"])]
        write_csv(folder / "sample_submission.csv", ORDER_COLUMNS, rows)
    return Sample(out, len(orders["train"]), len(orders["test"]), total_cells)


def _official(cells: Sequence[Cell], rng: random.Random) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The json of a notebook, markdown shuffled, and its true order."""
    order: list[str] = []
    while len(order) < len(cells):
        cell_id = f"{rng.getrandbits(32):08x}"
        if cell_id not in order:
            order.append(cell_id)
    by_id = dict(zip(order, cells, strict=True))
    code = [i for i in order if by_id[i][0] == "code"]
    markdown = [i for i in order if by_id[i][0] == "markdown"]
    rng.shuffle(markdown)
    shown = code + markdown
    return {"cell_type": {i: by_id[i][0] for i in shown}, "source": {i: by_id[i][1] for i in shown}}, order


def _modules() -> dict[str, Path]:
    """Source files by dotted name; nothing is imported."""
    roots = {"": Path(sysconfig.get_path("stdlib"))}
    for library in LIBRARIES:
        spec = importlib.util.find_spec(library)
        if spec is not None and spec.origin is not None:
            roots[f"{library}."] = Path(spec.origin).parent
    found: dict[str, Path] = {}
    for prefix, root in roots.items():
        for folder, inner, files in os.walk(root):
            inner[:] = set(inner) - NOT_FOR_READERS  # what is taken out here is not entered
            package = prefix + "".join(f"{part}." for part in Path(folder).relative_to(root).parts)
            for file in files:
                name, dot, suffix = file.rpartition(".")
                if suffix == "py" and dot and name not in NOT_FOR_READERS:
                    found[package + name] = Path(folder, file)
    return found


def _shuffled(modules: dict[str, Path], seed: int) -> list[tuple[str, Path]]:
    """In an order that depends on seed and names only: another set of files changes little."""
    return sorted(modules.items(), key=lambda item: _hex(f"{seed} {item[0]}", 16))


def _hex(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _notebooks(module: str, file: Path, rng: random.Random) -> Iterator[list[Cell]]:
    """The first notebooks that a source file gives; none for a file that is hardly documented."""
    try:
        with tokenize.open(file) as stream:
            text = stream.read()
        with warnings.catch_warnings(action="ignore"):  # about escapes in old source files
            tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    lines = text.splitlines()
    sections = list(_sections(tree, lines))
    made, start = 0, 0
    while start < len(sections) and made < MODULE_NOTEBOOKS:
        cells = _opening(module, tree, lines, made)
        size = rng.randint(8, MAX_CELLS)
        stop = start
        while stop < len(sections) and len(cells) + len(sections[stop]) <= size:
            cells += sections[stop]
            stop += 1
        if stop == start:  # a section longer than this notebook was to be
            cells = (cells + sections[start])[:MAX_CELLS]
            stop += 1
        start = stop
        kinds = {kind for kind, _ in cells}
        if len(cells) >= MIN_CELLS and len(kinds) == 2:
            made += 1
            yield cells


def _opening(module: str, tree: ast.Module, lines: Sequence[str], part: int) -> list[Cell]:
    paragraphs = _paragraphs(ast.get_docstring(tree) or "")
    title = paragraphs[0].splitlines()[0] if paragraphs else " ".join(re.split(r"[._]+", module))
    rest = "\n\n".join(paragraphs[1:])[:PROSE_CHARACTERS] if part == 0 else f"Part {part + 1} of `{module}`."
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)][:CODE_LINES]
    code = "\n".join("\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in imports)
    return _kept([("markdown", f"# {title}\n\n{rest}"), ("code", code)])


def _sections(tree: ast.Module, lines: Sequence[str]) -> Iterator[list[Cell]]:
    """One for each documented function or method, in the order of the file."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield from _function(node, "##", "", lines)
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("__"):
                    yield from _function(member, "###", f"{node.name}.", lines)


def _function(node: ast.FunctionDef, level: str, owner: str, lines: Sequence[str]) -> Iterator[list[Cell]]:
    paragraphs = _paragraphs(ast.get_docstring(node) or "")
    if len(" ".join(paragraphs)) < 40 or len(node.body) < 2:
        return
    cells: list[Cell] = [("markdown", f"{level} {owner}{node.name}\n\n{paragraphs[0]}")]
    description, examples = paragraphs[1:], []
    for number, paragraph in enumerate(description):
        if paragraph.startswith(("Examples", ">>>")):
            description, examples = description[:number], description[number:]
            break
    cells.append(("markdown", "\n\n".join(description)[:PROSE_CHARACTERS]))
    cells += _code(node, lines)
    for paragraph in examples[:4]:
        shown = [line[4:] for line in paragraph.splitlines() if line.startswith((">>> ", "... "))]
        told = [line for line in paragraph.splitlines() if not line.startswith((">>>", "...", "Examples", "-----"))]
        cells.append(("code", "\n".join(shown)) if shown else ("markdown", "\n".join(told)))
    yield _kept(cells)


def _code(node: ast.FunctionDef, lines: Sequence[str]) -> Iterator[Cell]:
    """The source of a function without its docstring, in pieces; a longer comment becomes the text before one."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    piece = list(lines[first - 1 : node.body[0].lineno - 1])
    emitted = node.body[0].end_lineno or node.body[0].lineno  # the docstring: passed over
    for statement in node.body[1:]:
        start = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
        stop = statement.end_lineno or statement.lineno
        if stop <= emitted:  # a second statement on the same line
            continue
        between = [line.strip() for line in lines[emitted : start - 1]]
        comment = " ".join(line.lstrip("# ") for line in between if line.startswith("#"))
        is_text = len(comment) >= TEXT_CHARACTERS
        if is_text or len(piece) + stop - emitted > CODE_LINES:
            yield "code", textwrap.dedent("\n".join(piece))
            piece = []
        if is_text:
            yield "markdown", comment
        elif comment:
            piece += lines[emitted : start - 1]
        piece += lines[max(start - 1, emitted) : stop]
        emitted = stop
    yield "code", textwrap.dedent("\n".join(piece))


def _paragraphs(docstring: str) -> list[str]:
    """Paragraphs without the lines that only underline a title."""
    text = "\n".join(
        line for line in inspect.cleandoc(docstring).splitlines() if not re.fullmatch(r"\s*[-=~]{3,}", line)
    )
    return [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]


def _kept(cells: Sequence[Cell]) -> list[Cell]:
    """Without empty cells, as the organisers removed them."""
    return [(kind, text.strip("\n")) for kind, text in cells if text.strip()]
