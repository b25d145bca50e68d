"""What the tests of the whole repository share: where it lies, which files belong to it, and which members it has."""

import subprocess
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GENERATED = {".git", ".venv", ".tools", ".hypothesis", "runs", "report", "data", "dist", "__pycache__"}


@dataclass(frozen=True)
class Member:
    """A package or a solution: a folder with a pyproject.toml of its own."""

    folder: Path

    @property
    def is_solution(self) -> bool:
        return self.folder.parent.name == "solutions"

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))

    @property
    def project(self) -> str:
        """The name to install: kit-core."""
        name: str = self.pyproject["project"]["name"]
        return name

    @property
    def module(self) -> str:
        """The name to import: kit_core."""
        return self.project.replace("-", "_")

    @property
    def source(self) -> Path:
        return self.folder / "src" / self.module

    @property
    def presets(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "presets").glob("*.toml"))

    @property
    def label(self) -> str:
        return self.folder.relative_to(ROOT).as_posix()


MEMBERS = [Member(path.parent) for path in sorted(ROOT.glob("*/*/pyproject.toml"))]


def files_of_the_repository() -> list[Path]:
    """Return the files that git tracks or would track; without a git checkout, all but the generated folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = list(ROOT.rglob("*"))
    return sorted(
        path
        for path in paths
        if path.is_file()
        and not any(part in GENERATED or part.endswith("_cache") for part in path.relative_to(ROOT).parts)
    )


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds poetry.lock."""
    return ROOT


@pytest.fixture(scope="session")
def repo_files() -> list[Path]:
    """Every file that belongs to the repository."""
    return files_of_the_repository()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `member` or `solution` once for each of them."""
    if "member" in metafunc.fixturenames:
        metafunc.parametrize("member", MEMBERS, ids=lambda member: member.label)
    if "solution" in metafunc.fixturenames:
        solutions = [member for member in MEMBERS if member.is_solution]
        metafunc.parametrize("solution", solutions, ids=lambda member: member.label)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what shares a costly fixture on one worker (`--dist loadgroup`), so that it is made once.

    That is a file, or where a test runs once for each solution, the tests of that solution in the folder.
    """
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        module = getattr(given.get("case"), "module", None) or getattr(given.get("solution"), "module", None)
        module = module or given.get("module")
        group = f"{item.path.parent.name} {module}" if isinstance(module, str) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
