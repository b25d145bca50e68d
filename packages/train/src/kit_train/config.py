"""Where and in which precision a loop runs, as a section of a solution's configuration; loads without PyTorch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FabricConfig:
    """Devices and precision of a training loop.

    Attributes:
        devices: processes, one a device; more than one train in parallel (DDP) on shares of each batch.
        accelerator: `auto` takes a GPU where there is one.
        precision: `bfloat16` is mixed: weights and losses stay float32.
        accumulate: batches whose gradients are summed before one step of the optimizer.

    Raises:
        ValueError: `devices` or `accumulate` below 1.
    """

    devices: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("devices", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"fabric.{name}: found {getattr(self, name)}, expected 1 or more")
