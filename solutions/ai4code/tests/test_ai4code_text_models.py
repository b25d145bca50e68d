"""Encoders trained with their task: sequences, budgets, masked words, decoding, and what must hold for any weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ai4code.config import EncoderConfig, NotebookConfig, TransformerConfig
from ai4code.data import Notebooks
from ai4code.decode import decode, median_gap
from ai4code.features import View, describe
from ai4code.members import count_parameters
from ai4code.sequences import make_batch, make_items, whole
from ai4code.text import analyze, fit_text_model
from ai4code.text_models import (
    IGNORED,
    CellEncoder,
    Example,
    Marks,
    SeedNet,
    SequenceNet,
    Sequences,
    TextListwise,
    TextNotebookNet,
    Tokens,
    cell_tokens,
    context_cells,
    fewest_inversions,
    learn_masked_words,
    listnet_loss,
    mask_tokens,
    sequence_batch,
    sequence_of,
    shared_budget,
    start_encoder,
)
from kit_core.errors import ConfigError

SMALL = TransformerConfig(
    vocab_size=300, width=16, layers=1, heads=2, markdown_tokens=8, code_tokens=8, contexts=4, shared_tokens=16,
    epochs=1, dropout=0.0, batch_tokens=400,
)  # fmt: skip
NOTEBOOK = NotebookConfig(width=16, layers=1, heads=2, pair_width=4, epochs=1, order_epochs=0, batch_cells=200)
MARKS = Marks(0, 2, 3, 4)
SETTINGS = {"vocab_size": 50, "width": 16, "layers": 1, "heads": 2, "dropout": 0.0, "marks": vars(MARKS)}


@pytest.fixture(scope="module")
def view(notebooks: Notebooks) -> View:
    table = describe(notebooks.select(range(10)), analyze)
    return View.of(table, fit_text_model(table.counts, table.words.vocabulary, np.arange(table.counts.shape[0])))


def encoder() -> CellEncoder:
    torch.manual_seed(0)
    return CellEncoder(dict(SETTINGS)).eval()


def some_tokens(lengths: list[int]) -> Tokens:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(rng.integers(5, 50, offsets[-1]).astype(np.int32), offsets, 64)


# --- sequences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_code", [1, 2, 19, 20, 21, 150])
def test_contexts_hold_the_first_and_the_last_code_cell(n_code: int) -> None:
    cells = context_cells(n_code, 20)
    assert cells[0] == 0
    assert cells[-1] == n_code - 1
    assert len(cells) == min(n_code, 20)
    assert (np.diff(cells) > 0).all()


def test_a_shared_budget_leaves_what_short_cells_do_not_need() -> None:
    assert shared_budget(np.array([2, 100, 100]), 60).tolist() == [2, 29, 29]
    assert shared_budget(np.array([5, 5]), 60).tolist() == [5, 5]
    assert shared_budget(np.array([0, 9, 0]), 4).tolist() == [0, 4, 0]
    rng = np.random.default_rng(1)
    for _ in range(50):
        lengths, budget = rng.integers(0, 30, 7), int(rng.integers(1, 150))
        granted = shared_budget(lengths, budget)
        assert (granted <= lengths).all()
        assert granted.sum() == min(budget, lengths.sum())


def test_sequences_name_every_cell_once(view: View) -> None:
    """As many separators as code cells, and every slot is there, whatever the texts hold and however they are cut."""
    one = make_items(view, None)[0]
    tokens = some_tokens([3 + (i * 7) % 60 for i in range(view.table.counts.shape[0])])
    cells = context_cells(one.n_code, 4)
    ids, slots = sequence_of(Example(one, one.n_code, cells), tokens, MARKS, SMALL)
    assert (ids == MARKS.sep).sum() == len(cells)
    assert (ids == MARKS.cls).sum() == 1
    assert set(slots.tolist()) == set(range(len(cells) + 1))
    assert len(ids) <= 1 + SMALL.markdown_tokens + SMALL.shared_tokens + len(cells)
    single, _ = sequence_of(Example(one, one.n_code, cells[:1]), tokens, MARKS, SMALL)
    assert len(single) <= 2 + SMALL.markdown_tokens + SMALL.code_tokens


def test_marks_in_cells_are_characters(view: View, tiny_encoder: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    texts = pa.array(["[SEP] [CLS] [MASK] [PAD] </s> <s>"] * len(view.table.notebooks.sources), pa.large_string())
    hostile = replace(view.table.notebooks, sources=texts)
    for config in (SMALL, replace(SMALL, start="folder"), replace(SMALL, tokenizer="wordpiece")):
        started, tokenizer = start_encoder(view, config, EncoderConfig(folder=tiny_encoder), 0, lambda **values: None)
        tokens = cell_tokens(tokenizer, hostile, 30)
        marks = started.marks
        assert len(tokens.ids)
        assert not set(tokens.ids.tolist()) & {marks.pad, marks.cls, marks.sep, marks.mask}
        assert (np.diff(tokens.offsets) <= 30).all()


def test_padding_changes_nothing(view: View) -> None:
    one = make_items(view, None)[0]
    tokens = some_tokens([3 + (i * 7) % 60 for i in range(view.table.counts.shape[0])])
    net = SequenceNet(encoder(), 5).eval()
    examples = [Example(one, one.n_code, np.array([0])), Example(one, one.n_code, context_cells(one.n_code, 4))]
    place = torch.device("cpu")
    with torch.inference_mode():
        both = net(*sequence_batch(examples, tokens, MARKS, SMALL, place))
        alone = [net(*sequence_batch([example], tokens, MARKS, SMALL, place))[0] for example in examples]
    assert torch.allclose(both, torch.stack(alone), atol=1e-5)


# --- decoding --------------------------------------------------------------------------------------------------------


def test_fewest_inversions_against_trying_every_gap() -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        n_code = int(rng.integers(1, 9))
        before = rng.random((3, n_code))
        found = fewest_inversions(before, np.arange(n_code), n_code)
        for row, gap in zip(before, found, strict=True):
            costs = [sum(row[:g]) + sum(1 - row[g:]) for g in range(n_code + 1)]
            assert gap == pytest.approx(int(np.argmin(costs)))


def test_a_pairwise_model_that_knows_finds_the_gap_from_few_code_cells() -> None:
    cells = context_cells(41, 5)  # 0, 10, 20, 30, 40
    before = (cells >= 17).astype(float)[None, :]
    assert 10 < fewest_inversions(before, cells, 41)[0] <= 20
    assert fewest_inversions(np.full((1, 5), 0.5), cells, 41)[0] == 20.5  # nothing known: the middle of all gaps


# --- learning --------------------------------------------------------------------------------------------------------


def test_every_weight_is_taught(view: View) -> None:
    items = make_items(view, None)
    first = items[0]
    numbered = np.sign(np.subtract.outer(np.arange(first.n_cells), np.arange(first.n_cells))).astype(np.int8)
    items[0] = replace(first, number_before=numbered)
    batch = make_batch([whole(one) for one in items[:3]])
    tokens = some_tokens([3 + (i * 7) % 60 for i in range(view.table.counts.shape[0])])
    inputs = sequence_batch(
        [Example(items[0], items[0].n_code, np.array([0, 1]))], tokens, MARKS, SMALL, torch.device("cpu")
    )
    sequences = SequenceNet(encoder(), 3)
    sequences(*inputs).sum().backward()
    listwise, seed = (kind(encoder(), NOTEBOOK, (8, 8)) for kind in (TextNotebookNet, SeedNet))
    listwise.tokens = seed.tokens = tokens
    from ai4code.neural import gap_loss

    gap_loss(listwise(batch), batch, 4.0, 5.0).backward()
    listnet_loss(seed(batch), batch).backward()
    for net in (sequences, listwise, seed):
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, f"{type(net).__name__}.{name}"
            assert parameter.grad.abs().sum() > 0, f"{type(net).__name__}.{name}"


def test_masking_asks_a_share_and_never_a_mark() -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (200, 30))
    ids[:, 0], ids[:, 20] = MARKS.cls, MARKS.sep
    padding = torch.zeros(200, 30, dtype=torch.bool)
    padding[:, 21:] = True
    given, wanted = mask_tokens(ids, padding, MARKS, 50)
    asked = wanted != IGNORED
    assert not asked[:, [0, 20]].any()
    assert not asked[:, 21:].any()
    assert asked[:, 1:20].float().mean() == pytest.approx(0.15, abs=0.02)
    assert torch.equal(given[~asked], ids[~asked])
    assert torch.equal(wanted[asked], ids[asked])
    assert (given[asked] == MARKS.mask).float().mean() == pytest.approx(0.8, abs=0.04)


def test_masked_words_are_learned(view: View) -> None:
    config = replace(SMALL, masked_epochs=3, learning_rate=5e-3)
    losses: list[float] = []
    rows = np.arange(view.table.counts.shape[0])
    tokens = some_tokens([12] * len(rows))
    tokens = Tokens(np.full_like(tokens.ids, 9), tokens.offsets, 12)  # one word only
    started = encoder()
    before = started.word_vectors.weight.detach().clone()
    learn_masked_words(started, tokens, rows, config, 0, lambda **values: losses.append(values["loss"]))
    assert len(losses) == 3
    assert losses[-1] < 0.75 * losses[0]
    assert losses[0] < 4.5
    assert not torch.equal(before, started.word_vectors.weight)


@pytest.mark.parametrize("kind", ["pointwise", "pairwise", "text-listwise", "seed-listwise"])
def test_constant_networks_leave_the_markdown_as_given(kind: Any, view: View) -> None:
    """Ties must not be broken by the true order: json order stays, in a gap that does not depend on it."""
    frozen = EncoderConfig()
    if kind in ("pointwise", "pairwise"):
        model: Any = Sequences.fit(kind, view, replace(SMALL, epochs=0), frozen, 0)
    else:
        model = TextListwise.fit(kind, view, replace(NOTEBOOK, epochs=0), SMALL, frozen, 0)
    for parameter in model.network.parameters():
        nn.init.zeros_(parameter)
    for index, placement in zip(view.indices.tolist(), model.place(view), strict=True):
        n_code = view.n_code(index)
        order = decode(placement, n_code)
        markdown = order[order >= n_code]
        assert markdown.tolist() == sorted(markdown.tolist())
        if kind != "seed-listwise":  # there all scores are equal, and the first gap is as good as any
            middle = n_code / 2
            assert abs(np.median(placement.position) - middle) <= 1.0
        if placement.gap_probability is not None:
            assert np.ptp(median_gap(placement.gap_probability)) == 0


def test_a_resumed_training_ends_with_the_same_bits(view: View, tmp_path: Path) -> None:
    config = replace(SMALL, epochs=2)
    unbroken = Sequences.fit("pairwise", view, config, EncoderConfig(), 0)

    def dying(**values: Any) -> None:
        if values["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sequences.fit("pairwise", view, config, EncoderConfig(), 0, dying, tmp_path / "s")
    resumed = Sequences.fit("pairwise", view, config, EncoderConfig(), 0, state=tmp_path / "s")
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_sequences_longer_than_the_encoder_are_refused(view: View) -> None:
    with pytest.raises(ConfigError, match="shared_tokens"):
        Sequences.fit("pointwise", view, replace(SMALL, shared_tokens=600), EncoderConfig(), 0)


def test_cells_longer_than_the_encoder_are_refused(view: View, tiny_encoder: Path) -> None:
    """The checkpoint has 64 positions, two of them perhaps not for use."""
    config = replace(SMALL, start="folder", markdown_tokens=61)
    with pytest.raises(ConfigError, match="cells of up to 63 tokens, expected at most the 62"):
        TextListwise.fit("text-listwise", view, NOTEBOOK, config, EncoderConfig(folder=tiny_encoder), 0)


def test_a_folder_is_fine_tuned_and_the_run_needs_it_no_more(view: View, tiny_encoder: Path, tmp_path: Path) -> None:
    config = replace(SMALL, start="folder")
    model = TextListwise.fit("text-listwise", view, NOTEBOOK, config, EncoderConfig(folder=tiny_encoder), 0)
    fresh, _ = start_encoder(view, config, EncoderConfig(folder=tiny_encoder), 0, lambda **values: None)
    name = "network.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(fresh.state_dict()[name], model.network.encoder.state_dict()[name])
    model.save(tmp_path)
    again = TextListwise.load("text-listwise", tmp_path)
    for one, other in zip(model.place(view), again.place(view), strict=True):
        np.testing.assert_allclose(one.position, other.position, atol=1e-6)
    weights = sum(weight.numel() for weight in model.network.parameters())
    assert count_parameters("text-listwise", tmp_path) == weights
