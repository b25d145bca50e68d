"""The settings of a run: dataclass defaults, overridden by a preset, overridden by flags (`--optim.epochs 2`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kit_train.config import FabricConfig

PRESETS = Path(__file__).resolve().parents[2] / "presets"


@dataclass(frozen=True)
class DataConfig:
    """Which tracks are fitted and which are scored."""

    fold: int | Literal["all"] = "all"
    """The fold that is left out and scored; all: each in turn, so that every track is scored."""
    n_folds: Literal[3, 5, 10] = 5
    """Number of folds, stratified by tags."""
    groups: Path | None = None
    """A .csv or .tsv whose first two columns are track and group, in place of the data's own groups.csv; it names
    every track. A group stays in one fold."""
    fill_parents: bool = False
    """Training labels only: a tag that nearly always comes with another brings it along where it is missing."""
    seed: int = 0
    """Of the folds."""


@dataclass(frozen=True)
class ClassicConfig:
    """The models that are not networks; they see each track as pooled statistics of its frames."""

    statistics: tuple[Literal["mean", "std", "max", "min"], ...] = ("mean", "std", "max")
    rounds: int = 100
    """Boosting rounds of `lightgbm`, for each tag."""
    leaves: int = 15
    learning_rate: float = 0.05
    feature_share: float = 0.2
    """Share of the features that each tree of `lightgbm` may use."""
    neighbours: int = 20
    """Of `knn`."""
    C: float = 0.1
    """Inverse regularisation of `logistic`, on standardised features."""
    unit_norm: bool = False
    """Scale the standardised features of each track to length 1, for `logistic`; `knn` always does."""
    workers: int = 0
    """Processes over tags; 0: as many as there are cores."""


@dataclass(frozen=True)
class NetworkConfig:
    """From frames to logits: input, encoder, pooling, head."""

    encoder: Literal["none", "transformer", "conformer", "resnet1d"] = "transformer"
    """none: the frames as the input layer leaves them."""
    standardise: bool = True
    """Scale each input dimension to mean 0 and deviation 1 of the fitted tracks' frames."""
    common_scale: bool = False
    """With `standardise`: divide all dimensions by one deviation, so that those of small variance stay small."""
    input_norm: bool = False
    """LayerNorm of each frame before the input layer."""
    input: Literal["linear", "mlp", "identity"] = "linear"
    """From the dimensions of the data to `d` channels, for each frame; identity: as they are, and `d` says nothing."""
    input_hidden: int = 768
    """Width of the hidden layer of `mlp`."""
    d: int = 192
    """Channels of the encoder."""
    layers: int = 2
    heads: int = 4
    ff: int = 384
    """Width of the feed-forward layers."""
    norm_first: bool = True
    activation: Literal["gelu", "relu"] = "gelu"
    positions: Literal["none", "sinusoidal", "learned"] = "none"
    kernel: int = 9
    """Frames under the depthwise convolution of the conformer."""
    conformer_norm: Literal["batch", "layer"] = "batch"
    channels: tuple[int, ...] = (192, 192)
    """Of the blocks of resnet1d."""
    kernels: tuple[int, ...] = (5, 3)
    """Frames under the convolutions of each block of resnet1d."""
    pooling: Literal["mean", "max", "mean-max", "attention", "attention-max", "gem", "last"] = "attention-max"
    """last: the output at the last position of the padded batch, as the original had it; only with `faithful`."""
    pooling_heads: int = 4
    pooling_hidden: int = 0
    """Width of the hidden layer that scores frames; 0: one linear layer."""
    pooled_norm: Literal["none", "layer", "batch"] = "layer"
    """Normalisation of the pooled vector."""
    head: Literal["linear", "mlp", "family", "queries", "frames", "independent"] = "linear"
    """mlp: two layers and LayerNorm before the last; family: linear, and the logit of a tag gets a learned share of its
    parent tag's; queries: each tag has a query that reads the frames, in place of pooling, and a classifier of its own
    (binary relevance with attention); frames: each frame has logits, and each tag weighs the frames by attention of its
    own, in place of pooling; independent: each tag has a hidden layer of its own on the pooled vector."""
    head_hidden: int = 256
    """Width of the hidden layer of `mlp`, or of each tag's in `independent`."""
    query_layers: int = 1
    query_ff: int = 0
    """Width of the feed-forward layer behind the attention of `queries`; 0: none."""
    dropout: float = 0.1
    """Inside the encoder."""
    head_dropout: float = 0.1
    """Of the pooled vector."""


@dataclass(frozen=True)
class LossConfig:
    """The loss on logits; each is the mean over tracks of the sum over tags, so that rates carry over."""

    name: Literal["bce", "focal", "asymmetric", "distribution-balanced"] = "bce"
    gamma: float = 2.0
    """Of focal and distribution-balanced."""
    class_alpha: bool = False
    """focal: weight of a tag 1 − its share of all positives, as the original had it."""
    gamma_negative: float = 1.0
    gamma_positive: float = 0.0
    clip: float = 0.1
    """Of asymmetric: shift of the probability of negatives."""
    smoothing: float = 0.0
    """Labels become y(1 − s) + s/2."""
    sum_over_tracks: bool = False
    """Sum instead of mean over the tracks of a batch, as the original had it."""


@dataclass(frozen=True)
class AugmentConfig:
    """What training does to a track; every draw comes from the seed, the fold, the epoch and the batch."""

    span: float = 0.0
    """Probability to keep only a span of the track."""
    span_shortest: float = 0.5
    """Smallest share of its frames that such a span has."""
    longest: int = 0
    """Frames of a training window, at a random place; 0: no limit."""
    frame_drop: float = 0.0
    """Probability of each frame to be left out; one always stays."""
    noise: float = 0.0
    """Deviation of normal noise on every value, in deviations of its dimension."""
    flip: float = 0.0
    """Probability to turn time round."""
    mixup: float = 0.0
    """Probability that the tracks of a batch are each mixed with another one: frames and labels by a random share."""
    cutmix: float = 0.0
    """Probability of a track to get a span of another one pasted in, with its labels (union)."""


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are found."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3
    """The peak."""
    weight_decay: float = 0.01
    schedule: Literal["constant", "one-cycle", "cosine", "cyclic-cosine", "plateau"] = "one-cycle"
    warmup: float = 0.3
    """Share of all steps, of one-cycle and cosine."""
    cycle_epochs: int = 10
    """Of cyclic-cosine."""
    plateau_patience: int = 5
    """Epochs without gain until the best weights and their optimizer state are loaded again and the rate is halved."""
    patience: int = 0
    """Epochs without gain until training stops; 0: never. Looks at the held-out fold."""
    epochs: int = 25
    batch: int = 64
    batches: Literal["bucketed", "random"] = "bucketed"
    clip: float = 1.0
    """Largest norm of the gradient; 0: no limit."""
    evaluate_every: int = 1
    """Epochs between scores on the held-out fold; the last one is always scored."""
    ema: float = 0.0
    """Decay of a running mean of the weights, which is then scored and kept; 0: the weights themselves."""
    swa: int = 0
    """Keep the mean of the weights after each of the last so many epochs; 0: no."""
    keep: Literal["best", "last"] = "last"
    """best: the epoch with the best score on the held-out fold, which flatters that score; summary.json says so."""


@dataclass(frozen=True)
class TeacherConfig:
    """What a network learns beside the labels: the probabilities that a finished run gives, its teacher."""

    run: Path | None = None
    """A finished run on the same data with the same folds; its models that saw the fold left out keep silent."""
    weight: float = 0.5
    """Its share in the targets of tracks with labels."""
    pseudo_labels: bool = True
    """Learn its answers to tracks without labels too: those of the fold left out, and of the test split if the data has
    one."""


@dataclass(frozen=True)
class InferConfig:
    """How a network reads a track at inference."""

    window: int = 0
    """Frames of a window; 0: the whole track, whatever its length."""
    windows: int = 3
    """Evenly spaced windows of a longer track, from its first frame to its last; their logits are averaged."""
    batch: int = 128


@dataclass(frozen=True)
class BlendConfig:
    """How the members of an ensemble become one answer."""

    scale: Literal["logit", "z-score"] = "z-score"
    """What is averaged: logits, or logits standardised for each tag by their mean and deviation out of fold."""
    weights: Literal["equal", "global", "per-tag"] = "per-tag"
    """global: found out of fold by greedy selection; per-tag: those, moved towards each tag's own by `shrinkage`."""
    shrinkage: float = 30.0
    """Positives that the global weights count for, against a tag's own number of positives."""
    rounds: int = 30
    """Of the greedy selection."""


@dataclass(frozen=True)
class Config:
    """One run.

    Raises:
        ValueError: settings that cannot work together.
    """

    model: Literal["lightgbm", "knn", "logistic", "network", "ensemble"] = "network"
    members: tuple[str, ...] = ()
    """Of an ensemble: presets, each trained into `members/NAME` of the run."""
    seed: int = 0
    """Of the model; folds have their own."""
    copies: int = 1
    """Networks of each fold, with seeds of their own; their logits are averaged."""
    faithful: bool = False
    """seed-transformer only: keep the original's flaws (pooling at the last padded position, validation as the mean of
    the batches' scores, one track a forward at inference)."""
    tensorboard: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    classic: ClassicConfig = field(default_factory=ClassicConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    infer: InferConfig = field(default_factory=InferConfig)
    blend: BlendConfig = field(default_factory=BlendConfig)
    fabric: FabricConfig = field(default_factory=FabricConfig)

    def __post_init__(self) -> None:
        if isinstance(self.data.fold, int) and not 0 <= self.data.fold < self.data.n_folds:
            raise ValueError(f"data.fold: found {self.data.fold}, expected 0..{self.data.n_folds - 1} or 'all'")
        if (self.model == "ensemble") != bool(self.members):
            raise ValueError("members: expected two or more presets with model 'ensemble', and none with another model")
        if self.members and (len(self.members) < 2 or len(set(self.members)) != len(self.members)):
            raise ValueError(f"members: found {list(self.members)}, expected two or more different presets")
        if self.faithful != (self.network.pooling == "last"):
            raise ValueError("network.pooling: 'last' and `faithful` are one choice: it leaks padding into the answer")
        if self.network.encoder in ("transformer", "conformer") and self.network.d % self.network.heads:
            raise ValueError(f"network.d: found {self.network.d}, expected a multiple of heads = {self.network.heads}")
        positive = (self.copies, self.optim.epochs, self.optim.batch, self.optim.evaluate_every, self.infer.batch)
        if min(*positive, self.infer.windows) < 1:
            raise ValueError(
                "copies, infer.batch, infer.windows and epochs, batch, evaluate_every of optim: expected 1 or more"
            )
        if self.fabric.devices != 1 and self.model not in ("network", "ensemble"):
            raise ValueError(f"fabric.devices: found {self.fabric.devices}, expected 1: `{self.model}` is no network")
        if self.teacher.run is not None and self.model != "network":
            raise ValueError(f"teacher.run: expected none: `{self.model}` is no network")
        if not 0 <= self.teacher.weight <= 1:
            raise ValueError(f"teacher.weight: found {self.teacher.weight}, expected 0..1")
        if not 0 <= self.optim.ema < 1 or not 0 <= self.optim.swa <= self.optim.epochs:
            raise ValueError("optim: ema must be in [0, 1) and swa at most the number of epochs")
        if self.optim.swa and (self.optim.ema or self.optim.keep == "best"):
            raise ValueError("optim.swa: expected no ema and keep 'last': it is an average of the last epochs")
        shares = (
            self.augment.span,
            self.augment.frame_drop,
            self.augment.flip,
            self.augment.mixup,
            self.augment.cutmix,
        )
        if not all(0 <= share <= 1 for share in shares) or not 0 < self.augment.span_shortest <= 1:
            raise ValueError("augment: probabilities must be in [0, 1] and span_shortest in (0, 1]")
        if self.augment.frame_drop == 1:
            raise ValueError("augment.frame_drop: found 1, expected less: no frame would be left")
        if not 0 <= self.loss.smoothing < 1:
            raise ValueError(f"loss.smoothing: found {self.loss.smoothing}, expected 0 <= smoothing < 1")
        if self.model == "ensemble" and self.data.fold != "all" and self.blend.weights != "equal":
            raise ValueError("blend.weights: weights are found out of fold, which needs data.fold 'all'")
