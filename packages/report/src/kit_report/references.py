"""What the report knows of each solution beforehand: names, roles of presets, and what others scored (a TOML file)."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kit_core.config import config_from_dict
from kit_core.errors import ConfigError, DataError

Role = Literal["floor", "seed", "public", "ours"]
Kind = Literal["official", "stand-in", "sample", "unknown"]
ROLES: dict[Role, str] = {
    "floor": "baseline",
    "seed": "original's idea",
    "public": "public recipe",
    "ours": "ours",
}
ROLE_TEXTS: dict[Role, str] = {
    "floor": "Rules and plain methods: what a model must beat.",
    "seed": "The solution that ours goes back to, its faults corrected.",
    "public": "Rebuilt from what places of the competition published.",
    "ours": "Designed here.",
}
KINDS: dict[Kind, str] = {
    "official": "Official data",
    "stand-in": "Real stand-in data",
    "sample": "Generated samples",
    "unknown": "Data not known",
}
# What a published score was measured on; each is a column of its own.
COLUMNS = {
    "public": "public",
    "private": "private",
    "leaderboard": "leaderboard, part not stated",
    "test": "official test part",
    "own": "own hold-out",
}


@dataclass(frozen=True)
class Reference:
    """What somebody else scored on the official data, by what it was measured on, and where that is published."""

    who: str
    metric: str
    source: str
    about: str = ""
    role: Role = "public"
    public: float | None = None
    private: float | None = None
    leaderboard: float | None = None
    test: float | None = None
    own: float | None = None

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError(f"{self.who}: found no score, expected one of {', '.join(COLUMNS)}")

    @property
    def scores(self) -> dict[str, float]:
        """The scores that are known, by the keys of `COLUMNS`."""
        return {name: value for name in COLUMNS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Headline:
    """Which measurements the front page shows."""

    data: str
    folds: str
    metric: str


@dataclass(frozen=True)
class About:
    """One solution: texts, the names of its stand-in data, presets by role, and references."""

    name: str
    title: str
    task: str
    competition: str
    headline: Headline
    metrics: Mapping[str, str] = field(default_factory=dict)
    stand_ins: tuple[str, ...] = ()
    floor: tuple[str, ...] = ()
    seed: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    references: tuple[Reference, ...] = ()

    def role(self, preset: str) -> Role:
        """Return the role of a preset; what is not listed is ours."""
        for role in ("floor", "seed", "public"):
            if preset in getattr(self, role):
                return role
        return "ours"

    def kind(self, data: str) -> Kind:
        """Return what kind of data a name from `RESULTS.csv` means: `music-mini proxies` begins with a stand-in."""
        if any(data == name or data.startswith((f"{name} ", f"{name},")) for name in self.stand_ins):
            return "stand-in"
        for kind in ("official", "sample"):
            if data == kind or data.startswith((f"{kind} ", f"{kind},")):
                return kind
        return "unknown"

    def metric(self, name: str) -> str:
        """Return a metric's name for people."""
        return self.metrics.get(name, name)


def read_references(path: Path) -> list[About]:
    """Return the solutions that the file describes, in its order.

    Raises:
        DataError: it is absent or not TOML.
        ConfigError: it has unknown keys, or one is missing or of a wrong type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: absent; expected the reference figures; give the repository by --root") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a TOML file: {error}") from error
    found = content.get("solution")
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{path}: found no [[solution]], expected one for each folder below solutions/")
    return [_about(entry, f"{path}: solution {number}") for number, entry in enumerate(found, start=1)]


def _about(entry: dict[str, Any], source: str) -> About:
    rest = dict(entry)
    metrics, references = rest.pop("metrics", {}), rest.pop("reference", [])
    rest |= rest.pop("roles", {})
    known = [name for name in About.__dataclass_fields__ if name not in ("metrics", "references")]
    unknown = [name for name in rest if name not in known]
    if unknown:
        raise ConfigError(f"{source}: found {', '.join(unknown)}; known: {', '.join(known)}, metrics, roles, reference")
    missing = [name for name in ("name", "title", "task", "competition", "headline") if name not in rest]
    if missing:
        raise ConfigError(f"{source}: found no {', '.join(missing)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()}
    del values["headline"]
    return About(
        **values,
        headline=config_from_dict(Headline, rest["headline"], source=f"{source}, headline"),
        metrics={str(key): str(value) for key, value in metrics.items()},
        references=tuple(
            config_from_dict(Reference, one, source=f"{source}, reference {i}") for i, one in enumerate(references, 1)
        ),
    )
