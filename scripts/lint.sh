#!/bin/sh
# Every check that needs no running of our code, in the order of CI. All of them run even when one fails.
#
#     sh scripts/lint.sh                 all: about a minute and a half, most of it the lock
#     sh scripts/lint.sh ruff mypy       some
set -u

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root" || exit 1
bin=$root/.venv/bin

format() { "$bin/ruff" format --check .; }
ruff() { "$bin/ruff" check .; }
imports() { "$bin/lint-imports" --no-logo; }
deptry() {
    # Each member alone: it must declare all that it imports, and import all that it declares.
    status=0
    for member in packages/* solutions/*; do
        output=$(cd "$member" && "$bin/deptry" --no-ansi src 2>&1) || { status=1; printf '%s: %s\n' "$member" "$output"; }
    done
    return $status
}
lock() {
    # `poetry check --lock` does not look into the members, so the lock is made again, in a copy, and compared.
    copy=$(mktemp -d) || return 1
    tar -cf - poetry.lock poetry.toml pyproject.toml README.md packages/*/pyproject.toml packages/*/README.md \
        solutions/*/pyproject.toml solutions/*/README.md | tar -xf - -C "$copy"
    if sh scripts/poetry.sh --no-interaction --directory "$copy" lock >"$copy/output" 2>&1; then
        diff -u poetry.lock "$copy/poetry.lock" >"$copy/difference"
        status=$?
        head -n 40 "$copy/difference"
        [ $status -eq 0 ] || echo "poetry.lock does not follow from the pyproject.toml files; run: make lock"
    else
        cat "$copy/output"
        status=1
    fi
    rm -rf "$copy"
    return $status
}
mypy() { "$bin/mypy"; }

failed=""
for step in ${*:-format ruff imports deptry lock mypy}; do
    case $step in
    format | ruff | imports | deptry | lock | mypy) ;;
    *) echo "lint: no step is called '$step'; there are: format ruff imports deptry lock mypy" >&2; exit 2 ;;
    esac
    echo "== lint: $step"
    start=$(date +%s)
    $step || failed="$failed $step"
    echo "-- lint: $step took $(($(date +%s) - start)) s"
done
if [ -n "$failed" ]; then
    echo "lint: failed:$failed" >&2
    exit 1
fi
echo "lint: all passed"
