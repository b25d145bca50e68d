"""Averages of weights: over the steps of a training (EMA), and of several trained states (SWA)."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of a module's weights and statistics, kept in a copy, `module`, in evaluation mode.

    The decay rises as (1 + t) / (10 + t) to `decay`, so that the random start is forgotten soon.

    Raises:
        ValueError: a decay outside (0, 1).

    Source: Polyak and Juditsky 1992; the warm-up is TensorFlow's ExponentialMovingAverage's.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay: found {decay}, expected 0 < decay < 1")
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after a step of the optimizer."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for averaged, current in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(current.to(averaged.dtype), 1 - decay)
            else:
                averaged.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another average was."""
        self.module.load_state_dict(state["module"])
        self.updates = int(state["updates"])


def mean_of_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of several state dicts of one module; whole numbers (counters) are the last state's.

    Source: Izmailov et al. 2018, arXiv:1803.05407. Statistics of batch normalisation are averaged as well, which is
    right only for states that lie close together.

    Raises:
        ValueError: no state, or states of different modules.
    """
    if not states or any(state.keys() != states[0].keys() for state in states):
        raise ValueError("expected one or more states with the same names")
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(last.dtype)
        if last.is_floating_point()
        else last.clone()
        for name, last in states[-1].items()
    }
