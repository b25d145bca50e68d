"""`compare`: paired differences of runs and of files, against the functions called by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kit_metrics import bootstrap_interval, bootstrap_paired_macro_f1, bootstrap_paired_ratio
from ntua_lab.cli import main
from ntua_lab.evaluation import paired_difference, resamples, spearman


@pytest.fixture(scope="module")
def data(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official folder with tracks of three clips and artists of two tracks."""
    out = tmp_path_factory.mktemp("compare")
    shutil.copytree(whole, out / "official")
    rows = ["id,artist,track"]
    for first, count in ((1000, 30), (5000, 10), (100_000_000, 16)):
        rows += [f"{first + i},artist {first}-{i // 6},track {first}-{i // 3}" for i in range(count)]
    (out / "official/clips.csv").write_text("\n".join(rows) + "\n")
    assert main(["prepare", "--data", str(out / "official"), "--out", str(out / "packed")]) == 0
    return out / "packed"


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs: two of genre, one by artist, two of emotion."""
    out = tmp_path_factory.mktemp("runs")
    genre = ("--data.clips", "all", "--data.folds", "4")
    emotion = ("--task", "emotion", "--data.folds", "3")
    trees = ("--pooled.rounds", "3")  # few, so that it errs
    for name, preset, flags in (
        ("svm", "pooled-svm", genre),
        ("majority", "majority", genre),
        ("artist", "pooled-svm", (*genre, "--data.group", "artist")),
        ("train", "pooled-svm", ("--data.folds", "4")),
        ("svr", "pooled-svm", emotion),
        ("trees", "pooled-lightgbm", (*emotion, *trees)),
    ):
        assert main(["train", preset, "--data", str(data), "--run", str(out / name), *flags]) == 0
    return out


def answers(run: Path) -> dict[str, np.ndarray]:
    """The columns of the out-of-fold answers, sorted by id."""
    table = pq.read_table(run / "oof.parquet").sort_by("id")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def compared(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    capsys.readouterr()
    assert main(["compare", *map(str, arguments), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_genre_is_kit_metrics_by_hand(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [answers(runs / name) for name in ("svm", "majority")]
    classes = [column[2:] for column in tables[0] if column.startswith("p_")]
    true = np.array([classes.index(name) for name in tables[0]["class"]])
    predictions = [np.stack([table[f"p_{name}"] for name in classes], axis=1).argmax(axis=1) for table in tables]
    groups = tables[0]["track"]
    found = compared(capsys, runs / "svm", runs / "majority")
    expected = bootstrap_paired_ratio(true == predictions[0], true == predictions[1], np.ones(len(true)), groups)
    assert (found["difference"], *found["interval"]) == pytest.approx(expected)
    assert found["metric"] == "accuracy"
    assert found["score_a"] == pytest.approx((true == predictions[0]).mean())
    assert found["difference"] == pytest.approx(found["score_a"] - found["score_b"])
    assert (found["n"], found["group_by"], found["n_groups"]) == (len(true), "track", len(set(groups)))
    macro = compared(capsys, runs / "svm", runs / "majority", "--metric", "macro_f1")
    expected = bootstrap_paired_macro_f1(true, *predictions, len(classes), groups)
    assert (macro["difference"], *macro["interval"]) == pytest.approx(expected)


def test_emotion_is_the_slow_way(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [answers(runs / name) for name in ("svr", "trees")]
    axes = ["valence", "energy", "danceability"]
    true = np.stack([tables[0][f"true_{axis}"] for axis in axes], axis=1)
    predictions = [np.stack([table[axis] for axis in axes], axis=1) for table in tables]
    draws = resamples(len(true), tables[0]["track"].tolist())
    each = [
        spearman(true[rows], predictions[0][rows]).mean() - spearman(true[rows], predictions[1][rows]).mean()
        for rows in draws
    ]
    found = compared(capsys, runs / "svr", runs / "trees")
    assert found["metric"] == "spearman"
    assert found["difference"] == pytest.approx(
        np.mean(spearman(true, predictions[0]) - spearman(true, predictions[1]))
    )
    sizes = np.unique(tables[0]["track"], return_counts=True)[1]
    effective = float(sizes.sum() ** 2 / (sizes**2).sum())
    expected = bootstrap_interval(each, found["difference"], effective, limits=(-2, 2))  # type: ignore[arg-type]  # a number
    assert found["interval"] == pytest.approx(expected)


@pytest.mark.parametrize(("name", "metric"), [("svm", "accuracy"), ("svm", "macro_f1"), ("svr", "spearman")])
def test_a_run_against_itself(runs: Path, name: str, metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, runs / name, runs / name, "--metric", metric)
    assert found["difference"] == 0.0
    assert found["interval"] == [0.0, 0.0]


def test_a_table_for_a_person(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["compare", str(runs / "svm"), str(runs / "majority")]) == 0
    assert "groups resampled (track)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("svm", "artist", "found folds by artist, expected folds by track"),
        ("svm", "train", "no answer"),
        ("train", "svm", "an answer, and none in"),
    ],
)
def test_unlike_runs_are_refused(
    runs: Path, first: str, second: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(runs / first), str(runs / second)]) == 3
    assert words in capsys.readouterr().err


def test_other_data_groups_and_old_runs_are_refused(
    runs: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    train = ["train", "majority", "--data", str(whole), "--run", str(other), "--data.clips", "all", "--data.folds", "4"]
    assert main(train) == 0
    assert main(["compare", str(runs / "svm"), str(other)]) == 3
    assert "found data of the fingerprint" in capsys.readouterr().err
    for column, words in (("group", "no column `group`"), ("renamed", "the group 'elsewhere'")):
        old = tmp_path / column
        shutil.copytree(runs / "svm", old)
        (old / "digests.json").unlink()  # as in a run from before there were digests
        table = pq.read_table(old / "oof.parquet")
        place = table.column_names.index("group")
        if column == "renamed":
            table = table.set_column(place, "group", pa.array(["elsewhere", *table["group"].to_pylist()[1:]]))
        else:
            table = table.remove_column(place)
        pq.write_table(table, old / "oof.parquet")
        assert main(["compare", str(runs / "svm"), str(old)]) == 3
        assert words in capsys.readouterr().err
    assert main(["compare", str(runs / "svm"), str(runs / "svr")]) == 2
    assert "was not scored by accuracy" in capsys.readouterr().err


def test_files_of_answers(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, a, b = (tmp_path / name for name in ("truth.txt", "a.txt", "b.txt"))
    rng = np.random.default_rng(0)
    names = np.array(["Rock", "Jazz", "Metal"])
    true = rng.integers(0, 3, 40)
    predictions = [np.where(rng.random(40) < share, true, rng.integers(0, 3, 40)) for share in (0.8, 0.3)]
    for path, codes in ((truth, true), (a, predictions[0]), (b, predictions[1])):
        rows = [f"{i}.fused.full.npy.gz\t{name}" for i, name in enumerate(names[codes])]
        path.write_text("\n".join(["Id\tGenre", *rows]) + "\n")
    found = compared(capsys, a, b, "--truth", truth)
    expected = bootstrap_paired_ratio(
        true == predictions[0], true == predictions[1], np.ones(40), np.array([str(i) for i in range(40)])
    )
    assert (found["difference"], *found["interval"]) == pytest.approx(expected)
    assert (found["group_by"], found["n_groups"], found["n"]) == ("clip", 40, 40)
    assert compared(capsys, a, b, "--truth", truth, "--metric", "macro_f1")["metric"] == "macro_f1"
    assert main(["compare", str(a), str(b), "--truth", str(truth), "--metric", "spearman"]) == 2
    assert main(["compare", str(a), str(b)]) == 2
    assert "give --truth FILE" in capsys.readouterr().err
    assert main(["compare", str(runs / "svm"), str(b), "--truth", str(truth)]) == 2
    assert "--truth goes with two files" in capsys.readouterr().err
    values = rng.random((40, 3))
    for path, noise in ((truth, 0.0), (a, 0.05), (b, 0.8)):
        noisy = np.clip(values + noise * rng.standard_normal(values.shape), 0, 1)
        rows = [f"{i}," + ",".join(f"{value:.6f}" for value in row) for i, row in enumerate(noisy)]
        path.write_text("\n".join(["Id,valence,energy,danceability", *rows]) + "\n")
    found = compared(capsys, a, b, "--truth", truth)
    assert found["metric"] == "spearman"
    assert found["interval"][0] > 0  # type: ignore[index]  # a list, from JSON
    b.write_text("Id,valence,energy,danceability\n0,0.1,0.2,0.3\n")
    assert main(["compare", str(a), str(b), "--truth", str(truth)]) == 3


def test_both_answers_see_the_same_resamples() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((60, 3))
    good = true + 0.5 * rng.standard_normal(true.shape)
    nearly = good + 1e-3 * rng.standard_normal(true.shape)
    _, low, high = paired_difference("spearman", true, good, nearly, 0, [f"{i // 3}" for i in range(60)])
    assert high - low < 0.02  # each alone has an interval of about 0.3
