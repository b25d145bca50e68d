"""The same preset on the same data gives the same bits, and so do answers; on one CPU with one thread."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLASSIC = {  # the presets without a network
    "ai4code": ("tfidf-lightgbm", "--data.folds", "2"),
    "ntua_lab": ("pooled-lightgbm", "--data.folds", "2"),
    "russian_art": ("pixels", "--data.folds", "2"),
    "yandex_artists": ("whitened", "--data.n-folds", "2"),
    "yandex_tagging": ("mean-lightgbm", "--data.n-folds", "3"),
}


def test_the_same_preset_twice_gives_the_same_bits(
    case: Any, whole: Any, launch: Callable[..., Any], outputs: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    ran = launch(module=case.module, argv=case.argv("train", whole.prepared, tmp_path / "run"))
    assert ran.code == 0, ran.log
    assert outputs(tmp_path / "run") == outputs(whole.run)
    answers = tmp_path / "answers.csv"
    ran = launch(module=case.module, argv=case.argv("infer", whole.prepared, answers, tmp_path / "run"))
    assert ran.code == 0, ran.log
    assert answers.read_bytes() == whole.submission.read_bytes()


@pytest.mark.slow  # starts Python anew, ten times in all
def test_the_order_of_sets_decides_nothing(
    case: Any, whole: Any, outputs: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    """Another seed of Python's hashes orders sets otherwise, which is the usual leak of chance into a training."""
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    for argv in (case.argv("prepare", whole.sample, prepared), case.argv("train", prepared, run)):
        subprocess.run(
            [sys.executable, "-m", f"{case.module}.cli", *argv],
            env={**os.environ, **variables, "PYTHONHASHSEED": "12345"},
            check=True,
            capture_output=True,
        )
    assert outputs(prepared) == outputs(whole.prepared)
    assert outputs(run) == outputs(whole.run)


@pytest.mark.slow  # boosted trees take some seconds even of a small sample
def test_presets_without_a_network_give_the_same_bits(
    case: Any, whole: Any, launch: Callable[..., Any], outputs: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        argv = ("train", *CLASSIC[case.module], "--data", str(whole.prepared), "--run", str(tmp_path / name))
        ran = launch(module=case.module, argv=argv)
        assert ran.code == 0, ran.log
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
