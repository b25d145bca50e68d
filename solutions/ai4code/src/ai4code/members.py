"""The models by name: one place that knows how each is fitted, kept and read back."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ai4code.baseline import Rule, Similarity
from ai4code.boosting import Gaps, Joint, Position, Ranker
from ai4code.config import Config, Member
from ai4code.decode import Placement
from ai4code.features import View

FILES: dict[Member, str] = {
    "position": "position.txt",
    "ranker": "ranker.txt",
    "mlp": "mlp.safetensors",
    "gaps": "gaps.txt",
    "joint": "joint.txt",
}  # rules and similarity are made again in no time


class FittedMember(Protocol):
    """A fitted model that answers from the notebooks alone; `Joint` also needs the answers of `Gaps`."""

    def place(self, view: View) -> list[Placement]: ...

    def save(self, folder: Path) -> None: ...


def fit_member(name: Member, view: View, config: Config, log: Callable[..., None]) -> FittedMember:
    """Fit any model but `joint` on the notebooks of a view."""
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
        case "joint":
            raise ValueError("'joint' is fitted by fit_joint, on the answers of 'gaps'")


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
        case "joint":
            raise ValueError("'joint' is read by Joint.load")


def fit_joint(view: View, first: Sequence[Placement], config: Config) -> Joint:
    """Fit `joint` on a view and the out-of-fold answers of `gaps` for its notebooks."""
    return Joint.fit(view, first, config.joint, config.pairs, config.seed)


def is_saved(name: Member, folder: Path) -> bool:
    """Whether a fold's model is complete on disk (files are written atomically) and need not be fitted again."""
    return name in FILES and (folder / FILES[name]).exists()


def count_parameters(name: Member, folder: Path) -> int:
    """Fitted numbers of a model: leaves of all trees, or weights of a network; 0 for rules and similarity."""
    if not is_saved(name, folder):
        return 0
    if name == "mlp":
        from ai4code.mlp import Mlp  # as above

        return sum(parameter.numel() for parameter in Mlp.load(folder).network.parameters())
    leaves = re.findall(r"^num_leaves=(\d+)$", (folder / FILES[name]).read_text(encoding="utf-8"), flags=re.M)
    return sum(map(int, leaves))
