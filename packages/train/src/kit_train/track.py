"""Where the numbers of a run go: one line of JSON an epoch, and tensorboard when asked for."""

import math
import warnings
from types import TracebackType
from typing import Any, Self

from kit_core.run import RunFolder


class Tracker:
    """Log to `metrics.jsonl` of a run folder and, with `tensorboard`, to its folder `tensorboard/`.

    `prefix` (such as "fold2") keeps several trainings of one run apart: it is a field of each line, and a folder of
    tensorboard's.
    """

    def __init__(self, run: RunFolder, tensorboard: bool = False, *, prefix: str = "") -> None:
        self._run, self._prefix = run, prefix
        self._writer: Any = None
        if tensorboard:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations inside tensorboard are not ours to mend
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(run.file("tensorboard", prefix or "run", "events").parent))

    def log(self, step: int, **values: object) -> None:
        """Note values of one step; numbers go to tensorboard too."""
        place = {"part": self._prefix} if self._prefix else {}
        self._run.log(**place, step=step, **values)
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush tensorboard's file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        """Return the tracker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


class NoTracker:
    """A tracker that keeps nothing, for a loop without a run folder, such as in a test."""

    def log(self, step: int, **values: object) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        """Return the tracker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""
