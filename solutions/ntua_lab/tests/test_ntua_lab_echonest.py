"""The tabular reference on attributes of tracks."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from kit_splits.folds import group_folds
from ntua_lab import baseline, echonest
from ntua_lab.cli import main
from ntua_lab.config import PooledConfig
from ntua_lab.echonest import COLUMNS


def write_table(path: Path, n: int = 120) -> Path:
    rng = np.random.default_rng(0)
    lines = [",".join(COLUMNS)]
    for track in range(n):
        acoustic, instrumental, live, speech = rng.random(4)
        tempo = rng.uniform(60, 180)
        energy = 0.9 * (1 - acoustic) + 0.1 * rng.random()
        values = [track, "", acoustic, rng.random(), energy, instrumental, live, speech, tempo, rng.random()]
        lines.append(",".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in values))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_attributes_to_axes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echonest, "ROUNDS", 5)
    table = write_table(tmp_path / "t.csv")
    assert main(["echonest", "--table", str(table), "--run", str(tmp_path / "run")]) == 0
    assert "lightgbm" in capsys.readouterr().out
    models = json.loads((tmp_path / "run/summary.json").read_text())["models"]
    assert models["ridge"]["spearman_of_axes"][1] > 0.9  # energy was made of acousticness
    assert abs(models["ridge"]["spearman_of_axes"][0]) < 0.3  # valence was noise
    assert len((tmp_path / "run/oof.csv").read_text().splitlines()) == 121


def test_a_damaged_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "t.csv", 10)
    good = table.read_text()
    table.write_text(good.replace("tempo", "bpm"))
    assert main(["echonest", "--table", str(table), "--run", str(tmp_path / "run")]) == 3
    lines = good.splitlines()
    table.write_text("\n".join([*lines[:3], lines[3].rsplit(",", 1)[0] + ",1.5", *lines[4:]]) + "\n")
    assert main(["echonest", "--table", str(table), "--run", str(tmp_path / "run")]) == 3
    assert "line 4, track 2: found valence '1.5'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.data
def test_real_attributes(tmp_path: Path) -> None:
    root = next(folder for folder in Path(__file__).resolve().parents if (folder / "poetry.lock").exists())
    table = root.parent / "shared" / "data" / "fma-echonest" / "echonest_fma.csv"
    if not table.exists():
        pytest.skip("../shared/data/fma-echonest is absent")
    assert main(["echonest", "--table", str(table), "--run", str(tmp_path / "run")]) == 0
    trees = json.loads((tmp_path / "run/summary.json").read_text())["models"]["lightgbm"]["spearman_of_axes"]
    assert trees[0] > 0.25
    assert trees[1] > 0.55
    assert trees[2] > 0.45


def test_scores_are_of_models_that_have_not_seen_the_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ridge by scikit-learn, trees by themselves, and trees on what trees of inner folds say of all axes."""
    monkeypatch.setattr(echonest, "ROUNDS", 3)
    table = write_table(tmp_path / "t.csv")
    assert main(["echonest", "--table", str(table), "--run", str(tmp_path / "run"), "--seed", "2"]) == 0
    ids, X, Y = echonest.read_attributes(table)
    folds = group_folds(ids, 5, seed=2)

    def trees(x: np.ndarray, y: np.ndarray, others: np.ndarray) -> np.ndarray:
        return baseline.fit("lightgbm", x, y, 0, PooledConfig(rounds=3), 2).answer(others)

    answers = {name: np.zeros_like(Y) for name in echonest.MODELS}
    for fold in range(5):
        held = folds == fold
        x, y, others = X[~held], Y[~held], X[held]
        answers["mean"][held] = y.mean(axis=0)
        scaled = ((part - x.mean(axis=0)) / x.std(axis=0) for part in (x, others))
        answers["ridge"][held] = Ridge(1.0).fit(next(scaled), y).predict(next(scaled))
        answers["lightgbm"][held] = trees(x, y, others)
        inner = group_folds([id_ for id_, one in zip(ids, held, strict=True) if not one], 5, seed=2)
        inside = np.zeros_like(y)
        for part in range(5):
            inside[inner == part] = trees(x[inner != part], y[inner != part], x[inner == part])
        wide = np.hstack([others, answers["lightgbm"][held]])
        answers[echonest.MODELS[3]][held] = trees(np.hstack([x, inside]), y, wide)
    reports = json.loads((tmp_path / "run/summary.json").read_text())["models"]
    for name, values in answers.items():
        expected = [spearmanr(Y[:, k], values[:, k]).statistic for k in range(3)]
        assert reports[name]["spearman_of_axes"] == pytest.approx(expected)
        assert reports[name]["mean_absolute_error"] == pytest.approx(np.abs(Y - values).mean(axis=0))
    rows = [line.split(",") for line in (tmp_path / "run/oof.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ids
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), answers["lightgbm"], atol=1e-5)
