import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_core import console
from kit_core.console import progress, render_table, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A monotonic clock that advances by a fixed step at each look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


def test_plain_lines_at_start_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], label="reading")) == [1, 2, 3]
    output = capsys.readouterr()
    assert output.out == ""
    first, last = output.err.splitlines()
    assert first == "reading: 0/3"
    assert last.startswith("reading: 3/3 (100 %), done in ")
    assert last.endswith(" s")


def test_plain_lines_without_a_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("ab"), label="reading")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines()[0] == "reading: started"
    assert list(progress(iter("ab"), total=2, label="reading")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines()[0] == "reading: 0/2"


def test_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([], label="reading")) == []
    assert "reading: 0/0, done" in capsys.readouterr().err


def test_plain_lines_come_at_most_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "time", Clock(step=3.0))
    list(progress(range(12), label="x"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:-1] == ["x: 4/12 (33 %), 12 s", "x: 8/12 (67 %), 24 s", "x: 12/12 (100 %), 36 s"]


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress("abc", label="reading")) == ["a", "b", "c"]
    text = terminal.getvalue()
    assert "reading: 100%" in text
    assert "3/3" in text


def test_say_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_table() -> None:
    table = render_table(["preset", "score", "note"], [["best", "0.901", None], ["a", "10.5", "slow"], ["b", None, ""]])
    assert table.splitlines() == [
        "preset  score  note",
        "------  -----  ----",
        "best    0.901",
        "a        10.5  slow",
        "b",
    ]
    assert render_table(["a"], []) == "a\n-"


def test_table_refuses_ragged_rows() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 cells, expected 2"):
        render_table(["a", "b"], [[1, 2], [1]])


@given(st.lists(st.tuples(st.integers(), st.text("xyz", min_size=1)), min_size=1))
def test_table_columns_line_up(rows: list[tuple[int, str]]) -> None:
    lines = render_table(["number", "word"], rows).splitlines()
    assert len(lines) == len(rows) + 2
    width = max(len("number"), *(len(str(number)) for number, _ in rows))
    for line, (number, word) in zip(lines[2:], rows, strict=True):
        assert line == f"{number:>{width}}  {word}"
