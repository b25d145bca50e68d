"""On generated data whose tags lie in few frames, presets stand in the order that their ideas promise."""

import json
from pathlib import Path

import pytest

from yandex_tagging.cli import main

TRACKS = 1200


@pytest.mark.slow
def test_presets_stand_in_the_promised_order(tmp_path: Path) -> None:
    assert main(["sample", "--out", str(tmp_path / "sample"), "--tracks", str(TRACKS)]) == 0
    assert main(["prepare", "--data", str(tmp_path / "sample"), "--out", str(tmp_path / "packed")]) == 0

    def score(preset: str) -> float:
        run = tmp_path / preset
        flags = ["--data.fold", "0", "--data.n-folds", "3"]
        assert main(["train", preset, "--data", str(tmp_path / "packed"), "--run", str(run), *flags]) == 0
        return float(json.loads((run / "summary.json").read_text())["score"])

    baseline, transformer, conformer, frames = (
        score(f"{name}-mini") for name in ("official-baseline", "seed-transformer", "conformer", "frames")
    )
    # The mean over frames drowns what comes now and then: .27, .65, .66 and .81 when this was written.
    assert baseline + 0.2 < transformer
    assert baseline + 0.2 < conformer
    assert max(transformer, conformer) + 0.05 < frames
