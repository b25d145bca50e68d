"""A solution installs alone: `poetry sync --only NAME` brings it and what it needs, and nothing else of the repository.

Slow by nature: a fresh environment with PyTorch in it is installed from poetry.lock for each solution, about 4 minutes
and 5.5 GB of disk where nothing is cached, one minute where Poetry has the files already.
"""

import os
import shutil
import subprocess
import tomllib
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
        for module in sorted(path.stem for path in solution.source.glob("*.py") if path.stem != "__main__"):
            name = solution.module if module == "__init__" else f"{solution.module}.{module}"
            loaded = subprocess.run([python, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, text=True)
            assert loaded.returncode == 0, loaded.stderr
    finally:
        shutil.rmtree(copy / ".venv", ignore_errors=True)  # 5.5 GB that pytest would keep for three runs
