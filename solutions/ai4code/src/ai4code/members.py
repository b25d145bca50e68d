"""The models by name: one place that knows how each is fitted, kept and read back."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from safetensors import safe_open

from ai4code.baseline import Rule, Similarity
from ai4code.boosting import Gaps, Joint, Position, Ranker
from ai4code.config import FROZEN, TUNED, Config, Member
from ai4code.decode import Placement, average
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
        case "listwise":
            return _fit_listwise(view, config, log, folder)
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
        case "listwise":
            from ai4code.neural import Listwise  # as above

            return _averaged([Listwise.load(one, config.encoder) for one in seed_folders(folder, config)])
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
    reads = config.encoder.vectors == "folder" and not FROZEN.isdisjoint(config.members)
    tunes = config.transformer.start == "folder" and not TUNED.isdisjoint(config.members)
    if reads or tunes:
        from ai4code.encoder import open_encoder, require_folder  # as above

        open_encoder(require_folder(config.encoder))


def fit_joint(view: View, first: Sequence[Placement], config: Config) -> Joint:
    """Fit `joint` on a view and the out-of-fold answers of `joint_reads` for its notebooks."""
    return Joint.fit(view, first, config.joint, config.pairs, config.seed)


@dataclass(frozen=True)
class SeedAverage:
    """Models of one kind that differ in their seeds only; their answers are averaged."""

    models: Sequence[FittedMember]

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""
        return [average(answers) for answers in zip(*(model.place(view) for model in self.models), strict=True)]

    def save(self, folder: Path) -> None:
        """Write the first model into the folder of the fold, the others into folders of their own inside it."""
        for number, model in enumerate(self.models):
            model.save(_seed_folder(folder, number))


def _averaged(models: Sequence[FittedMember]) -> FittedMember:
    return models[0] if len(models) == 1 else SeedAverage(models)


def seed_folders(folder: Path, config: Config) -> list[Path]:
    """Where the networks of `listwise` of a fold lie, one folder for each seed."""
    return [_seed_folder(folder, number) for number in range(config.listwise_seeds)]


def _seed_folder(folder: Path, number: int) -> Path:
    return folder if number == 0 else folder / f"seed{number}"


def _fit_listwise(view: View, config: Config, log: Callable[..., None], folder: Path | None) -> FittedMember:
    """Fit `listwise` once for each seed; what a stopped run finished is read back."""
    from ai4code.neural import Listwise  # PyTorch takes seconds to load: only where it is used

    models = []
    for number in range(config.listwise_seeds):
        place = None if folder is None else _seed_folder(folder, number)
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
            if (place / FILES["listwise"]).exists():
                models.append(Listwise.load(place, config.encoder))
                continue
        state = None if place is None else place / "listwise.state"
        told = log if number == 0 else partial(log, seed=config.seed + number)
        settings = (config.listwise, config.encoder, config.seed + number)
        models.append(Listwise.fit(view, *settings, told, state, config.fabric))
        if place is not None:
            models[-1].save(place)
            if state is not None:
                state.unlink(missing_ok=True)
    return _averaged(models)


def is_saved(name: Member, folder: Path, config: Config) -> bool:
    """Whether a fold's model is complete on disk (files are written atomically) and need not be fitted again."""
    return name in FILES and all(path.exists() for path in _files(name, folder, config))


def _files(name: Member, folder: Path, config: Config) -> list[Path]:
    folders = seed_folders(folder, config) if name == "listwise" else [folder]
    return [one / FILES[name] for one in folders]


def count_parameters(name: Member, folder: Path, config: Config) -> int:
    """Fitted numbers of a model: leaves of all trees, or weights of its networks; 0 for rules and similarity."""
    return sum(map(_count, _files(name, folder, config))) if is_saved(name, folder, config) else 0


def _count(path: Path) -> int:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            shapes = {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}  # noqa: SIM118 - not a dict
        # Statistics of the features travel with the weights but are none.
        return sum(math.prod(shape) for tensor, shape in shapes.items() if "standardise." not in tensor)
    leaves = re.findall(r"^num_leaves=(\d+)$", path.read_text(encoding="utf-8"), flags=re.M)
    return sum(map(int, leaves))
