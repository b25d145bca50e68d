"""What the verb `presets` prints: one line for each preset, or the whole header of one."""

import csv
import re
from pathlib import Path

from kit_core.config import did_you_mean, preset_header, preset_names
from kit_core.console import render_table
from kit_core.errors import ConfigError

LONGEST_SUMMARY = 72  # characters


def describe_presets(folder: Path, name: str | None = None) -> str:
    """Return a table of the presets of a folder, or the header of the preset `name` with its measured scores.

    Scores and seconds are those of RESULTS.csv beside the folder, the first row of a preset; a preset without a row has
    not been measured.

    Raises:
        ConfigError: there is no preset `name`.
    """
    names = preset_names(folder)
    measured = _measured(folder.parent / "RESULTS.csv")
    if name is None:
        rows = []
        for one in names:
            row = measured.get(one, [{}])[0]
            score = f"{row['metric']} {float(row['score']):.3f}" if row else "not measured"
            seconds = _duration(float(row["seconds"])) if row else ""
            rows.append([one, _summary(preset_header(folder, one)), score, row.get("data", ""), seconds])
        return render_table(["preset", "what it is", "score", "on", "time"], rows)
    if name not in names:
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, names)}\n  presets: {', '.join(names)}")
    lines = [name, *(f"  {line}" for line in preset_header(folder, name).splitlines())]
    for row in measured.get(name, []):
        remarks = f"; {row['remarks']}" if row["remarks"] else ""
        score = f"{row['metric']} {float(row['score']):.3f} ({float(row['low']):.3f} to {float(row['high']):.3f})"
        lines.append(f"  measured: {score} on {row['data']}, folds: {row['folds']}{remarks}")
    return "\n".join(lines)


def _measured(path: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of RESULTS.csv by preset; none without the file, as in an installed package."""
    found: dict[str, list[dict[str, str]]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["preset"], []).append(row)
    return found


def _summary(header: str) -> str:
    """The first sentence, cut to one line."""
    text = re.split(r"(?<!et al)[.;] ", " ".join(header.split()))[0].rstrip(".")
    return text if len(text) <= LONGEST_SUMMARY else text[: LONGEST_SUMMARY - 1].rsplit(" ", 1)[0] + "…"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
