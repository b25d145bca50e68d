"""Learning rates as factors of a peak: pure functions of the step, so that a resumed run needs nothing remembered.

`Plateau` alone has a state, because it depends on scores.
"""

import math
from typing import Any, Literal

import torch

FIRST_OF_ONE_CYCLE = 1 / 25  # where one_cycle starts, as in torch's OneCycleLR


def one_cycle(step: int, steps: int, *, warmup: float = 0.3, floor: float = 0.0) -> float:
    """Return the factor at `step` of `steps`: up from 1/25 by a half cosine for a share `warmup`, then down to `floor`.

    Source: Smith and Topin 2018, arXiv:1708.07120, with cosine flanks.
    """
    turn = warmup * steps
    if step < turn:
        return 1 - (1 - FIRST_OF_ONE_CYCLE) * _half_cosine(step / turn)
    return floor + (1 - floor) * _half_cosine((step - turn) / max(steps - turn, 1))


def cosine(step: int, steps: int, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Return the factor at `step` of `steps`: a linear rise for a share `warmup`, then half a cosine to `floor`."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return floor + (1 - floor) * _half_cosine((step - rise) / max(steps - rise, 1))


def cyclic_cosine(step: int, cycle: int, floor: float = 0.0) -> float:
    """Return the factor of a half cosine from 1 to `floor` that starts again every `cycle` steps.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, with cycles of one length.
    """
    return floor + (1 - floor) * _half_cosine((step % cycle) / cycle)


class Plateau:
    """Multiply the factor by `factor` when the score has not improved for `patience` calls in a row.

    `value` is the factor now, `reduced` tells whether the last call lowered it (the moment to reload the best weights);
    `minimum` bounds it from below.

    Raises:
        ValueError: a factor outside (0, 1), or `patience` below 1.
    """

    def __init__(
        self, factor: float = 0.5, patience: int = 5, minimum: float = 0.0, mode: Literal["max", "min"] = "max"
    ) -> None:
        if not 0 < factor < 1 or patience < 1:
            raise ValueError(f"found factor {factor} and patience {patience}, expected 0 < factor < 1 and 1 or more")
        self.factor, self.patience, self.minimum, self.mode = factor, patience, minimum, mode
        self.value, self.best, self.waited, self.reduced = 1.0, -math.inf, 0, False

    def step(self, score: float) -> float:
        """Take the score of an evaluation and return the factor from now on."""
        signed = score if self.mode == "max" else -score
        self.reduced = False
        if signed > self.best:
            self.best, self.waited = signed, 0
            return self.value
        self.waited += 1
        if self.waited >= self.patience:
            self.waited = 0
            lower = max(self.value * self.factor, self.minimum)
            self.reduced = lower < self.value
            self.value = lower
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return {"value": self.value, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another Plateau was."""
        self.value, self.best, self.waited = float(state["value"]), float(state["best"]), int(state["waited"])


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every parameter group to peak × `factor`; the peak is the group's `peak`, or its first rate."""
    for group in optimizer.param_groups:
        group.setdefault("peak", group["lr"])
        group["lr"] = group["peak"] * factor


def _half_cosine(share: float) -> float:
    """Return 1 at share 0, falling to 0 at share 1 and behind."""
    return 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))
