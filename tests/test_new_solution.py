"""The walk that adds a solution: generate from the template, register, run its smoke test, with this environment."""

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from kit_core.errors import ConfigError

NAME = "a_sixth_task"  # sorts before every package, so that its imports stand otherwise than in the template


@pytest.fixture(scope="module")
def generator(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("new_solution_script", repo_root / "scripts" / "new_solution.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(repo_root: Path, tmp_path: Path) -> Path:
    """What the generator reads of the repository, in a folder of its own."""
    for name in ("pyproject.toml", ".importlinter"):
        shutil.copyfile(repo_root / name, tmp_path / name)
    shutil.copytree(repo_root / "shared" / "solution_template", tmp_path / "shared" / "solution_template")
    for path in repo_root.glob("solutions/*/pyproject.toml"):
        (tmp_path / path.relative_to(repo_root)).parent.mkdir(parents=True)
        shutil.copyfile(path, tmp_path / path.relative_to(repo_root))
    return tmp_path


def test_the_generated_solution_passes_its_own_tests(repo_root: Path, copy: Path) -> None:
    script = repo_root / "scripts" / "new_solution.py"
    made = subprocess.run([sys.executable, script, NAME, "--root", copy], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "make lock" in made.stdout
    folder = copy / "solutions" / NAME
    left = [path for path in folder.rglob("*") if path.is_file() and "new_solution" in path.read_text() + path.name]
    assert not left, "names of the template"
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    # Those of the copy's pyproject.toml: strict markers, warnings as errors.
    smoke = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={copy}", folder / "tests"]
    done = subprocess.run(smoke, capture_output=True, text=True, env=environment, cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    checked = subprocess.run(
        [Path(sys.executable).with_name("ruff"), "check", "--no-cache", folder],
        capture_output=True,
        text=True,
        cwd=copy,
    )
    assert checked.returncode == 0, checked.stdout
    rules = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        capture_output=True, text=True, env=environment, cwd=copy,
    )  # fmt: skip
    assert rules.returncode == 0, rules.stdout + rules.stderr


def test_the_solution_is_registered_beside_the_others(generator: ModuleType, copy: Path, repo_root: Path) -> None:
    before = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))
    generator.generate(copy, NAME)
    after = tomllib.loads((copy / "pyproject.toml").read_text(encoding="utf-8"))
    groups = after["tool"]["poetry"]["group"]
    assert groups.pop("a-sixth-task") == {
        "dependencies": {"a-sixth-task": {"path": f"solutions/{NAME}", "develop": True}}
    }
    assert groups == before["tool"]["poetry"]["group"]
    assert after["tool"]["mypy"]["overrides"][0]["module"][-1] == f"{NAME}.*"
    member = tomllib.loads((copy / "solutions" / NAME / "pyproject.toml").read_text(encoding="utf-8"))
    assert member["project"]["scripts"] == {"a-sixth-task": f"{NAME}.cli:main"}
    rules = configparser.ConfigParser()
    rules.read(copy / ".importlinter", encoding="utf-8")
    assert NAME in rules["importlinter"]["root_packages"].split()
    assert NAME in rules["importlinter:contract:layers"]["layers"].splitlines()[1].split()
    assert NAME in rules["importlinter:contract:solutions"]["modules"].split()
    assert f"{NAME}.config" in rules["importlinter:contract:config_is_light"]["source_modules"].split()
    assert f"{NAME}.infer" in rules["importlinter:contract:infer_without_train"]["source_modules"].split()
    assert f"{NAME}.train" in rules["importlinter:contract:infer_without_train"]["forbidden_modules"].split()


@pytest.mark.parametrize("name", ["ai4code", "Upper", "1st", "kit_mine", "a-b", "", "new_solution", "../x", "a__b"])
def test_names_that_cannot_be_are_refused_and_nothing_is_written(generator: ModuleType, copy: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError):
        generator.generate(copy, name)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_files_of_another_shape_are_refused_and_nothing_is_written(generator: ModuleType, copy: Path) -> None:
    for name, message in ((".importlinter", "no layers"), ("pyproject.toml", "no groups")):
        text = (copy / name).read_text(encoding="utf-8")
        (copy / name).write_text("[tool]\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            generator.generate(copy, NAME)
        (copy / name).write_text(text, encoding="utf-8")
    assert not (copy / "solutions" / NAME).exists()
