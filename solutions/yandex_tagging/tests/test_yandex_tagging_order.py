"""On generated data whose tags lie in few frames, networks that read frames beat the mean, and the blend beats them."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from kit_core.config import load_preset
from kit_core.run import RunFolder
from yandex_tagging.config import PRESETS, Config, DataConfig
from yandex_tagging.data import load, prepare
from yandex_tagging.sample import write_sample
from yandex_tagging.train import train

TRACKS = 900  # two thirds of them with labels, of which each fold fits two thirds
STEPS = {"epochs": 16, "batch": 32, "evaluate_every": 16}  # the same for all, and enough for 400 fitted tracks
BEST = "best-mini"


@pytest.mark.slow
def test_networks_beat_the_mean_and_the_blend_beats_its_networks(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", TRACKS)
    prepare(tmp_path / "sample", tmp_path / "packed")
    tracks = load(tmp_path / "packed", "train")
    presets = tmp_path / "presets"
    presets.mkdir()
    for path in PRESETS.glob("*.toml"):
        text = path.read_text(encoding="utf-8")
        for name, value in STEPS.items():
            text = re.sub(rf"^{name} = \d+$", f"{name} = {value}", text, flags=re.M)
        (presets / path.name).write_text(text, encoding="utf-8")

    def summary(preset: str) -> dict[str, float]:
        config = dataclasses.replace(load_preset(Config, presets, preset), data=DataConfig(n_folds=3))
        run = tmp_path / preset
        with RunFolder.create(run, config=config, preset=preset, data_hashes={}, seed=config.seed) as folder:
            train(config, tracks, folder, presets=presets)
        return json.loads((run / "summary.json").read_text())

    baseline, transformer = (summary(f"{name}-mini")["score"] for name in ("official-baseline", "seed-transformer"))
    found = summary(BEST)
    conformer, attention = (
        found["members"][f"{name}-mini"]["score"] for name in ("conformer", "attention-transformer")
    )
    # The mean of the frames hides tags that lie in few of them; networks that read single frames find them: about .25,
    # .63, .57 and .65 when this was written. Their own order is not asked for, since presets are chosen on real data.
    assert baseline + 0.2 < min(transformer, attention)
    assert baseline + 0.3 < conformer
    assert max(attention, conformer) < found["score"]
