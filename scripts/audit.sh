#!/bin/sh
# What the installed packages bring along: their licences, and their known vulnerabilities.
#
#     sh scripts/audit.sh                       both: seconds, and a minute where pip-audit has to be fetched
#     sh scripts/audit.sh licences              the licences alone, from metadata, without a network
#     sh scripts/audit.sh vulnerabilities       pip-audit, in a virtual environment that is removed again
#
# A table of advisories needs a network: where pip-audit cannot be installed, or the advisories cannot be asked for, that part is
# skipped with a message and does not fail.
set -u

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root" || exit 1
python=$root/.venv/bin/python
[ -x "$python" ] || { echo "audit: .venv/ is absent; run: make install" >&2; exit 2; }

licences() { "$python" scripts/licences.py; }

vulnerabilities() {
    copy=$(mktemp -d) || return 1
    trap 'rm -rf "$copy"' EXIT
    trap 'exit 130' INT TERM
    "$python" -m venv "$copy/venv" || return 1
    if ! "$copy/venv/bin/pip" --quiet --disable-pip-version-check install 'pip-audit>=2.9' >"$copy/log" 2>&1; then
        echo "audit: skipped: pip-audit cannot be installed here: $(tail -n 1 "$copy/log")"
        return 0
    fi
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # Our own members are not on any index; --skip-editable leaves them out.
    "$copy/venv/bin/pip-audit" --path "$site" --skip-editable --progress-spinner off --format json --output "$copy/found.json" \
        --timeout 30 >"$copy/log" 2>&1
    status=$?
    if [ ! -s "$copy/found.json" ]; then # it ends with 1 both for findings and for errors, but writes only findings
        echo "audit: skipped: the advisories cannot be asked for here: $(tail -n 1 "$copy/log")"
        return 0
    fi
    "$python" - "$copy/found.json" <<'END'
import json, sys

packages = json.load(open(sys.argv[1], encoding="utf-8"))["dependencies"]
asked = [package for package in packages if "vulns" in package]
if not asked:
    print(f"audit: skipped: the index here knows no advisories ({packages[0].get('skip_reason', 'no reason given')})")
    sys.exit()
for package in asked:
    for one in package["vulns"]:
        fixed = ", ".join(one["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {one['id']}, mended in {fixed}")
found = sum(len(package["vulns"]) for package in asked)
print(f"vulnerabilities: {found} in {len(asked)} packages; {len(packages) - len(asked)} could not be asked for")
END
    return $status
}

failed=""
for step in ${*:-licences vulnerabilities}; do
    case $step in
    licences | vulnerabilities) ;;
    *) echo "audit: no step is called '$step'; there are: licences vulnerabilities" >&2; exit 2 ;;
    esac
    echo "== audit: $step"
    $step || failed="$failed $step"
done
if [ -n "$failed" ]; then
    echo "audit: failed:$failed" >&2
    exit 1
fi
echo "audit: all passed"
