"""Tables and curves out of summaries and metrics of any shape."""

import xml.etree.ElementTree as ElementTree

import pytest

from kit_report.curves import MOST_POINTS, MOST_SERIES, charts_of, draw
from kit_report.tables import Cell, cell, tables_of


def test_lists_beside_names_become_a_row_for_each_name() -> None:
    names = ["a", "b", "c", "d", "e"]
    summary = {
        "score": 0.5,
        "genre": {"classes": names, "recall": [0.0, 0.25, 0.5, 0.75, 1.0], "support": [1, 2, 3, 4, 5]},
    }
    tables, confusions = tables_of(summary)
    assert not confusions
    assert [(table.title, table.headers) for table in tables] == [
        ("Summary", ("", "value")),
        ("genre · one by one", ("classes", "recall", "support")),
    ]
    assert [tuple(one.text for one in row) for row in tables[1].rows] == [
        ("a", "0", "1"), ("b", "0.25", "2"), ("c", "0.5", "3"), ("d", "0.75", "4"), ("e", "1", "5"),
    ]  # fmt: skip


def test_buckets_become_rows_and_gaps_stay_empty() -> None:
    tables, _ = tables_of({"by_size": {"2-10": {"n": 3, "tau": 0.5}, ">100": {"n": 0, "tau": None, "more": 1}}})
    (table,) = tables
    assert table.title == "by size"
    assert table.headers == ("", "n", "tau", "more")
    assert [[one.text for one in row] for row in table.rows] == [["2-10", "3", "0.5", "–"], [">100", "0", "–", "1"]]


def test_lists_without_names_are_numbered_and_deeper_tables_have_their_path() -> None:
    tables, _ = tables_of({"report": {"f1_per_label": [0.1] * 6, "deep": {"deeper": {"x": 1, "y": {"z": 2}}}}})
    assert [table.title for table in tables] == [
        "report · one by one",
        "report · deep · deeper",
        "report · deep · deeper · y",
    ]
    assert tables[0].headers == ("number", "f1 per label")
    assert [row[0].text for row in tables[0].rows] == list("012345")


def test_a_confusion_matrix_is_known_by_its_name_and_its_shape() -> None:
    _, (found,) = tables_of({"classes": ["a", "b"], "confusion": [[3, 1], [0, 0]], "other": [[1, 2], [3, 4]]})
    assert found.names == ("0", "1"), "two names are a fact; a list of them starts at five"
    assert found.shares == [[0.75, 0.25], [0.0, 0.0]]
    names = ["a", "b", "c", "d", "e"]
    _, (named,) = tables_of({"classes": names, "confusion": [[1] * 5] * 5})
    assert named.names == tuple(names)
    for wrong in ([[1, 2]], [[1, 2], [3]], [["a", "b"], ["c", "d"]], [[1, -1], [1, 1]]):
        assert not tables_of({"confusion": wrong})[1]


def test_long_tables_are_cut_and_say_so() -> None:
    (table,), _ = tables_of({"per_tag": [0.5] * 1000})
    assert (len(table.rows), table.left_out) == (400, 600)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Cell("–")),
        (True, Cell("yes")),
        (1234567, Cell("1,234,567", 1234567.0)),
        (0.5, Cell("0.5", 0.5)),
        (0.123456, Cell("0.1235", 0.123456)),
        (0.0, Cell("0", 0.0)),
        (1e-7, Cell("1e-07", 1e-7)),
        (float("nan"), Cell("nan")),
        ([0.25, "x", None], Cell("0.25, x, –")),
        ("0.5", Cell("0.5")),
        (10**400, None),
    ],
)
def test_cells(value: object, expected: Cell | None) -> None:
    if expected is None:
        assert cell(value).number is None, "a whole number beyond any float is shown, and not sorted by"
        return
    assert cell(value) == expected


def test_curves_are_told_apart_by_what_they_are_of() -> None:
    lines = [
        {"member": m, "fold": f, "epoch": e, "loss": e + f, "seconds": e}
        for m in "ab"
        for f in (0, 1)
        for e in range(3)
    ]
    lines += [{"member": "a", "fold": 0, "epoch": 2, "loss": 9.0}]  # as after a resume: the later one counts
    lines += [{"fold": 0, "ndcg": {"score": 1}}, {"epoch": 7, "loss": None}, {"epoch": 1, "flag": True}, {"loss": 3}]
    (chart,) = charts_of(lines)
    assert (chart.quantity, chart.x_name, chart.left_out) == ("loss", "epoch", 0)
    assert [series.name for series in chart.series] == ["a, fold 0", "a, fold 1", "b, fold 0", "b, fold 1"]
    assert chart.series[0].x.tolist() == [0, 1, 2]
    assert chart.series[0].y.tolist() == [0, 1, 9]


def test_steps_go_before_epochs_and_what_never_changes_is_not_drawn() -> None:
    lines = [{"step": 10 * e, "epoch": e, "loss": 1.0 / (e + 1), "tracks": 716} for e in range(3)]
    (chart,) = charts_of(lines)
    assert (chart.quantity, chart.x_name, chart.series[0].name) == ("loss", "step", "all")
    assert not charts_of([{"epoch": 1, "loss": 1.0}])


def test_many_series_and_many_points_are_thinned() -> None:
    lines = [{"unit": f"u{u}", "step": s, "loss": s} for u in range(MOST_SERIES + 3) for s in range(3)]
    (chart,) = charts_of(lines)
    assert (len(chart.series), chart.left_out) == (MOST_SERIES, 3)
    (chart,) = charts_of([{"step": s, "loss": s} for s in range(10_000)])
    x = chart.series[0].x
    assert len(x) == MOST_POINTS
    assert (x[0], x[-1]) == (0, 9999)


def test_a_drawing_is_one_svg_in_the_colours_of_the_page() -> None:
    chart = charts_of([{"part": "$\\frac{", "step": s, "loss$": s**2, "x": s} for s in range(5)])[0]
    svg = draw(chart, "p1")
    ElementTree.fromstring(svg)  # well formed
    assert "var(--series-1)" in svg
    assert "#0a0b" not in svg
    assert "frac" not in svg, "no text of the run folder"
    assert 'id="p1-' in svg
    assert svg == draw(chart, "p1"), "the same bytes each time"
    assert "2026" not in svg
