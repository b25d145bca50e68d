"""The pages of the report and where they lie: an index, a page for each solution, a page for each run."""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kit_core.atomic import atomic_dir
from kit_core.config import preset_header, preset_names
from kit_core.errors import ConfigError
from kit_report.curves import Chart, charts_of, draw
from kit_report.references import COLUMNS, KINDS, ROLE_TEXTS, ROLES, About, Kind, Role, read_references
from kit_report.results import Measurement, read_results
from kit_report.runs import Run, find_runs
from kit_report.tables import Cell, Table, cell, tables_of

REFERENCES = Path("shared", "report", "references.toml")
MARK = "made-by-kit-report"  # a folder without it is somebody else's and never replaced
MOST_METRIC_LINES = 200  # on a run's page
COUNTS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


@dataclass(frozen=True)
class Written:
    """What was written, and what had to be left out, in words."""

    index: Path
    solutions: int
    measurements: int
    runs: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One measurement as a page shows it; the bar's places are percent of the width of its table's scale."""

    what: Measurement
    role: Role
    low: float
    width: float
    middle: float


@dataclass(frozen=True)
class Group:
    """Measurements that may be compared: one kind of data, one data set, one split, one metric; the best first."""

    kind: Kind
    data: str
    folds: str
    metric: str
    rows: tuple[Row, ...]
    scale: tuple[float, float]


@dataclass(frozen=True)
class RunPage:
    """A run and the name of its page; `data` names what it was trained on, as far as that is known."""

    run: Run
    slug: str
    kind: Kind
    data: str


@dataclass(frozen=True)
class Solution:
    """All that the pages say of one solution."""

    about: About
    measurements: tuple[Measurement, ...]
    presets: tuple[tuple[str, str], ...]  # name, what it is
    groups: tuple[Group, ...]
    headline: Group | None
    runs: list[RunPage] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """Its folder in the report."""
        return self.about.name


def write_report(root: Path, out: Path, runs: Sequence[Path] = ()) -> Written:
    """Write the report of the repository `root` into the folder `out`, in place of an earlier report.

    Args:
        runs: folders to look for run folders in; by default `runs/` of the repository, where there is one.

    Damaged tables and runs are left out and told, on the front page too.

    Raises:
        ConfigError: `out` holds something else than a report, or cannot be written.
        DataError: the repository has no file of references, or it is damaged.
    """
    warnings: list[str] = []
    _refuse_foreign(out)
    solutions = [_solution(root, about, warnings) for about in read_references(root / REFERENCES)]
    places = list(runs) or [path for path in [root / "runs"] if path.is_dir()]
    others = _share_out(find_runs(places, warnings), places, solutions)
    fresh = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with atomic_dir(fresh) as folder:
            _write_pages(folder, solutions, others, warnings)
        _replace(fresh, out.resolve())
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    pages = len(others) + sum(len(solution.runs) for solution in solutions)
    measured = sum(len(solution.measurements) for solution in solutions)
    return Written(out / "index.html", len(solutions), measured, pages, tuple(warnings))


def groups_of(about: About, measurements: Iterable[Measurement]) -> list[Group]:
    """Return the measurements in groups that may be compared, ordered by kind of data; the best score first in each."""
    found: dict[tuple[Kind, str, str, str], list[Measurement]] = {}
    for one in measurements:
        found.setdefault((about.kind(one.data), one.data, one.folds, one.metric), []).append(one)
    groups = []
    for (kind, data, folds, metric), members in found.items():
        rows, scale = _rows(about, sorted(members, key=lambda one: -one.score))
        groups.append(Group(kind, data, folds, metric, rows, scale))
    return sorted(groups, key=lambda group: list(KINDS).index(group.kind))  # stable: the file's order inside a kind


def _rows(about: About, members: Sequence[Measurement]) -> tuple[tuple[Row, ...], tuple[float, float]]:
    """Return the measurements as rows on a common scale, and that scale: all of their intervals and a little more."""
    low, high = min(one.low for one in members), max(one.high for one in members)
    margin = 0.03 * (high - low) or 0.03
    low, high = low - margin, high + margin
    percent = 100 / (high - low)
    return tuple(
        Row(
            one,
            about.role(one.preset),
            percent * (one.low - low),
            percent * (one.high - one.low),
            percent * (one.score - low),
        )
        for one in members
    ), (low, high)


def kind_of_run(run: Run, about: About | None, measurements: Iterable[Measurement]) -> tuple[Kind, str]:
    """Return what kind of data a run was trained on, and its name; `unknown` where nothing tells.

    It is told by a row of the results with the same preset, score and n; else by the path that `--data` named; else by
    the place of the run, since `runs/demo` holds samples.
    """
    n = run.summary.get("n")
    for one in measurements:
        if (
            one.preset == run.preset
            and one.n == n
            and run.score is not None
            and f"{run.score:.4f}" == f"{one.score:.4f}"
        ):
            return (about.kind(one.data) if about else "unknown"), one.data
    parts = [part.removesuffix(".zip") for part in Path(run.data_argument).parts]
    for name in about.stand_ins if about else ():
        if name in parts:
            return "stand-in", name
    if "sample" in parts or "demo" in parts or "demo" in run.path.parts:
        return "sample", "generated sample"
    return "unknown", ""


def _solution(root: Path, about: About, warnings: list[str]) -> Solution:
    folder = root / "solutions" / about.name.replace("-", "_")
    measurements = read_results(folder / "RESULTS.csv", warnings)
    unknown = sorted({one.data for one in measurements if about.kind(one.data) == "unknown"})
    warnings += [f"{folder / 'RESULTS.csv'}: data {name!r}: neither official, stand-in nor sample" for name in unknown]
    groups = groups_of(about, measurements)
    wanted = (about.headline.data, about.headline.folds, about.headline.metric)
    headline = next((one for one in groups if (one.data, one.folds, one.metric) == wanted), None)
    presets = folder / "presets"
    texts = tuple((name, _first_words(presets, name, about.name)) for name in preset_names(presets))
    return Solution(about, tuple(measurements), texts, tuple(groups), headline)


def _first_words(presets: Path, name: str, program: str) -> str:
    """Return what a preset says that it is: its header up to the command."""
    lines: list[str] = []
    for line in preset_header(presets, name).splitlines():
        if f"{program} train" in line or not line.strip():
            break
        lines.append(line.strip())
    return " ".join(lines)


def _share_out(runs: Sequence[Run], places: Sequence[Path], solutions: Sequence[Solution]) -> list[RunPage]:
    """Give each run to the solution whose program wrote it; return those that belong to none."""
    others: list[RunPage] = []
    taken: set[str] = set()
    for run in runs:
        owner = _owner(run, solutions)
        about = owner.about if owner else None
        kind, data = kind_of_run(run, about, owner.measurements if owner else ())
        slug = base = _slug(run.path, places)
        number = 2
        while slug in taken:
            slug, number = f"{base}-{number}", number + 1
        taken.add(slug)
        (owner.runs if owner else others).append(RunPage(run, slug, kind, data))
    return others


def _owner(run: Run, solutions: Sequence[Solution]) -> Solution | None:
    """Return the solution whose program wrote a run; else, as for runs of a notebook, the only one with its preset."""
    for one in solutions:
        if one.about.name == run.program:
            return one
    having = [one for one in solutions if run.preset in dict(one.presets)]
    return having[0] if len(having) == 1 else None


def _slug(path: Path, places: Sequence[Path]) -> str:
    inside = next((path.relative_to(place) for place in places if path.is_relative_to(place)), path)
    name = re.sub(r"[^a-z0-9]+", "-", inside.as_posix().lower()).strip("-")
    return name[-120:] or "run"


# ---------------------------------------------------------------------------------------------------------------------
# Pages


def _write_pages(
    folder: Path, solutions: Sequence[Solution], others: Sequence[RunPage], warnings: Sequence[str]
) -> None:
    environment = Environment(
        loader=PackageLoader("kit_report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"kinds": KINDS, "roles": ROLES, "role_texts": ROLE_TEXTS, "cell": cell}
    count = COUNTS[len(solutions)] if len(solutions) < len(COUNTS) else str(len(solutions))
    name = f"{count} competition{'' if len(solutions) == 1 else 's'}"
    environment.globals |= {"solutions": solutions, "others": others, "site_name": name}
    (folder / MARK).write_text("A folder with this file is replaced by the next report.\n", encoding="utf-8")
    (folder / "assets").mkdir()
    for asset in resources.files("kit_report").joinpath("assets").iterdir():
        (folder / "assets" / asset.name).write_bytes(asset.read_bytes())

    def render(page: str, template: str, **values: Any) -> None:
        up = "../" * page.count("/")
        text = environment.get_template(template).render(up=up, page=page, **values)
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    render("index.html", "index.html", cards=[_card(one) for one in solutions], warnings=warnings)
    for solution in solutions:
        render(f"{solution.folder}/index.html", "solution.html", **_solution_page(solution))
        for run in solution.runs:
            _write_run(folder, solution.folder, run, solution.about, render)
    if others:
        render("other/index.html", "other.html", runs=others)
        for run in others:
            _write_run(folder, "other", run, None, render)


def _card(solution: Solution) -> dict[str, Any]:
    """Return what a card shows: the best row of each role in the headline's group, and the best official figures."""
    best: dict[Role, Measurement] = {}
    for row in solution.headline.rows if solution.headline else ():
        best.setdefault(row.role, row.what)  # the best first
    chosen = [best[role] for role in ROLES if role in best]
    metric = solution.about.headline.metric
    figures = []
    for column, label in COLUMNS.items():
        known = [one for one in solution.about.references if one.metric == metric and column in one.scores]
        if known and column != "own":
            top = max(known, key=lambda one: one.scores[column])
            figures.append((f"{top.scores[column]:.4g}", label, top.who))
    return {
        "solution": solution,
        "rows": _rows(solution.about, chosen)[0] if chosen else (),
        "metric": solution.about.metric(metric),
        "figures": figures,
        "runs": len(solution.runs),
    }


def _solution_page(solution: Solution) -> dict[str, Any]:
    about = solution.about
    references = []
    for metric in dict.fromkeys(one.metric for one in about.references):
        rows = [one for one in about.references if one.metric == metric]
        columns = {name: label for name, label in COLUMNS.items() if any(name in one.scores for one in rows)}
        references.append((about.metric(metric), columns, rows))
    measured = {one.preset for one in solution.measurements}
    by_kind: dict[Kind, list[Group]] = {}
    for group in solution.groups:
        by_kind.setdefault(group.kind, []).append(group)
    runs: dict[Kind, list[RunPage]] = {}
    for page in solution.runs:
        runs.setdefault(page.kind, []).append(page)
    return {
        "about": about,
        "references": references,
        "groups": by_kind,
        "presets": [(name, text, about.role(name), name in measured) for name, text in solution.presets],
        "runs": {kind: runs[kind] for kind in KINDS if kind in runs},
    }


def _write_run(folder: Path, place: str, page: RunPage, about: About | None, render: Any) -> None:
    run = page.run
    tables, confusions = tables_of(run.summary)
    charts = charts_of(run.metrics)
    plots = []
    for number, path in enumerate(run.plots, start=1):
        name = f"{page.slug}-{number}{path.suffix.lower()}"
        (folder / place / "plots").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / place / "plots" / name)
        plots.append((f"../plots/{name}", path.stem.replace("_", " ")))
    metric = str(run.summary.get("metric", "score"))
    render(
        f"{place}/runs/{page.slug}.html",
        "run.html",
        about=about,
        run_page=page,
        run=run,
        metric=about.metric(metric) if about else metric,
        tables=tables,
        confusions=confusions,
        charts=[_chart(chart, f"{page.slug}-c{number}") for number, chart in enumerate(charts)],
        plots=plots,
        config=_leaves(run.config),
        manifest=_leaves(run.manifest),
        metrics=_lines(run.metrics),
    )


def _chart(chart: Chart, prefix: str) -> dict[str, Any]:
    return {"chart": chart, "svg": draw(chart, prefix)}


def _leaves(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a nested mapping as rows: dotted key, value."""
    rows: list[tuple[str, str]] = []

    def walk(item: Any, key: str) -> None:
        if isinstance(item, Mapping) and item:
            for name, inner in item.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        elif isinstance(item, list) and any(isinstance(inner, Mapping) for inner in item):
            for number, inner in enumerate(item):
                walk(inner, f"{key}[{number}]")
        elif isinstance(item, list):
            rows.append((key, " ".join(str(inner) for inner in item) or "none"))
        else:
            rows.append((key, "none" if item is None or item == {} else str(item)))

    walk(value, "")
    return rows


def _lines(metrics: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the first lines of the metrics as a table."""
    if not metrics:
        return None
    shown = metrics[:MOST_METRIC_LINES]
    headers = list(dict.fromkeys(str(key) for line in shown for key in line))
    empty = Cell("")
    rows = [tuple(cell(_flat(line[key])) if key in line else empty for key in headers) for line in shown]
    return Table("Metrics", tuple(headers), tuple(rows), len(metrics) - len(shown))


def _flat(value: Any) -> Any:
    return ", ".join(f"{key} {cell(item).text}" for key, item in value.items()) if isinstance(value, Mapping) else value


# ---------------------------------------------------------------------------------------------------------------------
# Places


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file, expected a folder for the report")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise ConfigError(f"{out}: holds something else than a report; name another --out")


def _replace(fresh: Path, out: Path) -> None:
    """Put the new report in the place of the old one, which is removed."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    fresh.replace(out)
    shutil.rmtree(old, ignore_errors=True)
