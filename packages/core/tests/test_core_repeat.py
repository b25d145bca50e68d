"""A run repeated from its manifest: the flags taken over, the differences told, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kit_core import cli
from kit_core.errors import DataError
from kit_core.repeat import ABSENT, Earlier, differences, differing
from kit_core.run import RunFolder


@dataclass(frozen=True)
class Section:
    fold: int = 0
    groups: Path | None = None


@dataclass(frozen=True)
class Config:
    data: Section = Section()
    epochs: int = 2
    seed: int = 7


def train(preset: str, config: Config, data: Path, run: Path, extra: Path | None = None, resume: bool = False) -> None:
    """Fit a preset; the score is what the data's file says, times the epochs."""
    content = data.read_text()
    with RunFolder.create(
        run, config=config, preset=preset, data_hashes={"train": content}, seed=config.seed, resume=resume
    ) as folder:
        if folder.done:
            return
        with RunFolder.create(run / "member", config=config, preset=preset, data_hashes={}, seed=0) as member:
            member.finish({"score": 0.0})
        folder.finish({"score": float(content) * config.epochs, "extra": str(extra)})


def other(preset: str, config: Config, out: Path) -> None:
    """Write something that is no run."""


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "best.toml").write_text("# Ours.\nepochs = 3\n")
    (tmp_path / "data").write_text("0.25")
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> int:
        monkeypatch.setattr("sys.argv", ["/somewhere/bin/demo", *argv])  # what a manifest keeps
        return cli.run("demo", {"train": train, "other": other}, (Config, presets))

    return run


def test_a_repetition_takes_settings_and_flags_from_the_earlier_run(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("train", "best", "--data", "data", "--run", "one", "--data.fold", "4", "--extra", "x") == 0
    (tmp_path / "presets" / "best.toml").write_text("# Changed since.\nepochs = 99\n")
    capsys.readouterr()
    assert main("train", "--from-manifest", "one/manifest.json", "--run", "two") == 0
    one, two = RunFolder.open(tmp_path / "one"), RunFolder.open(tmp_path / "two")
    assert (two.preset, two.config, two.summary) == (one.preset, one.config, one.summary)
    assert two.config == {"data": {"fold": 4, "groups": None}, "epochs": 3, "seed": 7}
    assert two.manifest["repeats"] == "one"
    said = capsys.readouterr().err
    assert "two: repeats one, preset best" in said
    assert "versions, " in said.partition("the same: ")[2].partition("\n")[0]
    assert all(word in said for word in ("data, settings, seed", "score was 0.75, is 0.75: the same to the last bit"))
    assert said.count("repeats") == 1, "the member's folder inside the run tells nothing"
    assert "repeats" not in RunFolder.open(tmp_path / "two" / "member").manifest


@pytest.mark.parametrize(
    "flags", [["--data", "data", "--data.groups", "g.csv"], ["--data=data", "--data.groups=g.csv"]]
)
def test_relative_paths_begin_where_the_earlier_run_began(
    main: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    assert main("train", "best", *flags, "--run", "one", "--extra", "x", "--data.fold", "4") == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main("train", "--from-manifest", "../one", "--run", "two") == 0
    run = RunFolder.open(elsewhere / "two")
    assert run.summary == {"score": 0.75, "extra": str(tmp_path / "x")}
    assert run.config["data"] == {"fold": 4, "groups": str(tmp_path / "g.csv")}, "4 is no path"
    assert main("train", "--from-manifest", "../one", "--run", "three", "--extra", "y") == 0
    assert RunFolder.open(elsewhere / "three").summary["extra"] == "y", "flags given now begin here"


def test_a_repetition_can_be_repeated_and_names_each_command_line(main: Callable[..., int], tmp_path: Path) -> None:
    assert main("train", "best", "--data", "data", "--run", "one") == 0
    assert main("train", "--from-manifest=one", "--run=two") == 0
    assert main("train", "--run", "three", "--from-manifest", "two") == 0
    argv = RunFolder.open(tmp_path / "three").manifest["argv"]
    assert argv[:3] == ["demo", "train", "best"]
    assert "--from-manifest" not in argv
    assert cli.run("demo", {"train": train}, (Config, tmp_path / "presets"), [*argv[1:], "--run", "four"]) == 0


def test_differences_are_told_before_the_work_and_the_score_after(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("train", "best", "--data", "data", "--run", "one") == 0
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    manifest["packages"] |= {"kit-core": "0.0.9", "gone": "1.0"}
    manifest["git"] = {"revision": "0" * 40, "dirty": False}
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "data").write_text("0.5")
    capsys.readouterr()
    assert main("train", "--from-manifest", "one", "--run", "two", "--epochs", "4") == 0
    said = capsys.readouterr().err
    for words in (
        "versions: packages.kit-core: was '0.0.9', is",
        f"versions: packages.gone: was '1.0', is '{ABSENT}'",
        "code: git",
        "data: data.train: was '0.25', is '0.5'",
        "settings: config.epochs: was 3, is 4",
        "score was 0.75, is 2.0: differs by +1.2",
    ):
        assert words in said
    assert said.index("data: data.train") < said.index("score was")


def test_a_run_that_no_command_line_began_needs_its_data_named(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.create("one", config=Config(), preset="best", data_hashes={}, seed=7):
        pass  # neither finished nor begun by `demo train`
    assert main("train", "--from-manifest", "one", "--run", "two") == 2
    assert "--data" in capsys.readouterr().err
    assert main("train", "--from-manifest", "one", "--run", "two", "--data", "data") == 0
    said = capsys.readouterr().err
    assert "score was" not in said, "the earlier run has none"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--from-manifest"], "wants the manifest.json"),
        (["--from-manifest", "--run", "two"], "wants the manifest.json"),
        (["--from-manifest", "one"], "wants --run DIR"),
        (["best", "--from-manifest", "one", "--run", "two"], "found 'best' beside --from-manifest"),
        (["--from-manifest", "nowhere/manifest.json", "--run", "two"], "found no nowhere"),
    ],
)
def test_usage_errors_make_no_folder(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    assert main("train", *argv) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"seed": 1', '{"seed": 1}', "\udcff", "[" * 100_000])
def test_a_damaged_manifest_is_bad_data(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    assert main("train", "best", "--data", "data", "--run", "one") == 0
    (tmp_path / "one" / "manifest.json").write_text(content, errors="surrogateescape")
    assert main("train", "--from-manifest", "one", "--run", "two") == 3
    assert "manifest.json" in capsys.readouterr().err
    with pytest.raises(DataError, match="absent"):
        Earlier.read(tmp_path)  # a folder, and no run


def test_settings_that_the_program_no_longer_has_are_named(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("train", "best", "--data", "data", "--run", "one") == 0
    stored = json.loads((tmp_path / "one" / "config.json").read_text())
    stored["config"]["warmth"] = 1
    (tmp_path / "one" / "config.json").write_text(json.dumps(stored))
    assert main("train", "--from-manifest", "one", "--run", "two") == 2
    assert "warmth: unknown key" in capsys.readouterr().err


def test_help_names_the_flag_only_where_there_is_a_run(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("train", "--help") == 0
    assert "--from-manifest" in capsys.readouterr().out
    assert main("other", "--help") == 0
    assert "--from-manifest" not in capsys.readouterr().out


def test_uncommitted_changes_are_never_called_the_same_code(tmp_path: Path) -> None:
    def manifest(git: Any) -> dict[str, Any]:
        return {"git": git, "data": {}, "seed": 0, "packages": {}, "argv": []}

    def code(then: Any, now: Any) -> list[str]:
        return differing(Earlier(tmp_path, "p", {}, manifest(then), {}), {}, manifest(now))["code"]

    clean, dirty = {"revision": "a", "dirty": False}, {"revision": "a", "dirty": True}
    assert code(clean, clean) == []
    assert "not committed" in code(dirty, dirty)[0]
    assert "dirty" in code(clean, dirty)[0]
    assert "no revision" in code(None, None)[0]
    assert code(None, clean) == [f"git: was None, is {clean!r}"]


def test_differences_name_leaves_and_what_one_side_lacks() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3, "e": None}, "d": [1]}
    assert differences(old, new, "x") == ["x.a.c: was 2, is 3", f"x.a.e: was '{ABSENT}', is None"]
