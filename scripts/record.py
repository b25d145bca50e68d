"""Write what a finished run measured into its solution's RESULTS.csv; an older row of the same measurement goes.

    python scripts/record.py runs/x --solution ai4code --data ai4code-mini --folds "5 by ancestor"

Everything but the two names of the data comes from the run folder: preset, metric, score, interval, n, seconds and
parameters from `summary.json`, the revision from `manifest.json`, where a `+` says that files differed from it.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from kit_core.atomic import atomic_path
from kit_core.errors import DataError, KitError
from kit_core.run import RunFolder

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = (
    "preset", "data", "folds", "metric", "score", "low", "high", "n", "seconds", "parameters", "revision", "remarks",
)  # fmt: skip
FACTS = ("metric", "score", "interval", "n", "seconds", "parameters")  # of a summary


def row_of(run: RunFolder, data: str, folds: str, remarks: str) -> dict[str, str]:
    """Return the row of a finished run.

    Raises:
        DataError: its summary lacks one of the facts, as that of a run without held-out data does.
    """
    summary: dict[str, Any] = run.summary
    missing = [key for key in FACTS if summary.get(key) is None]
    if missing:
        raise DataError(f"{run.path}: found no {', '.join(missing)} in summary.json; expected a run that was scored")
    low, high = summary["interval"]
    git = run.manifest["git"]
    return {
        "preset": run.preset,
        "data": data,
        "folds": folds,
        "metric": str(summary["metric"]),
        "score": f"{summary['score']:.4f}",
        "low": f"{low:.4f}",
        "high": f"{high:.4f}",
        "n": str(summary["n"]),
        "seconds": f"{summary['seconds']:.1f}",
        "parameters": str(summary["parameters"]),
        "revision": git["revision"][:7] + ("+" if git["dirty"] else "") if git else "",
        "remarks": remarks,
    }


def record(path: Path, row: dict[str, str]) -> None:
    """Put the row in place of the one of the same preset, data, folds and metric, or at the end."""
    rows: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{column: old.get(column, "") for column in COLUMNS} for old in csv.DictReader(file)]
    keys = ("preset", "data", "folds", "metric")
    same = [i for i, old in enumerate(rows) if all(old[key] == row[key] for key in keys)]
    place = same[0] if same else len(rows)
    rows[place : place + 1] = [row]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """Record the runs that the command line names."""
    parser = argparse.ArgumentParser(description="Write what a finished run measured into RESULTS.csv.")
    parser.add_argument("run", type=Path, nargs="+", help="finished run folders")
    parser.add_argument("--solution", required=True, help="the folder below solutions/")
    parser.add_argument("--data", required=True, help="the data, as a person would say it: ai4code-mini")
    parser.add_argument("--folds", required=True, help="how it was split: '5 by ancestor'")
    parser.add_argument("--remarks", default="", help="flags that differ from the preset, the machine")
    options = parser.parse_args()
    path = ROOT / "solutions" / options.solution / "RESULTS.csv"
    if not path.parent.is_dir():
        parser.error(f"there is no {path.parent}")
    for folder in options.run:
        try:
            row = row_of(RunFolder.open(folder), options.data, options.folds, options.remarks)
        except KitError as error:
            print(f"record: {error}", file=sys.stderr)
            return error.exit_code
        record(path, row)
        print(",".join(row.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
