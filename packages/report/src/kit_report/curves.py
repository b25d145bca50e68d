"""Training curves from the lines of `metrics.jsonl`, drawn as SVG whose colours are those of the page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

X_KEYS = ("step", "epoch", "iteration", "round")
NOT_DRAWN = {*X_KEYS, "seconds", "fold", "stage"}
MOST_CHARTS = 8
MOST_SERIES = 8  # of one chart: as many as there are colours
MOST_POINTS = 400  # of one series; more cannot be seen
# Colours that stand for variables of the page, so that a chart follows dark and light.
SERIES_COLORS = tuple(f"#0a0b{number:02x}" for number in range(MOST_SERIES))
INK, LINES = "#0a0bf0", "#0a0bf1"


@dataclass(frozen=True)
class Series:
    """One line of a chart: float64[n] each, x rising."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True)
class Chart:
    """One quantity over the course of training; `left_out` counts series beyond those drawn."""

    quantity: str
    x_name: str
    series: tuple[Series, ...]
    left_out: int


def charts_of(lines: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return a chart for each quantity that was logged at two or more places, at most eight.

    Seconds are left out, and so is what never changes.

    Lines are told apart by what they are of: their texts (`member`, `part`, `unit`) and their fold and stage. Values
    that are null, as floats that were not finite become, are gaps.
    """
    points: dict[str, dict[str, dict[float, float]]] = {}
    x_names: dict[str, str] = {}
    for line in lines:
        x_name = next((key for key in X_KEYS if _number(line.get(key)) is not None), None)
        if x_name is None:
            continue
        x = _number(line[x_name])
        name = ", ".join(_label(key, value) for key, value in line.items() if _is_label(key, value)) or "all"
        for key, value in line.items():
            y = _number(value)
            if key in NOT_DRAWN or x is None or y is None:
                continue
            x_names.setdefault(key, x_name)
            points.setdefault(key, {}).setdefault(name, {})[x] = y  # after a resume the later line counts
    charts = []
    for quantity, by_name in points.items():
        series = [_series(name, found) for name, found in by_name.items() if len(found) > 1]
        if any(np.ptp(one.y) > 0 for one in series):  # what never changes, such as a count of tracks, is no curve
            drawn = tuple(series[:MOST_SERIES])
            charts.append(Chart(quantity, x_names[quantity], drawn, len(series) - len(drawn)))
    return charts[:MOST_CHARTS]


def draw(chart: Chart, prefix: str) -> str:
    """Return a chart as an SVG element to stand in a page; `prefix` keeps its ids apart from those of other charts.

    Its text is axis numbers alone: names that come from run folders are for the page to show, which escapes them.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for series, color in zip(chart.series, SERIES_COLORS, strict=False):  # there are as many colours or more
            axes.plot(series.x, series.y, color=color, linewidth=1.6, solid_capstyle="round")
        axes.grid(visible=True, axis="y", color=LINES, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(LINES)
        axes.tick_params(colors=INK, length=0)
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=6)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?)px[^;\"]*", r"font-size: \1px", svg)  # in the page's own typeface
    for number, color in enumerate(SERIES_COLORS, start=1):
        svg = svg.replace(color, f"var(--series-{number})")
    return svg.replace(INK, "var(--soft)").replace(LINES, "var(--line)").replace("<svg ", '<svg aria-hidden="true" ', 1)


def _series(name: str, found: Mapping[float, float]) -> Series:
    x = np.array(sorted(found), dtype=np.float64)
    y = np.array([found[place] for place in x.tolist()], dtype=np.float64)
    if len(x) > MOST_POINTS:
        keep = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(np.int64))
        x, y = x[keep], y[keep]
    return Series(name, x, y)


def _is_label(key: str, value: object) -> bool:
    return key not in X_KEYS and (isinstance(value, str) or (key in ("fold", "stage") and isinstance(value, int)))


def _label(key: str, value: object) -> str:
    return str(value) if isinstance(value, str) else f"{key} {value}"


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
