"""Several processes under gloo: equal to one process with the whole batch, and all of them end when one does."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_core import interrupt
from kit_core.errors import ConfigError
from kit_train.batches import bucketed_batches
from kit_train.config import FabricConfig
from kit_train.fabric import launch
from kit_train.ranks import (
    batches_of_rank,
    environment_ranks,
    gather_rows,
    mean_of_ranks,
    share_of_batch,
    stop_asked,
)
from kit_train.state import load_state

PROGRAM = Path(__file__).with_name("train_ranks_program.py")

HANG_SECONDS = (
    1500  # more than the busiest machine needs, and less than the half hour after which gloo gives up waiting
)

# Sums of float32 in another order: a relative 1e-7 a sum, some sums a step, some 20 steps.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@settings(deadline=None)  # the first example loads what the rest has
@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 100))
def test_shares_hold_each_row_once_and_their_losses_give_that_of_the_batch(n: int, size: int, seed: int) -> None:
    losses = np.random.default_rng(seed).normal(size=1000)
    batch = np.random.default_rng(seed).choice(1000, n, replace=False).astype(np.int64)
    shares = [share_of_batch(batch, rank, size) for rank in range(size)]
    own = [share.rows for share in shares if share.weight > 0]
    assert sorted(np.concatenate(own).tolist()) == sorted(batch.tolist())
    assert max(map(len, own)) - min(map(len, own)) <= 1
    mean_of_ranks = np.mean([losses[share.rows].mean() * share.weight for share in shares])
    assert mean_of_ranks == pytest.approx(losses[batch].mean())
    sum_of_ranks = np.mean([losses[share.rows].sum() * share.weight_of_sum for share in shares])
    assert sum_of_ranks == pytest.approx(losses[batch].sum())


def test_ranks_get_near_equal_lengths_of_a_bucketed_batch() -> None:
    lengths = np.random.default_rng(0).integers(10, 1000, 640)
    for batch in bucketed_batches(lengths, 64, seed=1):
        longest = [lengths[share_of_batch(batch, rank, 4).rows].max() for rank in range(4)]
        assert min(longest) > 0.75 * max(longest)


@settings(deadline=None)  # the first example loads what the rest has
@given(st.integers(0, 30), st.integers(1, 6))
def test_batches_for_evaluation_go_to_one_rank_each(n: int, size: int) -> None:
    batches = [np.array([i]) for i in range(n)]
    dealt = [batch for rank in range(size) for batch in batches_of_rank(batches, rank, size)]
    assert sorted(int(batch[0]) for batch in dealt) == list(range(n))


def test_gathering_puts_rows_in_their_places_and_refuses_doubles_and_gaps() -> None:
    values, rows = np.array([[1.0], [2.0], [3.0]]), np.array([2, 0, 1])
    assert gather_rows(values, rows, 3).ravel().tolist() == [2.0, 3.0, 1.0]
    with pytest.raises(RuntimeError, match="2 of 3 were not scored exactly once"):
        gather_rows(values, np.array([2, 0, 0]), 3)
    with pytest.raises(RuntimeError, match="1 of 4"):
        gather_rows(values, rows, 4)
    with pytest.raises(ValueError, match="found 0 rows"):
        share_of_batch(np.zeros(0, np.int64), 0, 2)


@pytest.mark.parametrize(
    "variables", [{"RANK": "0"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}]
)
def test_a_broken_environment_is_refused(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="start with torchrun"):
        environment_ranks()


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = launch(FabricConfig(accelerator="cpu"))
    assert fabric.world_size == 1
    assert mean_of_ranks(fabric, 0.5) == 0.5
    assert not stop_asked(fabric, 0)
    interrupt.ask()
    try:
        assert stop_asked(fabric, 3)
    finally:
        interrupt.withdraw()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launch(FabricConfig(accelerator="cpu")).world_size == 1
    with pytest.raises(ConfigError, match=r"fabric\.devices: found 3, but 1 processes were started"):
        launch(FabricConfig(devices=3, accelerator="cpu"))


def make_presets(tmp_path: Path) -> Path:
    """Write the presets of the program, which change nothing."""
    presets = tmp_path / "presets"
    presets.mkdir(exist_ok=True)
    for name in ("plain", "alone"):
        (presets / f"{name}.toml").write_text("# A preset.\n")
    return presets


def program(tmp_path: Path, *words: str, start: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the program of these tests; it must end by itself."""
    presets = make_presets(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"PROGRAM_PRESETS": str(presets), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, str(PROGRAM), "train", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment, cwd=tmp_path)


def score(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "summary.json").read_text())
    return found


def parameters(run: Path) -> torch.Tensor:
    """All weights of a run as one vector."""
    return torch.cat(
        [tensor.ravel().double() for tensor in load_state(run / "checkpoints" / "state.pt")["net"].values()]
    )


SETTINGS = ("--fabric.accumulate", "2")


def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the program in this process, which spares the loading of PyTorch; returns the exit code."""
    monkeypatch.setenv("PROGRAM_PRESETS", str(make_presets(tmp_path)))
    spec = importlib.util.spec_from_file_location("train_ranks_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["program", "train", *words])
    try:
        code: int = module.main()
    finally:
        interrupt.withdraw()
    return code


def test_what_one_process_began_two_end_as_one_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    assert alone(tmp_path, monkeypatch, "plain", "--run", str(one), *SETTINGS) == 0
    capsys.readouterr()
    assert alone(tmp_path, monkeypatch, "plain", "--run", str(mixed), *SETTINGS, "--stop", "1") == 75
    assert capsys.readouterr().err == "program: stopped as asked\n"
    words = ("plain", "--run", str(mixed), *SETTINGS, "--stop", "1", "--resume", "--fabric.devices", "2")
    done = program(tmp_path, *words)
    assert (done.returncode, done.stdout.count("score"), done.stderr) == (0, 1, "")
    assert (score(one)["ranks"], score(mixed)["ranks"]) == (1, 2)
    torch.testing.assert_close(parameters(mixed), parameters(one), **TOLERANCE)
    assert score(mixed)["score"] == pytest.approx(score(one)["score"], rel=1e-5)
    assert len((mixed / "metrics.jsonl").read_text().splitlines()) == 3  # rank 0 alone writes


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_and_is_named(tmp_path: Path) -> None:
    words = ("plain", "--run", str(tmp_path / "run"), "--fabric.devices", "2")
    failed = program(tmp_path, *words, "--fail", "data")
    assert failed.returncode == 3
    assert failed.stderr == "program: rank 1 of 2: row 7: found nonsense\n"
    refused = program(tmp_path, *words)  # rank 0 cannot have the folder, and rank 1 does not wait for it
    assert refused.returncode == 2
    assert "rank 0 of 2" in refused.stderr
    assert "is not empty; add --resume" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bug", "kill"])
def test_bugs_and_kills_name_the_rank_too(way: str, tmp_path: Path) -> None:
    failed = program(tmp_path, "plain", "--run", str(tmp_path / "run"), "--fabric.devices", "2", "--fail", way)
    assert failed.returncode == 1
    if way == "bug":
        assert "rank 1 of 2 failed, and the others were ended" in failed.stderr
        assert "ZeroDivisionError: one over none" in failed.stderr
    else:
        assert f"rank 1 of 2 was killed by {signal.SIGKILL.name} (out of memory?)" in failed.stderr
    words = ("plain", "--run", str(tmp_path / "run"), "--fail", way, "--resume")
    assert program(tmp_path, *words).returncode == 0  # one process has no rank 1, and goes on after the first epoch
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_torchrun_starts_the_same_and_refuses_what_cannot_be_shared(tmp_path: Path) -> None:
    # "--" ends the options of torchrun, which would take --run for an abbreviation of its own --run-path.
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "--")
    one, three = tmp_path / "one", tmp_path / "three"
    assert program(tmp_path, "plain", "--run", str(one), "--summed").returncode == 0
    done = program(tmp_path, "plain", "--run", str(three), "--summed", start=torchrun)
    assert (done.returncode, done.stdout.count("score")) == (0, 1), done.stderr
    assert score(three)["ranks"] == 3
    torch.testing.assert_close(parameters(three), parameters(one), **TOLERANCE)
    refused = program(tmp_path, "alone", "--run", str(tmp_path / "alone"), start=torchrun)
    assert refused.returncode != 0
    assert "alone: works in one process, but 3 were started" in refused.stderr


@pytest.mark.slow
def test_dropout_differs_between_ranks_and_a_resume_with_as_many_is_exact(tmp_path: Path) -> None:
    settings = ("--dropout", "0.3", "--norm", "--fabric.devices", "2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert program(tmp_path, "plain", "--run", str(whole), *settings).returncode == 0
    stopped = program(tmp_path, "plain", "--run", str(broken), *settings, "--stop", "0")
    assert (stopped.returncode, stopped.stderr) == (75, "program: rank 0 of 2: stopped as asked\n")
    again = program(tmp_path, "plain", "--run", str(broken), *settings, "--stop", "0", "--resume")
    assert again.returncode == 0
    assert torch.equal(parameters(whole), parameters(broken))
    one = tmp_path / "one"  # batch normalisation and dropout see a rank's own rows: alike, not equal
    assert program(tmp_path, "plain", "--run", str(one), *settings[:-2]).returncode == 0
    assert not torch.allclose(parameters(one), parameters(whole), **TOLERANCE)
