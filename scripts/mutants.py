"""Change one place of the code at a time and see whether the tests notice.

    make mutants ARGS="russian_art"                      a seeded sample of 60 changes
    make mutants ARGS="russian_art --n 20 --seed 3"      other ones
    make mutants ARGS="russian_art --all --module infer" every change of one module

Each change (mutant) is made in a copy of the solution's source, and the default tests of that solution run against the
copy until the first one fails. A mutant that no test notices is a survivor. Survivors that cannot be noticed, or need
not be, stand with a reason in scripts/mutants.toml. Prints a table and exits with 1 if more than 10 % survive.

Takes 10 to 30 minutes a solution on one core; it is no part of CI.
"""

import argparse
import ast
import importlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / "scripts" / "mutants.toml"
LARGEST_SHARE = 0.1  # of survivors without a reason

# Modules that compute what a run or a submission holds.
MODULES = {
    "ai4code": ("train", "infer", "blend", "neural", "text_models", "boosting", "diffusion"),
    "ntua_lab": ("train", "infer", "answers", "baseline", "predict"),
    "russian_art": ("train", "infer", "finetune", "baseline", "predict"),
    "yandex_artists": ("train", "infer", "train_baseline", "baseline", "post", "embed", "frame_matching"),
    "yandex_tagging": ("train", "infer", "blend", "baseline", "predict"),
}
# Tests of other modules, which would only cost time.
OTHER_TESTS = ("bad_input", "sample", "data", "ipynb", "decode", "compare", "weights", "extract", "echonest", "groups")

LIBRARIES = (
    "lightgbm", "lightning_fabric", "scipy.stats", "sklearn.linear_model", "timm", "torch._dynamo", "torchaudio",
    "transformers",
)  # fmt: skip

COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
    ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
OPERATORS: dict[type[ast.operator], str] = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Mod: "*"}
NAMES = {
    "mean": "sum", "sum": "mean", "min": "max", "max": "min", "argmax": "argmin", "argmin": "argmax", "train": "eval",
    "eval": "train", "minimum": "maximum", "maximum": "minimum", "zeros": "ones", "zeros_like": "ones_like",
}  # fmt: skip
SILENT = {"print", "say", "log", "warn", "debug", "info", "append_log", "progress"}  # what they write is no result


RANKS = {"world_size", "global_rank"}  # the tests of several processes are slow, and not run here


@dataclass(frozen=True)
class Mutant:
    """One change: the text from `start` to `stop` (characters of the file) becomes `new`."""

    module: str
    line: int
    source: str  # the first changed line, without indentation
    start: int
    stop: int
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (" ".join(text.split())[:60] for text in (self.old, self.new))
        return f"{self.module}.py:{self.line}: {old!r} -> {new!r} in {self.source[:90]!r}"


class Finder(ast.NodeVisitor):
    """Collects the mutants of one module; outside are annotations, messages, checks of input, and module constants."""

    def __init__(self, module: str, text: str) -> None:
        super().__init__()
        self.module, self.text = module, text
        self.lines = text.splitlines(keepends=True)
        self.offsets = [0]
        for line in self.lines:
            self.offsets.append(self.offsets[-1] + len(line))
        self.inside = 0
        self.found: list[Mutant] = []

    def place(self, line: int, column: int) -> int:
        """Character offset of a position of the syntax tree, whose columns count bytes."""
        return self.offsets[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.place(node.lineno, node.col_offset), self.place(node.end_lineno, node.end_col_offset)

    def change(self, start: int, stop: int, new: str) -> None:
        line = self.text.count("\n", 0, start) + 1
        source = self.lines[line - 1].strip()
        self.found.append(Mutant(self.module, line, source, start, stop, self.text[start:stop], new))

    def between(self, left: ast.expr, right: ast.expr, new: str) -> None:
        """Change the operator between two operands; brackets and line ends stay."""
        start, stop = self.span(left)[1], self.span(right)[0]
        gap = self.text[start:stop]
        word = gap.strip("() \n\t")
        if word and "#" not in gap:
            self.change(start, stop, gap.replace(word, new, 1))

    # --- what is left alone

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.inside += 1
        for statement in node.body:
            self.visit(statement)
        self.inside -= 1

    def visit_Raise(self, node: ast.Raise) -> None: ...
    def visit_Assert(self, node: ast.Assert) -> None: ...
    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...
    def visit_Import(self, node: ast.Import) -> None: ...

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None: ...

    # --- statements

    def visit_Expr(self, node: ast.Expr) -> None:
        call = node.value
        if isinstance(call, ast.Call) and self.inside:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in SILENT:
                return
            self.change(*self.span(node), "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if self.inside:
            self.change(*self.span(node), "pass")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        ranks = any(isinstance(part, ast.Attribute) and part.attr in RANKS for part in ast.walk(node.test))
        if self.inside and not isinstance(node.body[-1], ast.Raise) and not ranks:
            start, stop = self.span(node.test)
            self.change(start, stop, f"not ({self.text[start:stop]})")
            self.visit(node.test)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_For(self, node: ast.For) -> None:
        checks = any(isinstance(part, ast.Raise) for part in ast.walk(node))
        if self.inside and not checks:
            start, stop = self.span(node.iter)
            self.change(start, stop, f"list({self.text[start:stop]})[:1]")
        self.generic_visit(node)

    # --- expressions

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # of `zip`: a check of input
            self.visit(node.value)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        if self.inside:
            start, stop = self.span(node.test)
            self.change(start, stop, f"not ({self.text[start:stop]})")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if self.inside and len(node.ops) == 1:
            self.between(node.left, node.comparators[0], COMPARISONS[type(node.ops[0])])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        if self.inside:
            self.between(node.values[0], node.values[1], "or" if isinstance(node.op, ast.And) else "and")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(
            isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
        if self.inside and not texts and type(node.op) in OPERATORS:  # a "/" before a text joins a path
            self.between(node.left, node.right, OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if self.inside and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            start = self.span(node)[0]
            self.change(start, start + (3 if isinstance(node.op, ast.Not) else 1), "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not self.inside or isinstance(node.value, str | bytes) or node.value is None or node.value is ...:
            return
        new = str(not node.value) if isinstance(node.value, bool) else repr(node.value + (node.value or 1))
        self.change(*self.span(node), new)

    def visit_Call(self, node: ast.Call) -> None:
        if (
            self.inside
            and len(node.args) == 2
            and not any(isinstance(a, ast.Starred | ast.Constant) for a in node.args)
        ):
            first, second = self.span(node.args[0]), self.span(node.args[1])
            left, gap, right = (
                self.text[slice(*first)], self.text[first[1] : second[0]], self.text[slice(*second)],
            )  # fmt: skip
            if left != right:
                self.change(first[0], second[1], right + gap + left)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self.inside and node.attr in NAMES:
            stop = self.span(node)[1]
            self.change(stop - len(node.attr), stop, NAMES[node.attr])
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        if self.inside and node.step is not None and node.lower is None and node.upper is None:  # x[::-1], x[::2]
            self.change(*self.span(node.step), "1")
        self.generic_visit(node)


def mutants_of(module: str, path: Path) -> list[Mutant]:
    """Return all changes of one file."""
    text = path.read_text(encoding="utf-8")
    finder = Finder(module, text)
    finder.visit(ast.parse(text))
    return finder.found


def tests_of(solution: str) -> list[str]:
    """Return the test files to run, the ones that kill most first."""
    files = sorted((ROOT / "solutions" / solution / "tests").glob("test_*.py"))
    short = {path: path.stem.removeprefix(f"test_{solution}_") for path in files}
    first = ("infer", "fit", "leaks", "train")
    order = {path: first.index(name) if name in first else len(first) for path, name in short.items()}
    return [str(path) for path in sorted(files, key=lambda path: order[path]) if short[path] not in OTHER_TESTS]


def run_tests(source: Path, tests: list[str], seconds: float, log: Path) -> str:
    """Run pytest in a fork of this process, with `source` first on the path: "passed", "failed" or "no end"."""
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.path.insert(0, str(source))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
        import pytest

        preloaded = "ignore::pytest.PytestAssertRewriteWarning"  # plugins that a preloaded library has imported
        options = ["-x", "-q", "-p", "no:cacheprovider", "-W", preloaded]
        code = 1
        try:
            code = pytest.main([*options, f"--rootdir={ROOT}", *tests])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(code))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "passed" if status == 0 else "failed"
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "no end"


def preload() -> None:
    """Import the large libraries once; every fork has them then. Nothing of this repository."""
    with redirect_stdout(io.StringIO()):
        for name in LIBRARIES:
            importlib.import_module(name)


def reasons(solution: str) -> dict[tuple[str, str, str, str], str]:
    """Return the accepted survivors by (module, line of source, old, new)."""
    if not ACCEPTED.exists():
        return {}
    entries = tomllib.loads(ACCEPTED.read_text(encoding="utf-8")).get(solution, [])
    return {(entry["module"], entry["line"], entry["old"], entry["new"]): entry["reason"] for entry in entries}


def chosen(options: argparse.Namespace) -> Iterator[Mutant]:
    """Return the sample: as many of each module as its share of all changes."""
    source = ROOT / "solutions" / options.solution / "src" / options.solution
    modules = options.module or [name for name in MODULES[options.solution] if (source / f"{name}.py").exists()]
    found = [mutant for name in modules for mutant in mutants_of(name, source / f"{name}.py")]
    if options.all:
        return iter(found)
    picked = random.Random(options.seed).sample(range(len(found)), min(options.n, len(found)))
    return (found[index] for index in sorted(picked))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("solution", choices=sorted(MODULES))
    parser.add_argument("--n", type=int, default=60, help="how many changes (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="every change")
    parser.add_argument("--module", action="append", help="only this module; may be repeated")
    options = parser.parse_args()
    mutants, tests, accepted = list(chosen(options)), tests_of(options.solution), reasons(options.solution)
    os.chdir(ROOT)
    preload()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        folder = ROOT / "solutions" / options.solution
        copy = Path(scratch, options.solution, "src")
        for name in ("src", "presets"):
            shutil.copytree(folder / name, copy.parent / name)
        begun = time.monotonic()
        log = Path(scratch, "log")
        if run_tests(copy, tests, 3600, log) != "passed":
            print(f"the tests fail without any change:\n{log.read_text(errors='replace')[-3000:]}")
            return 2
        limit = 60 + 4 * (time.monotonic() - begun)
        print(
            f"{options.solution}: {len(mutants)} mutants; the tests alone take {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        survivors, with_reason = [], 0
        for number, mutant in enumerate(mutants, 1):
            path = copy / options.solution / f"{mutant.module}.py"
            original = path.read_text(encoding="utf-8")
            path.write_text(original[: mutant.start] + mutant.new + original[mutant.stop :], encoding="utf-8")
            begun = time.monotonic()
            result = run_tests(copy, tests, limit, log)
            path.write_text(original, encoding="utf-8")
            verdict = {"passed": "SURVIVED", "failed": "killed", "no end": "killed (no end)"}[result]
            reason = accepted.get((mutant.module, mutant.source, mutant.old, mutant.new), "")
            if result == "passed":
                with_reason += bool(reason)
                if not reason:
                    survivors.append(mutant)
            note = f"  [{reason}]" if reason and result == "passed" else ""
            print(f"{number:4} {verdict:9} {time.monotonic() - begun:5.0f} s  {mutant}{note}", flush=True)
    killed = len(mutants) - len(survivors) - with_reason
    print(f"{killed} of {len(mutants)} killed, {with_reason} survive with a reason, {len(survivors)} without")
    return int(len(survivors) > LARGEST_SHARE * len(mutants))


if __name__ == "__main__":
    sys.exit(main())
