"""The install scripts, with stand-ins for Python's environments and Poetry: nothing is installed here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

POETRY_STAND_IN = """#!/bin/sh
echo "$* mirror=$POETRY_PYPI_MIRROR_URL" >>"$STAND_IN_LOG"
mkdir -p .venv/bin
cp .tools/bin/python .venv/bin/python
"""
PYTHON_STAND_IN = f"""#!/bin/sh
case $* in *lightgbm*) exit 0 ;; esac # takes seconds to import
exec "{sys.executable}" "$@"
"""


@pytest.fixture
def checkout(repo_root: Path, tmp_path: Path) -> Path:
    """A small copy of the repository with a .tools/ whose Poetry only writes down that it was called."""
    root = tmp_path / "checkout with a blank"
    (root / "scripts").mkdir(parents=True)
    for name in ("bootstrap.sh", "poetry.sh"):
        shutil.copy(repo_root / "scripts" / name, root / "scripts")
    (root / "packages" / "core").mkdir(parents=True)
    for name in ("poetry.lock", "pyproject.toml", "packages/core/pyproject.toml"):
        (root / name).write_text("[project]\n", encoding="utf-8")
    bin_folder = root / ".tools" / "bin"
    bin_folder.mkdir(parents=True)
    script = (root / "scripts" / "bootstrap.sh").read_text(encoding="utf-8")
    poetry, plugin = re.findall(r"_VERSION=(\S+)", script)
    (root / ".tools" / "versions").write_text(f"poetry {poetry}, plugin {plugin}\n", encoding="utf-8")
    write_program(bin_folder / "python", PYTHON_STAND_IN)
    write_program(bin_folder / "poetry", POETRY_STAND_IN)
    return root


def write_program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def bootstrap(root: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run bootstrap.sh and return it with the calls of Poetry so far."""
    log = root / "calls.log"
    environment = {**os.environ, "STAND_IN_LOG": str(log), **variables}
    done = subprocess.run(
        ["sh", root / "scripts" / "bootstrap.sh"],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done, log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def test_the_second_run_does_nothing_and_says_nothing(checkout: Path) -> None:
    first, calls = bootstrap(checkout)
    assert first.returncode == 0, first.stderr
    assert "4 minutes" in first.stderr
    assert len(calls) == 1
    assert "sync --all-groups" in calls[0]
    second, calls = bootstrap(checkout)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["poetry.lock", "pyproject.toml", "packages/core/pyproject.toml"])
def test_a_changed_declaration_installs_again(checkout: Path, name: str) -> None:
    bootstrap(checkout)
    (checkout / name).write_text("[project]\n# changed\n", encoding="utf-8")
    done, calls = bootstrap(checkout)
    assert done.returncode == 0, done.stderr
    assert len(calls) == 2


def test_a_moved_checkout_installs_again(checkout: Path) -> None:
    bootstrap(checkout)
    moved = checkout.rename(checkout.with_name("elsewhere"))
    done, calls = bootstrap(moved)
    assert done.returncode == 0, done.stderr
    assert len(calls) == 2


def test_a_failed_install_is_tried_twice_and_not_taken_for_done(checkout: Path) -> None:
    poetry = checkout / ".tools" / "bin" / "poetry"
    write_program(poetry, '#!/bin/sh\necho "$*" >>"$STAND_IN_LOG"\nexit 1\n')
    done, calls = bootstrap(checkout)
    assert done.returncode == 1
    assert "poetry sync failed" in done.stderr
    assert len(calls) == 2
    write_program(poetry, POETRY_STAND_IN)
    done, calls = bootstrap(checkout)
    assert done.returncode == 0, done.stderr
    assert len(calls) == 3


def test_the_index_is_the_one_of_pip(checkout: Path) -> None:
    pytest.importorskip("pip")
    index = "https://packages.invalid/index"
    _, calls = bootstrap(checkout, PIP_INDEX_URL=index, POETRY_PYPI_MIRROR_URL="")
    assert calls[-1].endswith(f"mirror={index}")


def test_an_index_given_to_poetry_wins(checkout: Path) -> None:
    _, calls = bootstrap(
        checkout, PIP_INDEX_URL="https://other.invalid/index", POETRY_PYPI_MIRROR_URL="https://mine.invalid"
    )
    assert calls[-1].endswith("mirror=https://mine.invalid")


def test_without_a_suitable_python_it_says_what_to_install(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".tools")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("dirname", "rm", "cat", "date", "sh"):
        (programs / name).symlink_to(str(shutil.which(name)))
    write_program(programs / "python3", "#!/bin/sh\nexit 1\n")  # what a too old Python answers
    done, calls = bootstrap(checkout, PATH=str(programs))
    assert done.returncode == 1
    assert "no Python from 3.11 to 3.13" in done.stderr
    assert "apt-get install python3" in done.stderr
    assert not calls
    assert not (checkout / ".tools").exists()
