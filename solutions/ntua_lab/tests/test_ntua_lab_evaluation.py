"""Scores against scikit-learn and scipy, and blending of answers."""

import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from kit_core.errors import DataError
from kit_metrics import bootstrap_interval, bootstrap_macro_f1, bootstrap_ratio
from ntua_lab.answers import Blend
from ntua_lab.cli import main
from ntua_lab.evaluation import emotion_report, evaluate_submission, genre_report, report_text, resamples, spearman


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(3, 60), st.integers(0, 999))
def test_genre_scores_are_scikit_learns(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, classes, n), rng.integers(0, classes, n)
    report = genre_report(true, predicted, [f"c{k}" for k in range(classes)])
    labels = list(range(classes))
    assert report["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert report["confusion"] == confusion_matrix(true, predicted, labels=labels).tolist()
    for average in ("macro", "micro", "weighted", None):
        p, r, f, s = precision_recall_fscore_support(true, predicted, labels=labels, average=average, zero_division=0)
        if average is None:
            np.testing.assert_allclose(report["precision"], p)
            np.testing.assert_allclose(report["recall"], r)
            np.testing.assert_allclose(report["f1"], f)
            assert report["support"] == s.tolist()
        elif average == "weighted":
            assert report["weighted_f1"] == pytest.approx(f)
        else:
            assert [report[f"{average}_{key}"] for key in ("precision", "recall", "f1")] == pytest.approx([p, r, f])
    low, high = report["accuracy_interval"]
    assert low <= report["accuracy"] <= high
    json.dumps(report, allow_nan=False)
    assert "macro_f1" in report_text(report)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.floats(0.3, 0.9))
def test_intervals_hold_the_score_where_classes_are_absent(seed: int, present: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, present, 80)
    predicted = np.where(rng.random(80) < share, true, rng.integers(0, 5, 80))
    report = genre_report(true, predicted, [f"c{k}" for k in range(5)], [f"{i // 2}" for i in range(80)])
    assert 0 in report["support"]
    for name in ("accuracy", "macro_f1"):
        low, high = report[f"{name}_interval"]
        assert low <= report[name] <= high


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 999), st.booleans())
def test_spearman_is_scipys(n: int, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    true, predicted = rng.random((n, 3)), rng.random((n, 3))
    if ties:
        true = (true * 3).round()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant columns, which are 0 here
        expected = [np.nan_to_num(spearmanr(true[:, i], predicted[:, i]).statistic) for i in range(3)]
    np.testing.assert_allclose(spearman(true, predicted), expected, atol=1e-12)


def test_constant_answers_order_nothing() -> None:
    true = np.random.default_rng(0).random((20, 3))
    report = emotion_report(true, np.full((20, 3), 0.5))
    assert report["spearman"] == 0.0
    assert report["spearman_interval"] == [0.0, 0.0]
    perfect = emotion_report(true, true**3)
    assert perfect["spearman_of_axes"] == pytest.approx([1.0, 1.0, 1.0])
    assert "valence" in report_text(perfect)


def test_resamples_keep_groups_whole() -> None:
    groups = ["a", "b", "a", "c", "c", "c"]
    for rows in resamples(6, groups)[:50]:
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[2]
        assert counts[3] == counts[4] == counts[5]
        assert counts[[0, 1, 3]].sum() == 3


def test_a_submission_of_genres_goes_through_the_mapping(tmp_path: Path) -> None:
    truth, answers = tmp_path / "test_labels.txt", tmp_path / "genres.txt"
    truth.write_text(
        "Id\tGenre\n1.full.fused.npy.gz\tPunk\n2.full.fused.npy.gz\tJazz\n3.full.fused.npy.gz\tPost-Punk\n"
    )
    answers.write_text("Id\tGenre\n1.fused.full.npy.gz\tMetal\n2.fused.full.npy.gz\tRock\n")
    report = evaluate_submission(answers, truth)
    assert (report["task"], report["n"], report["accuracy"]) == ("genre", 2, 0.5)  # the dropped clip is not judged
    assert len(report["classes"]) == 10
    answers.write_text("Id\tGenre\n1.fused.full.npy.gz\tPunk\n2.fused.full.npy.gz\tRock\n")
    with pytest.raises(DataError, match="Punk"):
        evaluate_submission(answers, truth)
    answers.write_text("Id\tGenre\n1.fused.full.npy.gz\tMetal\n")
    with pytest.raises(DataError, match="clip 2: found no row"):
        evaluate_submission(answers, truth)
    answers.write_text("Id.fused.full.npy.gz,valence,energy,danceability\n1,0.1,0.2,0.3\n")
    with pytest.raises(DataError, match="expected genre"):
        evaluate_submission(answers, truth)


@pytest.mark.parametrize(
    ("truth", "answers", "words"),
    [
        ("Id\tGenre\n", "Id\tGenre\n", "a header and no rows"),
        ("Id,valence,energy,danceability\n", "Id,valence,energy,danceability\n", "a header and no rows"),
        ("Id\tGenre\n1\tOld-Time\n", "Id\tGenre\n1\tRock\n", "no clip of a class"),  # it is dropped
    ],
)
def test_nothing_to_judge_is_told(tmp_path: Path, truth: str, answers: str, words: str) -> None:
    (tmp_path / "truth.txt").write_text(truth)
    (tmp_path / "answers.txt").write_text(answers)
    with pytest.raises(DataError, match=words):
        evaluate_submission(tmp_path / "answers.txt", tmp_path / "truth.txt")


def test_places_do_not_depend_on_the_scale_of_a_member() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((200, 3))
    good, other = truth + 0.05 * rng.standard_normal(truth.shape), truth + 0.2 * rng.standard_normal(truth.shape)
    said = [np.hstack([np.full((200, 2), np.nan), good]), np.hstack([np.full((200, 2), np.nan), other])]
    scaled = [said[0], said[1] * 0.01 + 0.4]  # a member that hardly leaves the mean
    first = Blend.fit(said, truth, 2).apply(said, 2)
    second = Blend.fit(scaled, truth, 2).apply(scaled, 2)
    np.testing.assert_allclose(first[:, 2:], second[:, 2:], atol=1e-9)
    assert np.isnan(first[:, :2]).all()
    assert spearman(truth, first[:, 2:]).min() > spearman(truth, other).max()
    assert ((first[:, 2:] >= 0) & (first[:, 2:] <= 1)).all()
    alone = Blend.fit(said[:1], truth, 2).apply(said[:1], 2)
    np.testing.assert_allclose(alone[:, 2:], np.clip(good, 0, 1))


@pytest.mark.parametrize(
    ("preset", "task"), [("majority", "genre"), ("pooled-svm", "genre"), ("pooled-svm", "emotion")]
)
def test_the_intervals_of_a_run_resample_its_groups(
    preset: str, task: str, grouped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ("--task", task, "--data.folds", "3", "--pooled.features", "beat", "--pooled.svm-strength", "0.01")
    assert main(["train", preset, "--data", str(grouped), "--run", str(run), "--data.group", "artist", *flags]) == 0
    summary = json.loads((run / "summary.json").read_text())
    score, (low, high) = summary["score"], summary["interval"]
    printed = {tuple(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert (summary["metric"], f"{score:.4f}", f"{low:.4f}", "to", f"{high:.4f}") in printed
    table = pq.read_table(run / "oof.parquet").to_pydict()
    groups, alone = np.array(table["group"]), np.arange(len(table["id"]))
    assert len(set(groups)) < len(groups)
    if task == "genre":
        classes = [name[2:] for name in table if name.startswith("p_")]
        true = np.array([classes.index(name) for name in table["class"]])
        answers = np.stack([table[f"p_{name}"] for name in classes], axis=1).argmax(axis=1)
        hits, ones = true == answers, np.ones(len(true))
        assert summary["score"] == pytest.approx(hits.mean())
        assert summary["interval"] == pytest.approx(bootstrap_ratio(hits, ones, groups, n=1000))
        assert summary["interval"] != pytest.approx(bootstrap_ratio(hits, ones, alone, n=1000))
        macro = summary["genre"]["macro_f1_interval"]
        assert macro == pytest.approx(bootstrap_macro_f1(true, answers, len(classes), groups, n=1000))
        assert macro != pytest.approx(bootstrap_macro_f1(true, answers, len(classes), alone, n=1000))
        return
    axes = ("valence", "energy", "danceability")
    truth, values = (np.stack([table[f"{prefix}{axis}"] for axis in axes], axis=1) for prefix in ("true_", ""))

    def interval(names: np.ndarray) -> tuple[float, float]:
        """Draws of groups by hand."""
        sizes = np.unique(names, return_counts=True)[1]
        members = [np.flatnonzero(names == name) for name in np.unique(names)]
        rng = np.random.default_rng(0)
        scores = []
        for _ in range(1000):
            rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
            scores.append(spearman(truth[rows], values[rows]).mean())
        score = np.mean([spearmanr(truth[:, k], values[:, k]).statistic for k in range(3)])
        assert summary["score"] == pytest.approx(score)
        return bootstrap_interval(scores, float(score), float(sizes.sum() ** 2 / (sizes**2).sum()), limits=(-1, 1))

    assert summary["interval"] == pytest.approx(interval(groups))
    assert summary["interval"] != pytest.approx(interval(alone))
