"""A small solution for the tests of several processes: `train PRESET --run DIR [--fabric.devices 2]`."""

import atexit
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from kit_core import cli, interrupt
from kit_core.errors import DataError
from kit_train.config import FabricConfig
from kit_train.parallel import in_ranks, open_run

ROWS, WIDTH = 45, 5


@dataclass(frozen=True)
class Config:
    """Settings of the program.

    Attributes:
        batch: rows of a batch over all ranks; 45 rows in batches of 11 leave a last batch of one row.
        fail: what goes wrong in the second epoch, in rank 1.
        stop: the step after which rank 1 is asked to stop, in the first epoch.
    """

    batch: int = 11
    epochs: int = 3
    summed: bool = False
    dropout: float = 0.0
    norm: bool = False
    fail: str = ""
    stop: int = -1
    fabric: FabricConfig = field(default_factory=lambda: FabricConfig(accelerator="cpu"))


@in_ranks
def train(preset: str, config: Config, run: Path, resume: bool = False) -> None:
    """Fit a small network to made-up rows of unlike length."""
    settings = {"config": config, "preset": preset, "data_hashes": {}, "seed": 0, "resume": resume}
    with open_run(run, **settings, parallel=preset != "alone") as folder:
        score = fit(config, folder)
    print(f"score {score:.6f}")


def fit(config, folder):
    import numpy as np
    import torch
    from torch import nn

    from kit_train import ranks
    from kit_train.batches import bucketed_batches, sequential_batches
    from kit_train.fabric import launch
    from kit_train.state import load_state, mixed_seed, restore_rng, rng_state, save_state

    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, ROWS)
    x = torch.from_numpy(generator.normal(size=(ROWS, WIDTH)).astype(np.float32))
    y = x[:, :2].prod(1, keepdim=True) * torch.from_numpy(lengths[:, None].astype(np.float32))
    fabric = launch(config.fabric)
    if config.fail and fabric.world_size > 1:
        atexit.register(os.abort)  # as a process group that lost a peer does now and then
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8) if config.norm else nn.Identity()
    net = nn.Sequential(nn.Linear(WIDTH, 8), norm, nn.Tanh(), nn.Dropout(config.dropout), nn.Linear(8, 1))
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9))
    path, first, first_place = folder.file("checkpoints", "state.pt"), 0, 0
    if path.exists():
        state = load_state(path)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        restore_rng(state["rng"])
        first, first_place = state["epoch"], state["place"]

    def keep(epoch, place):
        places = {"epoch": epoch, "place": place}
        tensors = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(path, tensors | places | {"rng": rng_state()})

    for epoch in range(first, config.epochs):
        batches = bucketed_batches(lengths, config.batch, mixed_seed(0, epoch))
        if config.norm:  # one row of a rank has no variance
            batches = [batch for batch in batches if len(batch) >= 2 * fabric.world_size]
        net.train()
        for place, batch in enumerate(batches):
            if epoch == first and place < first_place:
                continue
            if config.fail and epoch == 1 and place == 1 and fabric.global_rank == 1:
                if config.fail == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise (
                    DataError("row 7: found nonsense") if config.fail == "data" else ZeroDivisionError("one over none")
                )
            if place == config.stop and epoch == 0 and fabric.global_rank == fabric.world_size - 1:
                interrupt.ask()
            part = ranks.share_of_batch(batch, fabric.global_rank, fabric.world_size)
            ranks.seed_of_rank(fabric, mixed_seed(0, epoch, place))
            accumulating = (place + 1) % config.fabric.accumulate != 0 and place + 1 < len(batches)
            with fabric.no_backward_sync(model, enabled=accumulating):
                errors = (model(x[part.rows]) - y[part.rows]).square()
                loss = errors.sum() / 50 * part.weight_of_sum if config.summed else errors.mean() * part.weight
                fabric.backward(loss / config.fabric.accumulate)
            if not accumulating:
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if ranks.stop_asked(fabric, place):
                    if fabric.world_size > 1 and not fabric.global_rank:
                        time.sleep(2)  # as long as a large state takes: the other ranks have ended by then
                    keep(epoch, place + 1)
                    raise interrupt.Interrupted("stopped as asked")
        ranks.share_buffers(fabric, net)
        folder.log(epoch=epoch)
        keep(epoch + 1, 0)

    net.eval()
    answers, places = [np.zeros((0, 1), np.float32)], [np.zeros(0, np.int64)]
    with torch.no_grad():
        for rows in ranks.batches_of_rank(sequential_batches(lengths, 7), fabric.global_rank, fabric.world_size):
            answers.append(net(x[rows]).numpy())
            places.append(rows)
    gathered = ranks.gather_rows(np.concatenate(answers), np.concatenate(places), ROWS)
    score = float(np.square(gathered - y.numpy()).mean())
    folder.finish({"score": score, "ranks": fabric.world_size})
    return score


def main():
    presets = Path(os.environ["PROGRAM_PRESETS"])
    return cli.run("program", {"train": train}, (Config, presets))


if __name__ == "__main__":
    sys.exit(main())
