"""A backbone that has heard no label: two windows of one clip shall be nearer to one another than to other clips."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kit_losses.pairs import nt_xent
from kit_train.batches import random_batches
from kit_train.schedules import cosine, set_learning_rate
from kit_train.state import mixed_seed
from ntua_lab.config import TrainConfig
from ntua_lab.inputs import Inputs, augment
from ntua_lab.model import Network

PROJECTION = 64  # dimensions in which windows are compared; the projection is thrown away afterwards
TEMPERATURE = 0.2


def warm_up(
    network: Network, inputs: Inputs, indices: NDArray[np.int64], settings: TrainConfig, bands: int, seed: int
) -> list[float]:
    """Train the backbone of `network`, in place, for `settings.warm_up` epochs on pairs of windows; heads stay random.

    Args:
        inputs: of windows (`chunk` > 0); both windows of a clip are drawn anew each time and augmented apart.
        indices: the clips to hear, those that the fold fits on.

    Returns:
        The mean loss of every epoch.

    Source: SimCLR, Chen et al., ICML 2020; for music, CLMR, Spijkervet and Burgoyne, ISMIR 2021.
    """
    device = network.mean.device
    torch.manual_seed(seed)
    projection = nn.Sequential(nn.Linear(network.width, PROJECTION), nn.ReLU(), nn.Linear(PROJECTION, PROJECTION))
    projection = projection.to(device)
    optimizer = torch.optim.AdamW(
        [*network.backbone.parameters(), *projection.parameters()],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    per_epoch = max(1, len(indices) // settings.batch)
    losses, step = [], 0
    network.train()
    for epoch in range(settings.warm_up):
        epoch_seed = mixed_seed(seed, epoch)
        drawn, draws = np.random.default_rng(epoch_seed), torch.Generator().manual_seed(epoch_seed)
        found = []
        for places in random_batches(len(indices), settings.batch, epoch_seed)[:per_epoch]:
            set_learning_rate(optimizer, cosine(step, settings.warm_up * per_epoch, warmup=0.1))
            views = [_view(network, inputs, indices[places], settings, bands, drawn, draws) for _ in range(2)]
            labels = torch.arange(len(places), device=device).repeat(2)
            loss = nt_xent(torch.cat([projection(view) for view in views]), labels, temperature=TEMPERATURE)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.backbone.parameters(), settings.clip)
            optimizer.step()
            step += 1
            found.append(float(loss.detach()))
        losses.append(float(np.mean(found)))
    return losses


def _view(
    network: Network,
    inputs: Inputs,
    rows: NDArray[np.int64],
    settings: TrainConfig,
    bands: int,
    drawn: np.random.Generator,
    draws: torch.Generator,
) -> Tensor:
    """What the backbone makes of one random, augmented window of each clip, [b, width]."""
    x, mask = (part.to(network.mean.device) for part in inputs.random(rows, drawn))
    hidden: Tensor = network.backbone(augment(network.standardise(x, mask), settings, bands, draws), mask)
    return hidden
