"""The networks: from a padded batch of frames to one vector a track, and the losses that train them.

Input everywhere: `x` float32[b, T, channels] with zeros in padded frames, `padding_mask` bool[b, T], True there.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kit_losses.margin import ArcFace
from kit_losses.pairs import PairLoss, PairLosses
from kit_losses.ranking import roadmap, smooth_ap
from kit_nn.encoders import MaskedConformer, TransformerEncoder
from kit_nn.pooling import AttentionPooling, lengths_to_padding_mask, masked_mean, zero_padding
from kit_train.ranks import draws_of_rank, gather_with_gradient
from yandex_artists.config import ModelConfig, StageConfig

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives the training tracks from the beginning, each time it is called: padded frames, and lengths or their mask."""

SHRINK = 0.1  # of covariances towards their mean variance, so that no direction is blown up beyond measure
RESIDUAL_STEP = 0.02  # Adam moves every weight alike: undamped, the first steps would already outweigh the mean
LEAST_SHARE = 1e-4  # of a code word, below which shares count as equal
RIDGE = 1e-3  # on the kernel matrix of the landmarks


class Encoder(nn.Module):
    """Frames to an embedding float[b, `d`], of any length: whoever compares takes cosines."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.residual: nn.Linear | None = None
        self.standardise = Standardise(config.standardise, channels)
        if config.architecture == "mean-map":
            self.body: nn.Module = MeanMap(config, channels)
            self.d = self.body.d
            return
        if config.architecture == "codebook":
            self.body = Codebook(config, channels)
            self.d = self.body.d
            return
        inside = config.channels or channels
        adapt: nn.Module = nn.Linear(channels, inside) if inside != channels else nn.Identity()
        bodies: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
            "convolution": Convolutions, "transformer": Sequence, "conformer": Sequence, "set": Branches,
            "attention": WeightedMean,
        }  # fmt: skip
        pooled = bodies[config.architecture](config, inside)
        head, self.d = _head(config, inside)
        self.body = _Chain(adapt, pooled, head)
        if config.residual:
            self.residual = nn.Linear(self.d, channels, bias=False)
            nn.init.zeros_(self.residual.weight)
            self.d = channels

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return float[b, d]."""
        x, padding_mask = self._ready(x, padding_mask)
        embedded: Tensor = self.body(x, padding_mask)
        if self.residual is None:
            return embedded
        return masked_mean(x, padding_mask) + RESIDUAL_STEP * self.residual(embedded)

    @torch.no_grad()
    def fit_start(self, batches: Batches, classes: NDArray[np.int64], config: ModelConfig, seed: int) -> None:
        """Take what the start depends on from the training tracks, of `classes`: frame statistics, map or codebook."""
        if config.standardise == "data":
            self.standardise.fit(batches(), config.whitening)
        if isinstance(self.body, MeanMap | Codebook):

            def ready() -> Iterable[tuple[Tensor, Tensor]]:
                for x, lengths in batches():
                    yield self._ready(x, lengths_to_padding_mask(lengths, x.shape[1]))

            self.body.fit(ready, classes, config, seed)

    def _ready(self, x: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.standardise(x, padding_mask), padding_mask


class Standardise(nn.Module):
    """What is done to frames before a network: nothing, each track by its own statistics, or whitening by the data."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        whitens = kind == "data"
        self.mean = nn.Buffer(torch.zeros(channels), persistent=whitens)
        self.map = nn.Buffer(torch.eye(channels), persistent=whitens)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], power: float) -> None:
        """Take mean and covariance of all frames."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for x, lengths in batches:
            frames = x[~lengths_to_padding_mask(lengths, x.shape[1])].double()
            count += len(frames)
            total = total + frames.sum(0)
            squares = squares + frames.T @ frames
        mean = total / count
        covariance = squares / count - mean.outer(mean)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp(min=0) + SHRINK * values.mean()
        self.mean.copy_(mean)
        self.map.copy_((vectors * values ** (-power / 2)) @ vectors.T)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return [b, T, channels]."""
        if self.kind == "no":
            return x
        if self.kind == "data":
            return zero_padding(functional.normalize((x - self.mean) @ self.map, dim=2), padding_mask)
        count = (~padding_mask).sum(1)[:, None, None] * x.shape[2]
        mean = x.sum((1, 2), keepdim=True) / count
        centred = zero_padding(x - mean, padding_mask)
        return centred / (centred.square().sum((1, 2), keepdim=True) / count).sqrt().clamp(min=1e-6)


class Convolutions(nn.Module):
    """The official baseline's encoder: four convolutions of width 3, pooling by 2 in between, mean over time.

    Frames behind a track's end are zero before every convolution, as its own padding is.
    """

    def __init__(self, config: ModelConfig, d: int) -> None:
        super().__init__()
        self.d = d // 2
        widths = [d, *[self.d] * 4]
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return float[b, d / 2]."""
        for number, layer in enumerate(self.layers):
            x = zero_padding(functional.relu(layer(x.transpose(1, 2))).transpose(1, 2), padding_mask)
            if number == 1 and x.shape[1] > 1:
                x = functional.max_pool1d(x.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
                padding_mask = padding_mask[:, ::2]  # a pair with one real frame is real: after relu zero never wins
        return masked_mean(x, padding_mask)


class Sequence(nn.Module):
    """The seed's encoders: Transformer layers (post-norm, ReLU, no positions) or conformer blocks, mean over time.

    The original averages over frames that it had repeated to fill short tracks, and gives its Transformer no mask; here
    padding is masked everywhere.
    """

    def __init__(self, config: ModelConfig, d: int) -> None:
        super().__init__()
        self.d = d
        if config.architecture == "transformer":
            self.encoder: nn.Module = TransformerEncoder(
                d, config.layers, config.heads, config.ff, config.dropout, norm_first=False, activation="relu"
            )
        else:
            self.encoder = MaskedConformer(d, config.layers, config.heads, config.ff, config.kernel, config.dropout)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return float[b, d]."""
        return masked_mean(self.encoder(x, padding_mask), padding_mask)


class Branches(nn.Module):
    """The first place's encoder: a feed-forward part, parallel branches, their sum pooled by attention, BatchNorm.

    A branch is a LayerNorm and one post-norm Transformer layer (GELU); there are `layers` of them, side by side.
    """

    def __init__(self, config: ModelConfig, d: int) -> None:
        super().__init__()
        self.d = d
        self.lift = nn.Sequential(
            nn.Linear(d, config.ff), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.ff, d)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(config.layers))
        self.branches = nn.ModuleList(
            TransformerEncoder(d, 1, config.heads, config.ff, config.dropout, norm_first=False, activation="gelu")
            for _ in range(config.layers)
        )
        self.pooling = AttentionPooling(d, hidden=d)
        self.norm = nn.BatchNorm1d(d)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return float[b, d]."""
        x = zero_padding(self.lift(x), padding_mask)
        branches = [branch(norm(x), padding_mask) for norm, branch in zip(self.norms, self.branches, strict=True)]
        pooled: Tensor = self.pooling(torch.stack(branches).sum(0), padding_mask)
        if self.training and len(pooled) < 2:
            return functional.batch_norm(  # one track has no deviation of its own
                pooled, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias
            )
        normed: Tensor = self.norm(pooled)
        return normed


class WeightedMean(nn.Module):
    """Ours, for little data: the mean of the frames, each with a weight that a network of one hidden layer gives it.

    Only the weights are learnt, which a hundred artists can teach: that some frames say nothing about their artist. The
    last layer starts at zero, and with it the encoder as the plain mean.
    """

    def __init__(self, config: ModelConfig, d: int) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(d, config.ff), nn.Linear(config.ff, 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return float[b, d]."""
        scores = self.last(functional.gelu(self.hidden(x)))[..., 0].masked_fill(padding_mask, -torch.inf)
        weights = scores.softmax(dim=1)[:, :, None]
        return (weights * x).sum(dim=1)


class MeanMap(nn.Module):
    """Ours: the mean over frames of a kernel's features, evened out, plus a small learned correction.

    A frame, at length 1, is compared with landmarks (frames of training tracks) by exp(sharpness · (cosine - 1)). The
    mean of these over a track stands for the distribution of its frames, where the plain mean stands for its centre
    only. The mean map is then centred and projected so that its principal components, in the metric of the kernel, are
    evened out to the power `spectrum`; with `within`, directions in which tracks of one artist differ are shrunk. All
    of this is fitted to the training tracks before the first step. Landmarks and projection learn from there on, and so
    does the correction, which starts at zero.

    Source: Smola et al., A Hilbert Space Embedding for Distributions (2007); Williams and Seeger, Using the Nyström
    Method to Speed Up Kernel Machines (2000).
    """

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.d, self.sharpness, self.fading = config.out or channels, config.sharpness, config.fading
        self.landmarks = nn.Parameter(torch.zeros(config.landmarks, channels))
        self.offset = nn.Buffer(torch.full((config.landmarks,), -config.sharpness), persistent=False)
        self.centre = nn.Buffer(torch.zeros(config.landmarks))
        self.project = nn.Linear(config.landmarks, self.d, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.correction = Correction(channels, config.correction, self.d, config.dropout) if config.correction else None

    @torch.no_grad()
    def fit(self, batches: Batches, classes: NDArray[np.int64], config: ModelConfig, seed: int) -> None:
        """Draw the landmarks, and fit centre and projection; `batches` give frames with their padding masks."""
        _draw_frames(self.landmarks, batches, seed)
        means = torch.cat([self.pool(x, mask) for x, mask in batches()]).double().cpu()
        unit = functional.normalize(self.landmarks, dim=1).double().cpu()
        kernel = (config.sharpness * (unit @ unit.T - 1)).exp()
        values, vectors = torch.linalg.eigh(kernel)
        to_metric = vectors * (values.clamp(min=0) + RIDGE) ** -0.5
        centre = means.mean(0)
        _, deviations, directions = torch.linalg.svd((means - centre) @ to_metric, full_matrices=False)
        variances = deviations.square() / len(means)
        variances = (variances + SHRINK * variances.sum() / means.shape[1])[: self.d]
        projection = (to_metric @ directions[: self.d].T) * variances ** (-config.spectrum / 2)
        if config.within:
            projection = projection @ _against_spread(
                functional.normalize((means - centre) @ projection), classes, config
            )
        scale = ((means - centre) @ projection).square().sum(1).mean().sqrt()
        self.centre.copy_(centre)
        self.project.weight.zero_()
        self.project.weight[: projection.shape[1]] = (projection / scale).T.to(self.project.weight)

    def pool(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """The mean of the kernel features, float[b, landmarks]."""
        owner, step = torch.nonzero(~padding_mask, as_tuple=True)  # real frames only: padding would cost as much
        aims = functional.normalize(self.landmarks, dim=1) * self.sharpness
        similar = functional.linear(x[owner, step], aims, self.offset).exp()
        weights = torch.exp(-step / self.fading) if self.fading else torch.ones_like(step)
        weights = weights.to(similar.dtype)
        total = weights.new_zeros(len(x)).index_add(0, owner, weights)
        sums = similar.new_zeros(len(x), similar.shape[1])
        return sums.index_add(0, owner, similar * (weights / total[owner])[:, None])

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return float[b, d], about of length 1."""
        embedded: Tensor = self.project(self.dropout(self.pool(x, padding_mask) - self.centre))
        if self.correction is not None:
            embedded = embedded + self.correction(x, padding_mask)
        return embedded


@torch.no_grad()
def _draw_frames(into: Tensor, batches: Batches, seed: int) -> None:
    """Fill `into` [k, channels] with frames of the training tracks, drawn without replacement, in their order."""
    generator = torch.Generator().manual_seed(seed)
    frames = sum(int((~mask).sum()) for _, mask in batches())
    drawn = torch.randperm(frames, generator=generator)[: len(into)].sort().values
    before = 0
    for x, mask in batches():
        inside = drawn[(drawn >= before) & (drawn < before + int((~mask).sum()))] - before
        place = int((drawn < before).sum())
        into[place : place + len(inside)] = x[~mask][inside.to(x.device)]
        before += int((~mask).sum())


class Codebook(nn.Module):
    """Ours: the shares of a track's frames that fall to each code word, as logarithms, evened out.

    A frame, at length 1, is divided among the code words (frames of training tracks at the start) by
    softmax(sharpness · cosine + bias). The mean of these shares over a track says which kinds of frames it has; their
    logarithms let a rare word that two tracks share weigh as much as a common one. They are centred and projected so
    that their principal components are evened out to the power `spectrum`. Code words and biases are trained; centre
    and projection stay as they were fitted.

    Source: Arandjelović et al., NetVLAD (2016), for the soft assignment to words that are trained; Jégou and Chum,
    Negative evidences and co-occurrences in image retrieval (2012), for the whitening of such histograms.
    """

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.d, self.sharpness = config.out or channels, config.sharpness
        self.words = nn.Parameter(torch.zeros(config.landmarks, channels))
        self.bias = nn.Parameter(torch.zeros(config.landmarks))
        self.centre = nn.Buffer(torch.zeros(config.landmarks))
        self.projection = nn.Buffer(torch.zeros(config.landmarks, self.d))
        self.dropout = nn.Dropout(config.dropout)

    @torch.no_grad()
    def fit(self, batches: Batches, classes: NDArray[np.int64], config: ModelConfig, seed: int) -> None:
        """Draw the code words, and fit centre and projection; `batches` give frames with their padding masks."""
        _draw_frames(self.words, batches, seed)
        logs = torch.cat([self.pool(x, mask) for x, mask in batches()]).double().cpu()
        centre = logs.mean(0)
        _, deviations, directions = torch.linalg.svd(logs - centre, full_matrices=False)
        variances = deviations.square() / len(logs)
        variances = (variances + SHRINK * variances.sum() / logs.shape[1])[: self.d]
        projection = directions[: self.d].T * variances ** (-config.spectrum / 2)
        scale = ((logs - centre) @ projection).square().sum(1).mean().sqrt()
        self.centre.copy_(centre)
        self.projection.zero_()
        self.projection[:, : projection.shape[1]] = (projection / scale).to(self.projection)

    def pool(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """The logarithms of the mean shares, float[b, code words]."""
        owner, step = torch.nonzero(~padding_mask, as_tuple=True)  # real frames only: padding would cost as much
        aims = functional.normalize(self.words, dim=1) * self.sharpness
        shares = functional.linear(x[owner, step], aims, self.bias).softmax(1)
        counts = (~padding_mask).sum(1).to(shares.dtype)
        sums = shares.new_zeros(len(x), shares.shape[1]).index_add(0, owner, shares)
        return (sums / counts[:, None] + LEAST_SHARE).log()

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return float[b, d], about of length 1."""
        return self.dropout(self.pool(x, padding_mask) - self.centre) @ self.projection


def _against_spread(vectors: Tensor, classes: NDArray[np.int64], config: ModelConfig) -> Tensor:
    """A map float64[d, d] that shrinks the directions in which tracks of one artist differ.

    It whitens by `within` · (covariance within artists) + (1 - `within`) · (covariance of all). Source: Hatch et al.,
    Within-Class Covariance Normalization (2006).
    """
    classes_ = torch.from_numpy(classes)
    counts = torch.bincount(classes_).double()
    centres = torch.zeros(len(counts), vectors.shape[1], dtype=vectors.dtype).index_add_(0, classes_, vectors)
    inside = (vectors - centres[classes_] / counts[classes_, None])[counts[classes_] > 1]
    around = vectors - vectors.mean(0)
    covariance = (1 - config.within) * around.T @ around / len(around)
    if len(inside):
        covariance = covariance + config.within * inside.T @ inside / len(inside)
    values, directions = torch.linalg.eigh(covariance)
    values = values.clamp(min=0) + config.within_shrink * values.mean()
    return directions * values**-0.5


class Correction(nn.Module):
    """A small network over frames with attention pooling, whose last layer starts at zero."""

    def __init__(self, channels: int, hidden: int, d: int, dropout: float) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        )
        self.pooling = AttentionPooling(hidden, heads=4)
        self.last = nn.Linear(hidden, d, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Return float[b, d]."""
        corrected: Tensor = self.last(self.pooling(self.frames(x), padding_mask))
        return corrected


class _Chain(nn.Module):
    def __init__(self, adapt: nn.Module, pooled: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.adapt, self.pooled, self.head = adapt, pooled, head

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        out: Tensor = self.head(self.pooled(zero_padding(self.adapt(x), padding_mask), padding_mask))
        return out


def _head(config: ModelConfig, inside: int) -> tuple[nn.Module, int]:
    pooled = inside // 2 if config.architecture == "convolution" else inside
    if not config.out:
        return nn.Identity(), pooled
    if config.architecture in ("transformer", "conformer"):  # the seed's head
        layers = nn.Linear(pooled, pooled, bias=False), nn.ReLU(), nn.Linear(pooled, config.out, bias=False)
        return nn.Sequential(*layers), config.out
    return nn.Linear(pooled, config.out), config.out


def build_model(config: ModelConfig, channels: int, seed: int) -> Encoder:
    """Build an encoder for frames of `channels` numbers with weights of a seed.

    The original seeds its generators after its model exists; here the seed comes first.
    """
    torch.manual_seed(seed)
    return Encoder(config, channels)


class Learned(NamedTuple):
    """A loss with its parts for the log, and how many positive pairs its batch held (None where none are needed)."""

    loss: Tensor
    parts: dict[str, Tensor]
    positive_pairs: int | None


def supervised_contrastive(embeddings: Tensor, classes: Tensor, *, temperature: float = 0.1) -> Tensor:
    """For every anchor the mean of -log softmax of its positives among all others; the mean over anchors with any.

    Unlike NT-Xent, every anchor weighs alike, however many positives it has. Zero where nobody has one.

    Source: Khosla et al., Supervised Contrastive Learning (NeurIPS 2020), the loss "out".
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = functional.normalize(embeddings.float(), dim=1)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        logits = (unit @ unit.T / temperature).masked_fill(itself, -math.inf)
        positive = (classes[:, None] == classes) & ~itself
        likelihood = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0).sum(1)
        counts = positive.sum(1)
        return -(likelihood / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


class Criterion(nn.Module):
    """The loss of a stage on embeddings and class numbers, with the weights that only training needs."""

    def __init__(self, stage: StageConfig, d: int, classes: int) -> None:
        super().__init__()
        self.stage = stage
        self.head = (
            ArcFace(
                classes, d, scale=stage.scale, margin=stage.margin, sub_centers=stage.sub_centers,
                label_smoothing=stage.label_smoothing,
            )
            if stage.loss == "arcface"
            else None
        )  # fmt: skip
        # The official baseline's projector: its loss sees this, retrieval sees the encoder.
        layers = nn.Linear(d, d, bias=False), nn.ReLU(), nn.Linear(d, max(d // 2, 1), bias=False)
        self.projector = nn.Sequential(*layers) if stage.loss == "nt-xent" and stage.projector else None
        self.pairs = _pair_losses(stage)

    def forward(self, embeddings: Tensor, classes: Tensor) -> Learned:
        """Loss of embeddings float[b, d] of classes int64[b]."""
        if self.head is not None:
            loss = self.head(embeddings, classes)
            return Learned(loss, {"arcface": loss.detach()}, None)
        if self.pairs is not None:
            found: PairLoss = self.pairs(self.projector(embeddings) if self.projector else embeddings, classes)
            return Learned(found.loss, found.parts, found.positive_pairs)
        functions: dict[str, Callable[..., Tensor]] = {
            "roadmap": roadmap,
            "smooth-ap": smooth_ap,
            "supcon": supervised_contrastive,
        }
        loss = functions[self.stage.loss](embeddings, classes, temperature=self.stage.temperature)
        counts = torch.bincount(classes)
        return Learned(loss, {self.stage.loss: loss.detach()}, int((counts * (counts - 1)).sum()))


class Trainee(nn.Module):
    """An encoder with its criterion: one forward pass, so that precision is set in one place.

    With several ranks each encodes its share of a batch, and computes the loss of the embeddings of all.
    """

    def __init__(self, encoder: Encoder, criterion: Criterion, fabric: Fabric | None = None) -> None:
        super().__init__()
        self.encoder, self.criterion, self.fabric = encoder, criterion, fabric

    def forward(self, x: Tensor, padding_mask: Tensor, classes: Tensor, seed: int = 0) -> Learned:
        """Loss of a batch of `classes` int64[n]; of several ranks, `x` is the own share and `seed` is of dropout."""
        if self.fabric is None or self.fabric.world_size == 1:
            learned: Learned = self.criterion(self.encoder(x, padding_mask), classes)
            return learned
        with draws_of_rank(self.fabric, seed):  # dropout differs between ranks, the triplets that a loss draws do not
            embedded = self.encoder(x, padding_mask)
        learned = self.criterion(gather_with_gradient(self.fabric, embedded, len(classes)), classes)
        return learned


def _pair_losses(stage: StageConfig) -> PairLosses | None:
    if stage.loss == "pairs":
        return PairLosses(circle=stage.circle)
    if stage.loss == "nt-xent":
        return PairLosses(multi_similarity=0, circle=0, triplet=0, nt_xent=1, temperature=stage.temperature)
    return None
