"""Everything for machines without network, in one archive: wheels, the project, models, prepared data, a manifest."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit_cluster import unpack
from kit_cluster.store import files_of
from kit_core.atomic import atomic_path
from kit_core.console import say
from kit_core.errors import ConfigError, DataError
from kit_core.run import hash_file

LOCK = "poetry.lock"
TOOLS = ("pip", "poetry-core")  # what installs the rest: pip itself, and the builder of the project's own packages
LEFT_OUT = re.compile(
    r"(^|/)(\.git|\.venv|\.tools|__pycache__|\.[a-z_]+_cache|runs|report|dist|data)(/|$)|\.(pyc|tmp)$"
)


def create(
    project: Path,
    out: Path,
    *,
    groups: Sequence[str],
    models: Mapping[str, Path],
    data: Mapping[str, Path],
    wheels: Path | None = None,
) -> dict[str, Any]:
    """Write a bundle of a project for machines like this one, whole or not at all, and return its manifest.

    Args:
        project: the repository's root, with poetry.lock.
        groups: groups of the lock; `main` comes along always.
        models: folders or files, by the names that they get below models/.
        data: the same, below data/.
        wheels: a folder that has all wheels, in place of the package index.

    Raises:
        DataError: there is no lock, or nothing at the place of a model or of data.
        ConfigError: an unknown group, pip fails, or the archive cannot be written.
    """
    lock = read_lock(project)
    chosen = choose(lock, groups)
    members = [package["source"]["url"] for package in chosen if package.get("source", {}).get("type") == "directory"]
    requirements = "".join(requirement(package, groups) for package in chosen if "source" not in package)
    for name, path in {**models, **data}.items():
        if not path.exists():
            raise DataError(f"{path}: nothing there; it was to become {name!r} of the bundle")
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        house = Path(scratch, "wheels")
        listed = Path(scratch, "requirements.txt")
        listed.write_text(requirements, encoding="utf-8")
        fetch_wheels(project, listed, house, wheels)
        sources = {f"wheels/{path.name}": path for path in sorted(house.iterdir())}
        sources |= {f"project/{place}": path for place, path in project_files(project).items()}
        for kind, given in (("models", models), ("data", data)):
            for name, path in given.items():
                sources |= {f"{kind}/{name}/{place}": one for place, one in files_of(path).items()}
        sources |= {"requirements.txt": listed, "install.py": Path(unpack.__file__)}
        say(f"bundle: hashing {len(sources)} files")
        manifest: dict[str, Any] = {
            "format_version": unpack.FORMAT_VERSION,
            "machine": unpack.this_machine(),
            "groups": list(groups),
            "members": members,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "lock": hash_file(project / LOCK),
            "files": {place: _fact(path) for place, path in sources.items()},
        }
        manifest["sha256"] = unpack.digest_of(manifest)
        with atomic_path(out) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, unpack.MANIFEST, json.dumps(manifest, indent=1).encode())
            for place, path in sources.items():
                with path.open("rb") as file:
                    info = tarfile.TarInfo(place)
                    info.size = manifest["files"][place]["bytes"]
                    archive.addfile(info, file)
    return manifest


def read_lock(project: Path) -> dict[str, Any]:
    """Read poetry.lock.

    Raises:
        DataError: it is absent or no TOML.
    """
    try:
        return tomllib.loads((project / LOCK).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{project / LOCK}: absent; --project is the folder with {LOCK}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{project / LOCK}: not a lock file: {error}") from error


def choose(lock: Mapping[str, Any], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Return the packages of `main` and of the groups.

    Raises:
        ConfigError: an unknown group.
    """
    packages: list[dict[str, Any]] = lock["package"]
    known = {group for package in packages for group in package["groups"]}
    if unknown := [group for group in groups if group not in known]:
        raise ConfigError(f"group: found {', '.join(unknown)}; the lock knows {', '.join(sorted(known))}")
    wanted = {"main", *groups}
    return [package for package in packages if wanted & set(package["groups"])]


def requirement(package: Mapping[str, Any], groups: Sequence[str]) -> str:
    """Return a package of the lock as pip wants it: the version, when it is needed, and the hashes of its files."""
    markers = package.get("markers")
    if isinstance(markers, dict):  # by group; a group without one needs the package everywhere
        needing = [group for group in ("main", *groups) if group in package["groups"]]
        by_group = [markers.get(group) for group in needing]
        markers = None if None in by_group else " or ".join(sorted({f"({one})" for one in by_group}))
    condition = f" ; {markers}" if markers else ""
    hashes = "".join(f" \\\n    --hash={file['hash']}" for file in package["files"])
    return f"{package['name']}=={package['version']}{condition}{hashes}\n"


def fetch_wheels(project: Path, requirements: Path, house: Path, wheels: Path | None) -> None:
    """Let pip fill a folder with wheels: those of the requirements, hash by hash, and those of the tools.

    Raises:
        ConfigError: pip is absent or fails; its last words are told.
    """
    pip = find_pip(project)
    house.mkdir()
    index = [] if wheels is None else ["--no-index", "--find-links", str(wheels.absolute())]
    common = [*pip, "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir", str(house), *index]
    hashed = ["--require-hashes", "--requirement", str(requirements)] if requirements.stat().st_size else []
    for what in (hashed, list(TOOLS)):
        if what:
            say(f"bundle: pip fetches {'the wheels of the lock' if what is hashed else ' and '.join(TOOLS)}")
            done = subprocess.run([*common, *what], capture_output=True, text=True)
            if done.returncode:
                last = "\n  ".join(done.stderr.strip().splitlines()[-6:])
                raise ConfigError(f"pip could not fetch the wheels:\n  {last}\n  do: create it where pip has an index")


def find_pip(project: Path) -> list[str]:
    """Return the command of a pip that runs on this version of Python: ours, the repository's, or the machine's.

    Raises:
        ConfigError: there is none.
    """
    version = "import pip, sys; print(*sys.version_info[:2])"
    for python in (sys.executable, str(project / ".tools" / "bin" / "python"), shutil.which("python3") or "python3"):
        try:
            done = subprocess.run([python, "-c", version], capture_output=True, text=True)
        except OSError:
            continue
        if done.returncode == 0 and tuple(map(int, done.stdout.split())) == sys.version_info[:2]:
            return [python, "-m", "pip"]
    raise ConfigError(f"found no pip for Python {sys.version_info.major}.{sys.version_info.minor}; install one")


def project_files(project: Path) -> dict[str, Path]:
    """Return the files of the project: those that git tracks or would, or all but environments, caches and runs."""
    command = ["git", "-C", str(project), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        places = sorted({os.fsdecode(place) for place in done.stdout.split(b"\0") if place})
    except (OSError, subprocess.SubprocessError):
        places = [place for place in files_of(project) if not LEFT_OUT.search(place)]
    return {place: project / place for place in places if (project / place).is_file()}


def _fact(path: Path) -> dict[str, Any]:
    fact: dict[str, Any] = {"sha256": hash_file(path), "bytes": path.stat().st_size}
    return fact | ({"executable": True} if os.access(path, os.X_OK) else {})


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
