"""The settings of a run: dataclass defaults, overridden by a preset, overridden by flags (`--data.fold 2`)."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kit_train.config import FabricConfig

Method = Literal["networks", "naive", "whitened", "lightgbm-rerank", "frame-matching"]
Architecture = Literal["convolution", "transformer", "conformer", "set", "mean-map", "attention"]
Loss = Literal["pairs", "nt-xent", "arcface", "roadmap", "smooth-ap"]
Step = Literal["threshold", "smoothing", "alpha", "as-norm", "reciprocal", "diffusion"]


@dataclass(frozen=True)
class DataConfig:
    """Which artists are trained on and which are scored."""

    fold: int | Literal["all", "none"] = "all"
    """Left-out fold; all: each in turn, and inference joins their models; none: train on everything, no score."""
    n_folds: int = 10
    """Folds, artists whole: the official ten directories (joined, where fewer are asked for), else grouped folds."""
    seed: int = 0
    """Of grouped folds, where the data have none of their own."""
    refit: bool = False
    """After the folds, train once more on everything; inference then takes this and leaves the folds' models aside."""
    distractors: Path | None = None
    """A data set whose tracks join the gallery of every left-out fold, under artists that nobody asks for: nDCG falls
    with the size of the gallery, and this brings it to that of the test set. Its first split with features is taken."""


@dataclass(frozen=True)
class ModelConfig:
    """One network from frames [T, channels] to a vector."""

    architecture: Architecture = "set"
    channels: int = 0
    """Width inside; 0: that of the data. Another width starts with a linear map."""
    layers: int = 2
    heads: int = 4
    ff: int = 2048
    """Width of the feed-forward parts."""
    dropout: float = 0.1
    kernel: int = 31
    """Frames of the conformer's convolution."""
    out: int = 128
    """Dimensions of the embedding; 0: those of the pooled frames, without a head."""
    standardise: Literal["no", "track", "data"] = "no"
    """Before anything: nothing; each track by its own mean and deviation; or all frames whitened by the training
    tracks (square root of the inverse covariance to the power `whitening`), each frame to length 1."""
    whitening: float = 0.5
    """0: only centred, 1: unit covariance."""
    residual: bool = False
    """Add to the mean frame a linear map of what the network says, zero at the start: for little data, which would not
    teach a network from nothing what the mean knows. The embedding then has the data's channels."""
    landmarks: int = 1024
    """Training frames that a frame is compared with in `mean-map`."""
    sharpness: float = 5.0
    """Of that comparison, exp(sharpness · (cosine - 1))."""
    fading: float = 0.0
    """Frames over which the weight of a frame in the mean map falls to 1/e from the beginning of the track on, for data
    whose beginnings say most; 0: all frames weigh alike."""
    spectrum: float = 0.5
    """How far the mean map's principal components are evened out at the start; 0: not at all, 1: unit covariance."""
    within: float = 0.0
    """Weight, 0..1, of the spread within artists in the covariance that evens the mean map out once more; 0: none."""
    within_shrink: float = 0.3
    """Of that covariance, towards its mean variance."""
    correction: int = 256
    """Hidden units of the small network that corrects the mean map; 0: the mean map alone."""


@dataclass(frozen=True)
class AugmentConfig:
    """What training does to a batch of tracks. Probabilities are those of a track."""

    bootstrap: bool = False
    """Frames drawn with replacement, as many as there are."""
    keep: float = 1.0
    """Smallest share of the frames that is kept, at random; 1: all."""
    roll: float = 0.0
    """Probability of moving the beginning to the end by a random number of frames."""
    mask_frames: int = 0
    """A run of up to this many frames is zeroed in half of the tracks."""
    splice: float = 0.0
    """Probability that the second half of a track is replaced by frames of another of its artist in the batch."""
    seed_recipe: bool = False
    """Zeroing and copying runs of channels and time steps, as in the last stage of the seed solution."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, relative to the data's."""
    channel_dropout: float = 0.0
    """Share of channels that are zeroed in a whole track."""


@dataclass(frozen=True)
class StageConfig:
    """One stage of training: its loss, its batches, its rates."""

    epochs: int = 20
    loss: Loss = "arcface"
    crop: int = 0
    """Frames of a random window; 0: whole tracks."""
    batching: Literal["artists", "tracks", "groups"] = "tracks"
    """artists: all tracks of `batch` artists; tracks: `batch` tracks at random; groups: `per_artist` tracks of each."""
    batch: int = 2048
    per_artist: int = 4
    views: int = 1
    """Times that a track is in its batch, each augmented by itself: views of one track are positives of each other,
    which gives positives to artists with one track."""
    smallest_artist: int = 1
    """Artists with fewer tracks are left out of this stage."""
    learning_rate: float = 3e-4
    head_factor: float = 1.0
    """Learning rate of the classes of ArcFace, as a multiple."""
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "one-cycle", "cyclic"] = "constant"
    warmup: float = 0.0
    """Share of the steps on which the rate rises (cosine, one-cycle)."""
    cycle: int = 0
    """Steps of a cycle of the cyclic schedule; weights are averaged where it is lowest, at the end of each cycle."""
    floor: float = 1e-3
    """Lowest rate of the schedules, as a share."""
    keep: Literal["best", "last", "average"] = "best"
    """best: the epoch with the best nDCG on the left-out fold, for recipes that do so (their scores are marked as
    selected on the scored fold); last; average: the mean of the weights at the minima of the cyclic rate (SWA)."""
    patience: int = 0
    """Scored epochs without a new best after which the stage ends; 0: never."""
    score_every: int = 1
    """Epochs between scores; the last epoch is always scored."""
    margin: float = 0.5
    """Of ArcFace, in radians."""
    margin_from: float = 1.0
    """Share of the steps at which the margin, rising evenly from 0 at the start, is complete; 0: from the start."""
    scale: float = 30.0
    sub_centers: int = 1
    label_smoothing: float = 0.0
    temperature: float = 0.1
    """Of NT-Xent, SmoothAP and SupAP."""
    projector: bool = True
    """Of NT-Xent: the loss sees a small network on the embedding, as in the official baseline, not the embedding."""
    circle: float = 0.025
    """Weight of the circle loss in `pairs`; the other two have weight 1."""
    ema: float = 0.0
    """Decay of the running mean of the weights, which is what is scored and kept; 0: the weights themselves."""
    clip: float = 0.0
    """Largest norm of the gradient; 0: no limit."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class MemberConfig:
    """One network of a run and how it is trained."""

    name: str = "set"
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    """In their order; none: only what the start of a mean map is fitted to."""
    copies: int = 1
    """Networks from different seeds; their embeddings are joined as those of different members."""
    views: Literal["whole", "rolling", "bootstrap"] = "whole"
    """Inference: the whole track; windows of `window` frames from the end, every `hop`; or `draws` frame bootstraps."""
    window: int = 81
    hop: int = 5
    draws: int = 8


@dataclass(frozen=True)
class PostConfig:
    """What is done to the embeddings of a gallery to rank it."""

    steps: tuple[Step, ...] = ()
    """smoothing and alpha change the vectors; as-norm, reciprocal and diffusion then order their neighbours anew, each
    group in the order given; threshold is the seed's second query, which replaces the search."""
    normalise: Literal["no", "length", "whiten"] = "length"
    """Of each member before its vectors are set side by side: nothing (as the seed), unit length, or whitening by the
    training tracks' embeddings (to the power `whitening`), then unit length."""
    whitening: float = 0.5
    threshold: float = 0.85
    """Cosine above which the neighbours of a query join its second query."""
    weights: tuple[float, ...] = (25.0, 8.0, 5.0, 3.0, 2.0, 1.0)
    """Of `smoothing`: the vector itself and its nearest neighbours."""
    alpha: float = 3.0
    """Of `alpha`: neighbours weigh with their cosine to this power."""
    neighbours: int = 6
    """Of `alpha`."""
    cohort: int = 400
    """Of `as-norm`: the nearest of the training artists' centres."""
    share: float = 0.3
    """Of `as-norm`: how much of the normalised score is mixed in."""
    k1: int = 15
    """Of `reciprocal`: neighbours that must be mutual."""
    k2: int = 4
    """Of `reciprocal`: neighbours over which descriptions are averaged."""
    jaccard: float = 0.3
    """Of `reciprocal`: how much of the Jaccard part is mixed in."""
    links: int = 50
    """Of `diffusion`: neighbours that the graph is made of."""


@dataclass(frozen=True)
class TreesConfig:
    """The re-ranker `lightgbm-rerank`: LambdaRank over the nearest tracks."""

    candidates: int = 100
    """Neighbours that are put in a new order."""
    rounds: int = 200
    learning_rate: float = 0.05
    leaves: int = 15
    smallest_leaf: int = 50


@dataclass(frozen=True)
class MatchingConfig:
    """The method `frame-matching`: tracks compared frame by frame."""

    candidates: int = 1000
    """Nearest tracks by one vector a track with which a track is compared; a smaller gallery is compared as a whole."""
    sharpness: float = 8.0
    """Of the softmax over tracks by which a frame votes."""
    weights: tuple[float, ...] = (25.0, 8.0, 5.0, 3.0, 2.0, 1.0)
    """Of the smoothing of scores: the track itself and its nearest neighbours; one number: none."""


@dataclass(frozen=True)
class Config:
    """One run.

    Raises:
        ValueError: settings that cannot work together.
    """

    method: Method = "networks"
    """naive: the time mean and its cosine; whitened: the same after whitening; lightgbm-rerank: trees over both;
    frame-matching: tracks compared frame by frame; networks: the members."""
    seed: int = 42
    """Of every network; the original's value."""
    data: DataConfig = field(default_factory=DataConfig)
    members: tuple[MemberConfig, ...] = (MemberConfig(),)
    post: PostConfig = field(default_factory=PostConfig)
    trees: TreesConfig = field(default_factory=TreesConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    fabric: FabricConfig = field(default_factory=FabricConfig)
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.data.n_folds < 2:
            raise ValueError(f"data.n_folds: found {self.data.n_folds}, expected 2 or more")
        if isinstance(self.data.fold, int) and not 0 <= self.data.fold < self.data.n_folds:
            raise ValueError(f"data.fold: found {self.data.fold}, expected 0..{self.data.n_folds - 1}, 'all' or 'none'")
        names = [member.name for member in self.members]
        if self.method == "networks" and (not names or len(set(names)) != len(names)):
            raise ValueError(f"members: found names {names}, expected one or more, all different")
        if self.fabric.devices > 1 and self.method != "networks":
            raise ValueError(f"fabric.devices: found {self.fabric.devices}, expected 1: `{self.method}` is no network")
        for member in self.members:
            self._check_member(member)
        if self.matching.candidates < 1 or self.matching.sharpness <= 0:
            raise ValueError(
                f"found matching.candidates {self.matching.candidates} and matching.sharpness "
                f"{self.matching.sharpness}, expected 1 or more and above 0"
            )
        if not self.matching.weights or self.matching.weights[0] <= 0 or min(self.matching.weights) < 0:
            raise ValueError("matching.weights: expected a positive weight for the track itself and none below 0")
        if len(set(self.post.steps)) != len(self.post.steps):
            raise ValueError(f"post.steps: found {list(self.post.steps)}, expected each step at most once")
        if "threshold" in self.post.steps and {"as-norm", "reciprocal", "diffusion"} & set(self.post.steps):
            raise ValueError(
                "post.steps: 'threshold' has no scores that another step could order anew; take one of them"
            )
        for name, value in (
            ("share", self.post.share),
            ("jaccard", self.post.jaccard),
            ("whitening", self.post.whitening),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"post.{name}: found {value}, expected 0..1")
        if self.post.alpha < 0 or self.post.cohort < 2:
            raise ValueError(
                f"found post.alpha {self.post.alpha} and post.cohort {self.post.cohort}, expected 0 and 2 or more"
            )
        for name in ("neighbours", "k1", "k2", "links"):
            if (count := getattr(self.post, name)) < 1:
                raise ValueError(f"post.{name}: found {count}, expected 1 or more")
        if not self.post.weights or self.post.weights[0] <= 0 or min(self.post.weights) < 0:
            raise ValueError("post.weights: expected a positive weight for the vector itself and none below 0")

    def _check_member(self, member: MemberConfig) -> None:
        where = f"members {member.name!r}"
        if not member.stages and member.model.architecture != "mean-map":
            raise ValueError(
                f"{where}: found no stages, expected one or more: only 'mean-map' is fitted without training"
            )
        if not member.stages and member.model.correction:
            raise ValueError(f"{where}: a correction that is never trained stays zero: set model.correction to 0")
        if member.copies < 1:
            raise ValueError(f"{where}: copies: found {member.copies}, expected 1 or more")
        if min(member.window, member.hop, member.draws) < 1:
            raise ValueError(f"{where}: window, hop and draws must be 1 or more")
        if not 0 <= member.model.dropout < 1 or not 0 <= member.model.whitening <= 1:
            raise ValueError(f"{where}: dropout must be in [0, 1) and whitening in [0, 1]")
        model = member.model
        if model.heads < 1 or (
            model.architecture in ("transformer", "conformer", "set") and model.channels % model.heads
        ):
            raise ValueError(
                f"{where}: heads: found {model.heads}, expected a number that divides {model.channels} channels"
            )
        for number, stage in enumerate(member.stages):
            place = f"{where}, stage {number}"
            if (
                min(stage.epochs, stage.batch, stage.per_artist, stage.views, stage.smallest_artist, stage.score_every)
                < 1
            ):
                raise ValueError(
                    f"{place}: epochs, batch, per_artist, views, smallest_artist, score_every must be 1 or more"
                )
            if stage.crop < 0 or stage.learning_rate <= 0 or not 0 <= stage.ema < 1:
                raise ValueError(f"{place}: crop must be 0 or more, learning_rate above 0, ema in [0, 1)")
            if (
                not 0 <= stage.margin < math.pi / 2
                or stage.scale <= 0
                or stage.sub_centers < 1
                or stage.temperature <= 0
            ):
                raise ValueError(
                    f"{place}: margin must be in [0, pi / 2), scale and temperature above 0, sub_centers 1 or more"
                )
            if stage.schedule == "cyclic" and stage.cycle < 1:
                raise ValueError(f"{place}: cycle: found {stage.cycle}, expected the steps of a cycle")
            if stage.keep == "average" and stage.schedule != "cyclic":
                raise ValueError(f"{place}: keep 'average' takes the minima of a cyclic rate; set schedule 'cyclic'")
            if (self.data.fold == "none" or self.data.refit) and (stage.keep == "best" or stage.patience):
                raise ValueError(
                    f"{place}: without a left-out fold (data.fold 'none', data.refit) keep 'last' or 'average'"
                )
            if stage.batching == "tracks" and stage.loss in ("smooth-ap", "roadmap"):
                raise ValueError(f"{place}: {stage.loss} needs several tracks of an artist: batching artists or groups")
            if stage.batching == "groups" and stage.per_artist < 2 and stage.loss != "arcface":
                raise ValueError(f"{place}: per_artist: found {stage.per_artist}, expected 2 or more for pairs")
