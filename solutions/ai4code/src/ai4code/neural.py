"""The notebook transformer as a member: its loss, its training loop, its answers, its file.

Start policy: (1) with `--resume`, the state that the last whole epoch left beside the models is read back; (2) else
weights are fresh. Every epoch draws its samples and its dropout from a seed of its own, so that a resumed training
ends with the same bits as one that was never stopped.

Several processes each take their share of the notebooks of every batch; what a loss is divided by is counted in all of
the batch, so that the gradient is that of one process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from ai4code.config import AugmentConfig, EncoderConfig, NotebookConfig
from ai4code.decode import Placement
from ai4code.encoder import cell_vectors, source_digest
from ai4code.features import View
from ai4code.network import Answer, NotebookNet
from ai4code.sequences import (
    N_FEATURES,
    Batch,
    Item,
    Sample,
    at_least_one,
    augmented,
    make_batch,
    make_items,
    thinned,
)
from ai4code.similarity import SIMILARITIES
from kit_core.errors import DataError
from kit_nn.averaging import WeightAverage
from kit_train.batches import bucketed_batches, sequential_batches
from kit_train.config import FabricConfig
from kit_train.fabric import launch
from kit_train.ranks import draws_of_rank, mean_of_ranks, share_of_batch
from kit_train.schedules import cosine, set_learning_rate
from kit_train.state import load_state, mixed_seed, save_state
from kit_train.weights import load_weights, save_weights

LONGEST = 1200  # cells of a notebook that are answered at once; attention needs memory by the square of them
Log = Callable[..., None]
LossOf = Callable[[nn.Module, Batch], Tensor]
ONE_PROCESS = FabricConfig()


def silent(**values: object) -> None:
    """Log nothing."""


def device() -> torch.device:
    """Where networks run: the first accelerator, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gap_loss(answers: Sequence[Answer], batch: Batch, distance: float, mean_code: float) -> Tensor:
    """Loss of all passes: cross-entropy of the gap, and the squared error of the cumulated distribution.

    The squared error is summed over the gaps, so cells of long notebooks weigh more, as in the pooled metric; the
    cross-entropy is weighted by the root of the number of code cells. Added is the cross-entropy of the order of asked
    cells, which counts nearly only where they share a gap.
    """
    known = batch.gap >= 0
    target = batch.gap.clamp(min=0)
    count = batch.divisor(known.sum())
    weight = (batch.n_code[:, None] / mean_code).sqrt() * known
    step = (torch.arange(batch.width + 1, device=target.device) >= target[..., None]).float()
    inside = torch.arange(batch.width + 1, device=target.device) <= batch.n_code[:, None]
    pairs = known[:, :, None] & known[:, None, :] & ~torch.eye(target.shape[1], dtype=torch.bool, device=target.device)
    pair_weight = pairs * torch.where(target[:, :, None] == target[:, None, :], 1.0, 0.05)
    pair_count = batch.divisor(pair_weight.sum())
    before = (batch.rank[:, :, None] < batch.rank[:, None, :]).float()
    total = torch.zeros((), device=target.device)
    for answer in answers:
        logits = answer.gap_logits.float()
        log_p = logits.log_softmax(dim=-1).gather(-1, target[..., None]).squeeze(-1)
        cross = -(log_p * weight).sum() / count
        off = (logits.softmax(dim=-1).cumsum(dim=-1) - step) * inside[:, None, :]
        ranked = ((off**2).sum(dim=-1) * known).sum() / count / mean_code
        order = functional.binary_cross_entropy_with_logits(answer.before_logits.float(), before, reduction="none")
        inner = (order * pair_weight).sum() / pair_count
        total = total + cross + distance * ranked + 0.3 * inner
    return total / len(answers)


def with_similarities(batch: Batch, kept: Tensor) -> Batch:
    """Set each similarity of each notebook to zero but those `kept`, bool [B, 5]."""
    shown = kept.float()[..., None, None]
    return replace(batch, maps=batch.maps * shown, code_maps=batch.code_maps * shown)


def common_divisor(ranks: int, counts: bool) -> Callable[[Tensor], Tensor]:
    """What `Batch.divisor` is among several ranks; `counts`: whether this one has samples of its own in the batch.

    The mean over ranks of sums that were divided so is the mean over the batch. All ranks must ask together.
    """

    def divisor(count: Tensor) -> Tensor:
        total = count.detach().float() * counts
        distributed.all_reduce(total)
        return at_least_one(total) / ranks

    return divisor


class Learner(nn.Module):
    """A network behind its loss: a step is one forward pass, so that precision and sharing are set in one place."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, loss_of: Callable[[nn.Module], Tensor]) -> Tensor:
        """Loss of a batch that `loss_of` knows: inputs that are no tensors pass a wrapper untouched."""
        return loss_of(self.network)


def fit_network(
    network: nn.Module,
    items: Sequence[Item],
    config: NotebookConfig,
    loss_of: LossOf,
    *,
    seed: int,
    log: Log,
    state: Path | None,
    rate_of: Callable[[str], float] | None = None,
    fabric_config: FabricConfig = ONE_PROCESS,
) -> nn.Module:
    """Train a network over notebooks and return the moving average of its weights.

    Args:
        items: notebooks with code, markdown and a known order.
        state: where each epoch leaves what resuming needs; None keeps nothing.
        rate_of: learning rate of a weight by its name, as a share of the common one.
    """
    fabric = launch(fabric_config)
    place = fabric.device
    network.to(place).train()
    groups = weight_groups(network, config.learning_rate, config.weight_decay, rate_of)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    average = WeightAverage(network, config.average)
    epochs = config.order_epochs + config.epochs
    first = 0
    if state is not None and state.exists():
        kept = load_state(state, place)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        average.load_state_dict(kept["average"])
        first = kept["epoch"]
    model, optimizer = fabric.setup(Learner(network), optimizer)
    for epoch in range(first, epochs):
        draw = mixed_seed(seed, epoch)
        rng = np.random.default_rng(draw)
        torch.manual_seed(draw)
        ask_code = epoch < config.order_epochs
        samples = [augmented(item, config.augment, rng, ask_code=ask_code) for item in items]
        lengths = np.array([sample.size for sample in samples], dtype=np.int64)
        batches = bucketed_batches(lengths, 64, draw, frames_budget=config.batch_cells)
        total, cells = 0.0, 0
        for step, rows in enumerate(batches):
            set_learning_rate(optimizer, cosine(epoch * len(batches) + step, epochs * len(batches), warmup=0.05))
            shown = torch.rand(len(rows), len(SIMILARITIES), device=place) >= config.augment.hide_similarity
            part = share_of_batch(np.arange(len(rows)), fabric.global_rank, fabric.world_size)
            batch = make_batch([samples[row] for row in rows[part.rows].tolist()]).to(place)
            batch = with_similarities(batch, shown[part.rows])
            if fabric.world_size > 1:
                batch = replace(batch, divisor=common_divisor(fabric.world_size, part.weight > 0))
            accumulating = (step + 1) % fabric_config.accumulate != 0 and step + 1 < len(batches)
            with fabric.no_backward_sync(model, enabled=accumulating):
                with draws_of_rank(fabric, mixed_seed(draw, step)):
                    loss = model(lambda net, batch=batch: loss_of(net, batch))
                if not part.weight:
                    loss = loss * 0.0
                fabric.backward(loss / fabric_config.accumulate)
            if not accumulating:
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                average.update(network)
            asked = sum(len(samples[row].asked) for row in rows.tolist())
            total, cells = total + loss.item() * asked, cells + asked
        log(epoch=epoch, loss=mean_of_ranks(fabric, total) / max(cells, 1), asks_code=ask_code)
        if state is not None:
            save_state(
                state,
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.state_dict(),
                    "epoch": epoch + 1,
                },
            )
    return average.module


def weight_groups(
    network: nn.Module, rate: float, decay: float, rate_of: Callable[[str], float] | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices decay, biases and norms do not; `rate_of` scales the rate by the name."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            share = rate_of(name) if rate_of else 1.0
            groups.setdefault((share, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "lr": rate * share, "weight_decay": decay if matrix else 0.0}
        for (share, matrix), parameters in groups.items()
    ]


def answerable(item: Item) -> bool:
    """Whether there is anything to decide: code and markdown cells."""
    return 0 < item.n_code < item.n_cells


def fresh_network(items: Sequence[Item], config: NotebookConfig, dim: int, seed: int, guided: bool) -> NotebookNet:
    """Make a network with weights from a seed and statistics of the items' features; the caller's state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NotebookNet(config, dim, guided)
    fit_statistics(network, items)
    return network


def fit_statistics(network: NotebookNet, items: Sequence[Item]) -> None:
    """Give a network mean and deviation of the items' features; two rows of zeros besides, so that there are some."""
    features = np.concatenate([np.zeros((2, N_FEATURES), np.float32), *(item.features for item in items)])
    network.standardise.fit(torch.from_numpy(features))


def mean_code_cells(items: Sequence[Item]) -> float:
    """Mean number of code cells, markdown cell by markdown cell; at least 1."""
    weights = [item.n_cells - item.n_code for item in items]
    return max(1.0, float(np.average([item.n_code for item in items], weights=weights))) if items else 1.0


@dataclass(frozen=True, eq=False)
class Listwise:
    """`cached-listwise`: the whole notebook at once over frozen cell vectors; a distribution over gaps."""

    network: NotebookNet
    encoder: EncoderConfig
    encoder_digest: str
    name: str = "listwise"

    @classmethod
    def fit(
        cls,
        view: View,
        config: NotebookConfig,
        encoder: EncoderConfig,
        seed: int,
        log: Log = silent,
        state: Path | None = None,
        fabric_config: FabricConfig = ONE_PROCESS,
        name: str = "listwise",
    ) -> Self:
        """Learn from the notebooks of the view; `state` is where a stopped training is taken up again.

        Args:
            name: that of the model's file.

        Raises:
            ConfigError, DataError: the encoder's folder is missing, incomplete or damaged.
        """
        vectors = vectors_to_fit(view, encoder, fabric_config)
        items = [item for item in make_items(view, vectors) if answerable(item)]
        network = fresh_network(items, config, vectors.shape[1], seed, guided=False)
        mean_code = mean_code_cells(items)

        def loss_of(network: nn.Module, batch: Batch) -> Tensor:
            return gap_loss(network(batch), batch, config.distance, mean_code)

        with torch.random.fork_rng(devices=[]):  # dropout draws from the global state, which is given back
            trained = fit_network(
                network,
                items,
                config,
                loss_of,
                seed=seed,
                log=log,
                state=state,
                fabric_config=fabric_config,
            )
        assert isinstance(trained, NotebookNet)
        return cls(trained.cpu().eval(), encoder, source_digest(encoder), name)

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view.

        Raises:
            DataError: the encoder's folder is not the one that the model was fitted with.
        """
        items = make_items(view, vectors_as_fitted(view, self.encoder, self.encoder_digest))
        return answer_items(self.network, items, 2 * self.network.config.batch_cells)

    def save(self, folder: Path) -> None:
        """Write the weights; the header of the file holds what rebuilds the network."""
        save_network(folder / f"{self.name}.safetensors", self.network, self.encoder_digest)

    @classmethod
    def load(cls, folder: Path, encoder: EncoderConfig, name: str = "listwise") -> Self:
        """Read what `save` wrote."""
        network, digest = load_network(folder / f"{name}.safetensors")
        return cls(network, encoder, digest, name)


def vectors_to_fit(view: View, encoder: EncoderConfig, fabric_config: FabricConfig) -> np.ndarray:
    """Vectors of the cells of the view's table; of several ranks the first packs them where there is a cache."""
    if encoder.cache is None:
        return cell_vectors(view, encoder)
    with launch(fabric_config).rank_zero_first():
        return cell_vectors(view, encoder)


def vectors_as_fitted(view: View, encoder: EncoderConfig, digest: str) -> np.ndarray:
    """Vectors of the cells of the view's table, by the encoder that a model was fitted with.

    Raises:
        DataError: the encoder's files are others.
    """
    if (found := source_digest(encoder)) != digest:
        raise DataError(
            f"{encoder.folder}: found an encoder of digest {found[:16]}…, expected {digest[:16]}…, with which the "
            "model was fitted\n  do: put the folder that was used back there, or train again"
        )
    return cell_vectors(view, encoder)


def answer_items(
    network: nn.Module,
    items: Sequence[Item],
    batch_cells: int,
    answer: Callable[[Any, Batch], list[Placement]] | None = None,
) -> list[Placement]:
    """Answer notebooks in batches of near-equal length; those without code or without markdown need no network.

    Args:
        batch_cells: cells a batch, padding included.
        answer: takes the network and gives a placement for each sample of a batch; by default the
            distribution of the last pass.
    """
    place = device()
    network = network.to(place).eval()
    samples: list[Sample] = []
    owner: list[int] = []
    for number, item in enumerate(items):
        if answerable(item):
            parts = thinned(item, LONGEST)
            samples += parts
            owner += [number] * len(parts)
    by_item: dict[int, list[tuple[int, Placement]]] = {}
    lengths = np.array([sample.size for sample in samples], dtype=np.int64)
    with torch.inference_mode():
        for rows in sequential_batches(lengths, 64, frames_budget=batch_cells):
            batch = make_batch([samples[row] for row in rows.tolist()]).to(place)
            for row, placement in zip(rows.tolist(), (answer or last_pass)(network, batch), strict=True):
                by_item.setdefault(owner[row], []).append((row, placement))
    network.cpu()
    placements = []
    for number, item in enumerate(items):
        parts_of_item = sorted(by_item.get(number, []), key=lambda pair: pair[0])
        placements.append(_joined(item, [(samples[row], placement) for row, placement in parts_of_item]))
    return placements


def last_pass(network: nn.Module, batch: Batch) -> list[Placement]:
    """The distributions of the last pass, and which markdown cell stands before which."""
    answer = network(batch)[-1]
    probability = answer.gap_probability.double().cpu().numpy()
    before = answer.before_logits.double().sigmoid().cpu().numpy()
    placements = []
    for i, sample in enumerate(batch.samples):
        c, m = len(sample.code), len(sample.asked)
        placements.append(
            replace(Placement.from_gap_scores(probability[i, :m, : c + 1]), markdown_before=before[i, :m, :m])
        )
    return placements


def _joined(item: Item, parts: list[tuple[Sample, Placement]]) -> Placement:
    """Put the answers for the parts of a notebook together, on the axis of all its code cells."""
    if not parts:
        return Placement.from_gap_scores(np.ones((item.n_cells - item.n_code, item.n_code + 1)))
    if len(parts) == 1 and len(parts[0][0].code) == item.n_code:
        return parts[0][1]
    if any(placement.gap_probability is None for _, placement in parts):
        positions = [
            np.interp(placement.position, np.arange(len(sample.code) + 1), [*sample.code, item.n_code])
            for sample, placement in parts
        ]
        return Placement(np.concatenate(positions))
    rows = [widen(placement.gap_probability, sample.code, item.n_code) for sample, placement in parts]  # type: ignore[arg-type]  # all are known here
    return Placement.from_gap_scores(np.concatenate(rows))


def widen(probability: np.ndarray, code: np.ndarray, n_code: int) -> np.ndarray:
    """Spread a distribution over the gaps between some code cells evenly over all gaps: float64 [M, n_code + 1].

    Args:
        probability: float64 [M, len(code) + 1].
        code: the code cells kept, int64, ascending.
    """
    if len(code) == n_code:
        return probability
    # Gap g of the notebook lies between kept cells exactly where searchsorted finds it.
    owner = np.searchsorted(code, np.arange(n_code + 1))
    share = 1.0 / np.bincount(owner, minlength=len(code) + 1)[owner]
    wide: np.ndarray = probability[:, owner] * share
    return wide


def save_network(path: Path, network: NotebookNet, digest: str) -> None:
    """Write a network with what rebuilds it."""
    header = {
        "config": asdict(network.config),
        "dim": network.dim,
        "guided": network.guided,
        "encoder_digest": digest,
    }
    save_weights(path, network, header)


def load_network(path: Path) -> tuple[NotebookNet, str]:
    """Read what `save_network` wrote: the network, and the digest of the encoder that it was fitted with.

    Raises:
        DataError: the file is missing, changed or of another format.
    """
    weights, header = load_weights(path)
    network = NotebookNet(stored_config(header["config"]), header["dim"], header["guided"])
    network.load_state_dict(weights)
    return network.eval(), header["encoder_digest"]


def stored_config(settings: Mapping[str, Any]) -> NotebookConfig:
    """The configuration that `asdict` made `settings` of.

    Raises:
        TypeError, KeyError: other settings than this version of the program knows.
    """
    return NotebookConfig(**{**settings, "augment": AugmentConfig(**settings["augment"])})
