"""What a stopped run needs to go on with the same bits: one file, and the states of all random generators."""

import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit_core.atomic import atomic_path
from kit_core.errors import DataError

FORMAT_VERSION = 1
KIND = "kit_train.state"


def mixed_seed(*parts: int) -> int:
    """Return one seed, 0..2**32-1, from several whole numbers (seed, fold, epoch, ...); near ones give unlike seeds.

    Raises:
        ValueError: a part is negative.
    """
    return int(np.random.SeedSequence(list(parts)).generate_state(1)[0])


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values (nested dicts, lists, numbers, texts), whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save({"kind": KIND, "format_version": FORMAT_VERSION, "state": dict(state)}, temporary)


def load_state(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote, onto a device, without running code from the file.

    Raises:
        DataError: the file is absent, torn, of another program, or of another format version.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums, but does not look at them when it reads
            torn = archive.testzip()
        if torn is not None:
            raise zipfile.BadZipFile(torn)
        stored = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no saved state; train again into another --run") from error
    except Exception as error:  # torch raises whatever the torn place leads to: zip, pickle, key, value, runtime errors
        raise DataError(
            f"{path}: cannot be read as a saved state ({type(error).__name__}); expected a whole file that training "
            "wrote; train again into another --run"
        ) from error
    if not isinstance(stored, dict) or stored.get("kind") != KIND or stored.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{path}: another program's file or format; expected {KIND} {FORMAT_VERSION}; train again")
    state = stored["state"]
    assert isinstance(state, dict)
    return state


def rng_state() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch (CPU and every CUDA device)."""
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    return {
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set the global generators back; CUDA generators only where their number is the same as when they were saved."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy = state["numpy"]
    keys = numpy["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["gauss"]))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
