"""The whole way on the generated sample, and what bad input is told."""

import json
from pathlib import Path

import numpy as np
import pytest

from kit_core.config import load_preset, preset_names
from new_solution.cli import PRESETS, main
from new_solution.config import Config


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sample"
    assert main(["sample", "--out", str(folder)]) == 0
    return folder


def score(sample: Path, work: Path, preset: str, capsys: pytest.CaptureFixture[str]) -> float:
    run, out = work / preset, work / f"{preset}.csv"
    assert main(["train", preset, "--data", str(work / "prepared"), "--run", str(run)]) == 0
    assert main(["infer", "--run", str(run), "--data", str(sample), "--out", str(out)]) == 0
    assert main(["check", "--submission", str(out), "--data", str(work / "prepared")]) == 0
    capsys.readouterr()
    truth = str(sample / "test_truth.csv")
    assert main(["evaluate", "--submission", str(out), "--truth", truth, "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["macro_f1"])


def test_from_sample_to_score(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--data", str(sample), "--out", str(tmp_path / "prepared")]) == 0
    floor = score(sample, tmp_path, "majority", capsys)
    assert score(sample, tmp_path, "softmax", capsys) > floor + 0.5
    repeated = [
        "train",
        "--from-manifest",
        str(tmp_path / "softmax" / "manifest.json"),
        "--run",
        str(tmp_path / "again"),
        "--data",  # left out, it would be that of the earlier command line, which here is that of the tests
        str(sample),
    ]
    assert main(repeated) == 0
    told = capsys.readouterr().err
    assert "data, settings, seed" in told
    assert "the same to the last bit" in told
    assert "groups: " in told
    softmax, majority = str(tmp_path / "softmax"), str(tmp_path / "majority")
    assert main(["compare", softmax, majority, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    summaries = [json.loads((Path(path) / "summary.json").read_text()) for path in (softmax, majority)]
    assert found["difference"] == pytest.approx(summaries[0]["score"] - summaries[1]["score"])
    assert 0 < found["interval"][0] < found["difference"] < found["interval"][1]
    assert found["n_groups"] == summaries[0]["n_groups"] > summaries[0]["largest_group"] > 1
    files = [str(tmp_path / f"{name}.csv") for name in ("softmax", "softmax")]
    assert main(["compare", *files, "--truth", str(sample / "test_truth.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["interval"] == [0, 0]
    assert main(["predict", *["0.5"] * 8, "--run", str(tmp_path / "again")]) == 0
    assert "probability" in capsys.readouterr().out


def test_runs_on_other_rows_are_not_compared(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, fold in (("all", "all"), ("one", "0")):
        run = str(tmp_path / name)
        assert main(["train", "majority", "--data", str(sample), "--run", run, "--data.fold", fold]) == 0
    assert main(["compare", str(tmp_path / "all"), str(tmp_path / "one")]) == 3
    assert "expected two runs that scored the same rows" in capsys.readouterr().err


def test_every_preset_can_be_built() -> None:
    assert preset_names(PRESETS)
    for name in preset_names(PRESETS):
        assert isinstance(load_preset(Config, PRESETS, name), Config)


def test_a_stopped_run_goes_on(sample: Path, tmp_path: Path) -> None:
    train = ["train", "softmax", "--data", str(sample), "--run", str(tmp_path / "run")]
    assert main(train) == 0
    models = tmp_path / "run" / "models"
    whole = {path.name: dict(np.load(path)) for path in models.iterdir()}
    (tmp_path / "run" / "DONE").unlink()
    (models / "fold1.npz").unlink()
    assert main([*train, "--resume"]) == 0
    for name, arrays in whole.items():
        again = dict(np.load(models / name))
        assert all(np.array_equal(arrays[key], again[key]) for key in arrays)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("train.csv", "id,group", "id;group", "found"),
        ("train.csv", ",g0,", ",g0,nan", "x0: found 'nan"),
        ("test.csv", "id,x0", "id,y0", "found"),
    ],
)
def test_bad_data_is_told(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, words: str
) -> None:
    for name in ("train.csv", "test.csv"):
        text = (sample / name).read_text()
        (tmp_path / name).write_text(text.replace(old, new) if name == file else text)
    assert main(["prepare", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 3
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_submission_is_refused(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (sample / "test_truth.csv").read_text().splitlines()
    out = tmp_path / "submission.csv"
    truth = tmp_path / "truth.csv"
    truth.write_text(rows[0] + "\n")
    assert main(["evaluate", "--submission", str(truth), "--truth", str(truth)]) == 3
    assert "no rows" in capsys.readouterr().err
    for lines, words in ((rows[:-1], "no row"), ([*rows, rows[1]], "second time"), ([*rows, "x,-1"], "label '-1'")):
        out.write_text("\n".join(lines) + "\n")
        assert main(["check", "--submission", str(out), "--data", str(sample)]) == 3
        assert words in capsys.readouterr().err
