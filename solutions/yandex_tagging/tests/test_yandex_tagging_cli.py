"""The real command line: from a generated sample to a score, and exit codes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kit_metrics.multilabel import macro_average_precision
from yandex_tagging.cli import main
from yandex_tagging.evaluate import evaluate_submission
from yandex_tagging.submission import write_submission


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "sample"
    assert main(["sample", "--out", str(folder), "--tracks", "150", "--archive"]) == 0
    return folder


def test_from_sample_to_score(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared, run, out = tmp_path / "prepared", tmp_path / "run", tmp_path / "submission.csv"
    assert main(["prepare", "--data", str(sample), "--out", str(prepared), "--workers", "1"]) == 0
    train = ["train", "logistic", "--data", str(prepared), "--run", str(run), "--data.n-folds", "3"]
    assert main(train) == 0
    assert "macro AP" in capsys.readouterr().out
    assert main([*train, "--resume"]) == 0
    assert "finished already" in capsys.readouterr().err
    assert main(train) == 2  # not empty, no --resume
    assert main(["infer", "--run", str(run), "--run", str(run), "--data", str(prepared), "--out", str(out)]) == 0
    assert main(["check", "--submission", str(out), "--data", str(sample)]) == 0
    assert "valid, 50 tracks of the test split, 40 tags" in capsys.readouterr().out
    evaluate = ["evaluate", "--submission", str(out), "--truth", str(sample / "test_truth.csv")]
    assert main([*evaluate, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["macro_ap"] > report["chance"] + 0.1
    assert main(evaluate) == 0
    assert "macro AP over the tags present" in capsys.readouterr().out
    out.write_text("\n".join(out.read_text().splitlines()[:-1]) + "\n")
    assert main(["check", "--submission", str(out), "--data", str(prepared)]) == 3


def test_a_hold_out_in_the_layout_of_the_training_data_is_answered(sample: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "submission.csv"
    assert main(["train", "logistic", "--data", str(sample), "--run", str(run), "--data.n-folds", "3"]) == 0
    assert main(["infer", "--run", str(run), "--data", str(sample), "--split", "train", "--out", str(out)]) == 0
    fewer = tmp_path / "fewer"  # a hold-out without the rarest tags
    fewer.mkdir()
    rows = (sample / "train.csv").read_text().splitlines()
    (fewer / "train.csv").write_text("\n".join([rows[0], *(f'{row.split(",")[0]},"0"' for row in rows[1:])]))
    for truth in (sample, fewer):
        assert main(["check", "--submission", str(out), "--data", str(truth), "--split", "train"]) == 0
        assert main(["evaluate", "--submission", str(out), "--truth", str(truth / "train.csv")]) == 0


def test_folds_keep_the_groups_of_the_data_whole(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From groups.csv in the official layout, through `prepare`, to the folds of a run; --data.groups replaces it."""
    data = tmp_path / "data"
    shutil.copytree(sample, data)
    ids = [int(line.partition(",")[0]) for line in (data / "train.csv").read_text().splitlines()[1:]]
    group_of = {track: f"series {track % 17}" for track in ids}
    (data / "groups.csv").write_text("track,group\n" + "".join(f"{t},{g}\n" for t, g in group_of.items()))
    assert main(["prepare", "--data", str(data), "--out", str(tmp_path / "prepared"), "--workers", "1"]) == 0
    train = ["train", "knn", "--data.n-folds", "3", "--data"]
    for path in (data, tmp_path / "prepared"):
        run = tmp_path / f"run-{path.name}"
        capsys.readouterr()
        assert main([*train, str(path), "--run", str(run)]) == 0
        assert "groups: 17 by series (groups.csv), the largest of" in capsys.readouterr().err
        table = pq.read_table(run / "oof.parquet").to_pydict()
        assert sorted(table["track"]) == sorted(ids)
        found = {(group_of[track], fold) for track, fold in zip(table["track"], table["fold"], strict=True)}
        assert len(found) == 17
    other = tmp_path / "other.csv"
    other.write_text("track,artist\n" + "".join(f"{track},{track % 5}\n" for track in ids))
    assert main([*train, str(data), "--run", str(tmp_path / "other"), "--data.groups", str(other)]) == 0
    summary = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert (summary["group_by"], summary["n_groups"]) == ("groups other.csv", 5)
    # One track short of all, in either place, is refused.
    for file in (other, data / "groups.csv"):
        lines = file.read_text().splitlines()
        file.write_text("\n".join(lines[:-1]) + "\n")
        arguments = ["--data.groups", str(file)] if file == other else []
        assert main([*train, str(data), "--run", str(tmp_path / "refused"), *arguments]) == 3
        assert f"track {lines[-1].partition(',')[0]}: found no row" in capsys.readouterr().err


def test_the_report_counts_empty_tags_as_named(tmp_path: Path) -> None:
    """A hold-out rarely has all tags; the truth is in another order than the submission."""
    (tmp_path / "truth.csv").write_text('track,tags\n4,"0,2"\n1,"2"\n9,"0"\n3,"2"\n')
    (tmp_path / "groups.tsv").write_text("track\tseries\n4\ta\n1\ta\n9\tb\n3\tb\n")
    scores = np.random.default_rng(0).random((4, 5), dtype=np.float32)
    write_submission(tmp_path / "s.csv", [1, 3, 4, 9], scores)
    report = evaluate_submission(tmp_path / "s.csv", tmp_path / "truth.csv")
    truth = np.zeros((4, 5), dtype=bool)
    truth[[2, 3], 0] = truth[[2, 0, 1], 2] = True
    assert report["macro_ap"] == macro_average_precision(truth, scores)
    assert report["macro_ap_present"] == pytest.approx(report["macro_ap"] * 5 / 2)
    assert (report["n"], report["n_tags"], report["n_tags_present"]) == (4, 5, 2)
    assert report["by_frequency"]["1 to 9"]["tags"] == 2
    assert report["by_frequency"]["1 to 9"]["mean_ap"] == pytest.approx(report["macro_ap_present"])
    low, high = report["macro_ap_interval"]
    assert low <= report["macro_ap"] <= high
    grouped = evaluate_submission(tmp_path / "s.csv", tmp_path / "truth.csv", tmp_path / "groups.tsv")
    assert grouped["macro_ap"] == report["macro_ap"]
    assert grouped["macro_ap_interval"] != report["macro_ap_interval"]
    without = evaluate_submission(tmp_path / "s.csv", tmp_path / "truth.csv", bootstrap=0)
    assert without["macro_ap_interval"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "conformr", "--data", "x", "--run", "y"], 2, "did you mean 'conformer'"),
        (["train", "knn", "--data", "absent", "--run", "y"], 3, "absent"),
        (["train", "knn", "--data", "x", "--run", "y", "--data.fold", "9"], 2, "data.fold"),
        (["infer", "--run", "absent", "--data", "x", "--out", "y"], 3, "no run folder"),
        (["check", "--submission", "x", "--data", "absent"], 3, "absent"),
        (["evaluate", "--submission", "x", "--truth", "absent.csv"], 3, "absent.csv"),
        (["compare", "absent", "absent"], 3, "no run folder"),
        (["compare", "a", "b", "--groups", "g.csv"], 2, "--groups"),
        (["sample", "--out", "x", "--tracks", "5"], 2, "found 5"),
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
