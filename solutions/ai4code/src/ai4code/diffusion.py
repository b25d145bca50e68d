"""Positional diffusion over the places of markdown cells, and the same network as a plain regressor, its twin.

The places of the markdown cells on the axis −1..1 are what is noised; the code cells stand by with their known places
and are never noised. The network sees noisy places and how noisy they are, and says the clean ones: the mean of its
distribution over gaps. Answers are drawn by DDIM; their median is the position.

Sources: Giuliari et al. 2023, Positional Diffusion (arXiv:2303.11120); cosine schedule of Nichol and Dhariwal 2021
(arXiv:2102.09672); DDIM of Song et al. 2020 (arXiv:2010.02502).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from ai4code.config import EncoderConfig, NotebookConfig, SamplingConfig
from ai4code.decode import Placement
from ai4code.encoder import source_digest
from ai4code.features import View
from ai4code.network import NotebookNet, mean_place
from ai4code.neural import (
    ONE_PROCESS,
    Log,
    answer_items,
    answerable,
    fit_network,
    fresh_network,
    load_network,
    mean_code_cells,
    save_network,
    silent,
    vectors_as_fitted,
    vectors_to_fit,
)
from ai4code.sequences import Batch, make_items
from kit_train.config import FabricConfig

OFFSET = 0.008  # keeps the first steps of the cosine schedule from being too small (Nichol and Dhariwal)
CLIP = 3.0  # noisy places beyond are drawn in: a normal number lies there once in 400 times
Denoiser = Callable[[Tensor, Tensor], Tensor]  # noisy places [B, M], level [B] -> clean places [B, M]


def signal_share(level: Tensor) -> Tensor:
    """Share of the clean places' variance that is left at a noise level 0..1 (the schedule's cumulated alpha)."""
    angle = (level + OFFSET) / (1 + OFFSET) * math.pi / 2
    start = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2) ** 2
    return (angle.cos() ** 2 / start).clamp(1e-5, 1.0)


def noised(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Mix clean places [B, M] with normal noise [B, M] at a level [B]."""
    share = signal_share(level)[:, None]
    return (share.sqrt() * clean + (1 - share).sqrt() * noise).clamp(-CLIP, CLIP)


def ddim(denoise: Denoiser, noise: Tensor, steps: int) -> Tensor:
    """Go from pure noise to clean places in equal steps of the level, without fresh noise: float [B, M]."""
    places = noise.clamp(-CLIP, CLIP)
    levels = torch.linspace(1.0, 0.0, steps + 1).tolist()
    clean = places
    for level, following in pairwise(levels):
        now = torch.full((len(noise),), level, device=noise.device)
        clean = denoise(places, now).clamp(-1.0, 1.0)
        share = signal_share(now)[:, None]
        left = (places - share.sqrt() * clean) / (1 - share).sqrt()
        places = noised(clean, left, torch.full_like(now, following))
    return clean


def clean_places(batch: Batch) -> Tensor:
    """True places of the asked cells on the axis −1..1: float [B, M]; 0 for padding."""
    places = 2.0 * batch.gap / batch.n_code[:, None].clamp(min=1) - 1.0
    return places * (batch.gap >= 0)


def place_loss(network: NotebookNet, batch: Batch, guess: Tensor, level: Tensor, mean_code: float) -> Tensor:
    """Mean distance, in gaps, between said and true places, and a small share of the order of asked cells.

    A distance is what costs inversions, so cells of long notebooks weigh more.
    """
    answer = network(batch, guess, level)[-1]
    said, _ = mean_place(answer.gap_probability.float(), batch.n_code)
    known = batch.gap >= 0
    distance = (said - clean_places(batch)).abs() * batch.n_code[:, None] / mean_code
    first = (batch.rank[:, :, None] < batch.rank[:, None, :]).float()
    pairs = (known[:, :, None] & known[:, None, :]).float()
    order = nn.functional.binary_cross_entropy_with_logits(answer.before_logits.float(), first, reduction="none")
    inner = (order * pairs).sum() / batch.divisor(pairs.sum())
    return (distance * known).sum() / batch.divisor(known.sum()) + 0.02 * inner


def unknown(batch: Batch) -> tuple[Tensor, Tensor]:
    """What the twin is told: every place 0, at the highest noise level."""
    return torch.zeros_like(batch.rank), torch.ones(len(batch.rank), device=batch.rank.device)


def _fit(
    view: View,
    config: NotebookConfig,
    encoder: EncoderConfig,
    seed: int,
    log: Log,
    state: Path | None,
    fabric_config: FabricConfig,
    noisy: bool,
) -> NotebookNet:
    vectors = vectors_to_fit(view, encoder, fabric_config)
    items = [item for item in make_items(view, vectors) if answerable(item)]
    network = fresh_network(items, config, vectors.shape[1], seed, guided=True)
    mean_code = mean_code_cells(items)

    def loss_of(network: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(network, NotebookNet)
        guess, level = unknown(batch)
        if noisy:  # of several ranks each draws its own
            level = torch.rand_like(level)
            guess = noised(clean_places(batch), torch.randn_like(guess), level)
        return place_loss(network, batch, guess, level, mean_code)

    with torch.random.fork_rng(devices=[]):  # dropout and noise draw from the global state, which is given back
        trained = fit_network(
            network, items, config, loss_of, seed=seed, log=log, state=state, fabric_config=fabric_config
        )
    assert isinstance(trained, NotebookNet)
    return trained.cpu().eval()


@dataclass(frozen=True, eq=False)
class Twin:
    """One-step regression: the network of `Diffusion`, told nothing, says the places at once."""

    network: NotebookNet
    encoder: EncoderConfig
    encoder_digest: str

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
    ) -> Self:
        """Learn from the notebooks of the view; raises as `cell_vectors`."""
        network = _fit(view, config, encoder, seed, log, state, fabric_config, noisy=False)
        return cls(network, encoder, source_digest(encoder))

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""

        def answer(network: NotebookNet, batch: Batch) -> list[Placement]:
            said, _ = mean_place(network(batch, *unknown(batch))[-1].gap_probability, batch.n_code)
            return [
                Placement(_gaps(said[i, : len(sample.asked)].cpu().double().numpy(), len(sample.code)))
                for i, sample in enumerate(batch.samples)
            ]

        items = make_items(view, vectors_as_fitted(view, self.encoder, self.encoder_digest))
        return answer_items(self.network, items, 2 * self.network.config.batch_cells, answer)

    def save(self, folder: Path) -> None:
        """Write the weights and what rebuilds the network."""
        save_network(folder / "twin.safetensors", self.network, self.encoder_digest)

    @classmethod
    def load(cls, folder: Path, encoder: EncoderConfig) -> Self:
        """Read what `save` wrote."""
        network, digest = load_network(folder / "twin.safetensors")
        return cls(network, encoder, digest)


@dataclass(frozen=True, eq=False)
class Diffusion:
    """Positional diffusion: several answers are drawn, their median is the position, their scatter the doubt."""

    network: NotebookNet
    encoder: EncoderConfig
    encoder_digest: str
    sampling: SamplingConfig

    @classmethod
    def fit(
        cls,
        view: View,
        config: NotebookConfig,
        sampling: SamplingConfig,
        encoder: EncoderConfig,
        seed: int,
        log: Log = silent,
        state: Path | None = None,
        fabric_config: FabricConfig = ONE_PROCESS,
    ) -> Self:
        """Learn from the notebooks of the view; raises as `cell_vectors`."""
        network = _fit(view, config, encoder, seed, log, state, fabric_config, noisy=True)
        return cls(network, encoder, source_digest(encoder), sampling)

    def draw(self, network: NotebookNet, batch: Batch) -> Tensor:
        """Draw places for a batch: float [samples, B, M], −1..1."""

        def denoise(places: Tensor, level: Tensor) -> Tensor:
            said, _ = mean_place(network(batch, places, level)[-1].gap_probability, batch.n_code)
            return said

        return torch.stack(
            [ddim(denoise, _noise(batch, number), self.sampling.steps) for number in range(self.sampling.samples)]
        )

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view: the median of the drawn answers."""

        def answer(network: NotebookNet, batch: Batch) -> list[Placement]:
            drawn = self.draw(network, batch).cpu().double().numpy()
            return [
                Placement(_gaps(np.median(drawn[:, i, : len(sample.asked)], axis=0), len(sample.code)))
                for i, sample in enumerate(batch.samples)
            ]

        items = make_items(view, vectors_as_fitted(view, self.encoder, self.encoder_digest))
        return answer_items(self.network, items, 2 * self.network.config.batch_cells, answer)

    def save(self, folder: Path) -> None:
        """Write the weights and what rebuilds the network."""
        save_network(folder / "diffusion.safetensors", self.network, self.encoder_digest)

    @classmethod
    def load(cls, folder: Path, encoder: EncoderConfig, sampling: SamplingConfig) -> Self:
        """Read what `save` wrote."""
        network, digest = load_network(folder / "diffusion.safetensors")
        return cls(network, encoder, digest, sampling)


def _noise(batch: Batch, number: int) -> Tensor:
    """Normal noise [B, M] that depends on the notebook's size and the number of the draw, not on its neighbours."""
    noise = torch.zeros(batch.rank.shape)
    for i, sample in enumerate(batch.samples):
        generator = torch.Generator().manual_seed(1_000_003 * number + sample.size)
        noise[i, : len(sample.asked)] = torch.randn(len(sample.asked), generator=generator)
    return noise.to(batch.rank.device)


def _gaps(places: np.ndarray, n_code: int) -> np.ndarray:
    """Places −1..1 as positions 0..n_code."""
    return np.clip((places + 1.0) / 2.0, 0.0, 1.0) * n_code
