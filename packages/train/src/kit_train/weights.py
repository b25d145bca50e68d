"""Weights as safetensors, with a header that says how to build the module, and a digest that a changed byte breaks."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kit_core.atomic import write_bytes
from kit_core.errors import DataError

FORMAT_VERSION = 1
ENTRY = "kit_train"


def save_weights(path: str | Path, weights: nn.Module | Mapping[str, Tensor], header: Mapping[str, object]) -> None:
    """Write tensors and a JSON header, whole or not at all.

    Raises:
        TypeError: the header holds something that JSON cannot.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    # Cloned, because safetensors refuses tensors that share memory (tied weights).
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "sha256": _digest(plain),
        "header": json.dumps(dict(header), ensure_ascii=False, allow_nan=False),
    }
    # One entry alone: safetensors writes several in a random order, and equal weights are to give equal files.
    # As bytes, because save_file writes to a hidden name of its own choice, which would stay after a kill.
    write_bytes(path, save(plain, metadata={ENTRY: json.dumps(metadata, ensure_ascii=False)}))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the header.

    Raises:
        DataError: the file is absent, no safetensors file, of another format version, or a byte of it changed.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file of weights; name a run that finished, or train again")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _metadata(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error}); copy it again or train again") from error
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise DataError(
            f"{path}: found format_version {metadata.get('format_version')!r}, expected '{FORMAT_VERSION}'; "
            "use the code that wrote it, or train again"
        )
    if _digest(tensors) != metadata.get("sha256"):
        raise DataError(f"{path}: the tensors do not match their sha256: the file was changed; copy it again")
    try:
        header = json.loads(metadata["header"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: the header is not JSON; copy the file again or train again") from error
    return tensors, header


def _metadata(stored: Mapping[str, str]) -> Mapping[str, Any]:
    """What `save_weights` stated, from its one entry, or from three of their own as they were at first."""
    try:
        found = json.loads(stored[ENTRY]) if ENTRY in stored else stored
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
