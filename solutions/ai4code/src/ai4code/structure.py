"""What can be read off one cell alone, whatever the training set: headings, numbers, cues, names used and defined.

Names come from Python's own parser. Magics, shell lines and Python 2 do not parse: then regular expressions find the
usual ways of binding a name. Nothing here is fitted.
"""

import ast
import re
import warnings
from dataclasses import dataclass

import numpy as np

HEADING = re.compile(r"(#{1,6})\s*(.*)")
LEADING_NUMBER = re.compile(
    r"#*\s*(?:\*\*|__)?\s*(?:(?:step|part|section|chapter|exercise|task)\s+)?(\d+(?:\.\d+)*)", re.I
)
MAGIC_LINE = re.compile(r"^\s*[%!?].*$", re.M)
BINDINGS = (
    re.compile(r"^\s*(?:def|class)\s+(\w+)", re.M),
    re.compile(r"^\s*([A-Za-z_]\w*)(?:\s*,\s*([A-Za-z_]\w*))?\s*=(?!=)", re.M),
    re.compile(r"\bimport\s+(?:[\w.]+\s+as\s+)?(\w+)"),
)
FIRST_CHARACTERS = 400  # a cue far down in a long text says little about its place
SECTION_DIGITS = 3  # a leading number with more is a year or a quantity, not a section

MARKDOWN_CUES = (
    "import", "load", "data", "read", "plot", "visuali", "train", "model", "predict", "evaluat", "conclusion",
    "summary", "next", "reference", "introduction", "overview", "setup", "install", "download", "first", "finally",
    "now ", "let's", "we can", "example", "exercise", "note", "license", "copyright", "appendix", "clean", "result",
    "test", "define", "create", "author", "above", "below", "following", "see that",
)  # fmt: skip
CODE_CUES = (
    "import ", "def ", "class ", "plt.", ".fit(", "predict", "read_csv", "print(", "pip install", "%", "for ",
    "return", ".show(", ".head(", "assert", "with ", "=", "@", "evaluate", "model",
)  # fmt: skip

MARKDOWN_FEATURES = (
    "heading_level", "headings", "number_1", "number_2", "number_depth", "characters", "lines", "words", "links",
    "images", "backticks", "dollars", "ends_with_colon", "ends_with_question", "table", "bullets", "html",
    "one_line", *(f"says_{cue.strip()}" for cue in MARKDOWN_CUES),
)  # fmt: skip
CODE_FEATURES = (
    "code_characters", "code_lines", "code_comments", "code_starts_with_comment",
    *(f"code_has_{cue.strip()}" for cue in CODE_CUES),
)  # fmt: skip


@dataclass(frozen=True)
class Heading:
    """The first line of a markdown cell: heading level (0 for none) and leading section number, `2.3` as (2, 3)."""

    level: int
    number: tuple[int, ...]


def heading(text: str) -> Heading:
    """Read the first non-blank line of a markdown cell."""
    line = text.lstrip().split("\n", 1)[0]
    mark = HEADING.match(line)
    found = LEADING_NUMBER.match(line)
    number = tuple(int(part) for part in found.group(1).split(".")[:3] if len(part) <= SECTION_DIGITS) if found else ()
    return Heading(len(mark.group(1)) if mark else 0, number)


def markdown_features(text: str) -> np.ndarray:
    """Describe a markdown cell: float32 [len(MARKDOWN_FEATURES)]; an absent number is −1."""
    lines = text.strip().split("\n")
    first = heading(text)
    number = (*first.number, -1, -1)
    last = lines[-1].rstrip()
    opening = text[:FIRST_CHARACTERS].lower()
    return np.array(
        [
            first.level,
            sum(1 for line in lines if HEADING.match(line)),
            number[0],
            number[1],
            len(first.number),
            len(text),
            len(lines),
            len(text.split()),
            text.count("http"),
            text.count("!["),
            text.count("`"),
            text.count("$"),
            last.endswith(":"),
            last.endswith("?"),
            "|" in text,
            text.count("\n- ") + text.count("\n* "),
            text.count("<"),
            len(lines) == 1,
            *(cue in opening for cue in MARKDOWN_CUES),
        ],
        dtype=np.float32,
    )


def code_features(text: str) -> np.ndarray:
    """Describe a code cell: float32 [len(CODE_FEATURES)]."""
    lines = text.strip().split("\n")
    return np.array(
        [
            len(text),
            len(lines),
            sum(1 for line in lines if line.lstrip().startswith("#")),
            lines[0].startswith("#"),
            *(text.count(cue) for cue in CODE_CUES),
        ],
        dtype=np.float32,
    )


def defined_names(source: str) -> set[str]:
    """Names that a code cell binds: functions, classes, imports, assigned variables; by `ast`, else by patterns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the cells' own bad escapes and the like are not ours to report
            tree = ast.parse(MAGIC_LINE.sub("", source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: NUL bytes; the others: hostile nesting
        return {name for pattern in BINDINGS for found in pattern.finditer(source) for name in found.groups() if name}
    names: set[str] = set()
    # Statements and what they bind; expressions, most of a tree, hardly ever do (`:=`).
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Tuple | ast.List):
            waiting += node.elts
        elif isinstance(node, ast.Starred):
            waiting.append(node.value)
        for part in _BINDING_PARTS:
            inside = getattr(node, part, None)
            waiting += inside if isinstance(inside, list) else [] if inside is None else [inside]
    return names


_BINDING_PARTS = ("body", "orelse", "finalbody", "handlers", "cases", "targets", "target", "items", "optional_vars")


def precedes(first: Heading, second: Heading) -> bool:
    """Whether two numbered cells of the same kind (both headings or both not) must stand in this order."""
    if not first.number or not second.number or (first.level > 0) != (second.level > 0):
        return False
    return first.number < second.number
