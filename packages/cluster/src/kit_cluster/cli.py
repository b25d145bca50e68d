"""The command line `bundle`: take the project to machines without network, and keep models that many share."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from kit_cluster import bundle, store, unpack
from kit_core import cli
from kit_core.console import render_table
from kit_core.errors import ConfigError, DataError
from kit_core.run import hash_file

Named = UseAppendAction[tuple[str, ...]]


def create(
    out: Path,
    project: Path = Path(),
    group: Annotated[Named, arg(help="a group of poetry.lock, such as yandex-tagging; may be repeated")] = (),
    model: Annotated[Named, arg(help="NAME=PATH of a model or tokenizer; may be repeated")] = (),
    data: Annotated[Named, arg(help="NAME=PATH of prepared data; may be repeated")] = (),
    wheels: Annotated[Path | None, arg(help="a folder with all wheels, in place of the package index")] = None,
) -> None:
    """Write one archive for machines without network: wheels of the lock, the project, models, data, all with hashes.

    Run it on a machine like those of the cluster: same Python, system and processor.
    """
    manifest = bundle.create(
        project, out, groups=group, models=_named("model", model), data=_named("data", data), wheels=wheels
    )
    print(f"{out}: {len(manifest['files'])} files, {out.stat().st_size:,} bytes, sha256 {hash_file(out)}")
    print(f"there: tar xf {out.name} install.py && python3 install.py {out.name} --out DIR")


def install(archive: Positional[Path], out: Path) -> None:
    """Compare every hash of a bundle and install it into a new folder, without network."""
    try:
        unpack.install(archive, out)
    except unpack.BundleError as error:
        raise DataError(str(error)) from error


def publish(name: Positional[str], source: Positional[Path], store_: Annotated[Path, arg(name="store")]) -> None:
    """Copy a model's folder or file into the shared store, and print how to name it."""
    model = store.publish(store_, name, source)
    print(f"{model.reference}  {model.path}")


def path(reference: Positional[str], store_: Annotated[Path, arg(name="store")]) -> None:
    """Print the folder of a model, NAME or NAME@HASH, for a flag such as --encoder.folder."""
    print(store.find(store_, reference).path)


def list_(store_: Annotated[Path, arg(name="store")]) -> None:
    """List the models of a store."""
    rows = [
        (one.reference, len(one.files), f"{sum(fact['bytes'] for fact in one.files.values())}", one.path)
        for one in store.models(store_)
    ]
    print(render_table(["model", "files", "bytes", "folder"], rows))


def verify(reference: Positional[str], store_: Annotated[Path, arg(name="store")]) -> None:
    """Read all files of a model again and compare their hashes."""
    model = store.find(store_, reference)
    store.verify(model)
    print(f"{model.reference}: {len(model.files)} files as they were")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    verbs: dict[str, Callable[..., None] | Mapping[str, Callable[..., None]]] = {
        "create": create,
        "install": install,
        "model": {"publish": publish, "path": path, "list": list_, "verify": verify},
    }
    return cli.run("bundle", verbs, (object, Path()), argv)  # no verb takes a preset


def _named(flag: str, given: Sequence[str]) -> dict[str, Path]:
    named = {}
    for one in given:
        name, equals, place = one.partition("=")
        if not equals or not name or "/" in name or name.startswith("."):
            raise ConfigError(f"--{flag}: found {one!r}, expected NAME=PATH with a plain name")
        named[name] = Path(place)
    return named


if __name__ == "__main__":
    sys.exit(main())
