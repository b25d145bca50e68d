"""The notebook transformer, diffusion and cell vectors: properties that must hold whatever was learned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ai4code import cli
from ai4code import encoder as encoding
from ai4code.config import AugmentConfig, EncoderConfig, NotebookConfig, SamplingConfig
from ai4code.data import Notebooks
from ai4code.decode import Placement, decode, median_gap
from ai4code.diffusion import Diffusion, clean_places, ddim, noised, place_loss, signal_share, unknown
from ai4code.encoder import encode, encoder_digest, open_encoder, tokenize
from ai4code.features import View, describe
from ai4code.network import Attention, Dropout, NotebookNet, mean_place
from ai4code.neural import (
    Listwise,
    answer_items,
    fit_network,
    fresh_network,
    gap_loss,
    last_pass,
    load_network,
    save_network,
    widen,
)
from ai4code.sequences import HIDDEN_CODE, N_FEATURES, ORDER_TELLING, Batch, Item, augmented, make_batch, thinned, whole
from ai4code.text import analyze, fit_text_model
from kit_core.errors import ConfigError, DataError
from kit_core.testing import interrupted_after
from kit_train.state import save_state

CONFIG = NotebookConfig(width=16, layers=2, heads=2, pair_width=6, epochs=2, order_epochs=1, batch_cells=60)
NO_AUGMENT = AugmentConfig(piece=0.0, thin=0.0, hide_similarity=0.0)


def item(n_code: int, n_markdown: int, seed: int = 0, dim: int = 8) -> Item:
    """A notebook of random numbers with a random true order."""
    rng = np.random.default_rng(seed)
    n = n_code + n_markdown
    rank = np.zeros(n, np.int64)
    order = rng.permutation(n)
    rank[order] = np.arange(n)
    rank[:n_code] = np.sort(rank[:n_code])
    number = rng.integers(-1, 2, (n, n)).astype(np.int8)
    return Item(
        vectors=rng.normal(size=(n, dim)).astype(np.float16),
        features=rng.normal(size=(n, N_FEATURES)).astype(np.float32),
        maps=rng.random((5, n, n_code)).astype(np.float32),
        number_before=np.triu(number, 1) - np.triu(number, 1).T,
        n_code=n_code,
        rank=rank,
    )


def network(config: NotebookConfig = CONFIG, guided: bool = False) -> NotebookNet:
    return fresh_network([item(4, 3)], config, 8, 0, guided).eval()


def probabilities(net: NotebookNet, items: list[Item]) -> list[np.ndarray]:
    with torch.inference_mode():
        found = last_pass(net, make_batch([whole(one) for one in items]))
    return [placement.gap_probability for placement in found if placement.gap_probability is not None]


# --- the network -----------------------------------------------------------------------------------------------------


def test_neighbours_in_a_batch_change_nothing() -> None:
    items = [item(3, 4, 1), item(9, 2, 2), item(1, 1, 3), item(5, 7, 4)]
    together = probabilities(network(), items)
    for one, found in zip(items, together, strict=True):
        np.testing.assert_allclose(found, probabilities(network(), [one])[0], atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
        assert found.shape == (one.n_cells - one.n_code, one.n_code + 1)


def test_shuffled_markdown_gives_shuffled_answers() -> None:
    one = item(6, 5)
    rows = np.array([0, 1, 2, 3, 4, 5, 8, 6, 10, 9, 7])
    shuffled = Item(
        one.vectors[rows], one.features[rows], one.maps[:, rows], one.number_before[np.ix_(rows, rows)], 6, None
    )
    np.testing.assert_allclose(
        probabilities(network(), [shuffled])[0], probabilities(network(), [one])[0][rows[6:] - 6], atol=1e-5
    )


@pytest.mark.parametrize("guided", [False, True])
def test_every_weight_is_taught(guided: bool) -> None:
    net = network(guided=guided).train()
    batch = make_batch(
        [augmented(item(8, 4), CONFIG.augment, np.random.default_rng(1), ask_code=True), whole(item(3, 5))]
    )
    assert set(batch.kind.unique().tolist()) == {0, 1, HIDDEN_CODE}
    if guided:
        level = torch.full((2,), 0.5)
        loss = place_loss(net, batch, noised(clean_places(batch), torch.randn(batch.rank.shape), level), level, 5.0)
    else:
        loss = gap_loss(net(batch), batch, 4.0, 5.0)
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_first_loss_is_known() -> None:
    """Fresh weights know nothing: nearly the entropy of a uniform choice of gap, and of which of two comes first."""
    items = [item(9, 6, seed) for seed in range(4)]
    net = network(replace(CONFIG, passes=1))
    batch = make_batch([whole(one) for one in items])
    with torch.no_grad():
        first = float(gap_loss(net(batch), batch, 0.0, 9.0))
    assert first == pytest.approx(np.log(10) + 0.3 * np.log(2), abs=0.35)


def test_a_network_without_weights_leaves_the_markdown_as_given() -> None:
    """A constant model must not find the true order by ties: all markdown in one gap, in json order."""
    items = [item(7, 5, 3), item(2, 3, 4), item(4, 1, 5)]
    for guided in (False, True):
        net = network(guided=guided)
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        frozen = EncoderConfig()
        diffusion = Diffusion(net, frozen, "", SamplingConfig(steps=2, samples=3))
        answers = [] if guided else [answer_items(net, items, 500)]
        if guided:
            batch = make_batch([whole(one) for one in items])
            with torch.inference_mode():
                drawn = diffusion.draw(net, batch)
                said, _ = mean_place(net(batch, *unknown(batch))[-1].gap_probability, batch.n_code)
            assert drawn[:, ~batch.asked_padding].abs().max() < 1e-6
            assert said[~batch.asked_padding].abs().max() < 1e-6
        for placements in answers:
            for one, placement in zip(items, placements, strict=True):
                order = decode(placement, one.n_code)
                markdown = order[order >= one.n_code]
                assert markdown.tolist() == list(range(one.n_code, one.n_cells))
                assert np.ptp(np.flatnonzero(order >= one.n_code)) == len(markdown) - 1


def test_weights_travel_with_their_settings(tmp_path: Path) -> None:
    net = network(guided=True)
    save_network(tmp_path / "x.safetensors", net, "abc")
    again, digest = load_network(tmp_path / "x.safetensors")
    assert digest == "abc"
    assert again.config == net.config
    assert again.guided
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="sha256"):
        load_network(tmp_path / "x.safetensors")


# --- samples ---------------------------------------------------------------------------------------------------------


def test_gaps_of_samples_are_those_of_the_true_order() -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        one = item(int(rng.integers(2, 15)), int(rng.integers(1, 9)), seed)
        assert one.rank is not None
        for ask_code in (False, True):
            sample = augmented(one, AugmentConfig(), rng, ask_code=ask_code)
            assert sample.gap is not None
            assert len(sample.code) >= 1
            assert len(sample.asked) >= 1
            assert np.all(np.diff(sample.code) > 0)
            assert not set(sample.code) & set(sample.asked)
            for cell, gap in zip(sample.asked, sample.gap, strict=True):
                assert gap == sum(one.rank[code] < one.rank[cell] for code in sample.code)
            if not ask_code:
                assert (sample.asked >= one.n_code).all()
            # Code that is asked must not be betrayed by who was first to hold a word.
            batch = make_batch([sample])
            hidden = bool((batch.kind == HIDDEN_CODE).any())
            assert (batch.maps[:, ORDER_TELLING].abs().sum() == 0) == hidden or batch.maps.numel() == 0


def test_a_piece_keeps_only_markdown_between_its_code() -> None:
    rng = np.random.default_rng(3)
    config = AugmentConfig(piece=1.0, thin=0.0)
    one = item(12, 10, 5)
    assert one.rank is not None
    for _ in range(50):
        sample = augmented(one, config, rng, ask_code=False)
        assert np.array_equal(sample.code, np.arange(sample.code[0], sample.code[-1] + 1))
        if sample.code[0] > 0:
            assert (one.rank[sample.asked] > one.rank[sample.code[0]]).all()
        if sample.code[-1] < 11:
            assert (one.rank[sample.asked] < one.rank[sample.code[-1]]).all()


def test_long_notebooks_are_thinned_and_answered_on_the_whole_axis() -> None:
    one = item(30, 25)
    parts = thinned(one, 20)
    assert all(part.size <= 20 and part.code[0] == 0 and part.code[-1] == 29 for part in parts)
    assert np.concatenate([part.asked for part in parts]).tolist() == list(range(30, 55))
    code = np.array([0, 2, 5])
    wide = widen(np.array([[0.1, 0.2, 0.3, 0.4]]), code, 6)
    np.testing.assert_allclose(wide, [[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4]])


def test_thousands_of_cells_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ai4code.neural.LONGEST", 60)
    big = item(70, 50, dim=8)
    placement = answer_items(network(), [big], 500)[0]
    assert placement.gap_probability is not None
    assert placement.gap_probability.shape == (50, 71)
    np.testing.assert_allclose(placement.gap_probability.sum(axis=1), 1.0)

    def middle(net: nn.Module, batch: Batch) -> list[Placement]:
        return [Placement(np.full(len(sample.asked), len(sample.code) / 2)) for sample in batch.samples]

    positions = answer_items(network(), [big], 500, middle)[0].position
    assert positions.shape == (50,)
    np.testing.assert_allclose(positions, 35.0, atol=2.0)


# --- training --------------------------------------------------------------------------------------------------------


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(5, 4, seed) for seed in range(6)]

    def loss_of(net: nn.Module, batch: Batch) -> Tensor:
        return gap_loss(net(batch), batch, 4.0, 5.0)

    def run(state: Path | None) -> dict[str, Tensor]:
        net = fresh_network(items, CONFIG, 8, 0, False)
        trained = fit_network(net, items, CONFIG, loss_of, seed=3, log=lambda **values: None, state=state)
        return trained.state_dict()

    unbroken = run(None)
    with monkeypatch.context() as patch:
        patch.setattr("ai4code.neural.save_state", interrupted_after(save_state, 2))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "s")
    resumed = run(tmp_path / "s")
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.slow  # of what it is made, losses and steps, is compared by hand in test_ai4code_fit.py
def test_it_learns_a_rule_from_similarities() -> None:
    """Each markdown cell resembles just the code cell behind its gap: soon nearly all are right."""
    items = []
    for seed in range(24):
        one = item(6, 5, seed, dim=0)
        assert one.rank is not None
        gaps = np.searchsorted(one.rank[:6], one.rank[6:])
        maps = np.zeros_like(one.maps)
        for row, gap in enumerate(gaps):
            if gap < 6:
                maps[:, 6 + row, gap] = 1.0
        items.append(replace(one, maps=maps, features=np.zeros_like(one.features), number_before=one.number_before * 0))
    config = replace(
        CONFIG, dropout=0.0, epochs=25, order_epochs=0, learning_rate=1e-2, average=0.9, augment=NO_AUGMENT
    )
    net = fresh_network(items, config, 0, 0, False)
    trained = fit_network(
        net, items[:20], config, lambda n, b: gap_loss(n(b), b, 4.0, 6.0), seed=0, log=lambda **values: None, state=None
    )
    right = []
    for one, placement in zip(items[20:], answer_items(trained, items[20:], 200), strict=True):
        assert one.rank is not None
        assert placement.gap_probability is not None
        right += (median_gap(placement.gap_probability) == np.searchsorted(one.rank[:6], one.rank[6:])).tolist()
    assert np.mean(right) > 0.9


# --- diffusion -------------------------------------------------------------------------------------------------------


def test_a_perfect_denoiser_recovers_the_true_order() -> None:
    one = item(9, 8)
    batch = make_batch([whole(one)])
    clean = clean_places(batch)
    found = ddim(lambda places, level: clean, torch.randn(clean.shape), steps=5)
    assert torch.allclose(found, clean)
    order = decode(Placement((found[0].double().numpy() + 1) / 2 * 9), 9)
    assert one.rank is not None
    gaps = np.searchsorted(one.rank[:9], one.rank[9:])
    where = np.empty(17, np.int64)
    where[order] = np.arange(17)
    assert [sum(where[:9] < where[cell]) for cell in range(9, 17)] == gaps.tolist()


def test_an_almost_blind_denoiser_is_led_by_what_it_said_before() -> None:
    """At the first step nothing is known; what is said there must fade where later steps say better."""
    goal = torch.tensor([[0.8, -0.6, 0.1]])
    found = ddim(lambda places, level: goal * (1.0 - level[:, None]), torch.randn(1, 3), steps=20)
    assert torch.allclose(found, goal * 0.95, atol=1e-5)


def test_noise_levels_run_from_clean_to_noise() -> None:
    level = torch.linspace(0, 1, 11)
    share = signal_share(level)
    assert share[0] == pytest.approx(1.0)
    assert share[-1] < 1e-3
    assert (share.diff() < 0).all()
    clean, noise = torch.full((2, 3), 0.5), torch.randn(2, 3).clamp(-2, 2)
    assert torch.allclose(noised(clean, noise, torch.zeros(2)), clean, atol=0.01)
    assert torch.allclose(noised(clean, noise, torch.ones(2)), noise, atol=0.02)


# --- cell vectors ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def view(notebooks: Notebooks) -> View:
    table = describe(notebooks.select(range(8)), analyze)
    return View.of(table, fit_text_model(table.counts, table.words.vocabulary, np.arange(table.counts.shape[0])))


def test_vectors_do_not_depend_on_neighbours_or_batches(tiny_encoder: Path) -> None:
    opened = open_encoder(tiny_encoder)
    texts = [
        "import data",
        "",
        "plot the model " * 20,
        "import data",
        "日本語のセル",
        "x = 1\n" * 30000,
        "[SEP] [CLS] [PAD]",
    ]
    config = EncoderConfig(tokens=20)
    together = encode(opened, texts, config)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(encode(opened, [text], config)[0], vector, atol=1e-5)
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(encode(opened, texts, replace(config, batch_tokens=21)), together, atol=1e-5)
    assert encode(opened, [], config).shape == (0, 16)


def test_a_vector_is_the_mean_of_the_last_hidden_states(tiny_encoder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    network, tokenizer = AutoModel.from_pretrained(tiny_encoder).eval(), AutoTokenizer.from_pretrained(tiny_encoder)
    texts = ["import data as model", "plot", "read " * 40]
    for text, vector in zip(texts, encode(open_encoder(tiny_encoder), texts, EncoderConfig(tokens=9)), strict=True):
        ids = tokenizer(text, truncation=True, max_length=9, return_tensors="pt")
        with torch.inference_mode():
            mean = network(**ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


def test_marks_in_the_text_are_characters(tiny_encoder: Path) -> None:
    opened = open_encoder(tiny_encoder)
    ids = tokenize(opened, ["[SEP] [CLS] [MASK] [PAD]"], 64)[0]
    assert ids[0] == 2
    assert ids[-1] == 3
    assert not set(ids[1:-1]) & {0, 2, 3, 4}


def test_packed_vectors_are_those_of_memory_and_are_found_again(
    view: View, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = EncoderConfig(folder=tiny_encoder, tokens=12)
    packed = replace(plain, cache=tmp_path)
    notebooks = view.table.notebooks
    direct = encoding._encoded(notebooks, plain)
    found = encoding._packed(notebooks, packed)
    np.testing.assert_allclose(found, direct, atol=1e-3)  # packed as float16

    monkeypatch.setattr(encoding, "encode", lambda *arguments: pytest.fail("encoded again"))
    np.testing.assert_array_equal(encoding._packed(notebooks, packed), found)
    names = {encoding.pack_name(notebooks, one) for one in (packed, replace(packed, tokens=13))}
    assert len(names) == 2


def test_a_stopped_encoding_goes_on(
    view: View, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EncoderConfig(folder=tiny_encoder, tokens=12, cache=tmp_path / "a")
    whole_pack = encoding._packed(view.table.notebooks, config)
    monkeypatch.setattr(encoding, "CHUNK_CELLS", 40)
    original, calls = encoding.encode, 0

    def dying(*arguments: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    again = replace(config, cache=tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode", dying)
        with pytest.raises(KeyboardInterrupt):
            encoding._packed(view.table.notebooks, again)
    np.testing.assert_allclose(encoding._packed(view.table.notebooks, again), whole_pack, atol=1e-3)


def test_a_model_refuses_vectors_of_another_encoder(view: View, tiny_encoder: Path, tmp_path: Path) -> None:
    config = EncoderConfig(folder=tiny_encoder, tokens=12)
    model = Listwise.fit(view, replace(CONFIG, epochs=1), config, 0)
    import shutil

    shutil.copytree(tiny_encoder, tmp_path / "other")
    text = (tmp_path / "other" / "config.json").read_text()
    (tmp_path / "other" / "config.json").write_text(text + "\n")
    other = replace(model, encoder=replace(config, folder=tmp_path / "other"))
    with pytest.raises(DataError) as refusal:
        other.place(view)
    for folder in (tiny_encoder, tmp_path / "other"):
        assert encoder_digest(folder)[:16] in str(refusal.value)


# --- bad folders -----------------------------------------------------------------------------------------------------


def _half(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _more_words(folder: Path) -> None:
    import json

    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"word{i}": len(vocabulary) + i for i in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps(content))


FAULTS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "half the weights": (_half, 3, "cannot read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), 3, "found no weights"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), 3, "config.json"),
    "configuration that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), 3, "cannot read"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), 3, "tokenizer"),
    "a tokenizer of another checkpoint": (_more_words, 3, "does not match"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_bad_encoder_folders_are_refused_before_a_run_begins(
    fault: str, tiny_encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    damage, code, words = FAULTS[fault]
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    damage(folder)
    arguments = ["train", "cached-listwise", "--data", str(data), "--run", str(tmp_path / "run")]
    assert cli.main([*arguments, "--encoder.folder", str(folder)]) == code
    message = capsys.readouterr().err
    assert words in message
    assert str(folder) in message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_names_of_a_hub_are_refused_in_words(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "cached-listwise", "--data", str(data), "--run", str(tmp_path / "run")]
    assert cli.main([*arguments, "--encoder.folder", "microsoft/codebert-base"]) == 2
    message = capsys.readouterr().err
    assert "microsoft/codebert-base" in message
    assert "hub" in message
    assert "ai4code weights" in message
    assert cli.main(arguments) == 2
    assert "--encoder.folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError):
        open_encoder(tmp_path / "nothing")


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_attention_is_that_of_pytorch() -> None:
    torch.manual_seed(0)
    attention, hidden = Attention(16, 4), torch.randn(2, 6, 16)
    bias = torch.randn(2, 4, 6, 6)
    bias[1, :, :, 4:] = -torch.inf  # padding
    query, key, value = attention.enter(hidden).view(2, 6, 3, 4, 4).permute(2, 0, 3, 1, 4)
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    expected = attention.leave(mixed.transpose(1, 2).reshape(2, 6, 16))
    torch.testing.assert_close(attention(hidden, bias), expected)


def test_dropout_keeps_the_mean_and_follows_the_seed() -> None:
    dropout, ones = Dropout(0.25), torch.ones(1001, 301)  # not a multiple of the eight bytes of a word
    torch.manual_seed(3)
    first = dropout(ones)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(ones))
    assert not torch.equal(first, dropout(ones))
    assert first.unique().tolist() == pytest.approx([0.0, 256 / 192])
    assert (first == 0).float().mean() == pytest.approx(0.25, abs=0.005)
    assert (first == 0).float().mean(dim=0) == pytest.approx(0.25, abs=0.1)  # no column apart
    assert torch.equal(dropout.eval()(ones), ones)
    assert torch.equal(Dropout(0.0)(ones), ones)
