#!/bin/sh
# Runs the Poetry of .tools/ against the package index that pip itself is set up for.
#
#     sh scripts/poetry.sh lock
#
# Why not plain Poetry: its own client asks for a JSON page of every version, which many package mirrors do not serve
# ("Package X (v) not found"). The plugin poetry-plugin-pypi-mirror makes it read the simple index that pip reads, wherever that
# is, and leaves no trace of it in poetry.lock. The address is asked of pip at run time, so that none stands in this repository;
# POETRY_PYPI_MIRROR_URL, where set, wins.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$root/.tools/bin/python

# What `pip install` would use after reading its files and variables: the index on the first line, the certificate file on the second.
pip_settings() {
    "$python" -c '
from pip._internal.commands import create_command
from pip._internal.models.index import PyPI
options, _ = create_command("install").parse_args([])
print(options.index_url or PyPI.simple_url)
print(options.cert or "")
'
}

if [ -z "${POETRY_PYPI_MIRROR_URL:-}" ]; then
    settings=$(pip_settings)
    POETRY_PYPI_MIRROR_URL=$(printf '%s\n' "$settings" | sed -n 1p)
    export POETRY_PYPI_MIRROR_URL
    certificates=$(printf '%s\n' "$settings" | sed -n 2p)
    if [ -n "$certificates" ] && [ -z "${REQUESTS_CA_BUNDLE:-}" ]; then
        export REQUESTS_CA_BUNDLE="$certificates"
    fi
fi

# An activated environment of another project, or of conda, would otherwise be the one that Poetry fills.
unset VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV
export POETRY_VIRTUALENVS_CREATE=true
export POETRY_VIRTUALENVS_USE_POETRY_PYTHON=true
export POETRY_REQUESTS_MAX_RETRIES="${POETRY_REQUESTS_MAX_RETRIES:-3}"

exec "$root/.tools/bin/poetry" "$@"
