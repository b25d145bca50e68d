"""Vectors of cells from a local Hugging Face folder: checked, encoded once, packed, found again.

    vectors = cell_vectors(view, EncoderConfig(folder=Path("runs/minilm"), cache=Path("runs/vectors")))

Nothing is ever asked of a model hub: the folder holds the checkpoint and its tokenizer. A cell is cut after `tokens`
tokens, the last hidden states are averaged over its tokens and scaled to length 1. Equal texts are encoded once, and
batches hold texts of near-equal length. The pack is a folder named by a digest of the texts, of the encoder's files and
of the settings, so that nothing stale is ever read; a stopped encoding goes on behind its last whole notebook.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from ai4code.config import EncoderConfig
from ai4code.data import Notebooks
from ai4code.features import CellTable, View
from kit_core.console import progress
from kit_core.errors import ConfigError, DataError
from kit_io.ragged import RaggedPack, RaggedWriter, is_finished

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spm.model", "sentencepiece.bpe.model")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
CHARACTERS_PER_TOKEN = 40  # texts are cut there first, to save time: words fill the limit of tokens long before
CHUNK_CELLS = 16_384  # encoded at once: enough to find batches of equal length, little enough for memory and resuming


@dataclass(frozen=True)
class Encoder:
    """A checkpoint with its tokenizer, ready to encode; `digest` names the content of their files."""

    network: nn.Module
    tokenizer: Any  # a transformers tokenizer of the fast kind; the library has no public type for it
    digest: str
    width: int


def encoder_digest(folder: Path) -> str:
    """Digest of what decides the vectors: configuration, tokenizer and weights of a folder.

    Raises:
        ConfigError: no such folder (a hub's name is refused in words).
        DataError: a part of it is missing.
    """
    return _folder_digest(folder, _stamps(folder))


def open_encoder(folder: Path, precision: str = "float32") -> Encoder:
    """Read a local Hugging Face folder; `precision` is that of the arithmetic, float32 or bfloat16.

    Raises:
        ConfigError: no such folder.
        DataError: a part is missing, a file is damaged, or the tokenizer knows words that the
            checkpoint has no vectors for.
    """
    digest = encoder_digest(folder)
    network, tokenizer = _load(folder)
    rows = network.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise DataError(
            f"{folder}: the tokenizer does not match the checkpoint: found {len(tokenizer)} tokens (files "
            f"{_part_digest(folder, TOKENIZER_FILES)[:16]}…), expected at most the {rows} rows of the embedding "
            f"(weights {_part_digest(folder, WEIGHT_FILES)[:16]}…)\n"
            "  do: put the tokenizer files of this very checkpoint there"
        )
    return Encoder(
        network.to(getattr(torch, precision)).eval().requires_grad_(False),
        tokenizer,
        digest,
        network.config.hidden_size,
    )


def tokenize(encoder: Encoder, texts: Sequence[str], tokens: int) -> list[list[int]]:
    """Token numbers of texts, at most `tokens` each, the tokenizer's own marks at both ends.

    Text that looks like a mark (`[SEP]`, `</s>`) is read as the characters it consists of.
    """
    if not len(texts):
        return []
    cut = [text[: tokens * CHARACTERS_PER_TOKEN] for text in texts]
    settings = {"truncation": True, "max_length": tokens, "padding": False, "split_special_tokens": True}
    return [list(ids) for ids in encoder.tokenizer(cut, **settings)["input_ids"]]


@torch.inference_mode()
def encode(encoder: Encoder, texts: Sequence[str], config: EncoderConfig) -> np.ndarray:
    """Vectors of texts: float32 [texts, width], length 1; a text without any token gives zeros."""
    distinct: dict[str, int] = {}
    back = np.array([distinct.setdefault(text, len(distinct)) for text in texts], dtype=np.int64)
    ids = tokenize(encoder, list(distinct), config.tokens)
    lengths = np.array([len(one) for one in ids], dtype=np.int64)
    vectors = np.zeros((len(ids), encoder.width), np.float32)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    pad = encoder.tokenizer.pad_token_id or 0
    for rows in _batches(order, lengths, config.batch_tokens):
        width = int(lengths[rows[0]])
        batch = torch.full((len(rows), width), pad, dtype=torch.long)
        for place, row in enumerate(rows.tolist()):
            batch[place, : lengths[row]] = torch.tensor(ids[row])
        mask = torch.arange(width)[None, :] < torch.from_numpy(lengths[rows])[:, None]
        hidden = encoder.network(input_ids=batch, attention_mask=mask.long()).last_hidden_state.float()
        mean = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        vectors[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
    found: np.ndarray = vectors[back]
    return found


def cell_vectors(view: View, config: EncoderConfig) -> np.ndarray:
    """Vectors of every cell of the view's table: float32 [cells, width]; encoded once for all models of a run.

    Raises:
        ConfigError: there is no encoder folder.
        DataError: it is incomplete or damaged.
    """
    if config.vectors == "singular":
        vectors = view.text.project(view.tfidf, view.table.words.vocabulary)
        return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6)
    table = view.table
    key = (encoder_digest(require_folder(config)), config.tokens, config.precision)
    known = _VECTORS.setdefault(table, {})
    if key not in known:
        known[key] = _packed(table.notebooks, config) if config.cache else _encoded(table.notebooks, config)
    return known[key]


def source_digest(config: EncoderConfig) -> str:
    """What a model keeps of where its vectors came from: the digest of the encoder's folder, or nothing."""
    return "" if config.vectors == "singular" else encoder_digest(require_folder(config))


def require_folder(config: EncoderConfig) -> Path:
    """The folder of the encoder.

    Raises:
        ConfigError: none was given.
    """
    if config.folder is None:
        raise ConfigError(
            "this preset needs a text encoder: give --encoder.folder DIR, a local Hugging Face folder "
            "(`ai4code weights --out DIR` makes one)"
        )
    return config.folder


_VECTORS: WeakKeyDictionary[CellTable, dict[tuple[str, int, str], np.ndarray]] = WeakKeyDictionary()


def _encoded(notebooks: Notebooks, config: EncoderConfig) -> np.ndarray:
    parts = [vectors for _, vectors in _chunks(notebooks, config, 0)]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _packed(notebooks: Notebooks, config: EncoderConfig) -> np.ndarray:
    """Read the pack of these notebooks, or make it first."""
    assert config.cache is not None, "checked by the caller"
    path = config.cache / pack_name(notebooks, config)
    if not is_finished(path):
        _pack(notebooks, config, path)
    pack = RaggedPack.open(path)
    if pack.n != len(notebooks) or not np.array_equal(pack.lengths, notebooks.lengths):
        raise DataError(f"{path}: found {pack.n} notebooks of other sizes, expected these {len(notebooks)}; remove it")
    return pack.values[:].astype(np.float32)


def pack_name(notebooks: Notebooks, config: EncoderConfig) -> str:
    """Name of the pack: a digest of the texts, the encoder and the settings that decide the vectors."""
    digest = sha256(f"{encoder_digest(require_folder(config))} {config.tokens} {config.precision}".encode())
    digest.update(notebooks.offsets.tobytes())
    digest.update("\x00".join(notebooks.sources.to_pylist()).encode())
    return digest.hexdigest()[:32]


def _pack(notebooks: Notebooks, config: EncoderConfig, path: Path) -> None:
    """Encode notebook by notebook into a pack, behind what a stopped run left."""
    encoder = open_encoder(require_folder(config), config.precision)
    if (path / "writer.json").exists():
        writer = RaggedWriter.resume(path)
    else:
        writer = RaggedWriter(path, dim=encoder.width, dtype="float16")
    with writer:
        for rows, vectors in _chunks(notebooks, config, writer.appended, encoder):
            start = 0
            for length in notebooks.lengths[rows].tolist():
                writer.append(vectors[start : start + length])
                start += length


def _chunks(
    notebooks: Notebooks, config: EncoderConfig, first: int, encoder: Encoder | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield notebooks, from the `first` on, with the vectors of all their cells."""
    encoder = encoder or open_encoder(require_folder(config), config.precision)
    chunk_of = (np.cumsum(notebooks.lengths) - 1) // CHUNK_CELLS
    numbers = np.unique(chunk_of[first:])
    for number in progress(numbers.tolist(), label=f"encode, chunks of {CHUNK_CELLS} cells"):
        rows = np.flatnonzero(chunk_of == number)
        rows = rows[rows >= first]
        texts = notebooks.sources.slice(
            int(notebooks.offsets[rows[0]]), int(notebooks.offsets[rows[-1] + 1] - notebooks.offsets[rows[0]])
        )
        yield rows, encode(encoder, texts.to_pylist(), config)


def _batches(order: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cut rows, longest first, where rows × longest would pass the budget of tokens."""
    start = 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _load(folder: Path) -> tuple[Any, Any]:
    """Let transformers read a folder, telling its many kinds of failure as one."""
    from transformers import AutoModel, AutoTokenizer  # seconds to load: only where a checkpoint is read

    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
            network = AutoModel.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # safetensors, json, pickle, key and size errors: whatever the torn place leads to
            raise DataError(
                f"{folder}: transformers cannot read this model folder: {str(error).splitlines()[0]}\n"
                "  expected: config.json, weights and tokenizer of one checkpoint\n  do: copy the folder again"
            ) from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise DataError(f"{folder}: found no fast tokenizer; expected tokenizer.json; convert the tokenizer")
    return network, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notes off the terminal."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of the files that matter, so that a digest is not computed twice."""
    if not folder.is_dir():
        raise ConfigError(
            f"encoder.folder: found no folder {str(folder)!r}; names of a model hub are never resolved here: download "
            "the model where there is a network, and give its folder (`ai4code weights --out DIR` makes a small one)"
        )
    names = ("config.json", *TOKENIZER_FILES, *WEIGHT_FILES)
    found = [folder / name for name in names if (folder / name).is_file()]
    present = {path.name for path in found}
    wanted: list[tuple[str, Sequence[str]]] = [
        ("config.json", ("config.json",)),
        ("a tokenizer", TOKENIZER_FILES),
        ("weights", WEIGHT_FILES),
    ]
    for what, any_of in wanted:
        if not present & set(any_of):
            raise DataError(
                f"{folder}: found no {what} ({' or '.join(any_of)}); expected the folder of a checkpoint as "
                "transformers' save_pretrained writes it; copy it whole"
            )
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found)


@lru_cache(maxsize=16)
def _folder_digest(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    return _part_digest(folder, [name for name, _, _ in stamps])


def _part_digest(folder: Path, names: Sequence[str]) -> str:
    digest = sha256()
    for name in sorted(names):
        path = folder / name
        if path.is_file():
            digest.update(name.encode() + b"\0" + os.fsencode(str(path.stat().st_size)) + b"\0")
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()
