"""The tabular reference on attributes of tracks."""

import json
from pathlib import Path

import numpy as np
import pytest

from ntua_lab import echonest
from ntua_lab.cli import main
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
