"""The real command line: from a generated sample to a score, and exit codes."""

import json
from pathlib import Path

import pytest

from russian_art.cli import main


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "sample"
    assert main(["sample", "--out", str(folder), "--images", "120"]) == 0
    return folder


def test_from_sample_to_score(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared, run, out = tmp_path / "prepared", tmp_path / "run", tmp_path / "submission.csv"
    assert main(["prepare", "--data", str(sample), "--out", str(prepared), "--workers", "1"]) == 0
    train = ["train", "pixels", "--data", str(prepared), "--run", str(run), "--data.folds", "3"]
    assert main(train) == 0
    assert "macro F1 of pixels" in capsys.readouterr().out
    assert main([*train, "--resume"]) == 0
    assert "finished already" in capsys.readouterr().err
    assert main(train) == 2  # not empty, no --resume
    assert main(["infer", "--run", str(run), "--run", str(run), "--data", str(sample), "--out", str(out)]) == 0
    assert main(["check", "--submission", str(out), "--data", str(prepared)]) == 0
    capsys.readouterr()
    truth = str(sample / "test.csv")
    assert main(["evaluate", "--submission", str(out), "--truth", truth, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["macro_f1"] > 0.5
    assert main(["evaluate", "--submission", str(out), "--truth", truth]) == 0
    assert "top_accuracy" in capsys.readouterr().out
    out.write_text("\n".join(out.read_text().splitlines()[:-1]) + "\n")
    assert main(["check", "--submission", str(out), "--data", str(prepared)]) == 3


def test_a_hold_out_in_the_layout_of_the_training_data_is_answered(sample: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "submission.csv"
    assert main(["train", "majority", "--data", str(sample), "--run", str(run)]) == 0
    assert main(["infer", "--run", str(run), "--data", str(sample), "--split", "train", "--out", str(out)]) == 0
    assert main(["evaluate", "--submission", str(out), "--truth", str(sample / "train.csv")]) == 0


def test_presets_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    for name in ("pixels", "probe", "official-baseline", "seed", "best"):
        assert f"{name}\n" in listed


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "bset", "--data", "x", "--run", "y"], 2, "did you mean 'best'"),
        (["train", "pixels", "--data", "absent", "--run", "y"], 3, "absent"),
        (["train", "pixels", "--data", "x", "--run", "y", "--data.fold", "9"], 2, "data.fold"),
        (["train", "best", "--data", "x", "--run", "y", "--weights", "absent"], 2, "absent"),
        (["infer", "--run", "absent", "--data", "x", "--out", "y"], 3, "no run folder"),
    ],
)
def test_wrong_use_ends_with_words_and_a_code(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
