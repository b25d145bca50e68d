"""The settings of a run: dataclass defaults, overridden by a preset, overridden by flags (`--network.epochs 2`)."""

from dataclasses import dataclass, field
from typing import Literal

Member = Literal["prior", "pixels", "logistic", "svc", "discriminant", "kernel", "neighbours", "lightgbm", "network"]
Fit = Literal["squash", "pad"]
Precision = Literal["float32", "bfloat16"]
PROBES: tuple[Member, ...] = ("logistic", "svc", "discriminant", "kernel", "neighbours", "lightgbm")


@dataclass(frozen=True)
class DataConfig:
    """Which images are fitted and which are scored."""

    fold: int | Literal["all"] = "all"
    """The fold that is left out and scored; all: each in turn, so that every image is scored."""
    folds: int = 5
    """Number of folds, stratified by label; groups stay whole (groups.csv of the data, and near-duplicates)."""
    seed: int = 139
    """Seed of the folds; the original's value."""


@dataclass(frozen=True)
class FeaturesConfig:
    """What frozen backbones see, and which of their numbers the probes use."""

    backbones: tuple[str, ...] = ()
    """timm names, with the tag of the weights; the features of several are put side by side."""
    sizes: tuple[int, ...] = (224,)
    """Edge in pixels of the square image; each size is a view."""
    flip: bool = False
    """Every view also mirrored."""
    fit: Fit = "squash"
    """How a picture fills the square. squash: its sides are scaled apart; pad: in its own proportions, on white."""
    levels: Literal["final", "all"] = "final"
    """final: what the backbone's own classifier would see; all: also the spatial means of the stages before."""
    views: Literal["mean", "rows"] = "mean"
    """mean: the views' features are averaged; rows: each view is a row to learn from, and its scores are averaged."""
    precision: Precision = "float32"
    """bfloat16: autocast; worth it for large backbones on a GPU."""
    root: bool = False
    """Signed square root of every feature, which tames the few large activations."""


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of the classifiers on frozen features."""

    C: tuple[float, ...] = (0.03,)
    """Inverse regularisation of `logistic` on standardised features; of several, inner folds choose by macro F1."""
    svc_strength: float = 0.001
    """The C of `svc`."""
    shrinkage: float = 0.7
    """Of the pooled covariance in `discriminant`, towards a multiple of the identity, 0..1."""
    kernel_gamma: float = 1.0
    """Width of `kernel`, which falls as exp(-gamma times the mean squared difference of the standardised features)."""
    kernel_ridge: float = 0.1
    neighbours: int = 10
    pixels: int = 16
    """Edge of the thumbnails of `pixels`."""
    rounds: int = 150
    """Boosting rounds of `lightgbm`."""


@dataclass(frozen=True)
class StageConfig:
    """One stage of training a network."""

    epochs: int = 0
    trained: Literal["head", "all"] = "all"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    """Of sgd."""
    layer_decay: float = 1.0
    """The rate of each layer is that of the layer above times this."""
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_share: float = 0.0
    """Share of the steps in which the rate rises from 0."""


@dataclass(frozen=True)
class NetworkConfig:
    """The networks of the member `network`: one for each backbone."""

    backbones: tuple[str, ...] = ()
    size: int = 224
    head: Literal["linear", "factorised"] = "linear"
    """factorised: the logit of a label is that of its top plus that of its genre plus its own."""
    start: Literal["random", "probe"] = "random"
    """Of the head; probe: logistic regression on frozen features, copied in, so that epoch 0 is exactly that probe."""
    hierarchy_weight: float = 0.0
    """Weight of the cross-entropy of the top, whose probability is the sum of its labels'."""
    label_smoothing: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    frozen_parts: int = 0
    """The stem and the blocks that are never trained, counted from the input; what they compute is kept in memory."""
    frozen_norm: bool = True
    """Batch normalisation keeps the statistics of the pretrained weights."""
    flip: bool = True
    """Training mirrors half of the images."""
    crop: float = 1.0
    """Smallest share of the image's area that a random crop of training keeps."""
    views: int = 2
    """With frozen parts: how many variants of each image (itself, its mirror image, crops) are kept for training."""
    flip_test: bool = False
    """Scores for the left-out fold and at inference are averaged with those of the mirror image."""
    batch: int = 32
    ema: float = 0.0
    """Decay of the running mean of the weights, which is what is validated and kept; 0: the weights themselves."""
    keep: Literal["best", "last"] = "last"
    """Which weights of a fold are kept: last, those of the last epoch; best, those of the best macro F1 on its left-out
    images, as some recipes do: their score is then not one of unseen images, and the summary says so."""
    clip: float = 0.0
    """Largest norm of the gradient; 0: no limit."""
    precision: Precision = "float32"
    """bfloat16: autocast; worth it on a GPU."""
    compile: bool = False
    """torch.compile; worth its minutes on a GPU."""
    first: StageConfig = field(default_factory=StageConfig)
    second: StageConfig = field(default_factory=StageConfig)


@dataclass(frozen=True)
class BlendConfig:
    """How the members' scores become one answer."""

    weights: Literal["equal", "greedy"] = "equal"
    """greedy: found out of fold; needs `data.fold = "all"`."""
    taus: tuple[float, ...] = (0.0,)
    """Strengths of the logit adjustment; of several, the best out of fold, which needs `data.fold = "all"`."""


@dataclass(frozen=True)
class FabricConfig:
    """Where a run computes; precision is a matter of the features and of the network."""

    devices: int = 1
    """Processes, one a device; more than one share the batches of the networks."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: a GPU where there is one."""


@dataclass(frozen=True)
class Config:
    """One run.

    Raises:
        ValueError: settings that cannot work together.
    """

    members: tuple[Member, ...] = ("logistic",)
    """Models to fit; the scores of several are blended."""
    seed: int = 0
    """Of every model."""
    data: DataConfig = field(default_factory=DataConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    blend: BlendConfig = field(default_factory=BlendConfig)
    fabric: FabricConfig = field(default_factory=FabricConfig)

    @property
    def shares_batches(self) -> bool:
        """Whether several processes have something to share: a network is trained in batches."""
        return "network" in self.members

    @property
    def selects_on_scored_fold(self) -> bool:
        """Whether an epoch is chosen on the images that the run is scored by."""
        network = self.network
        epochs = network.first.epochs + network.second.epochs + (network.start == "probe")
        return "network" in self.members and network.keep == "best" and epochs > 1

    def __post_init__(self) -> None:
        if not self.members or len(set(self.members)) != len(self.members):
            raise ValueError(f"members: found {list(self.members)}, expected one or more different models")
        if self.fabric.devices < 1 or (self.fabric.devices > 1 and not self.shares_batches):
            one = "1 or more" if self.shares_batches else f"1: no network in {list(self.members)}"
            raise ValueError(f"fabric.devices: found {self.fabric.devices}, expected {one}")
        if self.data.folds < 2:
            raise ValueError(f"data.folds: found {self.data.folds}, expected 2 or more")
        if isinstance(self.data.fold, int) and not 0 <= self.data.fold < self.data.folds:
            raise ValueError(f"data.fold: found {self.data.fold}, expected 0..{self.data.folds - 1} or 'all'")
        if any(member in PROBES for member in self.members) and not self.features.backbones:
            raise ValueError("features.backbones: found none, expected timm names: the probes need features")
        if "network" in self.members and not self.network.backbones:
            raise ValueError("network.backbones: found none, expected timm names: the member `network` needs one")
        if self.data.fold != "all" and (self.blend.weights == "greedy" or len(self.blend.taus) > 1):
            raise ValueError("blend: weights and taus are chosen out of fold, which needs data.fold 'all'")
        sizes = (*self.features.sizes, self.network.size, self.probe.pixels)
        if not self.features.sizes or min(sizes) < 8 or max(sizes) > 2048:
            raise ValueError(f"sizes: found {list(sizes)}, expected edges of 8 to 2048 pixels")
        if not self.probe.C or min(*self.probe.C, self.probe.svc_strength) <= 0 or not 0 < self.probe.shrinkage <= 1:
            raise ValueError("probe: C and svc_strength must be positive, and shrinkage in (0, 1]")
        if min(self.probe.kernel_gamma, self.probe.kernel_ridge) <= 0:
            raise ValueError("probe: kernel_gamma and kernel_ridge must be positive")
        if min(self.probe.neighbours, self.probe.rounds, self.network.batch, self.network.views) < 1:
            raise ValueError("probe.neighbours, probe.rounds, network.batch and network.views must be 1 or more")
        if not 0 < self.network.crop <= 1 or not 0 <= self.network.ema < 1:
            raise ValueError("network: crop must be in (0, 1] and ema in [0, 1)")
        if self.network.frozen_parts < 0 or min(self.network.first.epochs, self.network.second.epochs) < 0:
            raise ValueError("network: frozen_parts and epochs must be 0 or more")
        if not self.blend.taus:
            raise ValueError("blend.taus: found none, expected at least one; 0 leaves the scores as they are")
