"""A rank that compares a loss between the rows of a batch, shared and gathered, with the same loss computed alone."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kit_train.config import FabricConfig
from kit_train.fabric import launch
from kit_train.ranks import gather_with_gradient, share_of_batch


class Pairs(nn.Module):
    """An encoder, a gathering, and a loss of all pairs with a weight of its own behind the gathering."""

    def __init__(self, fabric):
        super().__init__()
        self.fabric = fabric
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, n, labels):
        embedded = self.encoder(x)
        if self.fabric is not None:
            embedded = gather_with_gradient(self.fabric, embedded, n)
        unit = functional.normalize(embedded.float(), dim=1)
        logits = (unit @ unit.T * self.scale).masked_fill(torch.eye(n, dtype=torch.bool), -9.0)
        return functional.cross_entropy(logits, labels.roll(1)) + embedded.float().square().sum(0).var()


def main():
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 0.05)):
        fabric = launch(FabricConfig(accelerator="cpu", precision=precision))
        rank, size = fabric.global_rank, fabric.world_size
        for n in (1, 2, 3, 7, 12):  # of three ranks one or two have no row of the first two batches
            torch.manual_seed(n)
            x, labels = torch.randn(n, 4), torch.arange(n)
            alone, together = Pairs(None), Pairs(fabric)
            together.load_state_dict(copy.deepcopy(alone.state_dict()))
            model = fabric.setup_module(together)
            part = share_of_batch(np.arange(n), rank, size)
            loss = model(x[part.rows], n, labels)
            fabric.backward(loss)
            wanted = alone(x, n, labels)
            wanted.backward()
            torch.testing.assert_close(loss.detach(), wanted.detach(), rtol=tolerance, atol=tolerance)
            for (name, mine), one in zip(together.named_parameters(), alone.parameters(), strict=True):
                torch.testing.assert_close(mine.grad, one.grad, rtol=tolerance, atol=tolerance, msg=f"{n} {name}")
    print(f"rank {rank} of {size} agrees")


if __name__ == "__main__":
    main()
