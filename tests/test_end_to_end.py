"""Every solution through its real command line, in processes of its own, on its generated sample."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SMALL_SAMPLES = {"ntua_lab": ("--clips", "24"), "russian_art": ("--images", "140")}  # of those that take long


@pytest.fixture(scope="module")
def demo(repo_root: Path) -> ModuleType:
    """The module of `make demo`, whose steps are the ones tested here."""
    spec = importlib.util.spec_from_file_location("scripts_demo", repo_root / "scripts" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(solution: Any, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a solution as a person would and return it, whatever its exit code."""
    command = [str(Path(sys.executable).with_name(solution.project)), *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder by its relative name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Done:
    """How a command ended, as `subprocess.CompletedProcess` tells it."""

    returncode: int
    stdout: str
    stderr: str


def assert_refused(done: Done, exit_code: int, *words: str) -> None:
    """Assert that a command ended with this exit code and a message with these words, not with a traceback."""
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_sample_becomes_a_submission_and_a_score(solution: Any, demo: ModuleType, tmp_path: Path) -> None:
    chosen = next(one for one in demo.DEMOS if one.program == solution.project)
    steps = demo.Steps(demo.count_steps(1))
    [row] = demo.run_demo(chosen, tmp_path, steps, [chosen.reference])
    assert steps.done == steps.total
    assert row.passes
    assert "sample" in demo.render([row])


@pytest.mark.slow
def test_every_preset_of_the_demo_beats_its_floor(solution: Any, demo: ModuleType, tmp_path: Path) -> None:
    chosen = next(one for one in demo.DEMOS if one.program == solution.project)
    presets = demo.presets_of(chosen, everything=True)
    rows = demo.run_demo(chosen, tmp_path, demo.Steps(demo.count_steps(len(presets))), presets)
    assert [row.preset for row in rows] == [chosen.reference, chosen.more, chosen.neural]
    for row in rows[1:]:
        assert row.score > rows[0].score + chosen.margin, demo.render(rows)
    assert "TOO LOW" not in demo.render(rows)


def test_a_score_below_its_floor_is_called_too_low(demo: ModuleType) -> None:
    low = demo.Row(demo.DEMOS[0], "mlp", score=0.4, floor=0.5, seconds=1.0)
    assert not low.passes
    assert "TOO LOW" in demo.render([low])


def test_a_failing_command_is_shown_with_its_words(demo: ModuleType) -> None:
    program = demo.DEMOS[0].program
    steps = demo.Steps(1)
    with pytest.raises(demo.StepError, match=f"{program} no-such-verb\nexited with 2"):
        steps.run(program, "no-such-verb")
    with pytest.raises(demo.StepError, match="another command failed"):
        steps.run(program, "presets")


def test_the_sample_is_the_same_each_time_and_says_what_it_is(solution: Any, tmp_path: Path) -> None:
    # Another hash seed orders sets otherwise, which is the usual leak of chance into generated data.
    size = SMALL_SAMPLES.get(solution.module, ())
    for name, seed in (("one", "1"), ("two", "2")):
        done = run(solution, "sample", "--out", tmp_path / name, *size, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert "sample" in (done.stdout + done.stderr).lower()
    assert digests(tmp_path / "one")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


# --- in this process: what needs no sample


@pytest.fixture
def call(solution: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Call the program of the solution in this process."""
    program = importlib.import_module(f"{solution.module}.cli")

    def called(*arguments: object) -> Done:
        capsys.readouterr()
        code = program.main([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return called


def test_the_presets_verb_lists_every_preset(solution: Any, call: Callable[..., Done]) -> None:
    done = call("presets")
    assert done.returncode == 0, done.stderr
    assert all(preset in done.stdout for preset in solution.presets)


def test_help_names_the_verbs_that_every_solution_has(call: Callable[..., Done]) -> None:
    done = call("--help")
    assert done.returncode == 0, done.stderr
    for verb in ("presets", "sample", "prepare", "train", "infer", "check", "evaluate", "predict", "compare"):
        assert verb in done.stdout


def test_an_unknown_preset_names_the_near_one(solution: Any, call: Callable[..., Done], tmp_path: Path) -> None:
    preset = solution.presets[-1]
    misspelt = preset[:-1] if len(preset) > 3 else preset + "x"
    done = call("train", misspelt, "--data", tmp_path, "--run", tmp_path / "run")
    assert_refused(done, 2, misspelt, preset)
    assert not (tmp_path / "run").exists()


def test_an_unknown_verb_is_a_usage_error(call: Callable[..., Done]) -> None:
    assert_refused(call("trian"), 2, "trian", "train")


def test_absent_data_is_a_data_error(call: Callable[..., Done], tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert_refused(call("prepare", "--data", absent, "--out", tmp_path / "out"), 3, "absent")
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_finished_is_refused_by_infer(call: Callable[..., Done], tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    done = call("infer", "--run", run_folder, "--data", tmp_path, "--out", tmp_path / "submission.csv")
    assert_refused(done, 3, "run")
    assert not (tmp_path / "submission.csv").exists()
