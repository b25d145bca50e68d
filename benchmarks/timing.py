"""How every benchmark here measures: two sides in turn, and peak memory in a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np


def in_turn(
    name: str,
    ours: Callable[[], object],
    peer: str,
    plain: Callable[[], object],
    *,
    required: float | None,
    repeats: int,
) -> dict[str, Any]:
    """One row for `run.py`: `ours` and the peer's `plain`, `repeats` times, each pair right after one another.

    A slow moment of the machine meets both sides of a pair, so the ratio is the median of the pairs' ratios, not the
    ratio of the medians; its spread is the interquartile range of these ratios over their median.
    """
    times = np.array([(seconds(ours), seconds(plain)) for _ in range(repeats)])
    ratios = times[:, 1] / times[:, 0]
    low, ratio, high = (float(value) for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
    ours_seconds, peer_seconds = np.median(times, axis=0)
    return {
        "name": name,
        "ours_seconds": float(ours_seconds),
        "peer": peer,
        "peer_seconds": float(peer_seconds),
        "ratio": ratio,
        "spread": (high - low) / ratio,
        "required_ratio": required,
    }


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    start = perf_counter()
    action()
    return perf_counter() - start


def own_peak_mb() -> float:
    """The most memory that this process has held so far, in MiB (Linux).

    Not `getrusage`: a child takes that figure over from the process that began it.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None, "/proc/self/status has no VmHWM"
    return int(found[1]) / 1024


def in_own_process(program: str, *arguments: object) -> float:
    """Run a program, which may import this folder's modules, and return the one number that it prints."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(done.stdout)
