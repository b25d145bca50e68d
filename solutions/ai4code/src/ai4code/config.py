"""The settings of a run: dataclass defaults, overridden by a preset, overridden by flags (`--text.longest 2`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kit_train.config import FabricConfig

Member = Literal[
    "as-given", "middle", "similarity", "position", "ranker", "mlp", "gaps", "joint", "listwise", "twin", "diffusion",
    "pointwise", "pairwise", "text-listwise", "seed-listwise", "singular-listwise",
]  # fmt: skip
FROZEN: frozenset[Member] = frozenset({"listwise", "twin", "diffusion", "singular-listwise"})
"""Members that read vectors of cells which are made before their training (`encoder`); singular-listwise is `listwise`
with `encoder.vectors` singular, whatever that of the others is."""
TUNED: frozenset[Member] = frozenset({"pointwise", "pairwise", "text-listwise", "seed-listwise"})
"""Members whose text encoder is trained with them (`transformer`)."""
SHARED = FROZEN | TUNED
"""Members whose training several processes share; each fits the others for itself, and all find the same."""


@dataclass(frozen=True)
class DataConfig:
    """Which notebooks are fitted and which are scored."""

    fold: int | Literal["all", "none"] = "all"
    """Left-out fold; all: each in turn, and inference averages their models; none: fit on everything, no score."""
    folds: int = 5
    """Number of folds; whole families of notebooks (ancestor_id) stay together."""
    limit: int | None = None
    """Fit on at most this many notebooks a fold, drawn at random (learning curves; very large corpora)."""
    seed: int = 0
    """Seed of the folds and of that draw."""


@dataclass(frozen=True)
class TextConfig:
    """How cells become words and vectors."""

    tokenizer: Path | None = None
    """A file of `ai4code tokenizer train`, used in place of splitting into words."""
    longest: int = 1
    """Longest run of words that is counted: 2 adds pairs, 3 triples."""
    weighting: Literal["tf-idf", "counts"] = "tf-idf"
    """counts: plain bag of words."""
    character_share: float = 0.0
    """Share of the similarity of 3- to 5-character runs in `similarity`, 0..1; the rest is that of words."""
    components: int = 64
    """Singular vectors of the TF-IDF matrix among the features of a cell."""


@dataclass(frozen=True)
class TreesConfig:
    """LightGBM settings; names differ from the library's only where ours say more."""

    rounds: int = 400
    learning_rate: float = 0.05
    leaves: int = 31
    smallest_leaf: int = 40
    """Rows in a leaf at least."""
    feature_share: float = 0.3
    """Features tried for each tree."""
    row_share: float = 0.8
    """Rows drawn for each tree."""
    l2: float = 5.0
    bins: int = 127


@dataclass(frozen=True)
class PairsConfig:
    """Which pairs of markdown cell and gap the gap models are fitted on; the true gap is always among them."""

    near: int = 2
    """All gaps up to this far from the true one."""
    far: int = 12
    """Expected number of others, drawn at random and weighted up for those left out."""


@dataclass(frozen=True)
class MlpConfig:
    """The neural ranker: a residual MLP on the features of a markdown cell."""

    width: int = 192
    blocks: int = 3
    dropout: float = 0.3
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    epochs: int = 40
    batch: int = 512
    """Markdown cells a step."""


@dataclass(frozen=True)
class EncoderConfig:
    """Where vectors of cells come from: a local Hugging Face folder, read by transformers, or the words alone."""

    vectors: Literal["folder", "singular"] = "folder"
    """singular: coordinates on the singular vectors of the fitted notebooks' TF-IDF (`text.components`); no weights."""
    folder: Path | None = None
    """Folder of a checkpoint with its tokenizer (`ai4code weights --out DIR` makes one). Hub names are not resolved."""
    tokens: int = 64
    """Tokens of a cell that are read."""
    cache: Path | None = None
    """Where encoded cells are packed and found again; nowhere by default."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the encoder's arithmetic; bfloat16 halves the time on processors that know it."""
    batch_tokens: int = 4096
    """Tokens a batch, padding included."""


@dataclass(frozen=True)
class AugmentConfig:
    """How a notebook is varied each time that it is shown in training; all numbers are shares, 0..1."""

    piece: float = 0.5
    """Notebooks of which only a run of code cells, with the markdown between them, is shown."""
    thin: float = 0.5
    """Notebooks of which single cells are left out."""
    drop_code: float = 0.1
    """Code cells left out of those, in the mean."""
    drop_markdown: float = 0.1
    """Markdown cells left out of those, in the mean."""
    hide_code: float = 0.3
    """Code cells whose own place is asked while the order of code cells is learned."""
    hide_similarity: float = 0.1
    """Similarities, each as a whole, set to zero for a notebook."""


@dataclass(frozen=True)
class NotebookConfig:
    """A transformer over the cells of a notebook, and its training.

    Raises:
        ValueError: heads that do not divide the width, or no pass.
    """

    width: int = 128
    layers: int = 3
    heads: int = 8
    pair_width: int = 48
    """Hidden numbers for a pair of an asked cell and a gap."""
    passes: int = 2
    """How often the network answers; from the second pass on it sees its last answers for all cells."""
    dropout: float = 0.2
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    order_epochs: int = 2
    """Epochs first, in which code cells are asked for their place as well."""
    epochs: int = 12
    """Epochs behind those, in which only markdown cells are asked."""
    batch_cells: int = 480
    """Cells a step, padding included."""
    distance: float = 4.0
    """Weight of the squared error of the cumulated distribution beside the cross-entropy of the gap."""
    average: float = 0.998
    """Decay of the moving average of the weights, which is what is kept."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)
        if self.passes < 1:
            raise ValueError(f"passes: found {self.passes}, expected 1 or more")


@dataclass(frozen=True)
class TransformerConfig:
    """A text encoder that is trained with its task: from random weights and an own tokenizer, or from a folder.

    Raises:
        ValueError: heads that do not divide the width.
    """

    start: Literal["scratch", "folder"] = "scratch"
    """folder: the checkpoint and the tokenizer of `encoder.folder`, fine-tuned."""
    tokenizer: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    """Kind of the own tokenizer, trained on the fitted notebooks."""
    vocab_size: int = 8000
    width: int = 96
    """Of the encoder from scratch, as are layers and heads."""
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    markdown_tokens: int = 32
    """Tokens of a markdown cell that are read."""
    code_tokens: int = 32
    """Tokens of a code cell that are read where cells are read one by one, or in pairs."""
    contexts: int = 20
    """Evenly spaced code cells, the first and the last among them, that `pointwise` and `pairwise` look at."""
    shared_tokens: int = 240
    """Tokens of all those code cells together in `pointwise`: a budget that short cells leave to long ones."""
    negatives: int = 2
    """Code cells drawn for a markdown cell and epoch in `pairwise`."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    epochs: int = 4
    batch_tokens: int = 8192
    """Tokens a step of `pointwise`, `pairwise` and masked-word training, padding included."""
    masked_epochs: int = 0
    """Epochs of masked-word training on the cells of the fitted notebooks, before the task."""
    folder_rate: float = 0.03
    """Learning rate of fine-tuned weights, as a share of that of new ones."""

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"heads: found {heads}, expected a number that divides the width {width}")


@dataclass(frozen=True)
class SamplingConfig:
    """How `diffusion` draws its answers.

    Raises:
        ValueError: no step or no sample.
    """

    steps: int = 8
    """Steps from noise to an answer."""
    samples: int = 8
    """Answers drawn for a notebook; their median is the position, their scatter the doubt."""

    def __post_init__(self) -> None:
        if min(self.steps, self.samples) < 1:
            raise ValueError(f"found {self.steps} steps and {self.samples} samples, expected 1 or more of each")


@dataclass(frozen=True)
class BlendConfig:
    """How several members are fused.

    Raises:
        ValueError: no round, or an error that is not above 0.
    """

    weights: Literal["fitted", "equal"] = "fitted"
    """fitted: weights for each fold are found on the other folds; equal: all members count alike, nothing is chosen."""
    rounds: int = 30
    """Rounds of greedy selection of member weights on out-of-fold distributions."""
    position_error: float = 0.17
    """Mean absolute error, relative to the code axis, by which bare positions are spread (that of `position`)."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.position_error <= 0:
            raise ValueError(
                f"found {self.rounds} rounds and a position_error of {self.position_error}, expected 1 or more, above 0"
            )


@dataclass(frozen=True)
class Config:
    """One run.

    Raises:
        ValueError: settings that cannot work together.
    """

    members: tuple[Member, ...] = ("position",)
    """Models to fit; several are blended. `joint` must follow the members whose answers it reads (`joint_reads`)."""
    joint_reads: tuple[Literal["gaps", "listwise", "singular-listwise"], ...] = ("gaps",)
    """Members whose mean out-of-fold answers are inputs of `joint`."""
    seed: int = 0
    """Seed of every model."""
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    position: TreesConfig = field(default_factory=TreesConfig)
    ranker: TreesConfig = field(default_factory=TreesConfig)
    gaps: TreesConfig = field(default_factory=TreesConfig)
    joint: TreesConfig = field(default_factory=TreesConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    mlp: MlpConfig = field(default_factory=MlpConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    listwise: NotebookConfig = field(default_factory=NotebookConfig)
    twin: NotebookConfig = field(default_factory=lambda: NotebookConfig(passes=1))
    diffusion: NotebookConfig = field(default_factory=lambda: NotebookConfig(passes=1))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    text_listwise: NotebookConfig = field(default_factory=NotebookConfig)
    blend: BlendConfig = field(default_factory=BlendConfig)
    fabric: FabricConfig = field(default_factory=FabricConfig)
    """Of the training of networks but `mlp`."""

    def __post_init__(self) -> None:
        if not self.members or len(set(self.members)) != len(self.members):
            raise ValueError(f"members: found {list(self.members)}, expected one or more different models")
        if self.data.folds < 2:
            raise ValueError(f"data.folds: found {self.data.folds}, expected 2 or more")
        if isinstance(self.data.fold, int) and not 0 <= self.data.fold < self.data.folds:
            raise ValueError(f"data.fold: found {self.data.fold}, expected 0..{self.data.folds - 1}, 'all' or 'none'")
        if self.data.limit is not None and self.data.limit < 1:
            raise ValueError(f"data.limit: found {self.data.limit}, expected 1 or more notebooks")
        if "joint" in self.members:
            if not self.joint_reads:
                raise ValueError("joint_reads: found nothing, expected one or more members")
            for first in self.joint_reads:
                if first not in self.members[: self.members.index("joint")]:
                    raise ValueError(
                        f"members: 'joint' reads the answers of '{first}', so '{first}' must stand before it"
                    )
            if self.data.fold != "all":
                raise ValueError(
                    f"data.fold: found {self.data.fold!r}, expected 'all': 'joint' learns from out-of-fold answers"
                )
        if len(self.members) > 1 and self.data.fold == "none":
            raise ValueError("data.fold: found 'none', expected a fold or 'all': blend weights need held-out notebooks")
        if not 0.0 <= self.text.character_share <= 1.0:
            raise ValueError(f"text.character_share: found {self.text.character_share}, expected 0..1")
        if self.text.longest < 1:
            raise ValueError(f"text.longest: found {self.text.longest}, expected 1 or more words")
        if self.reads_singular and self.text.components < 1:
            raise ValueError(
                f"text.components: found {self.text.components}, expected 1 or more, of which encoder.vectors "
                "'singular' and the member 'singular-listwise' make the vectors of cells"
            )
        if self.fabric.devices > 1 and not self.shares_work:
            members = ", ".join(self.members)
            raise ValueError(f"fabric.devices: found {self.fabric.devices}, expected 1: nothing to share in {members}")

    @property
    def reads_singular(self) -> bool:
        """Whether a network reads the singular vectors of the text model."""
        frozen = FROZEN.intersection(self.members)
        return "singular-listwise" in frozen or (self.encoder.vectors == "singular" and bool(frozen))

    @property
    def reads_folder(self) -> bool:
        """Whether a network reads vectors of the encoder's folder."""
        return self.encoder.vectors == "folder" and bool(FROZEN.intersection(self.members) - {"singular-listwise"})

    @property
    def shares_work(self) -> bool:
        """Whether several processes have anything to share."""
        return not SHARED.isdisjoint(self.members)
