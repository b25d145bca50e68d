"""Losses between rows: what the ranks computed of a batch comes together with the gradient of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_train import ranks
from kit_train.config import FabricConfig
from kit_train.fabric import launch
from kit_train.ranks import gather_with_gradient, share_of_batch

PROGRAM = Path(__file__).with_name("train_gather_program.py")
HANG_SECONDS = 600


def between_rows(x: torch.Tensor) -> torch.Tensor:
    """A loss in which every row meets every other one, and each counts differently."""
    return ((x @ x.T).sigmoid() * torch.arange(1.0, len(x) + 1)).sum()


@settings(deadline=None)  # the first example loads what the rest has
@given(st.integers(1, 20), st.integers(1, 6))
def test_the_mean_of_the_gradients_of_all_ranks_is_that_of_the_batch(n: int, size: int) -> None:
    batch = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    weights = torch.eye(3, dtype=torch.float64, requires_grad=True)  # before the gathering
    loss = between_rows(batch @ weights)
    loss.backward()
    shares = [share_of_batch(np.arange(n), rank, size) for rank in range(size)]

    def all_gather(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        for part, share in zip(parts, shares, strict=True):
            assert part.shape == own.shape
            part.fill_(torch.nan)  # whatever pads a share must never be seen
            part[: len(share.rows) * (share.weight > 0)] = batch[share.rows] if share.weight > 0 else 0

    found = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "dist", SimpleNamespace(all_gather=all_gather))
        for rank, share in enumerate(shares):
            mine = torch.eye(3, dtype=torch.float64, requires_grad=True)
            fabric = SimpleNamespace(global_rank=rank, world_size=size)
            gathered = gather_with_gradient(fabric, batch[share.rows] @ mine, n)
            torch.testing.assert_close(gathered.detach(), batch)
            between_rows(gathered).backward()
            assert mine.grad is not None  # also of a rank without a row: the others wait for it
            found += mine.grad / size
    torch.testing.assert_close(found, weights.grad)


def test_one_process_gathers_nothing_and_a_wrong_number_of_values_is_refused() -> None:
    fabric = launch(FabricConfig(accelerator="cpu"))
    values = torch.ones(3, 2, requires_grad=True)
    assert gather_with_gradient(fabric, values, 3) is values
    with pytest.raises(ValueError, match="found 3 values, expected those of the 4 rows of rank 0 of 1"):
        gather_with_gradient(fabric, values, 4)


@pytest.mark.slow
def test_processes_agree_with_one_also_where_shares_are_unequal_or_empty() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    size = 3
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        for rank, process in enumerate(started):
            output, errors = process.communicate(timeout=HANG_SECONDS)
            assert output == f"rank {rank} of {size} agrees\n", errors
    finally:
        for process in started:
            process.kill()
