"""Several processes (ranks) that train one model: which rows each takes, and how their answers come together.

Every rank knows the whole order of batches, which comes from the seed, and takes its share of each. So a batch means
the same rows whatever the number of ranks, and a run may go on with another number.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from kit_core import interrupt
from kit_core.errors import ConfigError
from kit_train.errors import PeerError
from kit_train.state import mixed_seed

Rows = NDArray[np.int64]
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # gloo also beside nccl: small talk needs no GPU
STOP_EVERY = 8  # steps between two questions of many ranks whether one of them was asked to stop


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run, as torchrun and SLURM tell it.

    Attributes:
        rank: of this process, 0..size-1; rank 0 writes.
        size: processes in all.
        local_size: of them, on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size


@dataclass(frozen=True)
class Share:
    """The part of a batch that one rank computes.

    Attributes:
        rows: never empty: a rank without a row of its own computes the first one, and its weight is 0.
        weight: factor of a loss that is the mean over `rows`, so that the mean over ranks of all gradients is that of
            the mean over the batch.
        weight_of_sum: the same for a loss that is the sum over `rows`.
    """

    rows: Rows
    weight: float
    weight_of_sum: float


def environment_ranks() -> Ranks:
    """Return what the environment says (RANK, WORLD_SIZE, LOCAL_WORLD_SIZE), or one process.

    Raises:
        ConfigError: these variables contradict each other.
    """
    if "RANK" not in os.environ:
        return Ranks()
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"environment: found RANK but no whole number for {error}; start with torchrun") from error
    if not (0 <= rank < size and local_size > 0 and size % local_size == 0):
        raise ConfigError(f"environment: found rank {rank} of {size} with {local_size} a machine; start with torchrun")
    return Ranks(rank, size, local_size)


def join_group(accelerator: str = "auto") -> Ranks:
    """Meet the other ranks, once in a process; with one rank there is nobody to meet.

    Raises:
        ConfigError: as `environment_ranks`.
    """
    ranks = environment_ranks()
    if ranks.size > 1 and not dist.is_initialized():
        use_gpu = torch.cuda.is_available() and accelerator != "cpu"
        if use_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", ranks.rank % ranks.local_size)))
        dist.init_process_group(BACKENDS["cuda" if use_gpu else "cpu"], rank=ranks.rank, world_size=ranks.size)
    return ranks


def share_of_batch(rows: Rows, rank: int, size: int) -> Share:
    """Return every `size`-th row from the `rank`-th on: of a batch sorted by length, each rank gets like lengths.

    Raises:
        ValueError: an empty batch, or a rank outside 0..size-1.
    """
    if not len(rows) or not 0 <= rank < size:
        raise ValueError(f"found {len(rows)} rows and rank {rank} of {size}, expected rows and 0 <= rank < size")
    mine = rows[rank::size]
    if not len(mine):
        return Share(rows[:1], 0.0, 0.0)
    return Share(mine, len(mine) * size / len(rows), float(size))


def batches_of_rank(batches: Sequence[Rows], rank: int, size: int) -> list[Rows]:
    """Return whole batches for evaluation: each batch to one rank, so that it is padded alike whatever their number."""
    return list(batches[rank::size])


def gather_rows(values: NDArray[Any], rows: Rows, n: int) -> NDArray[Any]:
    """Return the values of all ranks in the order of rows, [n, ...], on every rank.

    Args:
        values: [m, ...] of this rank; m differs from rank to rank and may be 0.
        rows: int64[m], the places of `values`.
        n: rows in all.

    Raises:
        RuntimeError: a row came twice or not at all: the ranks did not divide the work well.
    """
    parts: list[Any] = [(values, rows)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (values, rows))
    counts = np.bincount(np.concatenate([places for _, places in parts]), minlength=n)
    if len(counts) != n or (counts != 1).any():
        wrong = int((counts != 1).sum())
        raise RuntimeError(f"gathered rows: {wrong} of {n} were not scored exactly once")
    filled = [part for part, places in parts if len(places)]
    if not filled:
        return values
    gathered = np.empty((n, *filled[0].shape[1:]), filled[0].dtype)
    for part, places in parts:
        if len(places):
            gathered[places] = part
    return gathered


def gather_with_gradient(fabric: Fabric, values: Tensor, n: int) -> Tensor:
    """Return what the ranks computed of a batch as one tensor, float[n, ...] in the batch's order, with its gradient.

    For losses between the rows of a batch. Every rank must compute the same loss of the answer: its own rows then get
    their gradient times the number of ranks, which the mean over ranks (DDP) takes away again. So weights before the
    gathering get the gradient of one process, and so do weights behind it, whose gradient each rank computes whole.

    Args:
        values: float[m, ...] of this rank, for the rows of `share_of_batch`; a share of weight 0 adds nothing.
        n: rows of the batch.

    Raises:
        ValueError: `values` are not as many as this rank's rows.
    """
    rank, size = fabric.global_rank, fabric.world_size
    wanted = max(1, len(range(rank, n, size)))
    if len(values) != wanted:
        raise ValueError(f"found {len(values)} values, expected those of the {wanted} rows of rank {rank} of {size}")
    if size == 1:
        return values
    gather: Callable[..., Tensor] = _Gathered.apply  # which torch leaves without types
    return gather(values, n, rank, size)


class _Gathered(torch.autograd.Function):
    """Values of all ranks in the order of their batch; backwards this rank's own rows, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, n: int, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size, ctx.own = rank, size, len(range(rank, n, size))
        padded = values.new_zeros(-(-n // size), *values.shape[1:])  # all ranks must give the same shape
        padded[: ctx.own] = values[: ctx.own]
        parts = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded)
        whole = values.new_empty(n, *values.shape[1:])
        for other, part in enumerate(parts):
            whole[other::size] = part[: len(range(other, n, size))]
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        if not ctx.own:
            return gradient.new_zeros(1, *gradient.shape[1:]), None, None, None
        return gradient[ctx.rank :: ctx.size] * ctx.size, None, None, None


def mean_of_ranks(fabric: Fabric, value: float) -> float:
    """Return the mean of a number over the ranks, the same on each."""
    if fabric.world_size == 1:
        return value
    parts: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(parts, value)
    return float(np.mean(parts))


@torch.no_grad()
def share_buffers(fabric: Fabric, *modules: nn.Module) -> None:
    """Give every rank the buffers of rank 0: statistics of batch normalisation come from a rank's own rows."""
    if fabric.world_size > 1:
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def seed_of_rank(fabric: Fabric, seed: int) -> None:
    """Seed torch's generators before a step of several ranks, so that dropout differs from rank to rank.

    With one rank nothing happens: its generators run on, and a resume restores them.
    """
    if fabric.world_size > 1:
        torch.manual_seed(mixed_seed(seed, fabric.global_rank))


@contextmanager
def draws_of_rank(fabric: Fabric, seed: int) -> Iterator[None]:
    """Seed as `seed_of_rank` does, and put the generators back at the end: what follows draws alike on every rank."""
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=fabric.world_size > 1):
        seed_of_rank(fabric, seed)
        yield


def stop_asked(fabric: Fabric, step: int) -> bool:
    """Whether this rank or another was asked to stop (`kit_core.interrupt`): the same answer on every rank.

    Several ranks ask each other every 8th step, since that costs a message.
    """
    if fabric.world_size == 1:
        return interrupt.asked()
    if step % STOP_EVERY:
        return False
    wishes: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(wishes, interrupt.asked())
    return any(wishes)


@contextmanager
def agreement(what: str) -> Iterator[None]:
    """Do something on every rank and go on only when all of them could.

    Raises:
        PeerError: another rank failed; it says why itself.
    """
    error: BaseException | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    failed: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failed, error is not None)
    if error is not None:
        raise error
    if any(failed):
        raise PeerError(f"{what}: rank {failed.index(True)} failed")
