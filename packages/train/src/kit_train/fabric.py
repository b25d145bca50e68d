"""From a configuration to a launched Fabric, which moves modules and batches to their device and precision."""

import logging

import torch
from lightning_fabric import Fabric

from kit_core.errors import ConfigError
from kit_train.config import FabricConfig

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def launch(config: FabricConfig) -> Fabric:
    """Return a launched Fabric that prints nothing.

    With more than one device this starts the other processes, which run the same command from its beginning.

    Raises:
        ConfigError: the accelerator is absent, or there are fewer devices than asked for.
    """
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("fabric.accelerator: found no CUDA device; use 'cpu' or 'auto'")
    use_gpu = torch.cuda.is_available() and config.accelerator != "cpu"
    if use_gpu and config.devices > torch.cuda.device_count():
        raise ConfigError(f"fabric.devices: found {config.devices}, but this machine has {torch.cuda.device_count()}")
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # it greets and advertises at INFO
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    fabric = Fabric(
        accelerator="cuda" if use_gpu else "cpu",
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]  # both are among Fabric's literals
    )
    fabric.launch()
    return fabric
