"""From a configuration to a launched Fabric, which moves modules and batches to their device and precision."""

import logging
import os

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from kit_core.errors import ConfigError
from kit_train.config import FabricConfig
from kit_train.parallel import check_devices
from kit_train.ranks import environment_ranks, join_group

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def launch(config: FabricConfig) -> Fabric:
    """Return a launched Fabric that prints nothing.

    A process that torchrun, SLURM or `kit_train.parallel.in_ranks` started (RANK is in the environment) becomes one
    rank of their number, and `devices` may stay 1. Else more than one device starts the other processes, which run the
    same command from its beginning.

    Raises:
        ConfigError: the accelerator is absent, there are fewer devices than asked for, or another number of processes
            was started than `devices` says.
    """
    devices = max(config.devices, environment_ranks().local_size)
    check_devices(config.accelerator, devices)
    use_gpu = torch.cuda.is_available() and config.accelerator != "cpu"
    ranks = join_group(config.accelerator)
    if "RANK" in os.environ and config.devices not in (1, ranks.local_size):
        raise ConfigError(
            f"fabric.devices: found {config.devices}, but {ranks.local_size} processes were started on this machine; "
            "leave it out, or start as many"
        )
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # it greets and advertises at INFO
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    fabric = Fabric(
        accelerator="cuda" if use_gpu else "cpu",
        devices=devices,
        num_nodes=ranks.nodes,
        strategy="ddp" if devices * ranks.nodes > 1 else "auto",
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]  # both are among Fabric's literals
        # Said outright: Fabric would take any shell inside a SLURM allocation for a job of several processes.
        plugins=[TorchElasticEnvironment() if ranks.size > 1 else LightningEnvironment()],
    )
    fabric.launch()
    return fabric
