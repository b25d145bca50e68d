"""The table of presets, and the header of one."""

import re
from pathlib import Path

import pytest

from kit_core.errors import ConfigError
from kit_core.preset_table import describe_presets


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "best.toml").write_text(
        "# Ours, after Smith et al. 2020: all in one. Slow.\n# demo train best\nepochs = 3\n"
    )
    (folder / "large.toml").write_text("# " + "Official size and more words " * 5 + "\n")
    (tmp_path / "RESULTS.csv").write_text(
        "preset,data,folds,metric,score,low,high,seconds,remarks\n"
        'best,songs-mini,"5 by artist, all",accuracy,0.51234,0.4,0.6,90.4,one thread\n'
        "best,other-mini,2 by artist,accuracy,0.7,0.6,0.8,600,\n"
    )
    return folder


def test_the_table_has_a_line_for_each_preset_with_its_first_measurement(presets: Path) -> None:
    header, _, best, large = describe_presets(presets).splitlines()
    assert header.split() == ["preset", "what", "it", "is", "score", "on", "time"]
    assert re.split("  +", best) == [
        "best",
        "Ours, after Smith et al. 2020: all in one",
        "accuracy 0.512",
        "songs-mini",
        "90 s",
    ]
    assert large.split("…")[1].strip() == "not measured"


def test_a_name_gives_the_whole_header_and_all_measurements(presets: Path) -> None:
    assert describe_presets(presets, "best").splitlines() == [
        "best",
        "  Ours, after Smith et al. 2020: all in one. Slow.",
        "  demo train best",
        "  measured: accuracy 0.512 (0.400 to 0.600) on songs-mini, folds: 5 by artist, all; one thread",
        "  measured: accuracy 0.700 (0.600 to 0.800) on other-mini, folds: 2 by artist",
    ]


def test_without_results_nothing_is_measured(presets: Path) -> None:
    (presets.parent / "RESULTS.csv").unlink()
    assert describe_presets(presets).count("not measured") == 2


def test_an_unknown_name_names_the_near_one(presets: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'bset'; did you mean 'best'"):
        describe_presets(presets, "bset")
