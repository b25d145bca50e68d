"""Install a bundle on a machine without network; Python's standard library is all that this file needs.

    tar xf bundle.tar install.py && python3 install.py bundle.tar --out DIR

`bundle create` puts this file into every bundle as install.py; `bundle install` is the same.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

FORMAT_VERSION = 1
MANIFEST, INSTALLED, ENVIRONMENT = "bundle.json", "installed.json", "environment.sh"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
BUNDLE_ERROR = 3  # exit code of bad data in this project
PIECE = 1 << 20  # bytes


class BundleError(Exception):
    """The bundle cannot be installed; the message says why and what to do."""


def this_machine() -> dict[str, str]:
    """Return what wheels depend on: implementation and version of Python, system, processor."""
    return {
        "implementation": sys.implementation.name,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "system": platform.system(),
        "machine": platform.machine(),
    }


def install(archive: Path, out: Path, log=print) -> dict:  # type: ignore[no-untyped-def,type-arg]  # runs on any Python 3, alone
    """Check a bundle, unpack it to `out`, and make out/.venv from nothing but its wheels; returns its manifest.

    The same bundle may be installed again, over an installation that was broken off.

    Raises:
        BundleError: it is for another Python or platform, a byte of it is changed, or `out` holds something else.
    """
    out = out.absolute()
    manifest = read_manifest(archive)
    wrong = [
        f"{name}: it is for {manifest['machine'].get(name)}, this is {here}"
        for name, here in this_machine().items()
        if manifest["machine"].get(name) != here
    ]
    if wrong:
        raise BundleError(
            f"{archive}: made for another machine\n  "
            + "\n  ".join(wrong)
            + f"\n  do: start it with that Python (this is {sys.executable}), or create a bundle on a machine like this"
        )
    mark = out / INSTALLED
    before = json.loads(mark.read_text()) if mark.exists() else None
    if out.exists() and any(out.iterdir()) and (before or {}).get("sha256") != manifest["sha256"]:
        raise BundleError(f"{out}: is not empty and holds no part of this bundle; name another --out, or remove it")
    if before is None:
        _unpack(archive, manifest, out)
        log(f"{out}: {len(manifest['files'])} files unpacked, every hash compared")
    elif before["complete"]:
        log(f"{out}: this bundle is installed already")
        return manifest
    _make_environment(manifest, out)
    _mark(out, manifest, complete=True)
    log(f"installed; next: . {shlex.quote(str(out / ENVIRONMENT))}")
    return manifest


def read_manifest(archive: Path) -> dict:  # type: ignore[type-arg]  # runs alone
    """Return the manifest, which is the first file of a bundle.

    Raises:
        BundleError: there is none, or it does not fit its own hash.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            first = tar.next()
            file = tar.extractfile(first) if first is not None and first.name == MANIFEST else None
            if file is None:
                raise BundleError(f"{archive}: no bundle: its first file is not {MANIFEST}; create it again")
            manifest = json.loads(file.read())
    except (OSError, tarfile.TarError, ValueError) as error:
        raise BundleError(f"{archive}: cannot be read as a bundle: {error}; copy it again") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise BundleError(f"{archive}: a bundle of another format; expected {FORMAT_VERSION}; create it again")
    if manifest.get("sha256") != digest_of(manifest):
        raise BundleError(f"{archive}: {MANIFEST} is changed: it does not fit its own hash; copy the bundle again")
    return manifest


def digest_of(manifest) -> str:  # type: ignore[no-untyped-def]  # runs alone
    """Return the SHA-256 of a manifest without its own hash."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _unpack(archive: Path, manifest, out: Path) -> None:  # type: ignore[no-untyped-def]  # runs alone
    """Unpack into a neighbour of `out`, comparing every hash, and rename it: `out` is whole or not there."""
    expected = manifest["files"]
    needed = sum(fact["bytes"] for fact in expected.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise BundleError(f"{out}: the disk is full: {needed:,} bytes needed, {free:,} free; name another --out")
    neighbour = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    found, bad = set(), []
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                if info.name == MANIFEST:
                    continue
                parts = PurePosixPath(info.name).parts
                if not info.isfile() or info.name.startswith("/") or ".." in parts or info.name not in expected:
                    raise BundleError(
                        f"{archive}: found {info.name!r}, which the manifest does not name; copy it again"
                    )
                file, digest, target = tar.extractfile(info), hashlib.sha256(), neighbour.joinpath(*parts)
                assert file is not None
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as copy:
                    while piece := file.read(PIECE):
                        digest.update(piece)
                        copy.write(piece)
                found.add(info.name)
                if digest.hexdigest() != expected[info.name]["sha256"]:
                    bad.append(f"{info.name}: another content")
                elif expected[info.name].get("executable"):
                    target.chmod(0o755)
        bad += [f"{name}: missing" for name in sorted(set(expected) - found)]
        if bad:
            shown = "\n  ".join(bad[:5]) + (f"\n  ... and {len(bad) - 5} more" if len(bad) > 5 else "")
            raise BundleError(
                f"{archive}: {len(bad)} files are not as they were\n  {shown}\n  do: copy the bundle again"
            )
        _mark(neighbour, manifest, complete=False)
        neighbour.chmod(0o755)
        if out.exists():
            out.rmdir()  # empty, as the caller looked
        neighbour.replace(out)
    except (tarfile.TarError, OSError) as error:
        raise BundleError(f"{archive}: cannot be unpacked to {out}: {error}") from error
    finally:
        shutil.rmtree(neighbour, ignore_errors=True)


def _mark(out: Path, manifest, *, complete: bool) -> None:  # type: ignore[no-untyped-def]  # runs alone
    """Note which bundle a folder holds, whole or not at all: what was broken off goes on from this note."""
    fresh = out / f".{INSTALLED}.tmp"
    fresh.write_text(json.dumps({"sha256": manifest["sha256"], "complete": complete}))
    fresh.replace(out / INSTALLED)


def _make_environment(manifest, out: Path) -> None:  # type: ignore[no-untyped-def]  # runs alone
    """Make the virtual environment from the wheels, with pip itself from its wheel: Debian's Python may have none."""
    wheels, project = out / "wheels", out / "project"
    python = out / ".venv" / "bin" / "python"
    _run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(out / ".venv")])
    pips = sorted(wheels.glob("pip-*.whl"))
    if not pips:
        raise BundleError(f"{wheels}: holds no wheel of pip; create the bundle again")
    pip = [str(python), str(pips[-1] / "pip"), "--isolated", "--disable-pip-version-check", "install", "--quiet"]
    offline = [*pip, "--no-index", "--find-links", str(wheels), "--no-deps"]
    _run([*offline, "--requirement", str(out / "requirements.txt")])
    tools = [wheel for name in ("pip", "poetry_core") for wheel in map(str, sorted(wheels.glob(f"{name}-*.whl")))]
    _run([*offline, *tools])
    editable = [word for member in manifest["members"] for word in ("--editable", str(project / member))]
    if editable:
        _run([*offline, "--no-build-isolation", *editable])
    lines = [f"export {name}=1" for name in OFFLINE]
    lines += [f"export PATH={shlex.quote(str(out / '.venv' / 'bin'))}:$PATH"]
    lines += [f"export BUNDLE={shlex.quote(str(out))}  # models/ and data/ lie there"]
    (out / ENVIRONMENT).write_text("\n".join(lines) + "\n")


def _run(command) -> None:  # type: ignore[no-untyped-def]  # runs alone
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise BundleError(f"{shlex.join(command[:4])} ... failed\n  {last}\n  do: try again; what was unpacked stays")


def main() -> int:
    """Run as a program of its own."""
    parser = argparse.ArgumentParser(description="Install a bundle on a machine without network.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args()
    try:
        install(arguments.archive, arguments.out)
    except BundleError as error:
        print(f"install: {error}", file=sys.stderr)
        return BUNDLE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
