"""The report of a made-up repository: what stands on which page, what is kept apart, and what damage does."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kit_core.errors import ConfigError, DataError
from kit_report.__main__ import main
from kit_report.references import About, Headline
from kit_report.results import COLUMNS, Measurement
from kit_report.site import groups_of, write_report

HOSTILE = "<script>alert(1)</script>&\"'"
REFERENCES = """
[[solution]]
name = "one"
title = "The first"
task = "Guess <b>everything</b>."
competition = "Somewhere, 2020"
metrics = { tau = "Kendall tau" }
stand_ins = ["mini"]
headline = { data = "mini", folds = "5 by group", metric = "tau" }
[solution.roles]
floor = ["low"]
[[solution.reference]]
who = "1st place"
metric = "tau"
public = 0.91234
private = 0.90123
own = 0.98765
source = "their README"

[[solution]]
name = "two"
title = "The second"
task = "Nothing is measured here."
competition = "Elsewhere"
headline = { data = "mini", folds = "all", metric = "f1" }
"""


class Page(HTMLParser):
    """What a test asks of a page: its tables as texts, its links, its ids, its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name == "id" and value:
                self.ids.append(value)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell).strip())
            self._cell = None


def row(preset: str, data: str = "mini", score: float = 0.5, **changes: Any) -> str:
    values = {
        "preset": preset, "data": data, "folds": "5 by group", "group_by": "group", "metric": "tau", "score": score,
        "low": score - 0.05, "high": score + 0.05, "n": 12, "seconds": 1.5, "threads": 1, "parameters": 1000,
        "revision": "abc1234", "remarks": "",
    } | changes  # fmt: skip
    return ",".join(str(values[column]) for column in COLUMNS)


def make_run(path: Path, preset: str = "low", **changes: Any) -> Path:
    path.mkdir(parents=True)
    summary = {"metric": "tau", "score": 0.25, "interval": [0.2, 0.3], "n": 12, "seconds": 3.0} | changes.get(
        "summary", {}
    )
    argv = changes.get("argv", ["bin/one", "train", preset, "--data", "data/mini.zip", "--run", "x"])
    (path / "config.json").write_text(json.dumps({"preset": preset, "config": {"data": {"fold": 1}, "name": HOSTILE}}))
    (path / "manifest.json").write_text(json.dumps({"argv": argv, "started": "2026-01-02T03:04:05+00:00", "data": {}}))
    lines = changes.get("metrics", [{"member": HOSTILE, "epoch": i, "loss": 1 / (i + 1)} for i in range(4)])
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "DONE").write_text("now\n")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "shared" / "report").mkdir(parents=True)
    (tmp_path / "shared" / "report" / "references.toml").write_text(REFERENCES)
    presets = tmp_path / "solutions" / "one" / "presets"
    presets.mkdir(parents=True)
    (presets / "low.toml").write_text("# Learns nothing,\n# at all.\n# one train low --data DATA --run RUN\n")
    rows = [
        row("low", score=0.2),
        row("high", score=0.6),
        row("high", "official", 0.7),
        row("low", "sample of ours", 0.9),
    ]
    (tmp_path / "solutions" / "one" / "RESULTS.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    (tmp_path / "solutions" / "two").mkdir()
    (tmp_path / "solutions" / "two" / "RESULTS.csv").write_text(",".join(COLUMNS) + "\n")
    return tmp_path


def pages_of(out: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(out.rglob("*.html")):
        yield path, path.read_text(encoding="utf-8")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_kinds_of_data_never_share_a_column(root: Path, tmp_path: Path) -> None:
    make_run(root / "runs" / "stand-in")
    make_run(root / "runs" / "demo" / "x", summary={"score": 0.99})  # by its place a sample; its --data is a stand-in
    make_run(root / "runs" / "sampled", argv=["one", "train", "low", "--data=data/sample"])
    make_run(root / "runs" / "somewhere", argv=["one", "train", "low", "--data", "packed"])
    out = tmp_path / "out"
    write_report(root, out)
    page = read(out / "one" / "index.html")
    scores = {"0.2000": "stand-in", "0.6000": "stand-in", "0.7000": "official", "0.9000": "sample"}
    headings = {"Official data": "official", "Real stand-in data": "stand-in", "Generated samples": "sample"}
    for section in page.split("<section>")[1:]:
        title = re.search(r"<h2>(.*?)</h2>", section)
        assert title
        if title[1] not in headings:
            continue
        for table in Page(section).tables:
            for cells in table:
                assert all(scores.get(text, headings[title[1]]) == headings[title[1]] for text in cells)
    published = next(table for table in Page(page).tables if "1st place" in (cells[0] for cells in table))
    header = [text for text in published[0] if text]
    assert header[1:4] == ["public", "private", "own hold-out"], "what is published has a column for each kind of split"
    assert published[1][1:4] == ["0.9123", "0.9012", "0.9877"]
    kinds_of_runs = {
        cells[0]: title
        for title, part in zip(
            *[iter(re.split(r"<h3>(.*?)</h3>", page.split("<h2>Runs</h2>")[1])[1:])] * 2, strict=True
        )
        for table in Page(part).tables[:1]
        for cells in table[1:]
    }
    assert kinds_of_runs == {
        "stand-in": "Real stand-in data",
        "demo-x": "Real stand-in data",
        "sampled": "Generated samples",
        "somewhere": "Data not known",
    }


def test_a_run_is_told_by_its_row_before_anything_else(root: Path, tmp_path: Path) -> None:
    argv = ["one", "train", "high", "--data", "packed"]
    make_run(root / "runs" / "a", "high", argv=argv, summary={"score": 0.70004})
    write_report(root, tmp_path / "out")
    assert "Official data: official" in read(tmp_path / "out" / "one" / "runs" / "a.html")


def test_groups_hold_one_data_set_one_split_and_one_metric() -> None:
    about = About("one", "One", "", "", Headline("mini", "5", "tau"), stand_ins=("mini",))
    kinds = {
        "mini": "stand-in",
        "mini, one part": "stand-in",
        "minimal": "unknown",
        "official": "official",
        "sample": "sample",
    }
    assert {name: about.kind(name) for name in kinds} == kinds

    def made(data: str, folds: str, metric: str, score: float) -> Measurement:
        return Measurement("p", data, folds, "group", metric, score, score, score, 1, 0.0, 1, 0, "", "")

    measured = [
        made("sample", "5", "tau", 1),
        made("mini", "5", "tau", 0.1),
        made("mini", "5", "tau", 0.3),
        made("mini", "2", "tau", 0.2),
        made("mini", "5", "f1", 0.2),
        made("official", "5", "tau", 0),
    ]
    groups = groups_of(about, measured)
    assert [(g.kind, g.folds, g.metric, [r.what.score for r in g.rows]) for g in groups] == [
        ("official", "5", "tau", [0]),
        ("stand-in", "5", "tau", [0.3, 0.1]),
        ("stand-in", "2", "tau", [0.2]),
        ("stand-in", "5", "f1", [0.2]),
        ("sample", "5", "tau", [1]),
    ]
    for group in groups:
        for one in group.rows:
            assert 0 < one.low <= one.middle <= one.low + one.width < 100


def test_a_score_whose_epoch_was_chosen_on_its_fold_is_marked(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_report(root, out)
    page = out / "one" / "index.html"
    assert 'class="selected"' not in read(page)
    results = root / "solutions" / "one" / "RESULTS.csv"
    results.write_text(read(results) + row("low", score=0.5, remarks="--x 1; selected on the scored fold") + "\n")
    write_report(root, out)
    assert read(page).count('class="selected"') == 1
    assert "The epoch was chosen on the fold that the score is of" in read(page)


def test_text_of_strangers_is_escaped_on_every_page(root: Path, tmp_path: Path) -> None:
    results = root / "solutions" / "one" / "RESULTS.csv"
    results.write_text(read(results) + row("low", remarks="<img src=x onerror=y>", folds="<i>") + "\n")
    confusion = {"classes": [HOSTILE, "b"], "confusion": [[1, 2], [3, 4]], HOSTILE: {HOSTILE: 1.0}}
    make_run(root / "runs" / "a", HOSTILE, summary={"metric": HOSTILE, "genre": confusion})
    make_run(root / "runs" / HOSTILE.replace("/", ""), "$\\frac{", argv=[HOSTILE])
    out = tmp_path / "out"
    write_report(root, out)
    assert len(list(pages_of(out))) == 6
    for path, text in pages_of(out):
        assert "<script>alert" not in text, path
        assert "<img src=x" not in text
        assert "<b>everything" not in text
        tags = Page(text).tags
        assert tags.count("script") == 1, "the one of the report itself"
    assert "&lt;script&gt;alert(1)" in read(out / "one" / "runs" / "a.html")


def test_links_resolve_and_nothing_is_fetched_from_elsewhere(root: Path, tmp_path: Path) -> None:
    run = make_run(root / "runs" / "a")
    make_run(run / "members" / "b")
    make_run(root / "runs" / "c", "unheard of", argv=["pytest"])
    (run / "plots").mkdir()
    (run / "plots" / "errors.png").write_bytes(b"\x89PNG\r\n")
    (run / "plots" / "huge.png").write_bytes(bytes(2_000_001))
    (run / "plots" / "page.html").write_text("no picture")
    out = tmp_path / "out"
    written = write_report(root, out)
    assert (written.solutions, written.measurements, written.runs) == (2, 4, 3)
    linked = set()
    for path, text in pages_of(out):
        page = Page(text)
        assert len(page.ids) == len(set(page.ids)), path
        for link in page.links:
            if link.startswith(("#", "data:")):
                continue
            assert not re.match(r"[a-z]+:|//", link), f"{path}: {link}"
            target = (path.parent / link.partition("#")[0]).resolve()
            assert target.is_file(), f"{path}: {link}"
            linked.add(target)
    assert {path.resolve() for path, _ in pages_of(out)} <= linked, "every page can be reached"
    assert [path.name for path in (out / "one" / "plots").iterdir()] == ["a-1.png"]
    assert "http" not in read(out / "assets" / "report.css") + read(out / "assets" / "report.js")


def test_a_broken_run_is_a_warning_with_its_name(root: Path, tmp_path: Path) -> None:
    make_run(root / "runs" / "whole")
    (make_run(root / "runs" / "cut") / "manifest.json").write_text('{"argv": [')
    (make_run(root / "runs" / "listed") / "config.json").write_text("[]")
    (make_run(root / "runs" / "keyless") / "config.json").write_text("{}")
    (make_run(root / "runs" / "bytes") / "summary.json").write_bytes(b"\xff\xfe")
    torn = make_run(root / "runs" / "torn")
    (torn / "metrics.jsonl").write_bytes(
        b'{"epoch": 0, "loss": 1}\n{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "lo\n[1]\n\xff\n'
    )
    (make_run(root / "runs" / "going") / "DONE").unlink()
    odd = {"score": "high", "interval": [2, 1], "n": None, "seconds": {}, "genre": {"confusion": [[1], [2, 3]]}}
    make_run(root / "runs" / "odd", summary=odd, metrics=[{"epoch": "x", "loss": 1}, {"step": 1, "loss": None}, {}])
    (root / "runs" / "packed").mkdir()  # a data set whose files have the same names is no run, and no warning
    (root / "runs" / "packed" / "config.json").write_text("{}")
    (root / "runs" / "packed" / "manifest.json").write_text("{}")
    out = tmp_path / "out"
    warnings = write_report(root, out).warnings
    for name in ("cut", "listed", "keyless", "bytes", "torn"):
        assert any(f"/{name}/" in warning for warning in warnings), name
    assert not any("packed" in warning or "whole" in warning for warning in warnings)
    assert any("3 lines are no JSON" in warning for warning in warnings)
    found = {path.stem for path in (out / "one" / "runs").iterdir()}
    assert found == {"whole", "bytes", "torn", "going", "odd"}
    assert "loss by epoch" in read(out / "one" / "runs" / "torn.html")
    assert "not finished" in read(out / "one" / "runs" / "going.html")
    index = read(out / "index.html")
    assert "things were left out" in index
    assert "3 lines are no JSON" in index


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("preset,data\nx,y\n", "found the columns preset, data"),
        (",".join(COLUMNS) + "\n" + row("a", score=0.4, low=0.9) + "\n" + row("b") + "\n", "row 2 left out"),
        (",".join(COLUMNS) + "\nshort\n" + row("b") + "\n", "row 2 left out"),
        (",".join(COLUMNS) + "\n" + row("a") + ",more\n" + row("b") + "\n", "row 2 left out"),
        (",".join(COLUMNS) + "\n" + row("a", n="many") + "\n" + row("b") + "\n", "row 2 left out"),
        (",".join(COLUMNS) + "\n" + row("b", "mystery") + "\n", "data 'mystery'"),
        ("\0", "RESULTS.csv"),
    ],
)
def test_a_bad_table_is_a_warning_and_good_rows_stay(root: Path, tmp_path: Path, content: str, words: str) -> None:
    (root / "solutions" / "one" / "RESULTS.csv").write_text(content)
    written = write_report(root, tmp_path / "out")
    assert any(words in warning for warning in written.warnings)
    assert written.measurements == content.count("b,m")
    (root / "solutions" / "one" / "RESULTS.csv").unlink()
    assert any("RESULTS.csv" in warning for warning in write_report(root, tmp_path / "out").warnings)


def test_a_report_is_replaced_whole_and_nothing_else_is_touched(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_run(root / "runs" / "a")
    write_report(root, out)
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_report(root, out)
    assert first == {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (root / "runs" / "a").rename(root / "runs" / "b")
    write_report(root, out)
    assert [path.name for path in (out / "one" / "runs").iterdir()] == ["b.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs", "shared", "solutions"]
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "text.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="something else than a report"):
        write_report(root, foreign)
    with pytest.raises(ConfigError, match="is a file"):
        write_report(root, foreign / "text.txt")
    assert read(foreign / "text.txt") == "years of work"


def test_references_are_read_strictly(root: Path, tmp_path: Path) -> None:
    path = root / "shared" / "report" / "references.toml"
    for old, new, error, words in (
        ('title = "The first"', 'titel = "The first"', ConfigError, "titel"),
        ("public = 0.91234", 'public = "high"', ConfigError, "public"),
        ("public = 0.91234\nprivate = 0.90123\nown = 0.98765", "", ConfigError, "1st place: found no score"),
        ('task = "Guess', "task = Guess", DataError, "not a TOML file"),
    ):
        path.write_text(REFERENCES.replace(old, new))
        with pytest.raises(error, match=words):
            write_report(root, tmp_path / "out")
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no \\[\\[solution\\]\\]"):
        write_report(root, tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match="absent"):
        write_report(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_program_says_what_it_wrote(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(root / "elsewhere" / "a")
    monkeypatch.setattr("sys.argv", ["kit_report", "--root", str(root), str(root / "elsewhere"), str(root / "none")])
    assert main() == 0
    said = capsys.readouterr()
    assert said.out.endswith("report/index.html: 2 solutions, 4 measurements, 1 runs\n")
    assert "warning: " in said.err
    monkeypatch.setattr("sys.argv", ["kit_report", "--root", str(root / "none")])
    assert main() == 3
    assert "references.toml: absent" in capsys.readouterr().err
