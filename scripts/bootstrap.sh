#!/bin/sh
# Installs all that this repository needs, inside its own folder, and does nothing when that is already done.
#
#     sh scripts/bootstrap.sh            .tools/ and .venv/
#     sh scripts/bootstrap.sh tools      .tools/ alone
#
# .tools/  a virtual environment that holds Poetry and nothing of ours
# .venv/   every package and solution of this repository, with the versions of poetry.lock
#
# Needs a Python from 3.11 to 3.13. The first run takes about 4 minutes and 5.5 GB of disk (PyTorch with its CUDA libraries, which
# runs on a CPU as well). Later runs compare one hash and take well under a second.
set -eu

POETRY_VERSION=2.5.1
PLUGIN_VERSION=0.6.5

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"

say() { printf 'bootstrap: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

is_suitable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }

find_python() {
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if is_suitable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python from 3.11 to 3.13 found (tried python3, python3.13, python3.12, python3.11, python).
  Install one, for instance with: apt-get install python3 python3-venv
  or put the one that you have first in PATH, and run this again."
}

# --- Poetry, in .tools/ -----------------------------------------------------------------------------------------------------------
tools_wanted="poetry $POETRY_VERSION, plugin $PLUGIN_VERSION"
if [ "$(cat .tools/versions 2>/dev/null)" != "$tools_wanted" ] || ! is_suitable .tools/bin/python; then
    python=$(find_python)
    say "installing Poetry $POETRY_VERSION into .tools/ with $python (up to a minute)"
    rm -rf .tools
    if "$python" -m venv .tools >/dev/null 2>&1; then
        pip="$root/.tools/bin/python -m pip"
    elif "$python" -m pip --version >/dev/null 2>&1 && "$python" -m venv --clear --without-pip .tools >/dev/null 2>&1; then
        # Debian splits `ensurepip` off into python3-venv; a pip that stands outside can fill the environment as well.
        pip="$python -m pip --python $root/.tools/bin/python"
        $pip install --quiet pip || fail "pip could not install pip into .tools/; its message is above."
    else
        rm -rf .tools
        fail "$python cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"
    fi
    $pip install --quiet --disable-pip-version-check \
        "poetry==$POETRY_VERSION" "poetry-plugin-pypi-mirror==$PLUGIN_VERSION" ||
        fail "pip could not install Poetry; its message is above. Check the network and run this again."
    printf '%s\n' "$tools_wanted" >.tools/versions
fi
[ "${1:-}" != tools ] || exit 0

# --- The packages, in .venv/ ------------------------------------------------------------------------------------------------------
# The folder's own path counts, because the editable installs in .venv/ point to it.
wanted=$(.tools/bin/python -c '
import hashlib, pathlib, sys
root = pathlib.Path.cwd()
digest = hashlib.sha256(f"{root} {sys.version_info[:2]}".encode())
for path in [root / "poetry.lock", root / "pyproject.toml", *sorted(root.glob("packages/*/pyproject.toml")),
             *sorted(root.glob("solutions/*/pyproject.toml"))]:
    digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
print(digest.hexdigest())
')
if [ -f .tools/installed ] && [ "$(cat .tools/installed)" = "$wanted" ] && is_suitable .venv/bin/python; then
    exit 0
fi

if [ -e .venv ]; then
    say "bringing .venv/ in line with poetry.lock"
    is_suitable .venv/bin/python || rm -rf .venv # left by a Python that has gone: nothing in it can run
else
    say "installing every package of poetry.lock into .venv/ (about 4 minutes, 5.5 GB of disk)"
fi
start=$(date +%s)
rm -f .tools/installed
sync() { sh scripts/poetry.sh --no-interaction sync --all-groups >&2; }
# One second try: of the several gigabytes a single broken download is the likeliest failure, and what has arrived is kept.
sync || { say "trying once more"; sync; } || fail "poetry sync failed; its message is above. Running this again goes on where it stopped."

# Bytecode once and for all: without it every process compiles PyTorch again, ten seconds each, and where
# PYTHONDONTWRITEBYTECODE is set no process would keep it. Files that packages carry for other Pythons do not compile.
say "compiling bytecode (a minute)"
.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true

# LightGBM's wheel takes the OpenMP library from the system, and a bare machine may have none.
.venv/bin/python -c 'import lightgbm' >/dev/null 2>&1 || {
    .venv/bin/python -c 'import lightgbm' 2>&1 | tail -n 1 >&2
    fail "LightGBM cannot be loaded (message above). If it names libgomp: apt-get install libgomp1; if libomp: brew install libomp"
}

printf '%s\n' "$wanted" >.tools/installed
say "done in $(($(date +%s) - start)) s"
