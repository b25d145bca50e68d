"""The commands that documents and presets show are real: each target, verb, preset, flag and script exists."""

import importlib
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

CONSOLE_BLOCK = re.compile(r"```console\n(.*?)```", flags=re.DOTALL)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
STAND_IN = re.compile(r"[A-Z_]+|\.\.\.|…")  # PRESET, PATH, ...: what the reader fills in
LAUNCHERS = re.compile(r"^(\S*poetry run|\.venv/bin/(?=\S))\s*")


@dataclass(frozen=True)
class Command:
    """One shown command and where it stands."""

    place: str
    words: tuple[str, ...]


def commands_in(path: Path, root: Path) -> list[Command]:
    """Return the commands of a file: `$ ` lines of console blocks and inline code; in a preset the comment lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        lines = [line.lstrip("# ").strip("`") for line in text.splitlines() if line.startswith("#")]
        lines += INLINE_CODE.findall(text)
    else:
        blocks = "\n".join(CONSOLE_BLOCK.findall(text)).replace("\\\n", " ")
        lines = [line[2:] for line in blocks.splitlines() if line.startswith("$ ")]
        lines += INLINE_CODE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    place = path.relative_to(root).as_posix()
    return [Command(place, tuple(LAUNCHERS.sub("", line.split("  #")[0]).split())) for line in lines]


@pytest.fixture(scope="session")
def commands(repo_files: list[Path], repo_root: Path) -> list[Command]:
    """Every command that a document or a preset of the repository shows."""
    sources = [path for path in repo_files if path.suffix == ".md" or path.parent.name == "presets"]
    return [command for path in sources for command in commands_in(path, repo_root) if command.words]


@cache
def help_of(module: str, *words: str) -> str:
    """Return what `PROGRAM WORDS --help` prints, or an empty text where it is refused."""
    main = importlib.import_module(f"{module}.cli").main
    with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()):
        code = main([*words, "--help"])
    return printed.getvalue() if code == 0 else ""


def test_make_targets_exist(commands: list[Command], repo_root: Path) -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (repo_root / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = [command for command in commands if command.words[0] == "make" and len(command.words) > 1]
    assert shown
    assert not [command for command in shown if command.words[1] not in targets]


def test_scripts_exist(commands: list[Command], repo_root: Path) -> None:
    shown = [command for command in commands if command.words[0] in {"sh", "bash", "python"} and len(command.words) > 1]
    named = [command for command in shown if "/" in command.words[1] and not STAND_IN.fullmatch(command.words[1])]
    assert not [command for command in named if not (repo_root / command.words[1]).exists()]


def test_commands_of_a_solution_exist(solution: Any, commands: list[Command]) -> None:
    wrong = []
    shown = [command for command in commands if command.words[0] == solution.project and len(command.words) > 1]
    assert shown, "the README of a solution shows its commands"
    for command in shown:
        words = [word for word in command.words[1:] if not STAND_IN.fullmatch(word)]
        path = [word for word in words[:2] if re.fullmatch(r"[a-z][\w-]*", word)]
        if not path:
            continue
        if path[0] == "train" and len(path) == 1 and "PRESET" in command.words:
            path.append(solution.presets[0])
        explained = help_of(solution.module, *path) or help_of(solution.module, path[0])
        if not explained or (path[0] == "train" and len(path) > 1 and path[1] not in solution.presets):
            wrong.append(f"{command.place}: {' '.join(command.words)}")
            continue
        known = set(re.findall(r"--[\w.-]+", explained))
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known | {"--help"}]
        wrong += [f"{command.place}: {flag} of {' '.join(command.words)}" for flag in unknown]
    assert not wrong
