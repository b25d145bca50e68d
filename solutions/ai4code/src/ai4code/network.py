"""The notebook transformer: all cells of a notebook at once, similarities as attention biases, a score for every gap.

Code cells know their place on the axis from −1 (start) to 1 (end). Cells that are asked know nothing of theirs, or
what an earlier pass (or a diffusion step) says of it. Nothing depends on the order in which cells are asked: shuffling
the markdown cells shuffles the answers and changes nothing else.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ai4code.config import NotebookConfig
from ai4code.model import Standardise
from ai4code.sequences import N_FEATURES, Batch
from ai4code.similarity import SIMILARITIES

WAVES = 6  # frequencies π, 2π, 4π, … of a place in −1..1: the last tells places 1/32 of the axis apart
PLACE_WIDTH = 2 * WAVES + 2
SHARPNESS = 20.0  # of the softmax over cosines, as in `features`
N_SHOWN = 5  # ways in which a similarity is shown: itself, shares of row and column maximum, z, reciprocal rank
N_RELATIONS = N_SHOWN * len(SIMILARITIES)
N_PAIR = 2 * N_RELATIONS + len(SIMILARITIES) + 4
N_PRIOR = 6
N_CODE_RELATIONS = len(SIMILARITIES) * 2 + 4


@dataclass(frozen=True)
class Answer:
    """What the network says: gap_logits [B, M, C + 1], −inf where there is no gap; before_logits [B, M, M]."""

    gap_logits: Tensor
    before_logits: Tensor

    @property
    def gap_probability(self) -> Tensor:
        """Distribution over gaps: float [B, M, C + 1]."""
        return self.gap_logits.softmax(dim=-1)


def place_waves(place: Tensor) -> Tensor:
    """Sines and cosines of places in −1..1: [...] → [..., PLACE_WIDTH]."""
    frequency = math.pi * 2.0 ** torch.arange(WAVES, device=place.device, dtype=place.dtype)
    angle = place[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos(), place[..., None], place.abs()[..., None]], dim=-1)


def mean_place(probability: Tensor, n_code: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, on the axis −1..1, of distributions over gaps: two tensors [B, M]."""
    gap = torch.arange(probability.shape[-1], device=probability.device, dtype=probability.dtype)
    axis = 2.0 * gap[None, :] / n_code[:, None].clamp(min=1) - 1.0
    mean = (probability * axis[:, None, :]).sum(dim=-1)
    square = (probability * axis[:, None, :] ** 2).sum(dim=-1)
    return mean, (square - mean**2).clamp(min=0.0).sqrt()


class Attention(nn.Module):
    """Multi-head self-attention with an additive bias, float [B, heads, N, N] (−inf for padding)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(width, 3 * width)
        self.leave = nn.Linear(width, width)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        b, n, width = hidden.shape
        query, key, value = self.enter(hidden).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # A third of the time of `scaled_dot_product_attention`, whose fast kernel on CPUs takes no bias with gradients.
        query, key, value = (part.reshape(b * self.heads, n, -1) for part in (query, key, value))
        scores = torch.baddbmm(bias.flatten(0, 1), query, key.transpose(1, 2), alpha=1.0 / math.sqrt(key.shape[-1]))
        mixed = (scores.softmax(dim=-1) @ value).view(b, self.heads, n, -1)
        return self.leave(mixed.transpose(1, 2).reshape(b, n, width))


class Dropout(nn.Module):
    """Dropout from random bytes: on CPUs a third of the time of `nn.Dropout`; the rate is rounded to 1/256."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, hidden: Tensor) -> Tensor:
        kept = round(256 * (1.0 - self.rate))
        if not self.training or kept == 256:
            return hidden
        if hidden.device.type != "cpu" or kept == 0:
            return functional.dropout(hidden, self.rate)
        count = hidden.numel()
        words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None)
        mask = words.view(torch.uint8)[:count].view(hidden.shape) < kept
        return hidden * (mask.to(hidden.dtype) * (256.0 / kept))


class Layer(nn.Module):
    """Pre-norm transformer layer whose attention bias is read off the relations between cells."""

    def __init__(self, config: NotebookConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = Attention(width, config.heads)
        self.code_to_code = nn.Linear(N_CODE_RELATIONS, config.heads)
        self.asked_to_code = nn.Linear(N_RELATIONS, config.heads)
        self.code_to_asked = nn.Linear(N_RELATIONS, config.heads)
        self.asked_to_asked = nn.Linear(3, config.heads)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), Dropout(config.dropout), nn.Linear(2 * width, width)
        )
        self.dropout = Dropout(config.dropout)

    def bias(self, relations: "Relations") -> Tensor:
        """Attention bias of this layer, the same for all passes: float [B, heads, C + M, C + M]."""
        top = torch.cat([self.code_to_code(relations.code), self.code_to_asked(relations.asked).transpose(1, 2)], dim=2)
        bottom = torch.cat([self.asked_to_code(relations.asked), self.asked_to_asked(relations.between)], dim=2)
        bias = torch.cat([top, bottom], dim=1).permute(0, 3, 1, 2)
        return bias.masked_fill(relations.padding[:, None, None, :], -torch.inf).contiguous()

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.first_norm(hidden), bias))
        return hidden + self.dropout(self.feed(self.second_norm(hidden)))


@dataclass(frozen=True)
class Relations:
    """Relations between cells: code [B, C, C, ·], asked [B, M, C, ·], between [B, M, M, 3]; padding [B, C + M]."""

    code: Tensor
    asked: Tensor
    between: Tensor
    padding: Tensor


def show_maps(maps: Tensor, row_padding: Tensor, column_padding: Tensor) -> Tensor:
    """Show similarities [B, 5, M, C] in five ways, for each pair: float [B, M, C, N_RELATIONS]; 0 for padding."""
    real = ~(row_padding[:, None, :, None] | column_padding[:, None, None, :])
    maps = maps * real
    row_best = maps.amax(dim=3, keepdim=True)
    column_best = maps.amax(dim=2, keepdim=True)
    count = (~column_padding).sum(dim=1).clamp(min=1)[:, None, None, None]
    mean = maps.sum(dim=3, keepdim=True) / count
    deviation = (((maps - mean) ** 2 * real).sum(dim=3, keepdim=True) / count).sqrt()
    z = ((maps - mean) / (deviation + 1e-3)).clamp(-4.0, 4.0) / 2.0
    order = maps.masked_fill(~real, -1.0).argsort(dim=3, descending=True, stable=True)
    rank = torch.zeros_like(maps).scatter_(
        3, order, torch.arange(maps.shape[3], device=maps.device, dtype=maps.dtype).expand_as(maps)
    )
    shown = torch.stack(
        [maps, maps / (row_best + 1e-4), maps / (column_best + 1e-4), z, 1.0 / (1.0 + rank)], dim=-1
    )  # [B, 5, M, C, 5]
    return (shown * real[..., None]).permute(0, 2, 3, 1, 4).flatten(3)


class NotebookNet(nn.Module):
    """A batch of notebooks → scores for the gap of each asked cell, and for which asked cell stands before which."""

    def __init__(self, config: NotebookConfig, dim: int, guided: bool = False) -> None:
        """Make fresh weights; `dim` is the width of cell vectors (0: none), `guided` says that guesses are given."""
        super().__init__()
        width = config.width
        self.config, self.dim, self.guided = config, dim, guided
        self.standardise = Standardise(N_FEATURES)
        self.from_features = nn.Linear(N_FEATURES, width)
        self.from_vectors = nn.Linear(dim, width) if dim else None
        self.kind = nn.Embedding(3, width)
        self.from_place = nn.Sequential(nn.Linear(PLACE_WIDTH, width), nn.GELU(), nn.Linear(width, width))
        self.from_guess: nn.Module | None = None
        if guided or config.passes > 1:
            self.from_guess = nn.Sequential(nn.Linear(PLACE_WIDTH + 1, width), nn.GELU(), nn.Linear(width, width))
        self.from_size = nn.Linear(4, width)
        self.enter_dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.ends = nn.Parameter(0.02 * torch.randn(2, width))
        self.gap = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))
        self.asked = nn.Linear(width, width)
        self.pair_gap = nn.Linear(width, config.pair_width)
        self.pair_asked = nn.Linear(width, config.pair_width)
        self.pair_shown = nn.Linear(N_PAIR, config.pair_width)
        self.pair_prior = nn.Linear(N_PRIOR, config.pair_width, bias=False) if config.passes > 1 else None
        self.pair = nn.Sequential(
            nn.GELU(),
            nn.Linear(config.pair_width, config.pair_width),
            nn.GELU(),
            nn.Linear(config.pair_width, 1, bias=False),  # a constant for all gaps says nothing
        )
        self.before = nn.Linear(width, 32)
        self.number_weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: Batch, guess: Tensor | None = None, level: Tensor | None = None) -> list[Answer]:
        """Answer a batch once for each pass.

        Args:
            guess: places −1..1 of the asked cells, float [B, M], as a diffusion step believes them; else unknown.
            level: how noisy they are, 0 (clean) to 1 (pure noise), float [B].
        """
        shown = show_maps(batch.maps, batch.asked_padding, batch.code_padding)
        relations = self._relations(batch, shown)
        pairs = self.pair_shown(self._pairs(batch, shown))
        layers = [layer for layer in self.layers if isinstance(layer, Layer)]  # all are: so says the type as well
        biases = [layer.bias(relations) for layer in layers]
        cells = self._cells(batch)
        answers: list[Answer] = []
        prior: Tensor | None = None
        for _ in range(self.config.passes):
            hidden = cells + self._guessed(batch, guess, level, prior)
            for layer, bias in zip(layers, biases, strict=True):
                hidden = layer(hidden, bias)
            answers.append(self._answer(batch, self.norm(hidden), pairs, prior))
            prior = answers[-1].gap_probability.detach()
        return answers

    def _cells(self, batch: Batch) -> Tensor:
        features = self.from_features(self.standardise(batch.features.flatten(0, 1)).view_as(batch.features))
        hidden = features + self.kind(batch.kind)
        if self.from_vectors is not None:
            hidden = hidden + self.from_vectors(batch.vectors * math.sqrt(self.dim))
        hidden = self.enter_dropout(hidden)
        width = batch.width
        step = torch.arange(width, device=hidden.device)
        place = 2.0 * (step + 0.5)[None, :] / batch.n_code[:, None].clamp(min=1) - 1.0
        asked = (~batch.asked_padding).sum(dim=1)
        size = torch.stack([batch.n_code, asked], dim=1).float()
        size = torch.cat([size.log1p() / 3.0, size / (size.sum(dim=1, keepdim=True) + 1.0)], dim=1)
        code = hidden[:, :width] + self.from_place(place_waves(place.clamp(-1.0, 1.0)))
        return torch.cat([code, hidden[:, width:]], dim=1) + self.from_size(size)[:, None, :]

    def _guessed(self, batch: Batch, guess: Tensor | None, level: Tensor | None, prior: Tensor | None) -> Tensor:
        """What asked cells are told of their own place, zero for known cells: float [B, C + M, width]."""
        b, m = batch.gap.shape
        told = torch.zeros(b, m, self.config.width, device=batch.gap.device)
        if guess is not None:
            assert level is not None
            assert self.from_guess is not None
            noise = level[:, None, None].expand(b, m, 1)
            told = told + self.from_guess(torch.cat([place_waves(guess), noise], dim=-1))
        if prior is not None:
            assert self.from_guess is not None
            mean, deviation = mean_place(prior, batch.n_code)
            told = told + self.from_guess(torch.cat([place_waves(mean), 1.0 + deviation[..., None]], dim=-1))
        return torch.cat([torch.zeros(b, batch.width, self.config.width, device=told.device), told], dim=1)

    def _relations(self, batch: Batch, shown: Tensor) -> Relations:
        width, m = batch.width, batch.gap.shape[1]
        step = torch.arange(width, device=shown.device)
        ahead = (step[None, :] - step[:, None]).float()
        distance = torch.stack(
            [
                ahead.sign() * ahead.abs().log1p() / 3.0,
                ahead.abs().log1p() / 3.0,
                (ahead == 1) * 1.0,
                (ahead == -1) * 1.0,
            ],
            dim=-1,
        )
        maps = batch.code_maps.permute(0, 2, 3, 1)
        code = torch.cat([maps, maps.transpose(1, 2), distance.expand(len(maps), -1, -1, -1)], dim=-1)
        # How alike two asked cells are in what they resemble among the code cells.
        profile = functional.normalize(batch.maps[:, 0], dim=-1)
        alike = profile @ profile.transpose(1, 2)
        before = batch.number_before
        between = torch.stack([alike, before, torch.eye(m, device=shown.device).expand_as(before)], dim=-1)
        return Relations(code, shown, between, batch.padding)

    def _pairs(self, batch: Batch, shown: Tensor) -> Tensor:
        """What is seen of each pair of an asked cell and a gap: float [B, M, C + 1, N_PAIR]."""
        b, m, c, _ = shown.shape
        following, preceding = functional.pad(shown, (0, 0, 0, 1)), functional.pad(shown, (0, 0, 1, 0))
        logits = (SHARPNESS * batch.maps).masked_fill(batch.code_padding[:, None, None, :], -torch.inf)
        passed = functional.pad(logits.softmax(dim=-1).cumsum(dim=-1), (1, 0)).permute(0, 2, 3, 1)
        gap = torch.arange(c + 1, device=shown.device).expand(b, -1)
        last = batch.n_code[:, None]
        place = torch.stack([gap / last.clamp(min=1), (gap + 1).log() / 3.0, (gap == 0) * 1.0, (gap == last) * 1.0], -1)
        return torch.cat([following, preceding, passed, place[:, None].expand(b, m, -1, -1)], dim=-1)

    def _answer(self, batch: Batch, hidden: Tensor, pairs: Tensor, prior: Tensor | None) -> Answer:
        width = batch.width
        code, asked = hidden[:, :width], hidden[:, width:]
        b = len(batch.gap)
        # In place of a code cell that is not there stands the mark of that end.
        gap = torch.arange(width + 1, device=hidden.device)
        opening, closing = self.ends[0].expand(b, 1, -1), self.ends[1].expand(b, 1, -1)
        at_end = (gap[None, :] == batch.n_code[:, None])[..., None]
        following = torch.where(at_end, closing, torch.cat([code, closing], dim=1))
        between = self.gap(torch.cat([torch.cat([opening, code], dim=1), following], dim=-1))
        product = self.asked(asked) @ between.transpose(1, 2) / math.sqrt(self.config.width)
        shown = pairs + self.pair_gap(between)[:, None] + self.pair_asked(asked)[:, :, None]
        if prior is not None:
            assert self.pair_prior is not None
            shown = shown + self.pair_prior(_shown_prior(batch, prior))
        logits = product + self.pair(shown).squeeze(-1)
        outside = gap[None, :] > batch.n_code[:, None]
        left = self.before(asked)
        half = left.shape[-1] // 2
        forward = left[..., :half] @ left[..., half:].transpose(1, 2) / math.sqrt(half)
        before = forward - forward.transpose(1, 2) + 2.0 * self.number_weight * batch.number_before
        return Answer(logits.masked_fill(outside[:, None, :], -torch.inf), before)


def _shown_prior(batch: Batch, prior: Tensor) -> Tensor:
    """What the last pass says of each pair: its probability among gaps and among rivals, and who else is there."""
    prior = prior * (~batch.asked_padding)[:, :, None]
    total = prior.sum(dim=1, keepdim=True)
    others = total - prior
    shown = [
        prior,
        (prior + 1e-4).log() / 3.0,
        prior / (total + 1e-6),
        others.log1p(),
        others.cumsum(dim=-1) / (others.sum(dim=-1, keepdim=True) + 1e-6),
        prior.cumsum(dim=-1) - prior / 2,
    ]
    return torch.stack(shown, dim=-1)
