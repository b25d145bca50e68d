"""All finished runs of a folder in one report, as HTML and PDF, with the comparisons that the lab asks for."""

import base64
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from kit_core.atomic import atomic_path, write_text
from kit_core.console import say
from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from ntua_lab.compare import Scored, read_scored
from ntua_lab.config import AXES
from ntua_lab.evaluation import Metric, paired_difference
from ntua_lab.plots import draw_confusion, draw_scatter

LEAST_SHARED = 20  # clips; on fewer a paired interval says nothing


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run with its summary and, where it has held-out clips, its out-of-fold answers.

    answers  clip id -> row of `oof.parquet`.
    scored   metric -> the answers that it judges.
    """

    name: str
    preset: str
    summary: dict[str, Any]
    answers: dict[str, dict[str, Any]]
    scored: dict[Metric, Scored]


def write_report(runs: Path, out: Path, reference: str | None = None) -> str:
    """Write `report.html` and `report.pdf` into `out` from every finished run below `runs`.

    `reference` is the name of the run that others are compared with; by default, for each metric, the best run whose
    members are no networks.

    Raises:
        DataError: no finished runs.
        ConfigError: there is no run of the name `reference`.
    """
    found = read_runs(runs)
    if not found:
        raise DataError(f"{runs}: found no finished run, expected folders that `ntua-lab train --run` wrote below it")
    if reference is not None and reference not in {run.name for run in found}:
        raise ConfigError(f"--reference: found no run {reference!r} among {', '.join(run.name for run in found)}")
    tables = [score_table(found), *(difference_table(found, metric, reference) for metric in METRICS)]
    figures = [figure for run in found for figure in draw_run(run)]
    folds = {run.summary["folds"] for run in found if run.answers}
    remark = "Runs were scored on unlike folds; compare only what the paired table holds." if len(folds) > 1 else ""
    template = jinja2.Template(
        (resources.files("ntua_lab") / "report.html.j2").read_text("utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    pictures = [(title, base64.b64encode(_png(figure)).decode()) for title, figure in figures]
    filled = [table for table in tables if table["rows"]]
    write_text(out / "report.html", template.render(runs=found, tables=filled, pictures=pictures, remark=remark))
    with atomic_path(out / "report.pdf") as temporary, temporary.open("wb") as file, PdfPages(file) as pages:
        for table in filled:
            pages.savefig(_page(table))
        for _, figure in figures:
            pages.savefig(figure)
    return f"{out}: report.html and report.pdf of {len(found)} runs, {len(figures)} figures"


def read_runs(folder: Path) -> list[Run]:
    """Return the finished runs below a folder, sorted by name; unfinished and foreign ones are told and left out."""
    found = []
    for config in sorted(folder.rglob("config.json")):
        path = config.parent
        try:
            run = RunFolder.open(path)
        except DataError as error:
            say(f"left out: {error}")
            continue
        if not {"task", "units", "folds"} <= run.summary.keys():
            say(f"left out: {path}: a run of another program")
            continue
        answers: dict[str, dict[str, Any]] = {}
        if (path / "oof.parquet").exists():
            answers = {row["id"]: row for row in pq.read_table(path / "oof.parquet").to_pylist()}
        scored = {}
        try:
            scored = {metric: one for metric in METRICS if (one := read_scored(run, metric)) is not None}
        except DataError as error:
            say(f"without paired differences: {error}")
        found.append(Run(path.relative_to(folder).as_posix(), run.preset, run.summary, answers, scored))
    return found


def score_table(runs: list[Run]) -> dict[str, Any]:
    """Scores of every run with their intervals."""
    rows = []
    for run in runs:
        summary = run.summary
        genre, emotion = summary.get("genre"), summary.get("emotion")
        axes = dict(zip(emotion["axes"], emotion["spearman_of_axes"], strict=True)) if emotion else {}
        rows.append(
            [
                run.name, run.preset, summary["task"], str(summary["n"]), summary["folds"],
                _with_interval(genre, "accuracy"), _with_interval(genre, "macro_f1"),
                _with_interval(emotion, "spearman"),
                *(f"{axes[axis]:.3f}" if axis in axes else "" for axis in AXES), str(summary["seconds"]),
            ]
        )  # fmt: skip
    headers = ["run", "preset", "task", "clips", "folds", "accuracy", "macro F1", "mean Spearman", *AXES, "seconds"]
    return {"title": "Scores on held-out clips, with 95 % intervals", "headers": headers, "rows": rows}


METRICS: tuple[Metric, ...] = ("accuracy", "spearman")


def difference_table(runs: list[Run], metric: Metric, reference: str | None) -> dict[str, Any]:
    """Paired differences of every run from the reference on the clips that both were scored on."""
    headers = ["run", "reference", "clips", "difference", "95 % interval"]
    table: dict[str, Any] = {"title": f"Paired differences in {metric}", "headers": headers, "rows": []}
    able = [run for run in runs if metric in run.scored and run.scored[metric].axes in ((), AXES)]
    plain = [run for run in able if not any(unit.startswith("network") for unit in run.summary["units"])]
    base = next((run for run in able if run.name == reference), None)
    if base is None and reference is None:
        base = max(plain, key=lambda run: run.summary["score"], default=None)
    if base is None:
        return table
    for run in able:
        first, second = run.scored[metric].of(base.scored[metric].ids), base.scored[metric].of(run.scored[metric].ids)
        if run is base or first.classes != second.classes or len(first.ids) < LEAST_SHARED:
            continue
        difference, low, high = paired_difference(
            metric, first.true, first.answer, second.answer, len(first.classes), second.groups
        )
        table["rows"].append(
            [run.name, base.name, str(len(first.ids)), f"{difference:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        )
    return table


def draw_run(run: Run) -> list[tuple[str, Figure]]:
    """Confusion matrix, and true against predicted values of each axis, of one run."""
    figures = []
    if "genre" in run.summary:
        genre = run.summary["genre"]
        figure = Figure(figsize=(6, 5.5))
        title = f"{run.name}: accuracy {genre['accuracy']:.3f}, macro F1 {genre['macro_f1']:.3f}"
        draw_confusion(figure.subplots(), np.array(genre["confusion"]), genre["classes"], title)
        figure.tight_layout()
        figures.append((f"{run.name}: confusion matrix", figure))
    if "emotion" in run.summary:
        emotion = run.summary["emotion"]
        rows = [
            row for row in run.answers.values() if all(np.isfinite(row[f"true_{axis}"]) for axis in emotion["axes"])
        ]
        figure = Figure(figsize=(3.7 * len(emotion["axes"]), 3.8))
        grid = np.atleast_1d(figure.subplots(1, len(emotion["axes"])))
        for axes, axis, score in zip(grid, emotion["axes"], emotion["spearman_of_axes"], strict=True):
            true, said = (np.array([row[f"{kind}{axis}"] for row in rows]) for kind in ("true_", ""))
            draw_scatter(axes, true, said, f"{run.name}: {axis}, Spearman {score:.3f}")
        figure.tight_layout()
        figures.append((f"{run.name}: true and predicted values", figure))
    return figures


def _with_interval(report: dict[str, Any] | None, name: str) -> str:
    if not report:
        return ""
    low, high = report[f"{name}_interval"]
    return f"{report[name]:.3f} ({low:.3f} to {high:.3f})"


def _page(table: dict[str, Any]) -> Figure:
    """A page of a table."""
    figure = Figure(figsize=(14, 1.2 + 0.3 * len(table["rows"])))
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(table["title"])
    drawn = axes.table(cellText=table["rows"], colLabels=table["headers"], loc="center", cellLoc="left")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    drawn.auto_set_column_width(list(range(len(table["headers"]))))
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
