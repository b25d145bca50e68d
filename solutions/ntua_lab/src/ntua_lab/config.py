"""The settings of a run: dataclass defaults, overridden by a preset, overridden by flags (`--train.epochs 2`)."""

from dataclasses import dataclass, field
from typing import Literal

from kit_train.config import FabricConfig

Member = Literal["prior", "svm", "linear", "ridge", "lightgbm", "network"]
Task = Literal["genre", "emotion", "joint"]
Axis = Literal["valence", "energy", "danceability"]
AXES: tuple[Axis, ...] = ("valence", "energy", "danceability")


@dataclass(frozen=True)
class DataConfig:
    """Which clips are fitted and which are scored."""

    clips: Literal["train", "all"] = "train"
    """all: the folds run over train and test together (where both have answers): for small data, where one test part
    alone misleads."""
    fold: int | Literal["all", "none"] = 0
    """Left-out fold; all: each in turn, so that every clip is scored; none: fit on everything, no score."""
    folds: int = 5
    group: Literal["clip", "track", "artist"] = "track"
    """What folds keep whole; tracks and artists come from clips.csv, without it each clip is alone."""
    limit: int | None = None
    """Fit on at most this many clips a fold, drawn at random: for quick runs."""
    seed: int = 420
    """Of the folds and of that draw; the lab's value."""


@dataclass(frozen=True)
class InputConfig:
    """What a network sees of a clip."""

    version: Literal["full", "beat"] = "full"
    """beat: one column for each interval between beats."""
    features: Literal["mel", "chroma", "fused"] = "mel"
    chunk: int = 0
    """Training sees a random window of so many frames (43 a second), an answer is the mean over windows that cover the
    clip; 0: the whole clip."""


@dataclass(frozen=True)
class PooledConfig:
    """What the models that are no networks see: statistics over the frames of a clip."""

    features: Literal["full", "beat", "rich", "wide", "descriptors", "task"] = "full"
    """full, beat: mean, deviation, quantiles and changes of the 140 rows of that version; rich: those of coarse bands,
    cepstra and key-normalised chroma of both versions, with the modulation spectrum and the correlations of bands;
    wide: beside rich, levels and rises in blocks of frames, and the correlations of cepstra; descriptors: loudness,
    brightness, onsets, pulse, percussion, key and harmony in 193 numbers; task: wide for genre, descriptors for
    emotion."""
    svm_strength: float = 10.0
    """C of the support vector machine."""
    linear_strength: float = 0.01
    """C of the logistic regression; the linear regression of emotion values takes its inverse as penalty."""
    ridge_penalty: float = 0.3
    """Of the ridge models, for each statistic."""
    rounds: int = 150
    """Boosting rounds of LightGBM."""


@dataclass(frozen=True)
class NetworkConfig:
    """The backbone under the heads."""

    kind: Literal["lstm", "cnn", "ast"] = "lstm"
    hidden: int = 128
    """Of the LSTM in each direction; width of the transformer."""
    layers: int = 2
    """Of the LSTM, or of the transformer."""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Of the CNN: one block for each entry."""
    pooling: Literal["last", "mean", "mean-max", "attention"] = "last"
    """From steps to a vector; last, for the LSTM: the last real step forwards beside the first backwards."""
    dropout: float = 0.3
    heads: int = 4
    """Of attention in the transformer."""
    patch: int = 16
    """Edge of its patches, in bands and frames."""


@dataclass(frozen=True)
class TrainConfig:
    """How a network learns."""

    epochs: int = 30
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: after a rise over a tenth of the steps, down to 0."""
    patience: int = 5
    """Stop after so many epochs without a lower loss on an inner validation part (a fifth of the fitted clips, groups
    whole) and keep the best epoch; 0: fit on all of them and keep the last epoch."""
    label_smoothing: float = 0.0
    mixup: float = 0.0
    """Parameter of the Beta distribution that mixes pairs of clips and their answers; 0: no mixing."""
    time_mask: float = 0.0
    """Longest masked run of frames as a share of the window, two runs for each clip (SpecAugment)."""
    band_mask: int = 0
    """Widest masked run of bands, two runs for each clip (SpecAugment)."""
    tilt: float = 0.0
    """Deviation of a random slope over the bands, from −1 to +1 of it, in standard deviations of a band."""
    ema: float = 0.0
    """Decay of the running mean of the weights, which is what is validated and kept; 0: the weights themselves."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    emotion_loss: Literal["mse", "rank", "both"] = "mse"
    """rank: 1 − correlation of the outputs with the ranks of the targets in the batch, since the metric sees order."""
    uncertainty: bool = False
    """Weights of the losses are learnt; without it each is divided by the spread of its targets."""
    warm_up: int = 0
    """Epochs before the first label is heard: the backbone learns that two windows of one clip belong together."""
    overfit_batch: int = 0
    """Learn so many fixed batches by heart, without dropout and augmentation, and report the loss: tests the loop."""


@dataclass(frozen=True)
class Config:
    """One run.

    Raises:
        ValueError: settings that cannot work together.
    """

    task: Task = "genre"
    """joint: one backbone with a head for genre and one for each axis, fitted on both data sets."""
    members: tuple[Member, ...] = ("network",)
    """Models to fit; the answers of several are averaged: probabilities, or places among out-of-fold answers."""
    copies: int = 1
    """Networks from different seeds in place of one; each answers as a member."""
    axes: tuple[Axis, ...] = AXES
    """What is regressed."""
    separate: bool = False
    """Every axis gets a network of its own; without it one network has a head for each."""
    transfer: bool = False
    """The backbone starts from the run that `--start` names, whose network and input must be the same."""
    seed: int = 0
    """Of every model."""
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)
    pooled: PooledConfig = field(default_factory=PooledConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    fabric: FabricConfig = field(default_factory=FabricConfig)

    def __post_init__(self) -> None:
        data, train, network = self.data, self.train, self.network
        if not self.members or len(set(self.members)) != len(self.members):
            raise ValueError(f"members: found {list(self.members)}, expected one or more different models")
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axes: found {list(self.axes)}, expected one or more different axes")
        if self.copies < 1 or (self.copies > 1 and "network" not in self.members):
            raise ValueError(f"copies: found {self.copies}, expected 1, or more where a network is among the members")
        if data.folds < 2:
            raise ValueError(f"data.folds: found {data.folds}, expected 2 or more")
        if isinstance(data.fold, int) and not 0 <= data.fold < data.folds:
            raise ValueError(f"data.fold: found {data.fold}, expected 0..{data.folds - 1}, 'all' or 'none'")
        if min(1 if data.limit is None else data.limit, train.epochs) < 1:
            raise ValueError("data.limit and train.epochs must be 1 or more")
        if train.batch < 2:
            raise ValueError(f"train.batch: found {train.batch}, expected 2 or more: batches of one clip are left out")
        if self.input.chunk < 0 or train.patience < 0 or train.overfit_batch < 0:
            raise ValueError("input.chunk, train.patience and train.overfit_batch must be 0 or more")
        if train.warm_up and (train.warm_up < 0 or not self.input.chunk or self.transfer):
            raise ValueError(
                "train.warm_up: 0 or more epochs on windows (input.chunk), for a backbone that is not taken over"
            )
        if train.overfit_batch and self.members != ("network",):
            raise ValueError("train.overfit_batch: only a network has batches; members must be 'network' alone")
        if self.separate and self.task != "emotion":
            raise ValueError("separate: only the axes of the task 'emotion' can have networks of their own")
        if (network.pooling == "last") != (network.kind == "lstm") and "network" in self.members:
            raise ValueError(
                f"network.pooling: found {network.pooling!r} for {network.kind!r}; the LSTM takes 'last', "
                "the others 'mean', 'mean-max' or 'attention'"
            )
        if network.kind == "ast" and (self.input.version != "full" or self.input.features != "mel"):
            raise ValueError("input: a transformer takes the full version of mel spectra")
        if network.kind == "ast" and (
            not self.input.chunk
            or self.input.chunk % network.patch
            or 128 % network.patch
            or network.hidden % network.heads
        ):
            raise ValueError(
                "network: a transformer needs chunks; patch must divide 128 and input.chunk, heads must divide hidden"
            )
        if network.kind == "cnn" and self.input.features == "chroma" and len(network.channels) > 3:
            raise ValueError("network.channels: 12 chroma rows can be halved three times at most")
        if not network.channels or network.layers < 1 or not 0 <= network.dropout < 1:
            raise ValueError("network: channels and layers must be 1 or more, and dropout in [0, 1)")
        if not 0 <= train.time_mask < 1 or not 0 <= train.ema < 1 or not 0 <= train.label_smoothing < 1:
            raise ValueError("train: time_mask, ema and label_smoothing must be in [0, 1)")
        if self.task == "joint" and self.members != ("network",):
            raise ValueError("members: the task 'joint' is for the network alone")
        if self.fabric.devices != 1 and not self.shares_batches:
            what = "batches are learnt by heart" if train.overfit_batch else f"no network in {list(self.members)}"
            raise ValueError(f"fabric.devices: found {self.fabric.devices}, expected 1: {what}")

    @property
    def shares_batches(self) -> bool:
        """Whether several processes have something to share: a network is trained in batches."""
        return "network" in self.members and not self.train.overfit_batch
