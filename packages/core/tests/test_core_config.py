"""Strict reading of configurations: round trips, every kind of refusal, presets."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_core.config import config_from_dict, config_to_dict, did_you_mean, load_preset, preset_header, preset_names
from kit_core.errors import ConfigError


@dataclass(frozen=True)
class Data:
    fold: int | Literal["all"] = 0
    n_folds: int = 5
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.fold != "all" and self.fold >= self.n_folds:
            raise ValueError(f"fold must be below n_folds ({self.n_folds}), found {self.fold}")


@dataclass(frozen=True)
class Model:
    kind: Literal["lstm", "gru"] = "gru"
    layers: int = 4
    dropout: float = 0.1
    kernel_sizes: tuple[int, ...] = (3, 5)
    crop: tuple[int, float] = (224, 0.9)
    bias: bool = True
    weights: Optional[str] = None  # noqa: UP045 - the old spelling must work as well


@dataclass(frozen=True)
class Config:
    name: str
    data: Data = field(default_factory=Data)
    model: Model = Model(layers=8)
    scale: int | float = 1


def refusal(mapping: dict[str, Any], config_class: type = Config) -> str:
    with pytest.raises(ConfigError) as raised:
        config_from_dict(config_class, mapping, source="best.toml")
    text = str(raised.value)
    assert text.startswith("best.toml: ")
    return text


finite = st.floats(allow_nan=False, allow_infinity=False)
configs = st.builds(
    Config,
    name=st.text(),
    data=st.builds(
        Data,
        fold=st.integers(0, 4) | st.just("all"),
        n_folds=st.integers(5, 9),
        cache=st.none() | st.text("ab/.", min_size=1).map(Path),
    ),
    model=st.builds(
        Model,
        kind=st.sampled_from(["lstm", "gru"]),
        layers=st.integers(),
        dropout=finite,
        kernel_sizes=st.lists(st.integers()).map(tuple),
        crop=st.tuples(st.integers(), finite),
        bias=st.booleans(),
        weights=st.none() | st.text(),
    ),
    scale=st.integers() | finite,
)


@given(configs)
def test_round_trip_through_json(config: Config) -> None:
    stored = json.loads(json.dumps(config_to_dict(config), allow_nan=False))
    back = config_from_dict(Config, stored)
    assert back == config
    assert type(back.scale) is type(config.scale)


def test_defaults_fill_in_and_a_section_keeps_the_defaults_of_its_parent() -> None:
    config = config_from_dict(Config, {"name": "a", "model": {"dropout": 0.5}})
    assert config == Config("a", Data(), Model(layers=8, dropout=0.5), 1)


def test_an_integer_becomes_a_float_where_one_is_expected() -> None:
    model = config_from_dict(Model, {"dropout": 0, "crop": [10, 1]})
    assert type(model.dropout) is float
    assert type(model.crop[1]) is float


def test_a_section_without_default_is_built_from_its_own_defaults() -> None:
    outer = dataclasses.make_dataclass("Outer", [("model", Model)], frozen=True)
    assert config_from_dict(outer, {}).model == Model()


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"name": 1}, "name: found 1 (int), expected str"),
        ({"name": "a", "model": {"layers": True}}, "model.layers: found True (bool), expected int"),
        ({"name": "a", "model": {"layers": 2.0}}, "model.layers: found 2.0 (float), expected int"),
        ({"name": "a", "model": {"layers": "2"}}, "model.layers: found '2' (str), expected int"),
        ({"name": "a", "model": {"dropout": True}}, "model.dropout: found True (bool), expected finite float"),
        ({"name": "a", "model": {"dropout": float("nan")}}, "model.dropout: found nan (float), expected finite float"),
        ({"name": "a", "model": {"dropout": 10**400}}, "expected finite float"),
        ({"name": "a", "model": {"bias": 1}}, "model.bias: found 1 (int), expected bool"),
        ({"name": "a", "model": {"kind": "gur"}}, "expected one of 'lstm', 'gru'; did you mean 'gru'?"),
        ({"name": "a", "model": {"kernel_sizes": [3, "x"]}}, "model.kernel_sizes[1]: found 'x' (str), expected int"),
        ({"name": "a", "model": {"kernel_sizes": 3}}, "model.kernel_sizes: found 3 (int), expected list of int"),
        ({"name": "a", "model": {"crop": [1]}}, "model.crop: found [1] (list), expected list of 2 (int, finite float)"),
        ({"name": "a", "model": {"weights": 3}}, "model.weights: found 3 (int), expected str or nothing"),
        ({"name": "a", "data": {"fold": "al"}}, "data.fold: found 'al' (str), expected int or 'all'"),
        ({"name": "a", "data": {"cache": 3}}, "data.cache: found 3 (int), expected path or nothing"),
        ({"name": "a", "data": 3}, "data: found 3 (int), expected table"),
        ({"name": "a", "model": {"layer": 3}}, "model.layer: unknown key; did you mean 'layers'?"),
        ({"name": "a", "layers": 3}, "layers: unknown key; did you mean 'model.layers'?"),
        ({"name": "a", "zzz": 3}, "zzz: unknown key; known: name, data, model, scale"),
        ({}, "name: missing, expected str"),
        ({"name": "a", "data": {"fold": 5}}, "data: fold must be below n_folds (5), found 5"),
    ],
)
def test_refusals(mapping: dict[str, Any], words: str) -> None:
    assert words in refusal(mapping)


def test_all_problems_are_told_at_once_up_to_five() -> None:
    text = refusal({"nam": "a", "data": {"fold": 1.5, "n_fold": 3}})
    assert len(text.splitlines()) == 1 + 4
    text = refusal({f"x{i}": 0 for i in range(7)})
    assert len(text.splitlines()) == 1 + 5 + 1
    assert text.endswith("... and 3 more")


def test_problems_inside_an_optional_section_are_named() -> None:
    outer = dataclasses.make_dataclass("Outer", [("model", Model | None, None)], frozen=True)
    assert config_from_dict(outer, {}).model is None
    assert "model.layers: found 'x' (str), expected int" in refusal({"model": {"layers": "x"}}, outer)


@given(st.dictionaries(st.sampled_from(["name", "data", "model", "scale", "x"]), st.none() | st.integers() | st.text()))
def test_anything_else_is_a_config_error_or_fits(mapping: dict[str, Any]) -> None:
    try:
        config = config_from_dict(Config, mapping)
    except ConfigError:
        return
    assert config_to_dict(config).items() >= mapping.items()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_float_that_is_not_finite_cannot_be_stored(value: float) -> None:
    with pytest.raises(ConfigError, match=r"model\.dropout: found (nan|inf), expected a finite number"):
        config_to_dict(Config("a", model=Model(dropout=value)))


def test_fields_that_are_not_set_by_hand_stay_out() -> None:
    @dataclass(frozen=True)
    class Sizes:
        width: int = 2
        area: int = field(init=False, default=4)

    assert config_to_dict(Sizes()) == {"width": 2}
    assert "area: unknown key" in refusal({"area": 3}, Sizes)


PRESET = """\
# Reproduces the recipe of the winners.
#
#   demo train best --data DIR --run DIR
# 3 min on one GPU.

# Not a part of the header.
name = "best"
[model]
dropout = 1
kernel_sizes = [7]
"""


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    (tmp_path / "best.toml").write_text(PRESET, encoding="utf-8")
    (tmp_path / "baseline.toml").write_text('name = "baseline"\n', encoding="utf-8")
    (tmp_path / "notes.md").write_text("no preset", encoding="utf-8")
    return tmp_path


def test_presets(presets: Path) -> None:
    assert preset_names(presets) == ["baseline", "best"]
    assert load_preset(Config, presets, "best") == Config("best", model=Model(layers=8, dropout=1.0, kernel_sizes=(7,)))
    header = "Reproduces the recipe of the winners.\n\n  demo train best --data DIR --run DIR\n3 min on one GPU."
    assert preset_header(presets, "best") == header
    assert preset_header(presets, "baseline") == ""


@pytest.mark.parametrize("name", ["bets", "best.toml", "../best", ""])
def test_unknown_preset_lists_all(presets: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="unknown preset") as raised:
        load_preset(Config, presets, name)
    assert "presets: baseline, best" in str(raised.value)
    assert name != "bets" or "did you mean 'best'?" in str(raised.value)


def test_no_presets_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="presets: none in"):
        load_preset(Config, tmp_path / "absent", "best")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"name = 'a'\nname = 'b'"])
def test_a_broken_preset_names_the_file(presets: Path, content: bytes) -> None:
    (presets / "broken.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml: not a TOML file"):
        load_preset(Config, presets, "broken")


def test_a_broken_preset_does_not_hide_the_others(presets: Path) -> None:
    (presets / "broken.toml").write_bytes(b"# Caf\xe9\n")
    assert preset_header(presets, "broken") == "Caf\ufffd"


def test_a_wrong_key_names_file_and_key(presets: Path) -> None:
    (presets / "wrong.toml").write_text('name = "a"\n[model]\nlayer = 3\n')
    with pytest.raises(ConfigError, match=r"wrong\.toml: .*\n  model\.layer: unknown key; did you mean 'layers'"):
        load_preset(Config, presets, "wrong")


def test_did_you_mean() -> None:
    assert did_you_mean("trian", ["train", "infer"]) == "; did you mean 'train'?"
    assert did_you_mean("xyz", ["train", "infer"]) == ""
