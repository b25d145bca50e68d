"""kit_io.tables: strict reading, faithful writing, and refusals that name line and remedy."""

import contextlib
import csv
import io
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_core.errors import ConfigError, DataError
from kit_io.source import Source
from kit_io.tables import read_csv, write_csv

COLUMNS = ["id", "cell_order"]


@pytest.fixture
def table(tmp_path):
    """Write bytes as a CSV file."""

    def write(content: bytes) -> Path:
        path = tmp_path / "orders.csv"
        path.write_bytes(content)
        return path

    return write


def refusal(path: Path, delimiter: str = ",") -> str:
    with pytest.raises(DataError) as caught:
        read_csv(path, None, COLUMNS, delimiter)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n  expected: " in message
    assert "\n  do: " in message
    return message


# --- reading ---


def test_values_stay_texts(table):
    path = table(b"id,cell_order\n00e1234,a b\n1e5000,\nNA, x \nnan,null\n")
    assert read_csv(path, None, COLUMNS) == {
        "id": ["00e1234", "1e5000", "NA", "nan"],
        "cell_order": ["a b", "", " x ", "null"],
    }


@pytest.mark.parametrize(
    "content",
    [
        b"id,cell_order\n1,a\n2,b\n",
        b"id,cell_order\n1,a\n2,b",
        b"id,cell_order\r\n1,a\r\n2,b\r\n",
        b"id,cell_order\r1,a\r2,b\r",
        b"\xef\xbb\xbfid,cell_order\n1,a\n2,b\n",
        b'"id","cell_order"\n"1","a"\n2,"b"\n',
        b"id,cell_order\n1,a\n2,b\n\n\r\n",
    ],
)
def test_forms_of_the_same_table(table, content):
    assert read_csv(table(content), None, COLUMNS) == {"id": ["1", "2"], "cell_order": ["a", "b"]}


def test_quoted_line_breaks_delimiters_and_quotes(table):
    path = table(b'id,cell_order\n1,"a,\r\n""b"""\n')
    assert read_csv(path, None, COLUMNS) == {"id": ["1"], "cell_order": ['a,\r\n"b"']}


def test_header_alone_is_an_empty_table(table):
    assert read_csv(table(b"id,cell_order\n"), None, COLUMNS) == {"id": [], "cell_order": []}


def test_single_column(table):
    assert read_csv(table(b'id\n1\n""\n2\n'), None, ["id"]) == {"id": ["1", "", "2"]}


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ":"])
def test_other_delimiters(table, delimiter):
    content = "id,cell_order\n1,a\n".replace(",", delimiter).encode()
    assert read_csv(table(content), None, COLUMNS, delimiter)["cell_order"] == ["a"]


def test_member_of_a_source(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("top/orders.csv", "id,cell_order\n1,a\n")
        archive.writestr("top/bad.csv", "id,cell_order\n1\n")
    source = Source.open_source(tmp_path / "x.zip")
    assert read_csv(source, "orders.csv", COLUMNS) == {"id": ["1"], "cell_order": ["a"]}
    with pytest.raises(DataError, match=r"x\.zip: bad\.csv: 1 problem\n  line 2: found 1 value\n"):
        read_csv(source, "bad.csv", COLUMNS)
    with pytest.raises(DataError, match=r"x\.zip: 1 problem\n  member none\.csv: found no such file"):
        read_csv(source, "none.csv", COLUMNS)


# --- refusals ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "header: found nothing"),
        (b"\n", "header: found nothing"),
        (b"id\n1\n", "header: found id\n"),
        (b"cell_order,id\n", "header: found cell_order,id\n"),
        (b"id,cell_order,more\n", "header: found id,cell_order,more\n"),
        (b"ID,cell_order\n", "header: found ID,cell_order\n"),
        (b"<!DOCTYPE html>\n", "header: found <!DOCTYPE html>\n"),
        (b"\x89PNG\r\n", "no UTF-8"),
        (b"\x1b[31m\n", r"header: found '\x1b[31m'"),
        (b"x" * 1000, "header: found " + "x" * 117 + "...\n"),
    ],
)
def test_wrong_header(table, content, words):
    assert words in refusal(table(content))


def test_expected_header_is_shown(table):
    assert "expected: id,cell_order\n" in refusal(table(b"a,b\n"))


@pytest.mark.parametrize("delimiter", [";", "\t", "|", " "])
def test_fitting_delimiter_is_told(table, delimiter):
    message = refusal(table(f"id{delimiter}cell_order\n1{delimiter}a\n".encode()))
    assert f"separated by {delimiter!r}: write the file with ',' instead" in message


def test_rows_of_wrong_width_are_named_by_the_line_where_they_begin(table):
    message = refusal(table(b'id,cell_order\n1,"a\nb"\n2\n3,"x\ny",z\n4,a\n'))
    assert "2 problems" in message
    assert "line 4: found 1 value\n" in message
    assert "line 5: found 3 values\n" in message
    assert "one value for each column (id, cell_order)" in message


def test_five_rows_are_named_and_all_counted(table):
    message = refusal(table(b"id,cell_order\n" + b"1\n" * 10))
    assert "10 problems" in message
    assert "line 6: found" in message
    assert "line 7: found" not in message
    assert "and 5 more" in message


def test_empty_line_between_rows(table):
    assert "line 3: found an empty line" in refusal(table(b"id,cell_order\n1,a\n\n2,b\n"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'id,cell_order\n1,"a\n2,b\n', "line 3: found broken CSV (unexpected end of data)"),
        (b'id,cell_order\n1,"a"b\n', "line 2: found broken CSV (',' expected after '\"')"),
        (b'id,cell_order\n1,"' + b"x\n" * 100_000, "broken CSV (field larger than field limit (131072))"),
    ],
)
def test_broken_quotes(table, content, words):
    message = refusal(table(content))
    assert words in message
    assert "not closed" in message


def test_bad_bytes_are_named_by_line_and_byte(table):
    assert "line 3, byte 20: found bytes that are no UTF-8 (e9)" in refusal(table(b"id,cell_order\n1,a\n2,\xe9\n"))
    assert "line 2, byte 16: found a NUL" in refusal(table(b"id,cell_order\n1,\0\n"))
    assert "UTF-16" in refusal(table("id,cell_order\n".encode("utf-16")))


def test_absent_file(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.csv")
    assert "Is a directory" in refusal(tmp_path)


def test_mixed_up_arguments_are_a_bug_of_the_caller(table):
    path = table(b"id,cell_order\n")
    with pytest.raises(ValueError, match="path has no members"):
        read_csv(path, "orders.csv", COLUMNS)
    with pytest.raises(ValueError, match="name of its member"):
        read_csv(Source.open_source(path.parent), None, COLUMNS)


# --- writing ---


def test_written_bytes(tmp_path):
    path = tmp_path / "new" / "x.csv"
    assert write_csv(path, COLUMNS, [["00e1234", "a b"], ["é", 'say "x", y']]) == 2
    assert path.read_bytes() == 'id,cell_order\n00e1234,a b\né,"say ""x"", y"\n'.encode()


def test_no_rows(tmp_path):
    assert write_csv(tmp_path / "x.csv", COLUMNS, iter(())) == 0
    assert (tmp_path / "x.csv").read_text() == "id,cell_order\n"


VALUES = st.text(
    alphabet=st.one_of(st.sampled_from(",;\"'\r\n\t a"), st.characters(codec="utf-8", exclude_characters="\0"))
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]], str]:
    width = draw(st.integers(1, 4))
    columns = draw(
        st.lists(VALUES.filter(lambda name: not name.startswith("\ufeff")), min_size=width, max_size=width, unique=True)
    )
    rows = draw(st.lists(st.lists(VALUES, min_size=width, max_size=width), max_size=6))
    return columns, rows, draw(st.sampled_from(",;\t|"))


@settings(deadline=None)  # writing waits for the disk
@given(tables())
def test_what_is_written_is_read_again(case):
    columns, rows, delimiter = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.csv")
        assert write_csv(path, columns, rows, delimiter) == len(rows)
        again = read_csv(path, None, columns, delimiter)
        with path.open(encoding="utf-8", newline="") as file:
            assert list(csv.reader(file, delimiter=delimiter)) == [columns, *rows]
    assert list(again) == columns
    assert [list(row) for row in zip(*again.values(), strict=True)] == rows


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        (["1"], ValueError, "row 2 has 1 values for 2 columns"),
        (["1", "a", "b"], ValueError, "row 2 has 3 values for 2 columns"),
        (["1", "\ud800"], DataError, r"row 2: found a character that text files cannot hold \('\\ud800'\)"),
        (["1", "a\0b"], DataError, r"row 2: found a character that text files cannot hold \('\\x00'\)"),
        (["1", None], TypeError, "NoneType"),
    ],
)
def test_nothing_is_written_half(tmp_path, row, kind, words):
    path = tmp_path / "x.csv"
    path.write_text("old")
    with pytest.raises(kind, match=words):
        write_csv(path, COLUMNS, [["0", "a"], row])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


def test_rows_that_fail_on_the_way_leave_nothing(tmp_path):
    def rows():
        yield ["1", "a"]
        raise DataError("bad notebook")

    with pytest.raises(DataError, match="bad notebook"):
        write_csv(tmp_path / "x.csv", COLUMNS, rows())
    assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError):
        write_csv(tmp_path, COLUMNS, [])


# --- anything ---


WHOLE = 'id,cell_order\r\n1,"a\nb"\n2,"x, ""y"""\n3,é\n'.encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 20)))
        new = draw(st.one_of(st.binary(max_size=3), st.sampled_from([b'"', b"\r", b"\n", b",", b"\0", b"\xc3", b'""'])))
        data[at : draw(st.sampled_from([at, to]))] = new
    return bytes(data)


@settings(max_examples=250, deadline=None)  # each example makes a file: too uneven for a deadline
@given(st.one_of(damaged(), st.binary(max_size=60).map(lambda rest: b"id,cell_order\n" + rest)))
def test_damaged_tables_are_read_whole_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.csv")
        path.write_bytes(data)
        with contextlib.suppress(DataError):
            columns = read_csv(path, None, COLUMNS)
            assert list(columns) == COLUMNS
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            text = io.StringIO(data.decode("utf-8-sig"), newline="")
            assert [row for row in csv.reader(text) if row] == [COLUMNS, *rows]
