"""Solutions and packages install alone: a fresh environment, what they declare, and nothing else of the repository.

Slow by nature: an environment with PyTorch in it is installed from poetry.lock for each solution, about 4 minutes and
5.5 GB of disk where nothing is cached, one minute where Poetry has the files already. Of the packages one is tested a
day, each in its turn; ISOLATE=kit-core names one, ISOLATE=all takes all.
"""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

INSTALL_LIMIT_SECONDS = 1500  # six times what it takes: only a hanging download needs longer


def packages_needed(folder: Path, repo_root: Path) -> set[str]:
    """Return the packages of this repository that a member declares, directly or through one another."""
    declared = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("dependencies", [])
    direct = {name for name in declared if name.startswith("kit-")}
    beyond = [packages_needed(repo_root / "packages" / name.removeprefix("kit-"), repo_root) for name in direct]
    return direct.union(*beyond)


@pytest.mark.slow
def test_a_solution_installs_alone(solution: Any, repo_root: Path, repo_files: list[Path], tmp_path: Path) -> None:
    if not (repo_root / ".tools" / "bin" / "poetry").exists():
        pytest.skip("Poetry is not in .tools/; run: make install")
    copy = tmp_path / "repository"
    for path in repo_files:
        target = copy / path.relative_to(repo_root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    try:
        environment = {**os.environ, "PYTHONPATH": ""}
        install = ["sh", repo_root / "scripts" / "poetry.sh", "--no-interaction", "--directory", copy, "sync"]
        done = subprocess.run(
            [*install, "--only", solution.project],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=INSTALL_LIMIT_SECONDS,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

        python = copy / ".venv" / "bin" / "python"
        listing = "from importlib.metadata import distributions as d; print(*[x.name.lower() for x in d()])"
        names = subprocess.run([python, "-c", listing], capture_output=True, text=True, check=True).stdout.split()
        installed = set(names)
        assert len(names) == len(installed), "two versions of one package lie over one another"
        ours = {name for name in installed if name.startswith("kit-")}
        assert ours == packages_needed(solution.folder, repo_root)
        assert solution.project in installed
        assert not installed & {"pytest", "ruff", "mypy", "hypothesis"}, "developers' tools are no part of a solution"

        shown = subprocess.run(
            [copy / ".venv" / "bin" / solution.project, "presets"], cwd=tmp_path, capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stderr
        assert all(preset in shown.stdout for preset in solution.presets)
        # Every module loads: nothing that a developer's environment happens to hold is missed.
        modules = sorted(
            path.stem for path in solution.source.glob("*.py") if path.stem not in ("__init__", "__main__")
        )
        names = ", ".join(f"{solution.module}.{module}" for module in modules)
        loaded = subprocess.run([python, "-c", f"import {names}"], cwd=tmp_path, capture_output=True, text=True)
        assert loaded.returncode == 0, loaded.stderr
    finally:
        shutil.rmtree(copy / ".venv", ignore_errors=True)  # 5.5 GB that pytest would keep for three runs


# What the tests of packages import, where the name to install is another.
INSTALL_NAMES = {
    "PIL": "pillow", "faiss": "faiss-cpu", "iterstrat": "iterative-stratification", "sklearn": "scikit-learn",
    "pytorch_metric_learning": "pytorch-metric-learning",
}  # fmt: skip


def locked_versions(repo_root: Path) -> dict[str, str]:
    """Return the version of every package of poetry.lock that comes from the index, and stands there once."""
    packages = tomllib.loads((repo_root / "poetry.lock").read_text(encoding="utf-8"))["package"]
    names = [package["name"] for package in packages]
    return {
        package["name"]: package["version"]
        for package in packages
        if package.get("source", {}).get("type") != "directory" and names.count(package["name"]) == 1
    }


def imported_by_tests(folder: Path) -> set[str]:
    """Return the names to install of what the tests of a package import."""
    found = {"pytest"}
    for file in (folder / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    outside = {name for name in found - set(sys.stdlib_module_names) if not name.startswith("kit_")}
    return {INSTALL_NAMES.get(name, name) for name in outside}


def is_its_turn(member: Any) -> bool:
    """Whether this package is tested today, or was asked for."""
    asked = os.environ.get("ISOLATE", "")
    names = sorted(path.parent.name for path in member.folder.parent.glob("*/pyproject.toml"))
    today = names[datetime.now(UTC).toordinal() % len(names)]
    return asked in ("all", member.project) or (not asked and member.folder.name == today)


@pytest.mark.slow
def test_a_package_installs_and_passes_its_tests_alone(
    member: Any, repo_root: Path, repo_files: list[Path], tmp_path: Path
) -> None:
    if member.is_solution:
        pytest.skip("a solution: see above")
    if not is_its_turn(member):
        pytest.skip("another package is tested today; ISOLATE=all takes all")
    needed = [member.project, *sorted(packages_needed(member.folder, repo_root))]
    folders = [repo_root / "packages" / name.removeprefix("kit-") for name in needed]
    copy = tmp_path / "repository"
    for path in repo_files:
        if path.parent == repo_root or any(folder in path.parents for folder in folders):
            target = copy / path.relative_to(repo_root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    locked = locked_versions(repo_root)
    constraints = tmp_path / "constraints.txt"
    # "===" does not take a local build such as 2.13.0+cpu, which does not go with the locked torchaudio.
    constraints.write_text("".join(f"{name}==={version}\n" for name, version in locked.items()), encoding="utf-8")

    python = tmp_path / "environment" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        return subprocess.run(
            words, cwd=copy, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=INSTALL_LIMIT_SECONDS,
        )  # fmt: skip

    try:
        made = run(sys.executable, "-m", "venv", tmp_path / "environment")
        assert made.returncode == 0, made.stderr
        pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        reached = run(
            *pip, "download", "--no-deps", "--dest", tmp_path / "reached", f"iniconfig=={locked['iniconfig']}"
        )
        if reached.returncode != 0:
            pytest.skip(f"no package index: {reached.stderr.strip()[-200:]}")
        ours = [f"./packages/{folder.name}" for folder in folders]
        tools = sorted(imported_by_tests(member.folder) - set(needed))
        done = run(*pip, "install", "--constraint", constraints, *ours, *tools)
        assert done.returncode == 0, done.stderr[-2000:]
        tested = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"packages/{member.folder.name}/tests")
        assert tested.returncode == 0, tested.stdout[-3000:] + tested.stderr[-1000:]
    finally:
        shutil.rmtree(tmp_path / "environment", ignore_errors=True)  # pytest would keep it for three runs
