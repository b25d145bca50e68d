"""Frozen dataclasses as configurations: strict reading from presets (TOML) and from stored runs (JSON).

A configuration is a dataclass whose fields are `bool`, `int`, `float`, `str`, `Path`, `Literal[...]`, `tuple[...]`,
unions of these (`int | None`, `int | Literal["all"]`) and further dataclasses, the sections. Nothing is guessed: an
unknown key, a wrong type or a missing value is an error that names the key, the file and the near misses.
"""

import dataclasses
import difflib
import math
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kit_core.errors import SHOWN, ConfigError

C = TypeVar("C")


def load_preset(config_class: type[C], presets_dir: Path, name: str) -> C:
    """Return the configuration that `presets_dir/name.toml` describes; what it leaves out keeps the dataclass default.

    Raises:
        ConfigError: there is no such preset (near misses and all names are told), the file is not TOML, or it does not
            fit the dataclass, as `config_from_dict`.
    """
    names = preset_names(presets_dir)
    if name not in names:
        known = ", ".join(names) or f"none in {presets_dir}"
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, names)}\n  presets: {known}")
    path = presets_dir / f"{name}.toml"
    try:
        mapping = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    return config_from_dict(config_class, mapping, source=str(path))


def preset_names(presets_dir: Path) -> list[str]:
    """Return the names of the presets in a folder, sorted."""
    return sorted(path.stem for path in presets_dir.glob("*.toml"))


def preset_header(presets_dir: Path, name: str) -> str:
    """Return the comment that opens a preset, without its `#` signs: what it reproduces, its cost, its score."""
    lines = []
    # A file that is no UTF-8 is refused by `load_preset`, and must not keep the others from being listed.
    for line in (presets_dir / f"{name}.toml").read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" ").rstrip())
    return "\n".join(lines)


def config_to_dict(config: object) -> dict[str, Any]:
    """Return a configuration as plain dicts, lists, strings and numbers for JSON; `config_from_dict` is the inverse.

    Raises:
        ConfigError: a float is not finite.
    """
    plain: dict[str, Any] = _plain(config, "")
    return plain


def config_from_dict(config_class: type[C], mapping: Mapping[str, Any], source: str = "config.json") -> C:
    """Return the configuration that a nested mapping describes; what it leaves out keeps the dataclass default.

    Lists become tuples, strings paths and integers floats where the field says so; nothing else is converted.

    Raises:
        ConfigError: unknown keys, missing keys, wrong types, or values that the dataclass itself refuses by ValueError;
            the first five problems are told, and `source`.
    """
    problems: list[str] = []
    config: C = _section(config_class, mapping, "", None, problems)
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ConfigError("\n  ".join([f"{source}: cannot be used", *problems[:SHOWN], *more]))
    return config


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x' or 'y'?" with the known names nearest to `name`, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _section(cls: type, mapping: Mapping[str, Any], key: str, base: object, problems: list[str]) -> Any:
    """Build one dataclass; what is missing comes from `base`, the section's default in its parent, if there is one."""
    before = len(problems)
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in [name for name in mapping if name not in fields]:
        elsewhere = [dotted for dotted in _dotted_keys(cls) if dotted.endswith(f".{name}")]
        hint = f"; did you mean {' or '.join(map(repr, elsewhere))}?" if elsewhere else did_you_mean(name, fields)
        problems.append(f"{_join(key, name)}: unknown key{hint or '; known: ' + ', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        default = getattr(base, name) if base is not None else _default(field)
        if name in mapping:
            values[name] = _value(hints[name], mapping[name], _join(key, name), default, problems)
        elif default is dataclasses.MISSING and dataclasses.is_dataclass(hints[name]):
            values[name] = _section(hints[name], {}, _join(key, name), None, problems)
        elif default is dataclasses.MISSING:
            problems.append(f"{_join(key, name)}: missing, expected {_name(hints[name])}")
        else:
            values[name] = default
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except (ValueError, ConfigError) as error:
        problems.append(f"{key}: {error}" if key else str(error))


def _value(hint: Any, value: Any, key: str, default: object, problems: list[str]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _value(args[0], value, key, default, problems)
    if origin in (Union, types.UnionType):
        return _union(args, hint, value, key, default, problems)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        base = default if isinstance(default, hint) else None  # type: ignore[arg-type]  # a dataclass type, as just checked
        return _section(hint, value, key, base, problems)  # type: ignore[arg-type]  # the same
    if origin is tuple and isinstance(value, list | tuple):
        repeated = len(args) == 2 and args[1] is Ellipsis
        if repeated or len(args) == len(value):
            items = [args[0]] * len(value) if repeated else args
            pairs = enumerate(zip(items, value, strict=True))
            return tuple(_value(item, v, f"{key}[{i}]", dataclasses.MISSING, problems) for i, (item, v) in pairs)
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in args):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and type(value) in (int, float) and _is_finite(value):
        return float(value)
    if hint in (bool, int, str, types.NoneType) and type(value) is hint:
        return value
    choices = [choice for choice in args if isinstance(choice, str)] if origin is Literal else []
    problems.append(_mismatch(hint, value, key) + did_you_mean(str(value), choices))
    return None


def _union(members: tuple[Any, ...], hint: Any, value: Any, key: str, default: object, problems: list[str]) -> Any:
    # Exact types first: in `float | int` a whole number stays one. A path takes any string, so it comes last.
    attempts = []
    for member in sorted(members, key=lambda member: (member is Path, member is float)):
        attempt: list[str] = []
        converted = _value(member, value, key, default, attempt)
        if not attempt:
            return converted
        attempts.append((member, attempt))
    # A table was meant for the section among the members: what is wrong inside it says more than the union's name.
    inside = [found for member, found in attempts if dataclasses.is_dataclass(member) and isinstance(value, Mapping)]
    problems += inside[0] if inside else [_mismatch(hint, value, key)]
    return None


def _mismatch(hint: Any, value: object, key: str) -> str:
    return f"{key}: found {value!r} ({type(value).__name__}), expected {_name(hint)}"


def _plain(value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: _plain(getattr(value, name), _join(key, name)) for name in names}
    if isinstance(value, tuple):
        return [_plain(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: found {value}, expected a finite number")
    return str(value) if isinstance(value, Path) else value


def _default(field: "dataclasses.Field[Any]") -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _dotted_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in get_type_hints(cls).items():
        keys.append(prefix + name)
        if dataclasses.is_dataclass(hint):
            keys += _dotted_keys(hint, f"{prefix}{name}.")  # type: ignore[arg-type]  # a dataclass type, as just checked
    return keys


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _name(hint: Any) -> str:
    """Return a type as a person reads it: `int or 'all'`, `one of 'a', 'b'`, `list of int`, `table`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(arg) for arg in args)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(repr, args))
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return f"list of {_name(args[0])}"
    if origin is tuple:
        return f"list of {len(args)} ({', '.join(map(_name, args))})"
    if dataclasses.is_dataclass(hint):
        return "table"
    known = {types.NoneType: "nothing", Path: "path", float: "finite float"}
    return known.get(hint) or str(getattr(hint, "__name__", hint))
