"""Every score in a README or a preset's header is a row of a table that a command wrote."""

import csv
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

FIGURE = re.compile(r"(?<![\w.])0?\.\d{3,}(?![\w.]*\d)")
VARIANT = re.compile(r"--(?!data\.(clips|group|n-folds|fold)\b)")  # a flag that is not about the folds
CODE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
RESULT_FIGURES, COMPARISON_FIGURES = ("score", "low", "high"), ("difference", "low", "high")


def rows_of(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measured(folder: Path) -> set[float]:
    """Return every score, difference and end of an interval that a solution has a row for."""
    tables = (
        (rows_of(folder / "RESULTS.csv"), RESULT_FIGURES),
        (rows_of(folder / "COMPARISONS.csv"), COMPARISON_FIGURES),
    )
    return {abs(float(row[key])) for rows, keys in tables for row in rows for key in keys}


def published(root: Path) -> set[float]:
    """Return every score of others on the official data that the report names."""
    references = tomllib.loads((root / "shared" / "report" / "references.toml").read_text(encoding="utf-8"))
    values = [value for solution in references["solution"] for one in solution["reference"] for value in one.values()]
    told = {float(figure) for value in values if isinstance(value, str) for figure in FIGURE.findall(value)}
    return told | {value for value in values if isinstance(value, float)}


def without_row(text: str, known: Iterable[float]) -> list[str]:
    """Return the figures of a text, three decimals or more, that are no known figure rounded to as many decimals."""
    known = list(known)
    found = []
    for figure in FIGURE.findall(CODE.sub("", text)):
        half = 0.5001 * 10.0 ** -len(figure.partition(".")[2])
        if not any(abs(float(figure) - value) <= half for value in known):
            found.append(figure)
    return found


def test_figures_are_found_and_rounded() -> None:
    text = "has 0.7143 (.686 to .742), rate 1e-3, version 0.123.4, 0.25, -0.054 and\n```\n0.999\n```\n"
    assert without_row(text, []) == ["0.7143", ".686", ".742", "0.054"]
    assert without_row(text, [0.71432, 0.6855, 0.7418, 0.0544]) == []
    assert without_row(text, [0.7144, 0.6864, 0.7426, 0.0535]) == ["0.7143", ".742"]


def test_figures_of_a_solution_have_rows(solution: Any, repo_root: Path) -> None:
    """Of a preset's header the lines that name a stand-in: others quote what the source of the recipe printed."""
    known = measured(solution.folder) | published(repo_root)
    stand_ins = {row["data"].split()[0] for row in rows_of(solution.folder / "RESULTS.csv")}
    missing = {"README.md": without_row((solution.folder / "README.md").read_text(encoding="utf-8"), known)}
    for preset in solution.presets:
        text = (solution.folder / "presets" / f"{preset}.toml").read_text(encoding="utf-8")
        header = [line for line in text.splitlines() if line.startswith("#")]
        missing[preset] = without_row("\n".join(s for s in header if any(name in s for name in stand_ins)), known)
    assert not {name: figures for name, figures in missing.items() if figures}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_figures_of_the_root_have_rows(name: str, repo_root: Path) -> None:
    known = published(repo_root).union(*(measured(folder) for folder in (repo_root / "solutions").iterdir()))
    assert not without_row((repo_root / name).read_text(encoding="utf-8"), known)


def test_the_table_of_the_root_shows_rows_as_they_are(repo_root: Path) -> None:
    text = (repo_root / "README.md").read_text(encoding="utf-8")
    table = text.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert lines
    for line in lines:
        solution, preset, _, data, score, interval = (cell.strip(" `") for cell in line.strip("|").split("|"))
        rows = rows_of(repo_root / "solutions" / solution / "RESULTS.csv")
        shown = [
            (row["score"], f"{row['low']} to {row['high']}")
            for row in rows
            if row["preset"] == preset and row["data"] == data.partition(",")[0] and not VARIANT.match(row["remarks"])
        ]
        assert (score, interval) in shown, line


def test_every_row_was_measured_from_a_commit(solution: Any) -> None:
    for name in ("RESULTS.csv", "COMPARISONS.csv"):
        for row in rows_of(solution.folder / name):
            assert re.fullmatch(r"[0-9a-f]{7}( [0-9a-f]{7})?", row["revision"]), f"{name}: {row}"
            assert row["group_by"], f"{name}: {row}"
            assert float(row["low"]) <= float(row["high"]), f"{name}: {row}"


def test_what_a_comparison_names_is_a_preset(solution: Any) -> None:
    for row in rows_of(solution.folder / "COMPARISONS.csv"):
        assert {row["preset_a"].split()[0], row["preset_b"].split()[0]} <= set(solution.presets), row
