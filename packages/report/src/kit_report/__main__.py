"""Write the report of a repository.

python -m kit_report                          report/ from solutions/*/RESULTS.csv and every run below runs/
python -m kit_report runs/x other/runs        the runs below these folders instead
"""

import argparse
import sys
from pathlib import Path

from kit_core.console import say
from kit_core.errors import KitError
from kit_report.site import write_report


def main() -> int:
    """Run the program and return its exit code, as `kit_core.cli` has them."""
    parser = argparse.ArgumentParser(prog="kit_report", description="Write report/, a static site of all results.")
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs (default: runs/ of the repository)")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: here)")
    parser.add_argument("--out", type=Path, help="the folder to write (default: report/ of the repository)")
    options = parser.parse_args()
    try:
        written = write_report(options.root, options.out or options.root / "report", options.runs)
    except KitError as error:
        print(f"kit_report: {error}", file=sys.stderr)
        return error.exit_code
    for warning in written.warnings:
        say(f"warning: {warning}")
    print(f"{written.index}: {written.solutions} solutions, {written.measurements} measurements, {written.runs} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
