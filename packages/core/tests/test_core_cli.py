"""The command line: verbs, presets as defaults, exit codes and messages; in a process of its own for pipes."""

import errno
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro

from kit_core import cli
from kit_core.errors import ConfigError, DataError


@dataclass(frozen=True)
class DataSection:
    """Which data."""

    fold: int | Literal["all"] = 0
    n_folds: int = 5
    """Number of folds."""

    def __post_init__(self) -> None:
        if self.fold != "all" and self.fold >= self.n_folds:
            raise ValueError(f"data.fold: found {self.fold}, expected below {self.n_folds}")


@dataclass(frozen=True)
class ModelSection:
    layers: int = 4
    kernel_sizes: tuple[int, ...] = (3, 5)
    kind: Literal["lstm", "gru"] = "gru"


@dataclass(frozen=True)
class Config:
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.model.layers > 10:
            raise ValueError("model.layers: at most 10")


calls: list[dict[str, Any]] = []


def train(preset: str, config: Config, data: Path, run: Path, resume: bool = False) -> str:
    """Train one preset.

    Args:
        data: The official data or a prepared folder.
    """
    calls.append(locals())
    return "what a verb returns is nobody's exit code"


def infer(run: tyro.conf.UseAppendAction[tuple[Path, ...]], out: Path) -> None:
    """Write a submission."""
    calls.append(locals())


def predict(source: tyro.conf.Positional[Path], run: Path) -> None:
    """Answer for one input."""
    calls.append(locals())


def fail(how: Literal["data", "config", "bug", "value", "interrupt", "full"]) -> None:
    """Fail."""
    errors: dict[str, BaseException] = {
        "data": DataError("train.csv: 1 problem"),
        "config": ConfigError("no"),
        "bug": KeyError("x"),
        "value": ValueError("inside the verb"),
        "interrupt": KeyboardInterrupt(),
        "full": OSError(errno.ENOSPC, "No space left on device", "values.bin"),
    }
    raise errors[how]


def train_tokenizer(out: Path, size: int = 100) -> None:
    """Train a tokenizer."""
    calls.append(locals())


VERBS: dict[str, Any] = {
    "train": train,
    "infer": infer,
    "predict": predict,
    "fail": fail,
    "tokenizer": {"train": train_tokenizer},
}


@pytest.fixture
def demo(tmp_path: Path) -> Callable[..., int]:
    (tmp_path / "best.toml").write_text("# The best.\n# 3 min.\n[data]\nfold = 1\n[model]\nlayers = 6\n")
    (tmp_path / "baseline.toml").write_text("# The floor.\nrate = 1\n")
    calls.clear()
    return lambda *arguments: cli.run("demo", VERBS, (Config, tmp_path), arguments)


def test_the_program_alone_prints_the_first_commands(
    demo: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo() == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 5
    for command in ("demo sample --out", "demo train PRESET --data", "demo presets\n", "demo --help\n"):
        assert command in output.err


def test_help_lists_the_verbs(demo: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        assert demo(flag) == 0
        output = capsys.readouterr()
        assert output.err == ""
        for line in ("train            Train one preset.", "predict          Answer for one input."):
            assert f"  {line}\n" in output.out
        assert "  tokenizer train  Train a tokenizer." in output.out


def test_verbs_of_two_words(demo: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo("tokenizer", "train", "--out", "o") == 0
    assert calls == [{"out": Path("o"), "size": 100}]
    assert demo("tokenizer") == 2
    assert "usage: demo tokenizer VERB" in capsys.readouterr().err
    assert demo("tokenizer", "trian") == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert demo("tokenizer", "--help") == 0


def test_unknown_verb(demo: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo("trian") == 2
    assert capsys.readouterr().err == (
        "demo: unknown verb 'trian'; did you mean 'train'?\n  verbs: train, infer, predict, fail, tokenizer\n"
    )


def test_the_preset_gives_the_defaults(demo: Callable[..., int]) -> None:
    assert demo("train", "best", "--data", "D", "--run", "R") == 0
    config = Config(DataSection(fold=1), ModelSection(layers=6))
    assert calls == [{"preset": "best", "config": config, "data": Path("D"), "run": Path("R"), "resume": False}]


def test_flags_change_the_preset_beside_the_flags_of_the_verb(demo: Callable[..., int]) -> None:
    more = ["--data.fold", "all", "--model.kernel-sizes", "7", "9", "--model.kind=lstm", "--rate", "2", "--resume"]
    assert demo("train", "best", "--data", "D", "--run", "R", *more) == 0
    model = ModelSection(layers=6, kernel_sizes=(7, 9), kind="lstm")
    assert calls[0]["config"] == Config(DataSection(fold="all"), model, rate=2.0)
    assert calls[0]["data"] == Path("D")
    assert calls[0]["resume"] is True
    assert demo("train", "best", "--data.fold", "0", "--run", "R", "--data", "D", "--model.kernel_sizes", "1") == 0
    assert calls[1]["config"] == Config(DataSection(fold=0), ModelSection(layers=6, kernel_sizes=(1,)))


def test_other_annotations(demo: Callable[..., int]) -> None:
    assert demo("infer", "--run", "A", "--run", "B", "--out", "o") == 0
    assert demo("predict", "song.npy", "--run", "A") == 0
    assert calls == [{"run": (Path("A"), Path("B")), "out": Path("o")}, {"source": Path("song.npy"), "run": Path("A")}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "expected a preset as the first argument\n  presets: baseline, best"),
        (["train", "--data", "D"], "expected a preset as the first argument"),
        (["train", "nosuch"], "unknown preset 'nosuch'\n  presets: baseline, best"),
        (["train", "bets"], "unknown preset 'bets'; did you mean 'best'?\n  presets: baseline, best"),
        (
            ["train", "best", "--data", "D", "--run", "R", "--data.fold", "9"],
            "demo: data.fold: found 9, expected below 5",
        ),
        (["train", "best", "--data", "D", "--run", "R", "--model.layers", "11"], "demo: model.layers: at most 10"),
        (["train", "best", "--data", "D", "--run", "R", "--model.layers", "x"], "--model.layers"),
        (["train", "best", "--data", "D", "--run", "R", "--model.kind", "rnn"], "'lstm'"),
        (["train", "best", "--data", "D", "--run", "R", "--model.layer", "1"], "--model.layers INT"),
        (["train", "best", "--data", "D"], "--run PATH"),
        (["infer", "--out"], "--out"),
        (["fail", "--how", "config"], "demo: no"),
    ],
)
def test_usage_errors(
    demo: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert demo(*arguments) == 2
    output = capsys.readouterr()
    assert words in output.err
    assert "Traceback" not in output.err
    assert output.out == ""
    assert calls == []


def test_a_preset_that_does_not_fit_is_a_config_error(
    demo: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text("[model]\nlayers = 11\n")
    assert demo("train", "bad", "--data", "D", "--run", "R") == 2
    assert "bad.toml: cannot be used\n  model.layers: at most 10\n" in capsys.readouterr().err


def test_help(demo: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo("train", "--help") == 0
    text = capsys.readouterr().out
    assert "  baseline  The floor.\n  best      The best.\n" in text
    assert demo("train", "best", "--help") == 0
    text = capsys.readouterr().out
    for words in (
        "--data PATH",
        "The official data or a prepared folder.",
        "--data.fold INT|{all}",
        "--model.layers INT",
    ):
        assert words in text
    assert "Number of folds. (default: 5)" in text
    assert "(default: 6)" in text
    assert "config." not in text
    assert "─" not in text  # no boxes where no terminal is
    assert demo("infer", "--help") == 0
    assert "Write a submission." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("data", 3, "demo: train.csv: 1 problem\n"),
        ("bug", 1, "Traceback (most recent call last)"),
        ("value", 1, "ValueError: inside the verb"),
        ("interrupt", 130, "demo: interrupted\n"),
        ("full", 3, "demo: values.bin: cannot be written: No space left on device; free space"),
    ],
)
def test_exit_codes(
    demo: Callable[..., int], capsys: pytest.CaptureFixture[str], how: str, code: int, words: str
) -> None:
    assert demo("fail", "--how", how) == code
    error = capsys.readouterr().err
    assert words in error
    assert ("Traceback" in error) == (code == 1)


PROGRAM = """
    import sys
    from dataclasses import dataclass
    from pathlib import Path
    from kit_core import cli

    @dataclass(frozen=True)
    class Config:
        layers: int = 1

    def count(upto: int = 100_000) -> None:
        \"\"\"Count.\"\"\"
        for number in range(upto):
            print(number)

    sys.exit(cli.run("demo", {"count": count}, (Config, Path("."))))
"""


@pytest.mark.parametrize("upto", ["10", "100000"])
def test_a_reader_that_goes_away_ends_the_program_quietly(tmp_path: Path, upto: str) -> None:
    (tmp_path / "demo.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(tmp_path / "demo.py"), "count", "--upto", upto]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        error = child.stderr.read()
    assert error == b""
    assert child.returncode == 141


def test_arguments_come_from_the_process(tmp_path: Path) -> None:
    (tmp_path / "demo.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(tmp_path / "demo.py"), "count", "--upto", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n", "")
