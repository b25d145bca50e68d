"""The training loops, step by step: plain PyTorch loops written here end with the same weights, feature by feature.

The batches are those that the loop under test was seen to show; that each epoch shows everything once, in an order of
its own, is tested apart. A case holds a feature that is switched on, and must differ from the loop without it.
"""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ai4code import diffusion, mlp, neural, text_models
from ai4code.boosting import Gaps, Joint, Position, Ranker
from ai4code.config import (
    AugmentConfig,
    Config,
    EncoderConfig,
    MlpConfig,
    NotebookConfig,
    PairsConfig,
    SamplingConfig,
    TransformerConfig,
    TreesConfig,
)
from ai4code.data import Notebooks
from ai4code.decode import Placement
from ai4code.features import View, describe
from ai4code.members import FILES, fit_joint, fit_member
from ai4code.mlp import Mlp
from ai4code.model import build_model
from ai4code.network import Answer, Dropout, NotebookNet
from ai4code.neural import Listwise, fit_network, gap_loss, silent
from ai4code.relations import relation_block
from ai4code.sequences import HIDDEN_CODE, N_FEATURES, Batch, Item, make_batch, whole
from ai4code.text import analyze, fit_text_model
from ai4code.text_models import (
    CellEncoder,
    Example,
    Marks,
    SeedNet,
    SequenceNet,
    TextNotebookNet,
    Tokens,
    before_loss,
    fit_sequences,
    learn_masked_words,
    listnet_loss,
    place_distance,
)
from kit_train.config import FabricConfig

MARKS = Marks(0, 2, 3, 4)
NO_AUGMENT = AugmentConfig(piece=0.0, thin=0.0, hide_similarity=0.0)
NO_AVERAGE = 1e-9  # a decay that keeps the last weights
ADAMW = torch.optim.AdamW


def item(n_code: int, n_markdown: int, seed: int) -> Item:
    """A notebook of random numbers with a random true order."""
    rng = np.random.default_rng(seed)
    n = n_code + n_markdown
    rank = rng.permutation(n)
    rank[:n_code] = np.sort(rank[:n_code])
    return Item(
        vectors=np.zeros((n, 0), np.float16),
        features=rng.normal(size=(n, N_FEATURES)).astype(np.float32),
        maps=rng.random((5, n, n_code)).astype(np.float32),
        number_before=np.zeros((n, n), np.int8),
        n_code=n_code,
        rank=rank,
    )


@pytest.fixture(scope="module")
def view(notebooks: Notebooks) -> View:
    table = describe(notebooks, analyze)
    text = fit_text_model(table.counts, table.words.vocabulary, np.arange(table.counts.shape[0]), components=3)
    return View.of(table, text)


# --- the plain loop --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """What a plain training loop does besides descending."""

    rate: float
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: bool = True
    clip: float | None = 1.0
    decay: float = 0.0
    decays: str = "matrices"
    accumulate: int = 1
    shares: tuple[tuple[str, float], ...] = ()
    """Beginnings of names, and the share of the rate that such weights learn with."""
    average: float | None = None

    def run(self, network: nn.Module, losses: Sequence[Sequence[Callable[[nn.Module], Tensor]]]) -> dict[str, Tensor]:
        """Descend the losses of the batches, epoch by epoch, and return the weights, or their moving average."""
        parameters = dict(network.named_parameters())
        groups: list[dict[str, Any]] = []
        for name, parameter in parameters.items():
            share = next((factor for start, factor in self.shares if name.startswith(start)), 1.0)
            decays = self.decays == "all" or parameter.dim() >= 2
            groups.append(
                {"params": [parameter], "lr": self.rate * share, "weight_decay": self.decay if decays else 0.0}
            )
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups)
        if self.optimizer == "adamw":
            optimizer = ADAMW(groups, betas=self.betas)
        peaks = [group["lr"] for group in optimizer.param_groups]
        averaged = {name: value.detach().clone() for name, value in network.state_dict().items()}
        updates = 0
        for epoch, of_epoch in enumerate(losses):
            for number, loss_of in enumerate(of_epoch, start=1):
                # Epochs of different numbers of batches are equally long in the schedule.
                factor = self._factor(epoch * len(of_epoch) + number - 1, len(losses) * len(of_epoch))
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                (loss_of(network) / self.accumulate).backward()
                if number % self.accumulate and number < len(of_epoch):
                    continue
                self._clip([one.grad for one in parameters.values() if one.grad is not None])
                optimizer.step()
                optimizer.zero_grad()
                decay = min(self.average or 0.0, (1 + updates) / (10 + updates))
                updates += 1
                for name, value in network.state_dict().items():
                    averaged[name] = decay * averaged[name] + (1 - decay) * value
        return averaged

    def _factor(self, step: int, steps: int) -> float:
        """A linear rise over the first 5 % of the steps, then half a cosine down to 0."""
        if not self.schedule:
            return 1.0
        rise = 0.05 * steps
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))

    def _clip(self, gradients: list[Tensor]) -> None:
        norm = math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients))
        if self.clip is not None and norm > self.clip:
            for gradient in gradients:
                gradient *= self.clip / norm


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.allclose(one[name], other[name], rtol=1e-3, atol=2e-5) for name in one)


def use_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **settings: torch.optim.SGD(groups))


OPTIMIZERS = ("sgd", "adamw")

# For each feature: settings of the loop under test, settings of the plain loop, and plain loops that must differ.
# Where the loss is multiplied by `scale`, gradients are long enough to be clipped.
FEATURES: dict[str, dict[str, Any]] = {
    "nothing": {"differs": []},
    "schedule": {"differs": [{"schedule": False}]},
    "clipping": {"scale": 1000.0, "differs": [{"clip": None}, {"clip": 0.5}]},
    "weight decay": {"decay": 0.7, "differs": [{"decay": 0.0}, {"decays": "all"}]},
    "accumulation": {"accumulate": 2, "differs": [{"accumulate": 1}, {"accumulate": 4}]},
    "rates": {"shares": (("encoder.", 0.1),), "differs": [{"shares": ()}, {"shares": (("leave.", 0.1),)}]},
    "average": {"average": 0.3, "scale": 20.0, "differs": [{"average": None}, {"average": 0.9}]},
}


def loop_of(feature: dict[str, Any], **settings: Any) -> Loop:
    told = {name: feature[name] for name in ("decay", "accumulate", "shares", "average") if name in feature}
    return Loop(**settings, **told)


def assert_as_by_hand(
    loop: Loop, network: nn.Module, losses: Sequence[Any], found: dict[str, Tensor], differs: list[dict[str, Any]]
) -> None:
    """The weights found are those of the plain loop, and of none of its variants."""
    assert_same(found, loop.run(copy.deepcopy(network), losses))
    for other in differs:
        if loop.optimizer == "adamw" and "clip" in other and other["clip"]:
            continue  # a factor that all gradients share cancels out
        assert differ(found, replace(loop, **other).run(copy.deepcopy(network), losses)), other


# --- notebooks -------------------------------------------------------------------------------------------------------


class LinearOfFeatures(nn.Module):
    """Features of cells → one number for each; the two layers stand for an encoder and what is new."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.leave = nn.Linear(N_FEATURES, 3), nn.Linear(3, 1)

    def forward(self, batch: Batch) -> Tensor:
        scores: Tensor = self.leave(self.encoder(batch.features)).squeeze(-1)
        return scores


@dataclass
class Seen:
    """What a loop showed and said: batches by epoch, and its log."""

    epochs: list[list[Any]]
    log: list[dict[str, Any]]
    losses: list[list[float]]

    @classmethod
    def new(cls) -> "Seen":
        return cls([[]], [], [[]])

    def end_epoch(self, **values: Any) -> None:
        self.log.append(values)
        self.epochs.append([])
        self.losses.append([])


def squared_error(network: nn.Module, batch: Batch, scale: float = 1.0) -> Tensor:
    wrong = (network(batch)[:, batch.width :] - batch.rank) ** 2
    return scale * 0.01 * (wrong * ~batch.asked_padding).sum() / (~batch.asked_padding).sum()


ITEMS = [item(3, 2, seed) for seed in range(8)] + [item(2, 3, 8)]
NOTEBOOK = NotebookConfig(
    width=8, layers=1, heads=2, pair_width=2, passes=1, dropout=0.0, learning_rate=0.02, weight_decay=0.0,
    order_epochs=0, epochs=2, batch_cells=15, average=NO_AVERAGE, augment=NO_AUGMENT,
)  # fmt: skip


def fit_linear(
    config: NotebookConfig,
    *,
    scale: float = 1.0,
    seed: int = 0,
    items: Sequence[Item] = ITEMS,
    rate_of: Callable[[str], float] | None = None,
    accumulate: int = 1,
) -> tuple[nn.Module, nn.Module, Seen]:
    """Train `LinearOfFeatures`: the network as it began, what came out, and what was seen."""
    torch.manual_seed(5)
    network = LinearOfFeatures().eval()  # as a network may come
    began, seen = copy.deepcopy(network), Seen.new()

    def loss_of(net: nn.Module, batch: Batch) -> Tensor:
        assert net.training
        seen.epochs[-1].append(batch)
        loss = squared_error(net, batch, scale)
        seen.losses[-1].append(loss.item())
        return loss

    trained = fit_network(
        network,
        items,
        config,
        loss_of,
        seed=seed,
        log=seen.end_epoch,
        state=None,
        rate_of=rate_of,
        fabric_config=FabricConfig(accelerator="cpu", accumulate=accumulate),
    )
    return began, trained, replace(seen, epochs=seen.epochs[:-1], losses=seen.losses[:-1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", FEATURES)
def test_notebook_networks_descend_as_by_hand(name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = FEATURES[name]
    if optimizer == "sgd":
        use_sgd(monkeypatch)
    config = replace(NOTEBOOK, weight_decay=feature.get("decay", 0.0), average=feature.get("average", NO_AVERAGE))
    scale = feature.get("scale", 1.0)
    began, trained, seen = fit_linear(
        config,
        scale=scale,
        rate_of=(lambda one: 0.1 if one.startswith("encoder.") else 1.0) if "shares" in feature else None,
        accumulate=feature.get("accumulate", 1),
    )
    assert min(map(len, seen.epochs)) >= 3
    losses = [[lambda net, batch=batch: squared_error(net, batch, scale) for batch in epoch] for epoch in seen.epochs]
    loop = loop_of(feature, rate=config.learning_rate, optimizer=optimizer, betas=(0.9, 0.98))
    assert_as_by_hand(loop, began, losses, dict(trained.state_dict()), feature["differs"])
    assert not trained.training


def test_the_second_beta_of_notebook_networks_is_0_98() -> None:
    began, trained, seen = fit_linear(NOTEBOOK)
    losses = [[lambda net, batch=batch: squared_error(net, batch) for batch in epoch] for epoch in seen.epochs]
    assert differ(dict(trained.state_dict()), Loop(0.02).run(copy.deepcopy(began), losses))


def test_the_rate_rises_over_a_twentieth_of_all_steps() -> None:
    """Long enough for a rise of three steps, over epochs of both kinds."""
    config = replace(NOTEBOOK, order_epochs=5, epochs=15, augment=replace(NO_AUGMENT, hide_code=0.0))
    began, trained, seen = fit_linear(config)
    assert len(seen.epochs) == 20
    losses = [[lambda net, batch=batch: squared_error(net, batch) for batch in epoch] for epoch in seen.epochs]
    loop = Loop(0.02, betas=(0.9, 0.98))
    assert_as_by_hand(loop, began, losses, dict(trained.state_dict()), [{"schedule": False}])


def test_every_epoch_shows_each_notebook_once_in_an_order_of_its_own() -> None:
    number = {id(one): i for i, one in enumerate(ITEMS)}

    def order(seed: int) -> list[list[int]]:
        _, _, seen = fit_linear(replace(NOTEBOOK, epochs=3), seed=seed)
        for epoch in seen.epochs:
            assert all(len(b.samples) * max(one.size for one in b.samples) <= 15 for b in epoch)
        return [[number[id(one.item)] for batch in epoch for one in batch.samples] for epoch in seen.epochs]

    first = order(0)
    assert [sorted(epoch) for epoch in first] == [list(range(len(ITEMS)))] * 3
    assert first[0] != first[1] != first[2]
    assert order(0) == first
    assert order(1) != first


def test_code_is_asked_in_the_first_epochs_only() -> None:
    items = [item(8, 3, seed) for seed in range(4)]
    config = replace(NOTEBOOK, order_epochs=2, batch_cells=60, augment=replace(NO_AUGMENT, hide_code=0.5))
    _, _, seen = fit_linear(config, items=items)
    asks = [any(bool((batch.kind == HIDDEN_CODE).any()) for batch in epoch) for epoch in seen.epochs]
    assert asks == [True, True, False, False]
    assert [line["asks_code"] for line in seen.log] == asks
    assert [line["epoch"] for line in seen.log] == [0, 1, 2, 3]


def test_samples_of_an_epoch_are_drawn_anew() -> None:
    items = [item(12, 6, seed) for seed in range(4)]
    config = replace(NOTEBOOK, batch_cells=90, epochs=4, augment=AugmentConfig(hide_similarity=0.0))
    _, _, seen = fit_linear(config, items=items)
    sizes = [[(len(one.code), len(one.asked)) for batch in epoch for one in batch.samples] for epoch in seen.epochs]
    assert len({str(sorted(epoch)) for epoch in sizes}) > 1
    assert any(size != (12, 6) for epoch in sizes for size in epoch)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_similarities_are_hidden_each_as_a_whole(share: float) -> None:
    config = replace(NOTEBOOK, batch_cells=60, epochs=20, augment=replace(NO_AUGMENT, hide_similarity=share))
    _, _, seen = fit_linear(config)
    hidden = []
    for batch in (batch for epoch in seen.epochs for batch in epoch):
        plain = make_batch(batch.samples)
        for i in range(len(batch.samples)):
            for kind in range(5):
                hidden.append(not bool(batch.maps[i, kind].any()))
                kept = 0.0 if hidden[-1] else 1.0
                assert torch.equal(batch.maps[i, kind], plain.maps[i, kind] * kept)
                assert torch.equal(batch.code_maps[i, kind], plain.code_maps[i, kind] * kept)
    assert np.mean(hidden) == pytest.approx(share, abs=0.06)


def test_the_log_tells_the_mean_loss_of_asked_cells() -> None:
    _, _, seen = fit_linear(NOTEBOOK)
    for line, batches, losses in zip(seen.log, seen.epochs, seen.losses, strict=True):
        asked = [int((~batch.asked_padding).sum()) for batch in batches]
        assert line["loss"] == pytest.approx(np.average(losses, weights=asked), rel=1e-5)


# --- sequences -------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """A table of word vectors that stands for an encoder."""

    def __init__(self, words: int, width: int, checkpoint: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.marks, self.width = MARKS, width
        self.settings = {"checkpoint": {}} if checkpoint else {}

    @property
    def word_vectors(self) -> nn.Embedding:
        return self.table

    def forward(self, ids: Tensor, padding: Tensor, added: Tensor | None = None) -> Tensor:
        return self.table(ids) * ~padding[..., None]


class MeanOfWords(nn.Module):
    """Sequences → one logit each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.leave = Words(50, 3), nn.Linear(3, 1)

    def forward(self, ids: Tensor, slots: Tensor, padding: Tensor, sizes: Tensor) -> Tensor:
        logits: Tensor = self.leave(self.encoder(ids, padding).sum(dim=1)).squeeze(-1)
        return logits


SEQUENCES = TransformerConfig(
    markdown_tokens=3, code_tokens=3, learning_rate=0.05, weight_decay=0.0, epochs=2, batch_tokens=24, folder_rate=0.1
)
EXAMPLES = [Example(one, one.n_code, np.array([0]), float(i % 2), 0.5 + i) for i, one in enumerate(ITEMS)]
TOKENS = Tokens(np.random.default_rng(0).integers(5, 50, 400).astype(np.int32), np.arange(0, 401, 4), 8)


def fit_mean_of_words(
    config: TransformerConfig, *, scale: float = 1.0, accumulate: int = 1, seed: int = 0
) -> tuple[nn.Module, nn.Module, Seen, list[Any]]:
    torch.manual_seed(5)
    network: Any = MeanOfWords().eval()
    began, seen = copy.deepcopy(network), Seen.new()
    shown: list[Any] = []
    network.register_forward_pre_hook(lambda module, inputs: shown.append((module.training, inputs)))

    def loss_of(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        assert shown[-1][0]
        loss = scale * before_loss(logits, target, weight)
        seen.epochs[-1].append((shown[-1][1], target, weight))
        seen.losses[-1].append(loss.item())
        return loss

    drawn: list[float] = []

    def examples_of(rng: np.random.Generator) -> list[Example]:
        drawn.append(rng.random())
        return EXAMPLES

    fit_sequences(
        network,
        examples_of,
        TOKENS,
        config,
        loss_of,
        seed=seed,
        log=seen.end_epoch,
        state=None,
        fabric_config=FabricConfig(accelerator="cpu", accumulate=accumulate),
    )
    return began, network, replace(seen, epochs=seen.epochs[:-1], losses=seen.losses[:-1]), drawn


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", [name for name in FEATURES if name != "average"])
def test_sequence_networks_descend_as_by_hand(name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = FEATURES[name]
    if optimizer == "sgd":
        use_sgd(monkeypatch)
    config = replace(
        SEQUENCES,
        weight_decay=feature.get("decay", 0.0),
        start="folder" if "shares" in feature else "scratch",
    )
    scale = 0.05 * feature.get("scale", 1.0)
    began, trained, seen, _ = fit_mean_of_words(config, scale=scale, accumulate=feature.get("accumulate", 1))
    assert min(map(len, seen.epochs)) >= 3

    def loss_of(net: nn.Module, inputs: tuple[Tensor, ...], target: Tensor, weight: Tensor) -> Tensor:
        p = net(*inputs).sigmoid()
        return -scale * (weight * (target * p.log() + (1 - target) * (1 - p).log())).mean()

    losses = [[lambda net, one=one: loss_of(net, *one) for one in epoch] for epoch in seen.epochs]
    loop = loop_of(feature, rate=config.learning_rate, optimizer=optimizer)
    assert_as_by_hand(loop, began, losses, dict(trained.state_dict()), feature["differs"])


def test_every_epoch_shows_each_example_once_with_its_own_target() -> None:
    def order(seed: int) -> tuple[list[list[float]], list[float]]:
        _, _, seen, drawn = fit_mean_of_words(replace(SEQUENCES, epochs=3), seed=seed)
        for epoch in seen.epochs:
            for _, target, weight in epoch:
                assert target.tolist() == [float(int(one - 0.5) % 2) for one in weight.tolist()]
        return [[one for _, _, weight in epoch for one in weight.tolist()] for epoch in seen.epochs], drawn

    first, drawn = order(0)
    assert [sorted(epoch) for epoch in first] == [[0.5 + i for i in range(len(EXAMPLES))]] * 3
    assert first[0] != first[1] != first[2]
    assert len(set(drawn)) == 3  # of pairs each epoch draws others
    assert order(0) == (first, drawn)
    assert order(1)[0] != first
    assert not set(order(1)[1]) & set(drawn)


def test_the_log_of_sequences_tells_the_mean_loss_of_examples() -> None:
    _, _, seen, _ = fit_mean_of_words(SEQUENCES)
    for line, batches, losses in zip(seen.log, seen.epochs, seen.losses, strict=True):
        assert line["loss"] == pytest.approx(np.average(losses, weights=[len(one[1]) for one in batches]), rel=1e-5)


# --- masked words ----------------------------------------------------------------------------------------------------


def fit_masked_words(
    config: TransformerConfig, monkeypatch: pytest.MonkeyPatch, *, accumulate: int = 1, scale: float = 1.0
) -> tuple[nn.Module, nn.Module, list[list[tuple[Tensor, ...]]]]:
    """Train on masked words: the network as it began, as it ended, and (given, wanted, padding, ids) by batch."""
    torch.manual_seed(5)
    encoder: Any = Words(50, 4, checkpoint=config.start == "folder").eval()
    networks: list[nn.Module] = []
    seen: list[list[tuple[Tensor, ...]]] = [[]]
    build, mask, entropy = text_models.MaskedWords, text_models.mask_tokens, nn.functional.cross_entropy

    def building(one: Any) -> nn.Module:
        networks.extend([build(copy.deepcopy(one)), build(one)])
        networks[0].load_state_dict(networks[1].state_dict())
        return networks[1].eval()

    def masking(ids: Tensor, padding: Tensor, marks: Marks, words: int) -> tuple[Tensor, Tensor]:
        assert networks[1].training
        assert words == 50
        given, wanted = mask(ids, padding, marks, words)
        seen[-1].append((given, wanted, padding, ids))
        return given, wanted

    monkeypatch.setattr(text_models, "MaskedWords", building)
    monkeypatch.setattr(text_models, "mask_tokens", masking)
    monkeypatch.setattr(nn.functional, "cross_entropy", lambda *inputs: scale * entropy(*inputs))
    learn_masked_words(
        encoder,
        TOKENS,
        np.arange(10, 40),
        config,
        0,
        lambda **values: seen.append([]),
        FabricConfig(accelerator="cpu", accumulate=accumulate),
    )
    return networks[0], networks[1], seen[:-1]


MASKED = replace(SEQUENCES, masked_epochs=2, batch_tokens=66)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", [name for name in FEATURES if name != "average"])
def test_masked_words_are_learned_as_by_hand(name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = FEATURES[name]
    if optimizer == "sgd":
        use_sgd(monkeypatch)
    config = replace(
        MASKED, weight_decay=feature.get("decay", 0.0), start="folder" if "shares" in feature else "scratch"
    )
    scale = 0.01 * feature.get("scale", 1.0)
    began, trained, seen = fit_masked_words(config, monkeypatch, accumulate=feature.get("accumulate", 1), scale=scale)
    assert min(map(len, seen)) >= 3

    def loss_of(net: Any, given: Tensor, wanted: Tensor, padding: Tensor, ids: Tensor) -> Tensor:
        hidden = net.head(net.encoder.table(given) * ~padding[..., None])
        said = (hidden @ net.encoder.table.weight.T).log_softmax(dim=-1)
        asked = [(i, t) for i, row in enumerate(wanted.tolist()) for t, word in enumerate(row) if word != -100]
        return -scale * sum(said[i, t, wanted[i, t]] for i, t in asked) / len(asked)

    losses = [[lambda net, one=one: loss_of(net, *one) for one in epoch] for epoch in seen]
    loop = loop_of(feature, rate=config.learning_rate, optimizer=optimizer)
    assert_as_by_hand(loop, began, losses, dict(trained.state_dict()), feature["differs"])


def test_masked_words_are_those_of_the_cells_asked_for_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, seen = fit_masked_words(MASKED, monkeypatch)
    expected = sorted([2, *TOKENS.ids[4 * row : 4 * row + 4].tolist(), 3] for row in range(10, 40))
    shown = [[row for _, _, _, ids in epoch for row in ids.tolist()] for epoch in seen]
    assert [sorted(epoch) for epoch in shown] == [expected, expected]
    assert shown[0] != shown[1]
    assert not torch.equal(seen[0][0][0], seen[1][0][0])


# --- the residual network --------------------------------------------------------------------------------------------


def one_cycle(step: int, steps: int, low: float, high: float, last: float) -> float:
    """Up from `low` to `high` over a tenth of the steps, down to `last`, both by half cosines."""
    turn = 0.1 * steps - 1

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    return between(low, high, step / turn) if step <= turn else between(high, last, (step - turn) / (steps - 1 - turn))


def targets_of(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Relative place and number of code cells of every markdown cell, counted cell by cell."""
    notebooks = view.table.notebooks
    place, sizes = [], []
    for i in range(len(notebooks)):
        start, stop = notebooks.offsets[i : i + 2].tolist()
        n_code = int(notebooks.n_code[i])
        rank = notebooks.true_rank[start:stop]  # type: ignore[index]  # a train split
        place += [sum(code < cell for code in rank[:n_code]) / n_code for cell in rank[n_code:]]
        sizes += [n_code] * (stop - start - n_code)
    return np.array(place), np.array(sizes)


@pytest.mark.parametrize(("decay", "steep"), [(0.0, False), (0.5, False), (0.0, True)])
def test_the_residual_network_descends_as_by_hand(
    decay: float, steep: bool, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`steep`: the last layer starts with weights so large that gradients are clipped."""

    def build(config: MlpConfig, n_features: int) -> Any:
        network = build_model(config, n_features)
        with torch.no_grad():
            network.leave[1].weight *= 15.0 if steep else 1.0
        return network

    monkeypatch.setattr(mlp, "build_model", build)
    place, sizes = targets_of(view)
    batch = -(-len(place) // 3)
    config = MlpConfig(width=4, blocks=1, dropout=0.0, learning_rate=0.01, weight_decay=decay, epochs=7, batch=batch)
    log: list[dict[str, Any]] = []
    found = Mlp.fit(view, config, 3, lambda **values: log.append(values))
    assert not found.network.training

    features = torch.from_numpy(view.markdown_features)
    target, weight = torch.from_numpy(place).float(), torch.from_numpy(sizes / sizes.mean()).float()
    steps = 7 * 3

    def train(decay: float = decay, clip: float = 1.0, factor: float = 1.0, weighted: bool = True) -> dict[str, Tensor]:
        torch.manual_seed(3)
        network = build(config, features.shape[1])
        damped = features.sign() * (1 + features.abs()).log()
        deviation = damped.std(dim=0)
        network.standardise.mean.copy_(damped.mean(dim=0))
        network.standardise.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.tensor(1.0)))
        optimizer = ADAMW(network.parameters(), weight_decay=decay)
        generator, step = torch.Generator().manual_seed(3), 0
        for epoch in range(7):
            total = 0.0
            for rows in torch.randperm(len(place), generator=generator).split(batch):
                group = optimizer.param_groups[0]
                group["lr"] = factor * one_cycle(step, steps, 0.01 / 25, 0.01, 0.01 / 25e4)
                group["betas"] = (one_cycle(step, steps, 0.95, 0.85, 0.95), 0.999)
                step += 1
                part = weight[rows] if weighted else torch.ones(len(rows))
                loss = ((network(features[rows]) - target[rows]).abs() * part).sum() / part.sum()
                total += loss.item() * len(rows)
                optimizer.zero_grad()
                loss.backward()
                norm = math.sqrt(sum(float((one.grad**2).sum()) for one in network.parameters()))
                for one in network.parameters():
                    one.grad *= min(1.0, clip / norm)  # type: ignore[operator]  # all have a gradient
                optimizer.step()
            if (decay, clip, factor, weighted) == (config.weight_decay, 1.0, 1.0, True):
                assert log[epoch]["loss"] == pytest.approx(total / len(place), rel=1e-3)
        return dict(network.state_dict())

    weights = dict(found.network.state_dict())
    torch.testing.assert_close(weights, train(), rtol=2e-3, atol=1e-4)
    others: list[dict[str, Any]] = [{"decay": 0.5 - decay}, {"factor": 0.5}, {"weighted": False}]
    for other in [{"clip": math.inf}] if steep else others:
        assert any(not torch.allclose(weights[k], v, rtol=2e-3, atol=1e-4) for k, v in train(**other).items()), other


def test_the_residual_network_is_trained_with_dropout(view: View) -> None:
    config = MlpConfig(width=4, blocks=1, dropout=0.0, epochs=2, batch=16)
    found = [Mlp.fit(view, replace(config, dropout=rate), 3).network.state_dict() for rate in (0.0, 0.0, 0.5)]
    assert not differ(found[0], found[1])
    assert differ(found[0], found[2])


# --- trees -----------------------------------------------------------------------------------------------------------

TREES = TreesConfig(
    rounds=4, learning_rate=0.3, leaves=5, smallest_leaf=7, feature_share=0.6, row_share=0.7, l2=1.5, bins=31
)


def trained_by_hand(objective: str, seed: int, features: np.ndarray, label: Any, **more: Any) -> str:
    """The text of LightGBM's model with the settings of `TREES` under their names there."""
    parameters = {
        "objective": objective, "learning_rate": 0.3, "num_leaves": 5, "min_data_in_leaf": 7, "feature_fraction": 0.6,
        "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 1.5, "max_bin": 31, "seed": seed,
        "deterministic": True, "force_col_wise": True, "verbose": -1,
    }  # fmt: skip
    data = lgb.Dataset(features, label, weight=more.pop("weight", None), group=more.pop("group", None))
    return str(lgb.train(parameters | more, data, num_boost_round=4).model_to_string())


@pytest.mark.parametrize("seed", [0, 6])
def test_the_position_regressor_by_hand(seed: int, view: View) -> None:
    place, sizes = targets_of(view)
    expected = trained_by_hand("regression_l1", seed, view.markdown_features, place, weight=sizes / sizes.mean())
    assert Position.fit(view, TREES, seed).booster.model_to_string() == expected
    assert trained_by_hand("regression_l1", seed, view.markdown_features, place) != expected


def test_the_ranker_by_hand(view: View) -> None:
    notebooks = view.table.notebooks
    assert notebooks.true_rank is not None
    label = []
    for start, stop in zip(notebooks.offsets[:-1], notebooks.offsets[1:], strict=True):
        label += [round(30 * rank / (stop - start - 1)) for rank in notebooks.true_rank[start:stop].tolist()]
    expected = trained_by_hand(
        "lambdarank",
        2,
        view.cell_features,
        label,
        group=notebooks.lengths,
        label_gain=list(range(31)),
        lambdarank_truncation_level=int(notebooks.lengths.max()),
    )
    assert Ranker.fit(view, TREES, 2).booster.model_to_string() == expected


@pytest.mark.parametrize(("kind", "far"), [("gaps", 3), ("joint", 3), ("gaps", 40)])  # 40: no gap is left out
def test_gap_classifiers_by_hand(kind: str, far: int, view: View) -> None:
    """The true gap, those beside it, and a draw of the others that weigh for those left out."""
    notebooks, rng = view.table.notebooks, np.random.default_rng(4)
    place, sizes = targets_of(view)
    gaps = iter(np.rint(place * sizes).astype(int).tolist())
    first, rows, label, weight = [], [], [], []
    for index in range(len(notebooks)):
        n_code, n_markdown = int(notebooks.n_code[index]), int(notebooks.n_markdown[index])
        p = np.random.default_rng(index).random((n_markdown, n_code + 1))
        first.append(Placement.from_gap_scores(p))
        block = view.gap_block(index)
        if kind == "joint":
            block = np.concatenate([block, relation_block(view, index, p / p.sum(axis=1, keepdims=True))], axis=-1)
        share = min(1.0, far / (n_code + 1))
        drawn = rng.random((n_markdown, n_code + 1))
        for cell in range(n_markdown):
            true = next(gaps)
            for gap in range(n_code + 1):
                if abs(gap - true) <= 1 or drawn[cell, gap] < share:
                    rows.append(block[cell, gap])
                    label.append(gap == true)
                    weight.append(1.0 if abs(gap - true) <= 1 else 1 / share)
    expected = trained_by_hand("binary", 4, np.stack(rows), label, weight=weight)
    pairs = PairsConfig(near=1, far=far)
    if kind == "gaps":
        found = Gaps.fit(view, TREES, pairs, 4).booster.model_to_string()
    else:
        found = Joint.fit(view, first, TREES, pairs, 4).booster.model_to_string()
    assert found == expected
    assert (max(weight) > 1.0) == (far == 3)


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ragged() -> Batch:
    """Notebooks of several sizes, one of them with markdown cells that share a gap."""
    return make_batch([whole(item(c, m, seed)) for seed, (c, m) in enumerate([(4, 6), (9, 3), (1, 1), (6, 5)])])


def random_answers(batch: Batch, passes: int) -> list[Answer]:
    generator = torch.Generator().manual_seed(1)
    b, m = batch.gap.shape
    found = []
    for _ in range(passes):
        gaps = torch.randn(b, m, batch.width + 1, generator=generator)
        outside = torch.arange(batch.width + 1)[None, :] > batch.n_code[:, None]
        before = 2 * torch.randn(b, m, m, generator=generator)
        found.append(Answer(gaps.masked_fill(outside[:, None, :], -torch.inf), before))
    return found


def log_softmax(values: np.ndarray) -> np.ndarray:
    return np.asarray(values - np.log(np.exp(values - values.max()).sum()) - values.max())


def cross_entropy_of_order(answer: Answer, batch: Batch, i: int, j: int, k: int) -> float:
    p = 1 / (1 + math.exp(-float(answer.before_logits[i, j, k])))
    return -math.log(p if batch.rank[i, j] < batch.rank[i, k] else 1 - p)


def gap_loss_by_hand(answers: Sequence[Answer], batch: Batch, distance: float, mean_code: float) -> float:
    """Cell by cell: cross-entropy with root weights, ranked probability score, and the order of pairs.

    Pairs that share a gap count twenty times the others.
    """
    totals = []
    for answer in answers:
        cross = ranked = inner = pair_weights = 0.0
        cells = 0
        for i, sample in enumerate(batch.samples):
            n_code = len(sample.code)
            for j in range(len(sample.asked)):
                gap = int(batch.gap[i, j])
                log_p = log_softmax(answer.gap_logits[i, j, : n_code + 1].double().numpy())
                cells += 1
                cross -= math.sqrt(n_code / mean_code) * log_p[gap]
                cdf = np.cumsum(np.exp(log_p))
                ranked += sum((cdf[g] - (g >= gap)) ** 2 for g in range(n_code + 1)) / mean_code
                for k in range(len(sample.asked)):
                    if k != j:
                        weight = 1.0 if batch.gap[i, k] == gap else 0.05
                        inner += weight * cross_entropy_of_order(answer, batch, i, j, k)
                        pair_weights += weight
        totals.append(cross / cells + distance * ranked / cells + 0.3 * inner / pair_weights)
    return sum(totals) / len(totals)


@pytest.mark.parametrize(("distance", "mean_code"), [(0.0, 5.0), (4.0, 5.0), (4.0, 2.5)])
def test_the_loss_of_gaps_by_hand(distance: float, mean_code: float, ragged: Batch) -> None:
    assert any(len(set(row[row >= 0].tolist())) < int((row >= 0).sum()) for row in ragged.gap)
    for passes in (1, 2):
        answers = random_answers(ragged, passes)
        expected = gap_loss_by_hand(answers, ragged, distance, mean_code)
        assert gap_loss(answers, ragged, distance, mean_code).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_gaps_is_computed_in_float32_whatever_the_network_says(ragged: Batch) -> None:
    half = [Answer(one.gap_logits.bfloat16(), one.before_logits.bfloat16()) for one in random_answers(ragged, passes=2)]
    with torch.autocast("cpu", torch.bfloat16):
        found = gap_loss(half, ragged, 4.0, 5.0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(gap_loss_by_hand(half, ragged, 4.0, 5.0), rel=1e-5)


def test_the_loss_of_places_by_hand(ragged: Batch) -> None:
    """Distances in gaps, over the mean number of code cells, and a fiftieth of the order of all asked pairs."""
    (answer,) = random_answers(ragged, 1)
    told: list[Any] = []

    def network(batch: Batch, guess: Tensor, level: Tensor) -> list[Answer]:
        told.append((guess, level))
        return [Answer(torch.zeros_like(answer.gap_logits), answer.before_logits), answer]

    guess, level = torch.randn(ragged.gap.shape), torch.rand(len(ragged.gap))
    found = diffusion.place_loss(network, ragged, guess, level, 5.0)  # type: ignore[arg-type]  # a stand-in
    distance, order, cells, pairs = 0.0, 0.0, 0, 0
    for i, sample in enumerate(ragged.samples):
        n_code = len(sample.code)
        for j in range(len(sample.asked)):
            p = np.exp(log_softmax(answer.gap_logits[i, j, : n_code + 1].double().numpy()))
            distance += 2 * abs(p @ np.arange(n_code + 1) - int(ragged.gap[i, j])) / 5.0
            cells += 1
            for k in range(len(sample.asked)):
                order += cross_entropy_of_order(answer, ragged, i, j, k)
                pairs += 1
    assert found.item() == pytest.approx(distance / cells + 0.02 * order / pairs, rel=1e-5)
    assert told[0][0] is guess
    assert told[0][1] is level


def test_listnet_of_notebooks_of_several_sizes_by_hand(ragged: Batch) -> None:
    scores = torch.randn(ragged.padding.shape, generator=torch.Generator().manual_seed(0))
    expected = []
    for i, sample in enumerate(ragged.samples):
        rank = sample.item.rank
        assert rank is not None
        wanted = np.exp(-4.0 * rank / (len(rank) - 1))
        said = scores[i][~ragged.padding[i]].double().numpy()
        expected.append(-(wanted / wanted.sum() * log_softmax(said)).sum())
    assert listnet_loss(scores, ragged).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_losses_of_sequences_by_hand() -> None:
    logits, target, weight = torch.randn(7), torch.rand(7), torch.rand(7)
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    t, w = target.double().numpy(), weight.double().numpy()
    assert place_distance(logits, target, weight).item() == pytest.approx((abs(p - t) * w).mean(), rel=1e-5)
    cross = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    assert before_loss(logits, target, weight).item() == pytest.approx((w * cross).mean(), rel=1e-5)


@pytest.mark.parametrize("noisy", [True, False])
def test_diffusion_is_shown_noisy_places_and_its_twin_nothing(
    noisy: bool, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[Batch, Tensor, Tensor, float]] = []

    def recording(network: nn.Module, batch: Batch, guess: Tensor, level: Tensor, mean_code: float) -> Tensor:
        shown.append((batch, guess, level, mean_code))
        return sum(one.sum() for one in network.parameters()) * 0.0  # type: ignore[return-value]  # not empty

    monkeypatch.setattr(diffusion, "place_loss", recording)
    kind: Any = diffusion.Diffusion if noisy else diffusion.Twin
    settings = [SamplingConfig()] if noisy else []
    config = replace(NOTEBOOK, epochs=4, batch_cells=200)
    kind.fit(view, config, *settings, EncoderConfig(vectors="singular"), 0)
    levels = np.concatenate([level.numpy() for _, _, level, _ in shown])
    _, sizes = targets_of(view)
    assert [mean for *_, mean in shown] == [pytest.approx(sizes.mean())] * len(shown)
    if not noisy:
        assert (levels == 1.0).all()
        assert all(not guess.any() for _, guess, _, _ in shown)
        return
    assert levels.min() < 0.15
    assert levels.max() > 0.85
    assert len(np.unique(levels)) == len(levels)  # one for each notebook
    noise = []
    for batch, guess, level, _ in shown:
        for i, sample in enumerate(batch.samples):
            angle = [math.cos((one + 0.008) / 1.008 * math.pi / 2) ** 2 for one in (float(level[i]), 0.0)]
            share = max(angle[0] / angle[1], 1e-5)
            clean = 2 * batch.gap[i, : len(sample.asked)].double() / len(sample.code) - 1
            if share < 0.9:  # else rounding errors are multiplied
                rest = guess[i, : len(sample.asked)].double() - math.sqrt(share) * clean
                noise += (rest / math.sqrt(1 - share)).tolist()
    assert np.mean(noise) == pytest.approx(0.0, abs=0.15)
    assert np.std(noise) == pytest.approx(1.0, abs=0.15)


# --- what the members hand to their loops ----------------------------------------------------------------------------


def settings_of_loop(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a recording in place of a training loop: its arguments by name, call by call."""
    calls: list[dict[str, Any]] = []
    names = inspect.getfullargspec(getattr(module, name)).args

    def recording(*inputs: Any, **settings: Any) -> Any:
        calls.append(dict(zip(names, inputs, strict=False)) | settings)
        return inputs[0]

    monkeypatch.setattr(module, name, recording)
    return calls


TEXT = replace(SEQUENCES, vocab_size=300, width=16, layers=1, heads=2, contexts=3, shared_tokens=6, negatives=4)


@pytest.mark.parametrize("member", ["listwise", "text-listwise", "seed-listwise"])
def test_notebook_members_are_trained_with_their_losses(
    member: Any, view: View, ragged: Batch, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(NOTEBOOK, distance=3.0)
    _, sizes = targets_of(view)
    if member == "listwise":
        calls = settings_of_loop(neural, "fit_network", monkeypatch)
        Listwise.fit(view, config, EncoderConfig(vectors="singular"), 8)
    else:
        calls = settings_of_loop(text_models, "fit_network", monkeypatch)
        text = replace(TEXT, start="folder", folder_rate=0.2)
        text_models.TextListwise.fit(member, view, config, text, EncoderConfig(folder=tiny_encoder), 8)
        rate_of = calls[0]["rate_of"]
        assert (rate_of("encoder.network.x"), rate_of("notebook.encoder.x"), rate_of("leave.x")) == (0.2, 1.0, 1.0)
    (call,) = calls
    assert call["seed"] == 8
    assert call["config"] is config
    rows = sorted(row for one in call["items"] for row in range(one.first_row, one.first_row + one.n_cells))
    assert rows == view.rows.tolist()  # all notebooks of the sample have code and markdown
    if member == "seed-listwise":
        scores = torch.randn(ragged.padding.shape)
        assert call["loss_of"](lambda batch: scores, ragged) == listnet_loss(scores, ragged)
    else:
        answers = random_answers(ragged, 2)
        expected = gap_loss_by_hand(answers, ragged, 3.0, sizes.mean())
        assert call["loss_of"](lambda batch: answers, ragged).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["pointwise", "pairwise"])
def test_sequence_members_are_trained_on_true_places(kind: Any, view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = settings_of_loop(text_models, "fit_sequences", monkeypatch)
    text_models.Sequences.fit(kind, view, TEXT, EncoderConfig(), 8)
    (call,) = calls
    assert call["seed"] == 8
    assert call["loss_of"] is (place_distance if kind == "pointwise" else before_loss)
    place, sizes = targets_of(view)
    rows = np.flatnonzero(view.is_markdown)
    examples = call["examples_of"](np.random.default_rng(0))
    if kind == "pointwise":
        assert [one.item.first_row + one.markdown for one in examples] == rows.tolist()
        np.testing.assert_allclose([one.target for one in examples], place)
        np.testing.assert_allclose([one.weight for one in examples], sizes / sizes.mean())
        for one in examples:
            assert {0, one.item.n_code - 1} <= set(one.code.tolist())
            assert len(one.code) == min(3, one.item.n_code)
        return
    assert [one.item.first_row + one.markdown for one in examples] == np.repeat(rows, 4).tolist()
    for one, share in zip(examples, np.repeat(place, 4), strict=True):
        assert one.target == float(round(share * one.item.n_code) <= one.code[0])
        assert one.weight == 1.0
    seen = {int(one.code[0]) for one in examples if one.item is examples[0].item}
    assert max(seen) <= examples[0].item.n_code - 1
    assert {one.target for one in examples} == {0.0, 1.0}
    others = call["examples_of"](np.random.default_rng(1))
    assert [one.code[0] for one in others] != [one.code[0] for one in examples]
    at_end = [one.code[0] == one.item.n_code - 1 for one in examples + others]
    assert any(at_end)


# --- what is built from a configuration ------------------------------------------------------------------------------


def rates_of(network: nn.Module) -> list[float]:
    """Dropout rates of all places in a network, those inside attention too."""
    found = [one.p for one in network.modules() if isinstance(one, nn.Dropout)]
    found += [one.rate for one in network.modules() if isinstance(one, Dropout)]
    return found + [one.dropout for one in network.modules() if isinstance(one, nn.MultiheadAttention)]


SETTINGS = {"vocab_size": 50, "width": 16, "layers": 2, "heads": 2, "dropout": 0.21, "marks": vars(MARKS)}
DROPPING = replace(NOTEBOOK, layers=3, dropout=0.35)


def test_dropout_reaches_every_layer(view: View) -> None:
    # Of each layer: attention weights, and behind attention, inside and behind the feed-forward network.
    assert rates_of(CellEncoder(dict(SETTINGS))) == [0.21] * (2 * 4)
    assert rates_of(NotebookNet(DROPPING, 4)) == [0.35] * (1 + 3 * 2)
    assert rates_of(build_model(MlpConfig(width=4, blocks=2, dropout=0.4), 5)) == [0.4] * 3
    assert sorted(rates_of(SequenceNet(CellEncoder(dict(SETTINGS)), 3))) == [0.21] * 8
    listwise = TextNotebookNet(CellEncoder(dict(SETTINGS)), DROPPING, (4, 4))
    assert sorted(rates_of(listwise)) == [0.21] * 8 + [0.35] * 7
    seed = SeedNet(CellEncoder(dict(SETTINGS)), DROPPING, (4, 4))
    assert sorted(rates_of(seed)) == [0.21] * 8 + [0.35] * 12
    config = replace(SEQUENCES, vocab_size=300, width=16, layers=2, heads=2, dropout=0.17)
    made, _ = text_models.start_encoder(view, config, EncoderConfig(), 0, silent)
    assert rates_of(made) == [0.17] * 8


def test_sizes_reach_the_networks(view: View) -> None:
    net = NotebookNet(replace(NOTEBOOK, width=12, layers=3, heads=4, pair_width=5, passes=2), 7, guided=True)
    assert net.from_vectors is not None
    assert net.from_vectors.weight.shape == (12, 7)
    assert len(net.layers) == 3
    assert net.layers[0].attention.heads == 4
    assert net.pair_gap.weight.shape == (5, 12)
    with torch.inference_mode():
        assert len(net.eval()(make_batch([whole(replace(item(4, 2, 0), vectors=np.zeros((6, 7), np.float16)))]))) == 2
    config = replace(SEQUENCES, vocab_size=300, width=24, layers=3, heads=2)
    made, tokenizer = text_models.start_encoder(view, config, EncoderConfig(), 0, silent)
    assert made.word_vectors.weight.shape == (tokenizer.get_vocab_size(), 24)
    assert 200 < tokenizer.get_vocab_size() <= 300
    encoder: Any = made.network
    assert len(encoder.encoder.layers) == 3
    assert encoder.encoder.layers[0].self_attn.num_heads == 2


@pytest.mark.parametrize("member", [name for name in FILES if name != "joint"])
def test_the_seed_reaches_every_member(
    member: Any, view: View, small: Callable[[Config], Config], tmp_path: Path
) -> None:
    """Another seed, other weights; the same seed, the same weights, whatever was drawn before."""
    config = small(Config(members=(member,)))
    fresh = {
        name: replace(getattr(config, name), epochs=0, order_epochs=0) for name in ("listwise", "twin", "text_listwise")
    }
    config = replace(config, **fresh, diffusion=replace(config.diffusion, epochs=0, order_epochs=0))
    config = replace(config, transformer=replace(config.transformer, epochs=0))
    found = []
    for number, seed in enumerate((0, 0, 1)):
        torch.rand(1)
        folder = tmp_path / str(number)
        folder.mkdir()
        fit_member(member, view, replace(config, seed=seed), silent).save(folder)
        text = (folder / FILES[member]).read_bytes()
        found.append(text.replace(b"[seed: 1]", b"[seed: 0]").split(b"\nparameters:")[0])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_seed_reaches_joint(view: View) -> None:
    first = [
        Placement.from_gap_scores(np.ones((int(m), view.n_code(i) + 1)))
        for i, m in enumerate(view.table.notebooks.n_markdown)
    ]
    config = Config(members=("gaps", "joint"), joint=TREES)
    texts = [fit_joint(view, first, replace(config, seed=seed)).booster.dump_model()["tree_info"] for seed in (0, 1)]
    assert texts[0] != texts[1]
