"""From a program's verbs, ordinary typed functions, to its command line: parsing, presets, messages and exit codes.

Exit codes: 0 done, 1 a bug (with its traceback), 2 usage or configuration, 3 bad data, 75 stopped as asked with its
state saved, 130 interrupted, 141 the reader of the output went away.
"""

import dataclasses
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from kit_core.config import config_from_dict, did_you_mean, load_preset, preset_header, preset_names
from kit_core.errors import FULL, ConfigError, KitError, disk_full
from kit_core.repeat import Earlier, Repetition, repeating

Verb = Callable[..., Any]

FROM_MANIFEST = "--from-manifest"


def run(
    program: str,
    verbs: Mapping[str, Verb | Mapping[str, Verb]],
    presets: tuple[type[Any], Path],
    argv: Sequence[str] | None = None,
) -> int:
    """Run one verb of a program with the arguments of the command line and return the exit code.

    A verb's parameters become flags (`data: Path` is `--data PATH`), or positionals where annotated
    `tyro.conf.Positional[...]`; what it returns is ignored. A mapping among the verbs makes verbs of two words.
    A verb with the parameters `preset: str` and `config` takes the name of a preset as its first argument. That preset,
    an instance of the class `presets[0]` read from the folder `presets[1]`, gives the defaults of the flags
    `--section.key`. Where it has `run: Path` as well, `--from-manifest FILE` in place of the preset repeats an earlier
    run. `argv` is without the program's name; by default it is that of the process.
    """
    # Read by OpenMP when torch or LightGBM loads. Its threads otherwise spin while they wait for one another, and a
    # training beside other busy processes takes four times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _dispatch(program, verbs, presets, list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here and not at exit, so that a closed pipe is met below
    except KitError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except _ParserExit as parser_exit:
        return parser_exit.code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains again at exit
        return 141
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:  # of a file that is written piece by piece, in place
            full = disk_full(error.filename or "the output", error.strerror)
            print(f"{program}: {full}", file=sys.stderr)
            return full.exit_code
        traceback.print_exc()
        return 1
    return 0


class _ParserExit(Exception):  # noqa: N818 - not an error: `--help` ends so as well
    """The parser is done with the command line: it printed help (0) or what is wrong with the usage (2)."""

    def __init__(self, code: int) -> None:
        self.code = code


def _dispatch(
    program: str, verbs: Mapping[str, Verb | Mapping[str, Verb]], presets: tuple[type[Any], Path], args: list[str]
) -> None:
    if not args:
        is_group = " " in program
        print(_verb_list(program, verbs) if is_group else _introduction(program, presets[1]), file=sys.stderr)
        raise _ParserExit(2)
    name, rest = args[0], args[1:]
    if name in ("-h", "--help"):
        print(_verb_list(program, verbs))
        return
    if name not in verbs:
        raise ConfigError(f"unknown verb {name!r}{did_you_mean(name, verbs)}\n  verbs: {', '.join(verbs)}")
    verb, command = verbs[name], f"{program} {name}"
    if isinstance(verb, Mapping):
        _dispatch(command, verb, presets, rest)
    elif {"preset", "config"} <= inspect.signature(verb).parameters.keys():
        _run_with_preset(command, verb, presets, rest)
    else:
        verb(**_parse(command, verb, rest))


def _run_with_preset(command: str, verb: Verb, presets: tuple[type[Any], Path], args: list[str]) -> None:
    config_class, folder = presets
    names = preset_names(folder)
    if args[:1] in (["-h"], ["--help"]):
        rows = [(name, preset_header(folder, name).partition("\n")[0]) for name in names]
        usage = f"usage: {command} PRESET [flags]"
        if _can_repeat(verb):
            usage += f"\n       {command} {FROM_MANIFEST} RUN/manifest.json --run DIR [--data DATA] [flags]"
        print(f"{usage}\n\n{inspect.getdoc(verb) or ''}\n\npresets:\n{_aligned(rows)}")
        print(f"\n`{command} PRESET --help` shows every flag with the preset's values.")
        return
    if _can_repeat(verb) and any(word.partition("=")[0] == FROM_MANIFEST for word in args):
        _repeat(command, verb, config_class, args)
        return
    if not args or args[0].startswith("-"):
        raise ConfigError(f"{command}: expected a preset as the first argument\n  presets: {', '.join(names)}")
    preset, rest = args[0], args[1:]
    config = load_preset(config_class, folder, preset)
    verb(preset=preset, **_parse(f"{command} {preset}", verb, rest, config))


def _can_repeat(verb: Verb) -> bool:
    return "run" in inspect.signature(verb).parameters


def _repeat(command: str, verb: Verb, config_class: type[Any], args: list[str]) -> None:
    """Run a verb again as the manifest of an earlier run says; flags given now come behind those of then."""
    place = next(i for i, word in enumerate(args) if word.partition("=")[0] == FROM_MANIFEST)
    _, equals, manifest = args[place].partition("=")
    rest = args[:place] + args[place + (1 if equals else 2) :]
    manifest = manifest if equals else "".join(args[place + 1 : place + 2])
    if not manifest or manifest.startswith("-"):
        raise ConfigError(f"{command}: {FROM_MANIFEST} wants the manifest.json of a run, or the run's folder")
    if rest and not rest[0].startswith("-"):
        raise ConfigError(f"{command}: found {rest[0]!r} beside {FROM_MANIFEST}; the preset is that of the earlier run")
    if not any(word.partition("=")[0] == "--run" for word in rest):
        raise ConfigError(f"{command}: {FROM_MANIFEST} wants --run DIR as well: the folder of the new run")
    program, *words = command.split()
    earlier = Earlier.read(manifest)
    config = config_from_dict(config_class, earlier.config, source=str(earlier.path / "config.json"))
    earlier_flags = earlier.flags(words)
    if (cwd := earlier.moved_from) is not None:
        config = _absolute(config, cwd)
        earlier_flags = _absolute_flags(earlier_flags, _path_flags(verb, config_class), cwd)
    flags = [*earlier_flags, *rest]
    values = _parse(f"{command} {earlier.preset}", verb, flags, config)
    with repeating(Repetition(earlier, values["run"], (program, *words, earlier.preset, *flags))):
        verb(preset=earlier.preset, **values)


def _absolute(value: Any, base: Path) -> Any:
    """Return a configuration whose relative paths are joined to `base`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: _absolute(getattr(value, name), base) for name in fields})
    if isinstance(value, tuple):
        return tuple(_absolute(item, base) for item in value)
    return base / value if isinstance(value, Path) else value


def _absolute_flags(flags: Sequence[str], path_flags: set[str], base: Path) -> list[str]:
    """Join the values of the flags that take paths to `base`; an absolute value stays as it is."""
    absolute, takes_path = [], False
    for word in flags:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            takes_path = name.replace("_", "-") in path_flags
            word = f"{name}={base / value}" if equals and takes_path else word
        elif takes_path:
            word = str(base / word)
        absolute.append(word)
    return absolute


def _path_flags(verb: Verb, config_class: type[Any]) -> set[str]:
    """Return the flags of a verb and of its configuration that take a path: `--data`, `--data.groups`."""

    def holds_path(hint: Any) -> bool:
        return hint is Path or any(holds_path(part) for part in get_args(hint))

    def names(hints: Mapping[str, Any], prefix: str) -> set[str]:
        found = {f"--{prefix}{name}".replace("_", "-") for name, hint in hints.items() if holds_path(hint)}
        for name, hint in hints.items():
            if dataclasses.is_dataclass(hint):
                found |= names(get_type_hints(hint), f"{prefix}{name}.")
        return found

    own = {name: hint for name, hint in get_type_hints(verb).items() if name not in ("config", "return")}
    return names(own, "") | names(get_type_hints(config_class), "")


def _parse(command: str, verb: Verb, args: list[str], config: object = None) -> dict[str, Any]:
    """Return the keyword arguments for a verb; given a configuration, it is among them and `preset` is left out."""
    hints = get_type_hints(verb, include_extras=True)
    parameters = []
    for name, parameter in inspect.signature(verb).parameters.items():
        hint, default = hints[name], parameter.default
        if config is not None and name == "preset":
            continue
        if config is not None and name == "config":
            hint, default = Annotated[type(config), tyro.conf.arg(name="")], config  # no name: `--data.fold`, no prefix
        parameters.append(inspect.Parameter(name, parameter.KEYWORD_ONLY, default=default, annotation=hint))

    # Tyro calls a function that only collects, so that an error inside the verb is never taken for one of the usage.
    def collect(**values: Any) -> dict[str, Any]:
        return values

    collect.__doc__ = verb.__doc__
    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect.signature
    collect.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    tyro._experimental_options["utf8_boxes"] = sys.stdout.isatty()  # plain text in logs
    registry = ConstructorRegistry()
    registry.struct_rule(_Strict())
    try:
        return tyro.cli(collect, prog=command, args=args, registry=registry)
    except SystemExit as exit_:
        raise _ParserExit(exit_.code if isinstance(exit_.code, int) else 0) from None


class _Strict:
    """A rule for tyro: build dataclasses as it does, but let what they refuse come out as a ConfigError.

    By itself tyro would let the ValueError of the outermost dataclass through as a traceback.
    """

    def __init__(self) -> None:
        self._asking = False

    def __call__(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if self._asking or not dataclasses.is_dataclass(info.type):
            return None
        self._asking = True  # the next call, by the line below, is passed on to tyro's own rule
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            self._asking = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        make = spec.instantiate

        def build(**values: Any) -> Any:
            try:
                return make(**values)
            except ValueError as error:
                raise ConfigError(str(error)) from error

        written = not (make.__doc__ or "").startswith(f"{make.__name__}(")  # dataclasses without docstring get one made
        build.__doc__ = make.__doc__ if written else None
        return dataclasses.replace(spec, instantiate=build)


def _introduction(program: str, presets: Path) -> str:
    """What the program is for, and the first commands to type."""
    try:
        summary = metadata(program)["Summary"]
    except PackageNotFoundError:  # a program that is no installed distribution
        summary = f"{program}, {len(preset_names(presets))} presets"
    readme = presets.parent / "README.md"
    lines = [
        summary,
        f"  start:    {program} sample --out data/sample",
        f"  then:     {program} train PRESET --data data/sample --run runs/first",
        f"  presets:  {program} presets",
        f"  verbs:    {program} --help",
        *([f"  read on:  {readme}"] if readme.exists() else []),
    ]
    return "\n".join(lines)


def _verb_list(program: str, verbs: Mapping[str, Verb | Mapping[str, Verb]]) -> str:
    rows = []
    for name, verb in verbs.items():
        group = verb.items() if isinstance(verb, Mapping) else [("", verb)]
        rows += [(f"{name} {word}".strip(), (inspect.getdoc(one) or "").partition("\n")[0]) for word, one in group]
    return f"usage: {program} VERB ...\n\n{_aligned(rows)}\n\n`{program} VERB --help` explains one verb."


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {text}".rstrip() for name, text in rows)
