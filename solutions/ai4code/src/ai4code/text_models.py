"""Text encoders that are trained with their task, and the members that read cells with them.

`pointwise` reads a markdown cell beside some twenty evenly spaced code cells and says its place. `pairwise` reads it
beside one code cell and says whether it stands before it; the gap of fewest expected inversions is taken. Both are one
network over one sequence, [CLS] markdown [SEP] code [SEP] code …. `text-listwise` is the notebook transformer with its
cell vectors from such an encoder, trained as one. `seed-listwise` scores all cells of a notebook by ListNet.

The encoder starts from random weights with a tokenizer trained on the fitted notebooks, or from a local Hugging Face
folder; either may first learn to guess masked words of the fitted notebooks. What a fold keeps is whole: weights with
what rebuilds them, and the tokenizer. Marks in the texts of cells are read as the characters they consist of.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from ai4code.boosting import between
from ai4code.config import EncoderConfig, NotebookConfig, TransformerConfig
from ai4code.data import Notebooks
from ai4code.decode import Placement
from ai4code.encoder import CHARACTERS_PER_TOKEN, open_encoder, require_folder
from ai4code.features import View
from ai4code.network import Answer, NotebookNet
from ai4code.neural import (
    ONE_PROCESS,
    Log,
    answer_items,
    answerable,
    device,
    fit_network,
    fit_statistics,
    gap_loss,
    mean_code_cells,
    silent,
    stored_config,
    weight_groups,
)
from ai4code.sequences import Batch, Item, make_items
from ai4code.tokenizer import SPECIAL_TOKENS, token_analyzer, train_tokenizer
from kit_core.atomic import write_text
from kit_core.errors import ConfigError
from kit_nn.encoders import TransformerEncoder
from kit_nn.pooling import masked_mean
from kit_train.batches import bucketed_batches, sequential_batches
from kit_train.config import FabricConfig
from kit_train.fabric import launch
from kit_train.ranks import draws_of_rank, mean_of_ranks, share_of_batch
from kit_train.schedules import cosine, set_learning_rate
from kit_train.state import load_state, mixed_seed, save_state
from kit_train.weights import load_weights, save_weights

IGNORED = -100  # torch's mark for places that a cross-entropy leaves out
SHARPEST = 4.0  # ListNet's target is softmax(−4 · rank / last): the first cell counts e⁴ times the last, not e^n


@dataclass(frozen=True)
class Marks:
    """Token numbers with a meaning."""

    pad: int
    cls: int
    sep: int
    mask: int


OWN_MARKS = Marks(*(SPECIAL_TOKENS.index(name) for name in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")))


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of every cell of a table: `ids[offsets[i]:offsets[i + 1]]`, at most `limit` a cell."""

    ids: np.ndarray
    offsets: np.ndarray
    limit: int

    def of(self, row: int, limit: int) -> np.ndarray:
        """The first tokens of a cell."""
        start = int(self.offsets[row])
        return self.ids[start : min(start + limit, int(self.offsets[row + 1]))]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tokens":
        """Tokens do not change, so a copy of a network shares them."""
        return self


def cell_tokens(tokenizer: Tokenizer, notebooks: Notebooks, limit: int) -> Tokens:
    """Tokenise all cells once, on all cores, without marks of the tokenizer's own."""
    tokenizer.encode_special_tokens = True
    analyze = token_analyzer(tokenizer)
    ids, offsets = analyze([(text or "")[: limit * CHARACTERS_PER_TOKEN] for text in notebooks.sources.to_pylist()])
    kept = np.minimum(np.diff(offsets), limit)
    starts = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    inside = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets)) < limit
    return Tokens(ids[inside], starts, limit)


class CellEncoder(nn.Module):
    """Token numbers → hidden states [n, T, width]: a small transformer from scratch, or a checkpoint's network."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Make fresh weights from `settings`: {"checkpoint": its configuration}, or vocabulary and sizes."""
        super().__init__()
        self.settings = settings
        self.marks = Marks(**settings["marks"])
        if "checkpoint" in settings:
            from transformers import AutoConfig, AutoModel  # seconds to load: only where a checkpoint is used

            stored = dict(settings["checkpoint"])
            self.network: nn.Module = AutoModel.from_config(AutoConfig.for_model(stored.pop("model_type"), **stored))
            self.width = int(self.network.config.hidden_size)
            self.longest = int(getattr(self.network.config, "max_position_embeddings", 512)) - 2
        else:
            self.width, self.longest = settings["width"], 512
            self.embedding = nn.Embedding(settings["vocab_size"], self.width)
            nn.init.normal_(self.embedding.weight, std=0.05)
            sizes = (self.width, settings["layers"], settings["heads"], 2 * self.width, settings["dropout"])
            self.network = TransformerEncoder(*sizes, positions="learned")

    @property
    def word_vectors(self) -> nn.Embedding:
        """The table of token vectors."""
        if "checkpoint" in self.settings:
            table = self.network.get_input_embeddings()  # type: ignore[operator]  # a transformers network
            assert isinstance(table, nn.Embedding)
            return table
        return self.embedding

    def forward(self, ids: Tensor, padding: Tensor, added: Tensor | None = None) -> Tensor:
        """Read int64 [n, T] tokens; `added` float [n, T, width] is added to their vectors."""
        vectors = self.word_vectors(ids)
        if added is not None:
            vectors = vectors + added
        if "checkpoint" in self.settings:
            hidden: Tensor = self.network(inputs_embeds=vectors, attention_mask=(~padding).long()).last_hidden_state
            return hidden
        hidden = self.network(vectors, padding)
        return hidden


def start_encoder(
    view: View,
    config: TransformerConfig,
    encoder: EncoderConfig,
    seed: int,
    log: Log,
    fabric_config: FabricConfig = ONE_PROCESS,
) -> tuple[CellEncoder, Tokenizer]:
    """Make the encoder that training starts from, and its tokenizer; masked words first, where that is asked for.

    Raises:
        ConfigError, DataError: a folder is needed, and it is missing, incomplete or damaged.
        ConfigError: cells are to be read that are longer than the encoder can take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.start == "folder":
            opened = open_encoder(require_folder(encoder))
            names = ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
            found = [getattr(opened.tokenizer, name) for name in names]
            first = next(number for number in [*found[1:], 0] if number is not None)
            marks = Marks(*(first if number is None else number for number in found))
            settings: Any = opened.network.config  # a transformers configuration
            stored = json.loads(settings.to_json_string(use_diff=False))
            made = CellEncoder({"checkpoint": stored, "marks": asdict(marks)})
            made.network.load_state_dict(opened.network.state_dict())
            pooler = getattr(made.network, "pooler", None)
            if isinstance(pooler, nn.Module):  # never asked: ranks would wait for its gradient
                pooler.requires_grad_(False)
            tokenizer = Tokenizer.from_str(opened.tokenizer.backend_tokenizer.to_str())
            tokenizer.no_truncation()
            tokenizer.no_padding()
        else:
            tokenizer = train_tokenizer(
                view.table.notebooks, view.indices, kind=config.tokenizer, vocab_size=config.vocab_size, seed=seed
            )
            fabric = launch(fabric_config)
            if fabric.world_size > 1:  # batches follow from tokens: all must have the same
                tokenizer = Tokenizer.from_str(fabric.broadcast(tokenizer.to_str()))
            sizes = {name: getattr(config, name) for name in ("width", "layers", "heads", "dropout")}
            vocabulary = {"vocab_size": tokenizer.get_vocab_size(), "marks": asdict(OWN_MARKS)}
            made = CellEncoder(sizes | vocabulary)
        limit = max(config.markdown_tokens, config.code_tokens)
        _require_length("cells", limit + 2, made)  # its marks at both ends
        if config.masked_epochs:
            tokens = cell_tokens(tokenizer, view.table.notebooks, limit)
            learn_masked_words(made, tokens, view.rows, config, seed, log, fabric_config)
    return made, tokenizer


def _require_length(what: str, longest: int, encoder: CellEncoder) -> None:
    if longest > encoder.longest:
        raise ConfigError(
            f"transformer: found {what} of up to {longest} tokens, expected at most the {encoder.longest} of the "
            "encoder; lower shared_tokens, code_tokens or markdown_tokens"
        )


# --- masked words ---


class MaskedWords(nn.Module):
    """An encoder and a head: tokens [n, T] → scores of all words at the places `asked`, float [asked, words]."""

    def __init__(self, encoder: CellEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.width
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))

    def forward(self, ids: Tensor, padding: Tensor, asked: Tensor) -> Tensor:
        hidden = self.head(self.encoder(ids, padding))
        return hidden[asked] @ self.encoder.word_vectors.weight.T


def learn_masked_words(
    encoder: CellEncoder,
    tokens: Tokens,
    rows: np.ndarray,
    config: TransformerConfig,
    seed: int,
    log: Log,
    fabric_config: FabricConfig = ONE_PROCESS,
) -> None:
    """Train an encoder, in place, to guess masked words of the cells `rows` (Devlin et al. 2018, arXiv:1810.04805).

    15 % of the tokens are asked: 80 % of these are masked, 10 % replaced, 10 % left. The scores are products with the
    encoder's own token vectors.
    """
    fabric = launch(fabric_config)
    place = fabric.device
    words = encoder.word_vectors.num_embeddings
    both = MaskedWords(encoder).to(place).train()
    share = config.folder_rate if "checkpoint" in encoder.settings else 1.0
    rates = weight_groups(
        both, config.learning_rate, config.weight_decay, lambda name: share if name.startswith("encoder") else 1.0
    )
    model, optimizer = fabric.setup(both, torch.optim.AdamW(rates))
    lengths = np.diff(tokens.offsets)[rows] + 2
    kept = rows[lengths > 3]
    lengths = lengths[lengths > 3]
    for epoch in range(config.masked_epochs):
        draw = mixed_seed(seed, 7, epoch)
        torch.manual_seed(draw)
        batches = bucketed_batches(lengths, 4096, draw, frames_budget=config.batch_tokens)
        total = 0.0
        for step, chosen in enumerate(batches):
            set_learning_rate(
                optimizer, cosine(epoch * len(batches) + step, config.masked_epochs * len(batches), warmup=0.05)
            )
            sequences = [_framed(encoder.marks, tokens.of(row, tokens.limit)) for row in kept[chosen].tolist()]
            ids, padding = (part.to(place) for part in pad_sequences(sequences, encoder.marks.pad))
            given, wanted = mask_tokens(ids, padding, encoder.marks, words)
            asked = wanted != IGNORED
            part = share_of_batch(np.arange(len(chosen)), fabric.global_rank, fabric.world_size)
            in_batch = int(asked.sum())
            given, padding, wanted, asked = (values[part.rows] for values in (given, padding, wanted, asked))
            # The mean over the words asked in the batch, whose number is not the same in every share.
            weight = fabric.world_size * int(asked.sum()) / max(in_batch, 1) if part.weight else 0.0
            accumulating = (step + 1) % fabric_config.accumulate != 0 and step + 1 < len(batches)
            with fabric.no_backward_sync(model, enabled=accumulating):
                with draws_of_rank(fabric, mixed_seed(draw, step)):
                    scores = model(given, padding, asked)
                loss = functional.cross_entropy(scores, wanted[asked]) * weight if asked.any() else scores.sum()
                fabric.backward(loss / fabric_config.accumulate)
            if not accumulating:
                nn.utils.clip_grad_norm_(both.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            total += loss.item()
        log(stage="masked words", epoch=epoch, loss=mean_of_ranks(fabric, total) / max(len(batches), 1))
    encoder.cpu()


def mask_tokens(ids: Tensor, padding: Tensor, marks: Marks, words: int) -> tuple[Tensor, Tensor]:
    """Choose what is asked: (tokens as given to the encoder, tokens wanted or IGNORED), int64 [n, T] each."""
    own = (ids == marks.cls) | (ids == marks.sep) | padding
    asked = (torch.rand(ids.shape, device=ids.device) < 0.15) & ~own
    fate = torch.rand(ids.shape, device=ids.device)
    given = torch.where(asked & (fate < 0.8), marks.mask, ids)
    given = torch.where(asked & (fate >= 0.9), torch.randint_like(ids, words), given)
    return given, torch.where(asked, ids, IGNORED)


def _framed(marks: Marks, ids: np.ndarray) -> np.ndarray:
    return np.concatenate([[marks.cls], ids, [marks.sep]])


def pad_sequences(sequences: Sequence[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Put token numbers side by side: int64 [n, T] and padding bool [n, T]."""
    width = max(len(one) for one in sequences)
    ids = np.full((len(sequences), width), pad, np.int64)
    padding = np.ones((len(sequences), width), bool)
    for place, one in enumerate(sequences):
        ids[place, : len(one)] = one
        padding[place, : len(one)] = False
    return torch.from_numpy(ids), torch.from_numpy(padding)


# --- a markdown cell beside code cells ---


@dataclass(frozen=True, eq=False)
class Example:
    """A markdown cell, the code cells beside it (numbers within the notebook), and what is wanted of it."""

    item: Item
    markdown: int
    code: np.ndarray
    target: float = 0.0
    weight: float = 1.0


def context_cells(n_code: int, contexts: int) -> np.ndarray:
    """Evenly spaced code cells, the first and the last among them: int64 [at most `contexts`]."""
    return np.unique(np.linspace(0, n_code - 1, min(n_code, contexts)).round().astype(np.int64))


def shared_budget(lengths: np.ndarray, budget: int) -> np.ndarray:
    """Share a budget of tokens: no cell gets more than it has, and what short cells leave goes to the others."""
    granted = np.zeros_like(lengths)
    left, open_cells = budget, np.flatnonzero(lengths > 0)
    while left > 0 and len(open_cells):
        each = max(1, left // len(open_cells))
        for cell in open_cells[: left if each == 1 else None]:
            more = min(each, int(lengths[cell] - granted[cell]))
            granted[cell] += more
            left -= more
        open_cells = open_cells[granted[open_cells] < lengths[open_cells]]
    return granted


def sequence_of(example: Example, tokens: Tokens, marks: Marks, config: TransformerConfig) -> tuple[np.ndarray, ...]:
    """Token numbers and the slot of each: 0 for the markdown cell, 1 and on for the code cells: int64 [T] each.

    One code cell has its own limit, several share a budget. Nothing is cut off behind: the last code cell is there.
    """
    first = example.item.first_row
    parts = [np.concatenate([[marks.cls], tokens.of(first + example.markdown, config.markdown_tokens)])]
    cells = [tokens.of(first + code, tokens.limit) for code in example.code.tolist()]
    budget = config.code_tokens if len(cells) == 1 else config.shared_tokens
    for cell, granted in zip(cells, shared_budget(np.array([len(cell) for cell in cells]), budget), strict=True):
        parts.append(np.concatenate([[marks.sep], cell[:granted]]))
    slots = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate(parts).astype(np.int64), slots


class SequenceNet(nn.Module):
    """Sequences with slots, and three numbers on the notebook, → one logit each."""

    def __init__(self, encoder: CellEncoder, slots: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.slot = nn.Embedding(slots, encoder.width)
        nn.init.normal_(self.slot.weight, std=0.02)
        self.leave = nn.Sequential(
            nn.Linear(2 * encoder.width + 3, encoder.width), nn.GELU(), nn.Linear(encoder.width, 1)
        )

    def forward(self, ids: Tensor, slots: Tensor, padding: Tensor, sizes: Tensor) -> Tensor:
        hidden = self.encoder(ids, padding, self.slot(slots))
        pooled = torch.cat([hidden[:, 0], masked_mean(hidden, padding), sizes], dim=1)
        return self.leave(pooled).squeeze(-1)


def sequence_batch(
    examples: Sequence[Example], tokens: Tokens, marks: Marks, config: TransformerConfig, place: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of `SequenceNet` for some examples."""
    pairs = [sequence_of(example, tokens, marks, config) for example in examples]
    ids, padding = pad_sequences([pair[0] for pair in pairs], marks.pad)
    slots, _ = pad_sequences([pair[1] for pair in pairs], 0)
    sizes = [(example.item.n_code, example.item.n_cells - example.item.n_code) for example in examples]
    numbers = [[math.log1p(code) / 3, math.log1p(text) / 3, text / (code + text)] for code, text in sizes]
    return ids.to(place), slots.to(place), padding.to(place), torch.tensor(numbers).to(place)


def example_length(example: Example, tokens: Tokens, config: TransformerConfig) -> int:
    """Tokens of the sequence that `sequence_of` makes."""
    budget = config.code_tokens if len(example.code) == 1 else config.shared_tokens
    rows = example.item.first_row + example.code
    code = int(np.minimum(tokens.offsets[rows + 1] - tokens.offsets[rows], budget).sum())
    row = example.item.first_row + example.markdown
    return (
        1
        + min(int(tokens.offsets[row + 1] - tokens.offsets[row]), config.markdown_tokens)
        + min(code, budget)
        + len(rows)
    )


def fit_sequences(
    network: SequenceNet,
    examples_of: Callable[[np.random.Generator], list[Example]],
    tokens: Tokens,
    config: TransformerConfig,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    seed: int,
    log: Log,
    state: Path | None,
    fabric_config: FabricConfig = ONE_PROCESS,
) -> None:
    """Train in place on fresh examples every epoch; `loss_of` takes logits, targets and weights, and is a mean.

    A stopped training goes on behind its last whole epoch, with the same bits.
    """
    fabric = launch(fabric_config)
    place = fabric.device
    network.to(place).train()
    marks = network.encoder.marks
    share = config.folder_rate if config.start == "folder" else 1.0
    groups = weight_groups(
        network,
        config.learning_rate,
        config.weight_decay,
        lambda name: share if name.startswith("encoder.") else 1.0,
    )
    optimizer = torch.optim.AdamW(groups)
    first = 0
    if state is not None and state.exists():
        kept = load_state(state, place)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["epoch"]
    model, optimizer = fabric.setup(network, optimizer)
    for epoch in range(first, config.epochs):
        draw = mixed_seed(seed, 11, epoch)
        torch.manual_seed(draw)
        examples = examples_of(np.random.default_rng(draw))
        lengths = np.array([example_length(example, tokens, config) for example in examples], dtype=np.int64)
        batches = bucketed_batches(lengths, 4096, draw, frames_budget=config.batch_tokens)
        total = 0.0
        for step, rows in enumerate(batches):
            set_learning_rate(optimizer, cosine(epoch * len(batches) + step, config.epochs * len(batches), warmup=0.05))
            part = share_of_batch(rows, fabric.global_rank, fabric.world_size)
            chosen = [examples[row] for row in part.rows.tolist()]
            inputs = sequence_batch(chosen, tokens, marks, config, place)
            target = torch.tensor([example.target for example in chosen], device=place)
            weight = torch.tensor([example.weight for example in chosen], device=place)
            accumulating = (step + 1) % fabric_config.accumulate != 0 and step + 1 < len(batches)
            with fabric.no_backward_sync(model, enabled=accumulating):
                with draws_of_rank(fabric, mixed_seed(draw, step)):
                    logits = model(*inputs)
                loss = loss_of(logits, target, weight) * part.weight
                fabric.backward(loss / fabric_config.accumulate)
            if not accumulating:
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            total += loss.item() * len(rows)
        log(epoch=epoch, loss=mean_of_ranks(fabric, total) / max(len(examples), 1))
        if state is not None:
            save_state(
                state, {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            )


def place_distance(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean distance of relative places, weighted by the number of code cells."""
    return ((logits.sigmoid() - target).abs() * weight).mean()


def before_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of "the markdown cell stands before the code cell"."""
    return functional.binary_cross_entropy_with_logits(logits, target, weight=weight)


@torch.inference_mode()
def sequence_logits(
    network: SequenceNet, examples: Sequence[Example], tokens: Tokens, config: TransformerConfig
) -> np.ndarray:
    """Logits of examples: float64 [examples]."""
    place = device()
    network.to(place).eval()
    logits = np.zeros(len(examples))
    lengths = np.array([example_length(example, tokens, config) for example in examples], dtype=np.int64)
    for rows in sequential_batches(lengths, 4096, frames_budget=2 * config.batch_tokens):
        chosen = [examples[row] for row in rows.tolist()]
        inputs = sequence_batch(chosen, tokens, network.encoder.marks, config, place)
        logits[rows] = network(*inputs).double().cpu().numpy()
    network.cpu()
    return logits


@dataclass(frozen=True, eq=False)
class Sequences:
    """`pointwise` and `pairwise`: a markdown cell beside code cells, in one sequence."""

    kind: Literal["pointwise", "pairwise"]
    network: SequenceNet
    tokenizer: Tokenizer
    config: TransformerConfig

    @classmethod
    def fit(
        cls,
        kind: Literal["pointwise", "pairwise"],
        view: View,
        config: TransformerConfig,
        encoder: EncoderConfig,
        seed: int,
        log: Log = silent,
        state: Path | None = None,
        fabric_config: FabricConfig = ONE_PROCESS,
    ) -> Self:
        """Learn from the notebooks of the view; raises as `start_encoder`."""
        items = [item for item in make_items(view, None, with_maps=False) if answerable(item)]
        mean_code = mean_code_cells(items)
        with torch.random.fork_rng(devices=[]):  # dropout draws from the global state, which is given back
            started, tokenizer = start_encoder(view, config, encoder, seed, log, fabric_config)
            torch.manual_seed(mixed_seed(seed, 13))
            network = SequenceNet(started, config.contexts + 1)
            tokens = _tokens_for(network.encoder, tokenizer, view, config)

            def examples_of(rng: np.random.Generator) -> list[Example]:
                if kind == "pointwise":
                    return [one for item in items for one in _places(item, config, mean_code)]
                return [one for item in items for one in _drawn_pairs(item, config, rng)]

            fit_sequences(
                network,
                examples_of,
                tokens,
                config,
                place_distance if kind == "pointwise" else before_loss,
                seed=seed,
                log=log,
                state=state,
                fabric_config=fabric_config,
            )
        return cls(kind, network.cpu().eval(), tokenizer, config)

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""
        items = make_items(view, None, with_maps=False)
        tokens = _tokens_for(self.network.encoder, self.tokenizer, view, self.config)
        asked = [item for item in items if answerable(item)]
        if self.kind == "pointwise":
            examples = [one for item in asked for one in _places(item, self.config, 1.0)]
        else:
            examples = [one for item in asked for one in _all_pairs(item, self.config)]
        logits = iter(sequence_logits(self.network, examples, tokens, self.config).tolist())
        return [self._placement(item, logits) if answerable(item) else _nothing_to_decide(item) for item in items]

    def _placement(self, item: Item, logits: Iterator[float]) -> Placement:
        n_markdown = item.n_cells - item.n_code
        if self.kind == "pointwise":
            shares = 1.0 / (1.0 + np.exp(-np.array([next(logits) for _ in range(n_markdown)])))
            return Placement(shares * item.n_code)
        cells = context_cells(item.n_code, self.config.contexts)
        scores = np.array([[next(logits) for _ in cells] for _ in range(n_markdown)])
        return Placement(fewest_inversions(1.0 / (1.0 + np.exp(-scores)), cells, item.n_code))

    def save(self, folder: Path) -> None:
        """Write weights and tokenizer."""
        header = {"kind": self.kind, "config": asdict(self.config), "encoder": self.network.encoder.settings}
        write_text(folder / f"{self.kind}.tokenizer.json", self.tokenizer.to_str())
        save_weights(folder / f"{self.kind}.safetensors", self.network, header)

    @classmethod
    def load(cls, kind: Literal["pointwise", "pairwise"], folder: Path) -> Self:
        """Read what `save` wrote."""
        weights, header = load_weights(folder / f"{kind}.safetensors")
        config = TransformerConfig(**header["config"])
        network = SequenceNet(CellEncoder(header["encoder"]), config.contexts + 1)
        network.load_state_dict(weights)
        return cls(kind, network.eval(), _read_tokenizer(folder / f"{kind}.tokenizer.json"), config)


def fewest_inversions(before: np.ndarray, cells: np.ndarray, n_code: int) -> np.ndarray:
    """The gap of fewest expected inversions, float64 [M], from probabilities to stand before some code cells.

    Args:
        before: float64 [M, cells], the probability to stand before each of the code cells `cells`; for the others it
            is read off the line between their neighbours.
    """
    everywhere = np.stack([np.interp(np.arange(n_code), cells, row) for row in before])
    # In gap g the cell stands behind the code cells up to g and before the others.
    behind = np.concatenate([np.zeros((len(before), 1)), np.cumsum(everywhere, axis=1)], axis=1)
    ahead = np.concatenate([np.zeros((len(before), 1)), np.cumsum(1.0 - everywhere, axis=1)], axis=1)
    cost = np.round(behind + ahead[:, -1:] - ahead, 9)
    best = cost == cost.min(axis=1, keepdims=True)
    middle: np.ndarray = (best * np.arange(n_code + 1)).sum(axis=1) / best.sum(axis=1)  # equal gaps: their middle
    return middle


def _places(item: Item, config: TransformerConfig, mean_code: float) -> list[Example]:
    cells = context_cells(item.n_code, config.contexts)
    gaps = _gaps_of(item)
    weight = item.n_code / mean_code
    return [
        Example(item, markdown, cells, gap / item.n_code, weight)
        for markdown, gap in zip(range(item.n_code, item.n_cells), gaps.tolist(), strict=True)
    ]


def _drawn_pairs(item: Item, config: TransformerConfig, rng: np.random.Generator) -> list[Example]:
    gaps = _gaps_of(item)
    return [
        Example(item, markdown, np.array([code]), float(gap <= code))
        for markdown, gap in zip(range(item.n_code, item.n_cells), gaps.tolist(), strict=True)
        for code in rng.integers(0, item.n_code, config.negatives).tolist()
    ]


def _all_pairs(item: Item, config: TransformerConfig) -> list[Example]:
    cells = context_cells(item.n_code, config.contexts)
    return [
        Example(item, markdown, cells[k : k + 1])
        for markdown in range(item.n_code, item.n_cells)
        for k in range(len(cells))
    ]


def _gaps_of(item: Item) -> np.ndarray:
    """True gaps of the markdown cells, 0 where the order is unknown."""
    if item.rank is None:
        return np.zeros(item.n_cells - item.n_code, np.int64)
    return np.searchsorted(item.rank[: item.n_code], item.rank[item.n_code :])


def _nothing_to_decide(item: Item) -> Placement:
    return Placement.from_gap_scores(np.ones((item.n_cells - item.n_code, item.n_code + 1)))


def _tokens_for(encoder: CellEncoder, tokenizer: Tokenizer, view: View, config: TransformerConfig) -> Tokens:
    longest = config.markdown_tokens + max(config.code_tokens, config.shared_tokens) + config.contexts + 2
    _require_length("sequences", longest, encoder)
    limit = max(config.markdown_tokens, config.code_tokens, config.shared_tokens)
    return cell_tokens(tokenizer, view.table.notebooks, limit)


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exceptions for damaged files
        raise ValueError(f"{path.name}: found no tokenizer ({error})") from error


# --- whole notebooks ---


class TextNotebookNet(nn.Module):
    """The notebook transformer over vectors of cells that an encoder makes from their tokens, trained as one."""

    def __init__(self, encoder: CellEncoder, config: NotebookConfig, limits: tuple[int, int]) -> None:
        """`limits` are the tokens read of a code cell and of a markdown cell."""
        super().__init__()
        self.encoder, self.limits = encoder, limits
        self.notebook = NotebookNet(config, encoder.width)
        self.tokens: Tokens | None = None

    def forward(self, batch: Batch) -> list[Answer]:
        vectors = cell_vectors_of(self.encoder, self.tokens, batch, self.limits)
        answers: list[Answer] = self.notebook(replace(batch, vectors=vectors))
        return answers


class SeedNet(nn.Module):
    """A score for every cell: an encoder of cells, a transformer among the cells without places, one linear layer."""

    def __init__(self, encoder: CellEncoder, config: NotebookConfig, limits: tuple[int, int]) -> None:
        super().__init__()
        self.encoder, self.limits = encoder, limits
        self.enter = nn.Linear(encoder.width, config.width)
        self.kind = nn.Embedding(3, config.width)
        self.cells = TransformerEncoder(config.width, config.layers, config.heads, 2 * config.width, config.dropout)
        self.leave = nn.Linear(config.width, 1)
        self.tokens: Tokens | None = None

    def forward(self, batch: Batch) -> Tensor:
        vectors = cell_vectors_of(self.encoder, self.tokens, batch, self.limits)
        hidden = self.cells(self.enter(vectors) + self.kind(batch.kind), batch.padding)
        return self.leave(hidden).squeeze(-1)


def cell_vectors_of(encoder: CellEncoder, tokens: Tokens | None, batch: Batch, limits: tuple[int, int]) -> Tensor:
    """Encode the cells of a batch, longest sequences apart from short ones: float [B, C + M, width], unit length."""
    assert tokens is not None, "the network was not given the tokens of these notebooks"
    places, sequences = [], []
    for i, sample in enumerate(batch.samples):
        columns = [*range(len(sample.code)), *range(batch.width, batch.width + len(sample.asked))]
        for column, cell in zip(columns, [*sample.code.tolist(), *sample.asked.tolist()], strict=True):
            places.append((i, column))
            limit = limits[int(cell >= sample.item.n_code)]
            sequences.append(_framed(encoder.marks, tokens.of(sample.item.first_row + cell, limit)))
    where = torch.tensor(places, device=batch.padding.device)
    lengths = np.array([len(one) for one in sequences], dtype=np.int64)
    vectors = torch.zeros(*batch.padding.shape, encoder.width, device=batch.padding.device)
    order = np.argsort(lengths, kind="stable")
    for rows in np.array_split(order, min(4, len(order))):
        ids, padding = pad_sequences([sequences[row] for row in rows.tolist()], encoder.marks.pad)
        ids, padding = ids.to(vectors.device), padding.to(vectors.device)
        pooled = functional.normalize(masked_mean(encoder(ids, padding), padding), dim=1)
        chosen = where[torch.from_numpy(rows).to(where.device)]
        vectors = vectors.index_put((chosen[:, 0], chosen[:, 1]), pooled.to(vectors.dtype))
    return vectors


def listnet_loss(scores: Tensor, batch: Batch) -> Tensor:
    """ListNet (Cao et al. 2007): cross-entropy of two distributions over all cells, wanted and said.

    The wanted one falls by the same factor from any cell to the next, over the whole notebook, not within its first few
    cells. A score is the higher the earlier a cell stands.
    """
    rank = torch.zeros_like(scores)
    for i, sample in enumerate(batch.samples):
        assert sample.item.rank is not None
        order = np.argsort(np.argsort(np.concatenate([sample.item.rank[sample.code], sample.item.rank[sample.asked]])))
        place = torch.from_numpy(order).to(scores)
        rank[i, : len(sample.code)] = place[: len(sample.code)]
        rank[i, batch.width : batch.width + len(sample.asked)] = place[len(sample.code) :]
    last = ((~batch.padding).sum(dim=1, keepdim=True) - 1).clamp(min=1)
    wanted = (-SHARPEST * rank / last).masked_fill(batch.padding, -torch.inf).softmax(dim=1)
    said = scores.masked_fill(batch.padding, -torch.inf).log_softmax(dim=1).masked_fill(batch.padding, 0.0)
    return -(wanted * said).sum(dim=1).sum() / batch.divisor(torch.tensor(len(scores), device=scores.device))


def score_places(network: nn.Module, batch: Batch) -> list[Placement]:
    """Placements from scores of all cells: the sorted scores of the code cells are the axis."""
    late = -network(batch).double().cpu().numpy()
    placements = []
    for i, sample in enumerate(batch.samples):
        code = np.sort(late[i, : len(sample.code)])
        placements.append(Placement(between(code, late[i, batch.width : batch.width + len(sample.asked)])))
    return placements


@dataclass(frozen=True, eq=False)
class TextListwise:
    """`text-listwise` and `seed-listwise`: whole notebooks, the text encoder trained with the task."""

    kind: Literal["text-listwise", "seed-listwise"]
    network: TextNotebookNet | SeedNet
    tokenizer: Tokenizer
    config: NotebookConfig

    @classmethod
    def fit(
        cls,
        kind: Literal["text-listwise", "seed-listwise"],
        view: View,
        config: NotebookConfig,
        transformer: TransformerConfig,
        encoder: EncoderConfig,
        seed: int,
        log: Log = silent,
        state: Path | None = None,
        fabric_config: FabricConfig = ONE_PROCESS,
    ) -> Self:
        """Learn from the notebooks of the view; raises as `start_encoder`."""
        items = [item for item in make_items(view, None, with_maps=kind == "text-listwise") if answerable(item)]
        mean_code = mean_code_cells(items)
        limits = (transformer.code_tokens, transformer.markdown_tokens)
        share = transformer.folder_rate if transformer.start == "folder" else 1.0
        with torch.random.fork_rng(devices=[]):  # dropout draws from the global state, which is given back
            started, tokenizer = start_encoder(view, transformer, encoder, seed, log, fabric_config)
            torch.manual_seed(mixed_seed(seed, 17))
            network = _build(kind, started, config, limits)
            network.tokens = cell_tokens(tokenizer, view.table.notebooks, max(limits))
            if isinstance(network, TextNotebookNet):
                fit_statistics(network.notebook, items)

            def loss_of(network: nn.Module, batch: Batch) -> Tensor:
                if kind == "seed-listwise":
                    return listnet_loss(network(batch), batch)
                return gap_loss(network(batch), batch, config.distance, mean_code)

            trained = fit_network(
                network,
                items,
                config,
                loss_of,
                seed=seed,
                log=log,
                state=state,
                rate_of=lambda name: share if name.startswith("encoder.") else 1.0,
                fabric_config=fabric_config,
            )
        assert isinstance(trained, TextNotebookNet | SeedNet)
        return cls(kind, trained.cpu().eval(), tokenizer, config)

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""
        items = make_items(view, None, with_maps=self.kind == "text-listwise")
        self.network.tokens = cell_tokens(self.tokenizer, view.table.notebooks, max(self.network.limits))
        answer = score_places if self.kind == "seed-listwise" else None
        placements = answer_items(self.network, items, 2 * self.config.batch_cells, answer)
        self.network.tokens = None
        return placements

    def save(self, folder: Path) -> None:
        """Write weights and tokenizer."""
        header = {
            "kind": self.kind,
            "config": asdict(self.config),
            "limits": list(self.network.limits),
            "encoder": self.network.encoder.settings,
        }
        write_text(folder / f"{self.kind}.tokenizer.json", self.tokenizer.to_str())
        save_weights(folder / f"{self.kind}.safetensors", self.network, header)

    @classmethod
    def load(cls, kind: Literal["text-listwise", "seed-listwise"], folder: Path) -> Self:
        """Read what `save` wrote."""
        weights, header = load_weights(folder / f"{kind}.safetensors")
        config = stored_config(header["config"])
        code, markdown = header["limits"]
        network = _build(kind, CellEncoder(header["encoder"]), config, (code, markdown))
        network.load_state_dict(weights)
        return cls(kind, network.eval(), _read_tokenizer(folder / f"{kind}.tokenizer.json"), config)


def _build(
    kind: Literal["text-listwise", "seed-listwise"],
    encoder: CellEncoder,
    config: NotebookConfig,
    limits: tuple[int, int],
) -> TextNotebookNet | SeedNet:
    return (TextNotebookNet if kind == "text-listwise" else SeedNet)(encoder, config, limits)
