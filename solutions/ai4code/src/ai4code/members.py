"""The models by name: one place that knows how each is fitted, kept and read back."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from safetensors import safe_open

from ai4code.baseline import Rule, Similarity
from ai4code.boosting import Gaps, Joint, Position, Ranker
from ai4code.config import TUNED, Config, EncoderConfig, Member
from ai4code.decode import Placement
from ai4code.features import View

FILES: dict[Member, str] = {
    "position": "position.txt",
    "ranker": "ranker.txt",
    "mlp": "mlp.safetensors",
    "gaps": "gaps.txt",
    "joint": "joint.txt",
    "listwise": "listwise.safetensors",
    "twin": "twin.safetensors",
    "diffusion": "diffusion.safetensors",
    "pointwise": "pointwise.safetensors",
    "pairwise": "pairwise.safetensors",
    "text-listwise": "text-listwise.safetensors",
    "seed-listwise": "seed-listwise.safetensors",
    "singular-listwise": "singular-listwise.safetensors",
}  # rules and similarity are made again in no time


class FittedMember(Protocol):
    """A fitted model that answers from the notebooks alone; `Joint` also needs the answers of another member."""

    def place(self, view: View) -> list[Placement]: ...

    def save(self, folder: Path) -> None: ...


def fit_member(
    name: Member, view: View, config: Config, log: Callable[..., None], folder: Path | None = None
) -> FittedMember:
    """Fit any model but `joint` on the notebooks of a view.

    Args:
        folder: where models that train for long keep, epoch by epoch, what a stopped training needs; None: nowhere.
    """
    state = None if folder is None else folder / f"{name}.state"
    match name:
        case "as-given" | "middle":
            return Rule.fit(name)
        case "similarity":
            return Similarity.fit(view, config.text)
        case "position":
            return Position.fit(view, config.position, config.seed)
        case "ranker":
            return Ranker.fit(view, config.ranker, config.seed)
        case "gaps":
            return Gaps.fit(view, config.gaps, config.pairs, config.seed)
        case "mlp":
            from ai4code.mlp import Mlp  # PyTorch takes seconds to load: only where it is used

            return Mlp.fit(view, config.mlp, config.seed, log)
        case "listwise" | "singular-listwise":
            from ai4code.neural import Listwise  # as above

            encoder = _encoder_of(name, config)
            return Listwise.fit(view, config.listwise, encoder, config.seed, log, state, config.fabric, name)
        case "twin":
            from ai4code.diffusion import Twin  # as above

            return Twin.fit(view, config.twin, config.encoder, config.seed, log, state, config.fabric)
        case "diffusion":
            from ai4code.diffusion import Diffusion  # as above

            settings = (config.diffusion, config.sampling, config.encoder)
            return Diffusion.fit(view, *settings, config.seed, log, state, config.fabric)
        case "pointwise" | "pairwise":
            from ai4code.text_models import Sequences  # as above

            return Sequences.fit(name, view, config.transformer, config.encoder, config.seed, log, state, config.fabric)
        case "text-listwise" | "seed-listwise":
            from ai4code.text_models import TextListwise  # as above

            of_text = (config.text_listwise, config.transformer, config.encoder)
            return TextListwise.fit(name, view, *of_text, config.seed, log, state, config.fabric)
        case "joint":
            raise ValueError("'joint' is fitted by fit_joint, on the answers of another member")


def load_member(name: Member, folder: Path, config: Config) -> FittedMember:
    """Read any model but `joint` back from the folder of its fold."""
    match name:
        case "as-given" | "middle":
            return Rule.load(folder, name)
        case "similarity":
            return Similarity.load(folder, config.text)
        case "position":
            return Position.load(folder)
        case "ranker":
            return Ranker.load(folder)
        case "gaps":
            return Gaps.load(folder)
        case "mlp":
            from ai4code.mlp import Mlp  # as above

            return Mlp.load(folder)
        case "listwise" | "singular-listwise":
            from ai4code.neural import Listwise  # as above

            return Listwise.load(folder, _encoder_of(name, config), name)
        case "twin":
            from ai4code.diffusion import Twin  # as above

            return Twin.load(folder, config.encoder)
        case "diffusion":
            from ai4code.diffusion import Diffusion  # as above

            return Diffusion.load(folder, config.encoder, config.sampling)
        case "pointwise" | "pairwise":
            from ai4code.text_models import Sequences  # as above

            return Sequences.load(name, folder)
        case "text-listwise" | "seed-listwise":
            from ai4code.text_models import TextListwise  # as above

            return TextListwise.load(name, folder)
        case "joint":
            raise ValueError("'joint' is read by Joint.load")


def check_inputs(config: Config) -> None:
    """Look at what the members need besides the notebooks, before a run is begun: the encoder's folder.

    Raises:
        ConfigError: it is needed and there is none.
        DataError: it is incomplete or damaged.
    """
    tunes = config.transformer.start == "folder" and not TUNED.isdisjoint(config.members)
    if config.reads_folder or tunes:
        from ai4code.encoder import open_encoder, require_folder  # as above

        open_encoder(require_folder(config.encoder))


def fit_joint(view: View, first: Sequence[Placement], config: Config) -> Joint:
    """Fit `joint` on a view and the mean out-of-fold answers of `joint_reads` for its notebooks."""
    return Joint.fit(view, first, config.joint, config.pairs, config.seed)


def _encoder_of(name: Member, config: Config) -> EncoderConfig:
    return replace(config.encoder, vectors="singular") if name == "singular-listwise" else config.encoder


def is_saved(name: Member, folder: Path) -> bool:
    """Whether a fold's model is complete on disk (files are written atomically) and need not be fitted again."""
    return name in FILES and (folder / FILES[name]).exists()


def count_parameters(name: Member, folder: Path) -> int:
    """Fitted numbers of a model: leaves of all trees, or weights of a network; 0 for rules and similarity."""
    if not is_saved(name, folder):
        return 0
    if FILES[name].endswith(".safetensors"):
        with safe_open(folder / FILES[name], framework="numpy") as file:
            shapes = {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}  # noqa: SIM118 - not a dict
        # Statistics of the features travel with the weights but are none.
        return sum(math.prod(shape) for tensor, shape in shapes.items() if "standardise." not in tensor)
    leaves = re.findall(r"^num_leaves=(\d+)$", (folder / FILES[name]).read_text(encoding="utf-8"), flags=re.M)
    return sum(map(int, leaves))
