"""Write what finished runs measured into a solution's RESULTS.csv, and paired comparisons into its COMPARISONS.csv.

    python scripts/record.py runs/x --solution ai4code --data ai4code-mini --folds "5 folds"
    python scripts/record.py --compare runs/x runs/y --solution ai4code --data ai4code-mini --folds "5 folds"

Everything but the names of the data and the folds comes from the run folder: preset, metric, score, interval, n,
seconds, parameters and grouping from `summary.json`; revision, threads and the flags that differ from the preset from
`manifest.json`. A run from files that no commit holds is refused. A row replaces the older one of the same preset,
data, folds, metric and flags.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit_core.atomic import atomic_path
from kit_core.errors import DataError, KitError
from kit_core.run import RunFolder

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = (
    "preset", "data", "folds", "group_by", "metric", "score", "low", "high", "n", "seconds", "threads", "parameters",
    "revision", "remarks",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "preset_a", "preset_b", "data", "folds", "group_by", "metric", "difference", "low", "high", "n", "revision",
    "remarks",
)  # fmt: skip
FACTS = ("metric", "score", "interval", "n", "seconds", "parameters", "group_by")  # of a summary
SELECTED = "selected on the scored fold"
# Flags that say where things are and not what is computed; with a value each, `--resume` apart.
PLACES = {"--data", "--run", "--weights", "--cache", "--encoder.cache", "--encoder.folder", "--fabric.devices"}


def result_row(run: RunFolder, data: str, folds: str, remarks: str, metric: str = "") -> dict[str, str]:
    """Return the row of a finished run.

    `metric` names another score of the summary than the main one, `genre.macro_f1`, whose interval stands beside it as
    `genre.macro_f1_interval`.

    Raises:
        DataError: its summary lacks one of the facts, as that of a run without held-out data does, or it ran from files
            that no commit holds.
    """
    summary: dict[str, Any] = dict(run.summary)
    if metric:
        *sections, name = metric.split(".")
        part = summary
        for section in sections:
            part = part.get(section) or {}
        n = part.get("n", summary.get("n"))
        summary |= {"metric": name, "score": part.get(name), "interval": part.get(f"{name}_interval"), "n": n}
    missing = [key for key in FACTS if summary.get(key) is None]
    if missing:
        raise DataError(f"{run.path}: found no {', '.join(missing)} in summary.json; expected a run that was scored")
    low, high = summary["interval"]
    notes = [flags_of(run), SELECTED if summary.get("selected_on_scored_fold") else "", remarks]
    return {
        "preset": run.preset,
        "data": data,
        "folds": folds,
        "group_by": str(summary["group_by"]),
        "metric": str(summary["metric"]),
        "score": f"{summary['score']:.4f}",
        "low": f"{low:.4f}",
        "high": f"{high:.4f}",
        "n": str(summary["n"]),
        "seconds": f"{summary['seconds']:.1f}",
        "threads": str(threads_of(run)),
        "parameters": str(summary["parameters"]),
        "revision": revision_of(run),
        "remarks": "; ".join(note for note in notes if note),
    }


def comparison_row(program: str, a: Path, b: Path, data: str, folds: str, remarks: str) -> dict[str, str]:
    """Return the row of `program compare A B`, whose output it is.

    Raises:
        DataError: `compare` failed, or one of the runs ran from files that no commit holds.
    """
    runs = [RunFolder.open(path) for path in (a, b)]
    command = [str(Path(sys.executable).with_name(program)), "compare", str(a), str(b), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    found = json.loads(done.stdout)
    low, high = found["interval"]
    revisions = list(dict.fromkeys(revision_of(run) for run in runs))
    presets = [" ".join(filter(None, (run.preset, flags_of(run)))) for run in runs]
    return {
        "preset_a": presets[0],
        "preset_b": presets[1],
        "data": data,
        "folds": folds,
        "group_by": found["group_by"],
        "metric": found["metric"],
        "difference": f"{found['difference']:.4f}",
        "low": f"{low:.4f}",
        "high": f"{high:.4f}",
        "n": str(found["n"]),
        "revision": " ".join(revisions),
        "remarks": remarks,
    }


def revision_of(run: RunFolder) -> str:
    """Return the commit that a run computed with, seven digits.

    Raises:
        DataError: no commit is recorded, or files differed from it.
    """
    git = run.manifest["git"]
    if not git or git["dirty"]:
        found = "files that differed from the commit" if git else "no commit"
        raise DataError(
            f"{run.path}: found {found} in manifest.json; expected a run from a clean checkout\n"
            "  do: commit, then train again"
        )
    return str(git["revision"][:7])


def threads_of(run: RunFolder) -> int:
    """Return how many threads the numeric libraries of a run used: the limit that was set, or its cores."""
    threads = run.manifest.get("threads", {})
    return int(threads.get("OMP_NUM_THREADS") or threads.get("torch") or threads.get("cores") or run.manifest["cpus"])


def flags_of(run: RunFolder) -> str:
    """Return the flags of a training that change what the preset computes; of paths only the last part."""
    words = [str(word) for word in run.manifest["argv"]]
    flags: list[str] = []
    if run.preset not in words:
        return ""
    for word in words[words.index(run.preset) + 1 :]:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            kept = name.replace("_", "-") not in PLACES and name not in ("--resume", "--no-resume")
            if kept:
                flags.append(f"{name}={Path(value).name}" if equals and "/" in value else word)
        elif kept:
            flags.append(Path(word).name if "/" in word else word)
    return " ".join(flags)


def record(path: Path, row: dict[str, str], columns: Sequence[str] = COLUMNS) -> None:
    """Put the row in place of the one of the same measurement, or at the end."""
    rows: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{column: old.get(column, "") for column in columns} for old in csv.DictReader(file)]
    same = [i for i, old in enumerate(rows) if _identity(old) == _identity(row)]
    position = same[0] if same else len(rows)
    rows[position : position + 1] = [row]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _identity(row: dict[str, str]) -> tuple[str, ...]:
    """Return what makes two rows the same measurement."""
    flags = row["remarks"].split(";")[0] if row["remarks"].startswith("--") else ""
    keys = ("preset", "preset_a", "preset_b", "data", "folds", "group_by", "metric")
    return (*(row.get(key, "") for key in keys), flags)


def main() -> int:
    """Record the runs that the command line names."""
    parser = argparse.ArgumentParser(description="Write what finished runs measured into RESULTS.csv.")
    parser.add_argument("run", type=Path, nargs="+", help="finished run folders; two with --compare")
    parser.add_argument("--compare", action="store_true", help="write `compare A B` of two runs into COMPARISONS.csv")
    parser.add_argument("--solution", required=True, help="the folder below solutions/")
    parser.add_argument("--data", required=True, help="the name of the data: ai4code-mini")
    parser.add_argument("--folds", required=True, help="how it was split: '5 folds'")
    parser.add_argument("--metric", default="", help="another score of the summary than the main one: genre.macro_f1")
    parser.add_argument("--remarks", default="", help="load of the machine, folds left out")
    options = parser.parse_args()
    folder = ROOT / "solutions" / options.solution
    if not folder.is_dir():
        parser.error(f"there is no {folder}")
    if options.compare and len(options.run) != 2:
        parser.error("--compare takes two runs")
    names = (options.data, options.folds, options.remarks)
    try:
        if options.compare:
            a, b = options.run
            row = comparison_row(options.solution.replace("_", "-"), a, b, *names)
            record(folder / "COMPARISONS.csv", row, COMPARISON_COLUMNS)
            print(",".join(row.values()))
        for run in () if options.compare else options.run:
            row = result_row(RunFolder.open(run), *names, options.metric)
            record(folder / "RESULTS.csv", row)
            print(",".join(row.values()))
    except KitError as error:
        print(f"record: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
