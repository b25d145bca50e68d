"""A ragged pack wholly on one device: a batch is one indexing operation, and no frame crosses the bus twice."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Pack(Protocol):
    """What is needed of `kit_io.ragged.RaggedPack`."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]
    dtype: Any

    def windows(
        self,
        rows: NDArray[Any],
        start: NDArray[Any] | None = None,
        length: NDArray[Any] | None = None,
        pad_to: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Check rows and windows; returns first frames, lengths and the padded length."""


class DevicePack:
    """The values of a pack on a device, in their stored type; `gather` answers as the pack's own, with tensors."""

    def __init__(self, pack: Pack, device: str | torch.device) -> None:
        stored = np.array(pack.values, order="C")  # a copy: torch wants writable memory, and a map is read-only
        if pack.dtype == "bfloat16":
            values = torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
        else:
            values = torch.from_numpy(stored)
        self._pack = pack
        self.values = values.to(device)
        self.device = self.values.device

    def gather(
        self,
        rows: NDArray[Any],
        *,
        start: NDArray[Any] | None = None,
        length: NDArray[Any] | None = None,
        pad_to: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return float32 [b, L, dim] with zeros behind the end, and int64 [b], both on the device.

        Raises:
            IndexError: a row is not in the pack.
            ValueError: a window leaves its item, or `pad_to` is below a length.
        """
        first, count, width = self._pack.windows(rows, start, length, pad_to)
        begin = torch.from_numpy(np.ascontiguousarray(first)).to(self.device, non_blocking=True)
        lengths = torch.from_numpy(np.ascontiguousarray(count)).to(self.device, non_blocking=True)
        steps = torch.arange(width, device=self.device)
        real = steps < lengths[:, None]
        if not len(self.values):
            return torch.zeros(len(first), width, self.values.shape[1], device=self.device), lengths
        index = torch.where(real, begin[:, None] + steps, 0)
        return self.values[index].float().masked_fill_(~real[:, :, None], 0.0), lengths


def to_device(pack: Pack, device: str | torch.device) -> DevicePack:
    """Copy a pack to a device."""
    return DevicePack(pack, device)
