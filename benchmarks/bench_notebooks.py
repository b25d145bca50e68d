"""AI4Code, neural half: training on text in batches of near-equal length, and tokenising a corpus at once.

    python benchmarks/bench_notebooks.py

takes about two minutes. The first row trains the encoder of `pairwise` for an epoch over pairs of a markdown and a code
cell of real notebooks, once in length buckets and once in random batches that hold as many padded tokens; both must
give the same answers for every pair, whatever batch it is in. The second turns the cells of the corpus into tokens with
all threads of `tokenizers` beside one call a cell, the plain way, after the tokens were found equal.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timing import in_turn

from ai4code.config import TransformerConfig
from ai4code.data import Notebooks, load
from ai4code.encoder import CHARACTERS_PER_TOKEN
from ai4code.features import View, describe
from ai4code.sample import write_sample
from ai4code.sequences import make_items
from ai4code.text import fit_text_model
from ai4code.text_models import (
    CellEncoder,
    Example,
    SequenceNet,
    cell_tokens,
    example_length,
    sequence_batch,
)
from ai4code.tokenizer import train_tokenizer
from ai4code.words import word_source
from kit_train.batches import bucketed_batches, padding_efficiency, random_batches

Batches = list[npt.NDArray[np.int64]]

CORPUS = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "ai4code-mini" / "ai4code-mini.zip"
SAMPLE_NOTEBOOKS = 400  # where the corpus is absent
NOTEBOOKS = 250
PAIRS = 4_000
TOKENS = 128  # of a cell that are read
REPEATS = 3
REQUIRED_TRAINING = 1.8
CONFIG = TransformerConfig(width=64, layers=1, markdown_tokens=TOKENS, code_tokens=TOKENS, dropout=0.0)


def run() -> list[dict[str, Any]]:
    """Two rows, with the keys that benchmarks/run.py asks for."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        corpus, name = CORPUS, "ai4code-mini"
        if not corpus.exists():
            corpus, name = Path(folder) / "sample", "the generated sample"
            write_sample(corpus, SAMPLE_NOTEBOOKS)
        notebooks = load(corpus, "train")
        notebooks = notebooks.select(np.arange(min(NOTEBOOKS, len(notebooks))))
    tokenizer = train_tokenizer(notebooks, np.arange(len(notebooks)), kind="bpe", vocab_size=CONFIG.vocab_size)
    return [_training(notebooks, tokenizer, name), _tokenising(notebooks, tokenizer, name)]


def _training(notebooks: Notebooks, tokenizer: Any, name: str) -> dict[str, Any]:
    table = describe(notebooks, word_source(None))
    everything = np.arange(len(notebooks))
    view = View.of(table, fit_text_model(table.counts, table.words.vocabulary, table.rows_of(everything)), everything)
    rng = np.random.default_rng(0)
    pairs = [
        Example(item, markdown, np.array([int(rng.integers(item.n_code))]), 1.0)
        for item in make_items(view, None, with_maps=False)
        if item.n_code
        for markdown in range(item.n_code, item.n_cells)
    ]
    pairs = [pairs[place] for place in rng.permutation(len(pairs))[:PAIRS]]
    tokens = cell_tokens(tokenizer, notebooks, TOKENS)
    lengths = np.array([example_length(pair, tokens, CONFIG) for pair in pairs], dtype=np.int64)
    bucketed = bucketed_batches(lengths, len(pairs), 0, frames_budget=CONFIG.batch_tokens)
    size = max(1, CONFIG.batch_tokens // int(lengths.max()))  # so that no random batch holds more than a bucket may
    shuffled = random_batches(len(pairs), size, 0)

    torch.manual_seed(0)
    encoder = CellEncoder(
        {
            "vocab_size": tokenizer.get_vocab_size(), "width": CONFIG.width, "layers": CONFIG.layers,
            "heads": CONFIG.heads, "dropout": 0.0, "marks": {"pad": 0, "cls": 1, "sep": 2, "mask": 3},
        }
    )  # fmt: skip
    network = SequenceNet(encoder, CONFIG.contexts + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def logits(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        chosen = [pairs[row] for row in rows.tolist()]
        answer: torch.Tensor = network(*sequence_batch(chosen, tokens, encoder.marks, CONFIG, torch.device("cpu")))
        return answer

    network.eval()
    with torch.no_grad():
        found = [torch.cat([logits(rows) for rows in b])[np.argsort(np.concatenate(b))] for b in (bucketed, shuffled)]
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    network.train()

    def epoch(batches: Batches) -> None:
        for rows in batches:
            loss = torch.nn.functional.softplus(-logits(rows)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotations
            optimizer.step()

    shares = [padding_efficiency(lengths, batches) for batches in (bucketed, shuffled)]
    row = in_turn(
        "",
        lambda: epoch(bucketed),
        "the same in random batches",
        lambda: epoch(shuffled),
        required=REQUIRED_TRAINING,
        repeats=REPEATS,
    )
    rate = int(lengths.sum()) / row["ours_seconds"]
    what = f"training on {len(pairs):,} pairs of cells of {name}, up to {TOKENS} tokens each, in length buckets"
    row["name"] = f"{what}: {rate:,.0f} real tokens a second, {shares[0]:.0%} of all real against {shares[1]:.0%}"
    return row


def _tokenising(notebooks: Notebooks, tokenizer: Any, name: str) -> dict[str, Any]:
    texts = [(text or "")[: TOKENS * CHARACTERS_PER_TOKEN] for text in notebooks.sources.to_pylist()]

    def one_by_one() -> list[list[int]]:
        return [tokenizer.encode(text, add_special_tokens=False).ids[:TOKENS] for text in texts]

    ours = cell_tokens(tokenizer, notebooks, TOKENS)
    for row, ids in enumerate(one_by_one()):
        assert ours.of(row, TOKENS).tolist() == ids, f"cell {row} has other tokens"
    return in_turn(
        f"{len(texts):,} cells of {name} to tokens, at once",
        lambda: cell_tokens(tokenizer, notebooks, TOKENS),
        "tokenizers, one call a cell",
        one_by_one,
        required=None,
        repeats=REPEATS,
    )


if __name__ == "__main__":
    from run import render_rows

    print(render_rows(run()))
