"""When to stop: the score has not improved for too long."""

import math
from typing import Any, Literal


class Patience:
    """Count evaluations without a new best score.

    `best` is the best score so far, `exhausted` whether `patience` evaluations in a row brought none; NaN never does.

    Raises:
        ValueError: `patience` below 1.
    """

    def __init__(self, patience: int, mode: Literal["max", "min"] = "max") -> None:
        if patience < 1:
            raise ValueError(f"patience: found {patience}, expected 1 or more evaluations")
        self.patience, self.mode = patience, mode
        self.best = -math.inf if mode == "max" else math.inf
        self.waited = 0

    def update(self, score: float) -> bool:
        """Take a score and return whether it is the best so far."""
        improved = score > self.best if self.mode == "max" else score < self.best
        if improved:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        return improved

    @property
    def exhausted(self) -> bool:
        """Whether to stop."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another Patience was."""
        self.best, self.waited = float(state["best"]), int(state["waited"])
