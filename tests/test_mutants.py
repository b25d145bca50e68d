"""The mutation check finds changes that are valid Python, and the accepted survivors exist."""

import ast
import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def mutants(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("scripts_mutants", repo_root / "scripts" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SOURCE = '''
LIMIT = 3

def fit(rows, *, weight=1.0):
    """Return 1 + 2."""
    if rows < 0:
        raise ValueError(f"found {rows - 1}")
    total = 0
    for row in range(rows):
        total += row * weight
    model.eval()
    return total / rows if rows else -total
'''


def test_changes_are_those_of_what_is_computed(mutants: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "fit.py"
    path.write_text(SOURCE)
    found = {(mutant.old.strip(), mutant.new.strip()) for mutant in mutants.mutants_of("fit", path)}
    assert found == {
        ("0", "1"),
        ("range(rows)", "list(range(rows))[:1]"),
        ("total += row * weight", "pass"),
        ("*", "/"),
        ("model.eval()", "pass"),
        ("eval", "train"),
        ("/", "*"),
        ("rows", "not (rows)"),
        ("-", ""),
    }


def test_every_change_of_a_solution_is_valid_python(mutants: ModuleType, solution: Any) -> None:
    for name in mutants.MODULES[solution.module]:
        path = solution.source / f"{name}.py"
        if path.exists():
            text = path.read_text(encoding="utf-8")
            found = mutants.mutants_of(name, path)
            assert found
            for mutant in found[::25]:
                ast.parse(text[: mutant.start] + mutant.new + text[mutant.stop :])


def test_accepted_survivors_exist(mutants: ModuleType, solution: Any, repo_root: Path) -> None:
    entries = tomllib.loads((repo_root / "scripts" / "mutants.toml").read_text(encoding="utf-8"))
    for entry in entries.get(solution.module, []):
        found = mutants.mutants_of(entry["module"], solution.source / f"{entry['module']}.py")
        keys = {(mutant.source, mutant.old, mutant.new) for mutant in found}
        assert (entry["line"], entry["old"], entry["new"]) in keys, entry
        assert len(entry["reason"]) > 20
