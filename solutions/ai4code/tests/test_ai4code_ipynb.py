"""Reading and writing real .ipynb files: the permutation asked is the one written, and nothing else changes."""

import itertools
import json
import random
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import v3, v4

from ai4code.ipynb import describe, misplaced, read_ipynb, write_ipynb
from kit_core.errors import ConfigError, DataError

UNHURRIED = settings(deadline=None)  # files are written; a busy disk is no failure


def code(text: str, **more: Any) -> Any:
    return v4.new_code_cell(text, **more)


def markdown(text: str, **more: Any) -> Any:
    return v4.new_markdown_cell(text, **more)


def save(path: Path, cells: list[Any], minor: int = 5) -> Path:
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook["nbformat_minor"] = minor
    if minor < 5:
        for cell in notebook["cells"]:
            cell.pop("id")
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """Every kind of cell and output, raw cells at the head, in the middle and at the end."""
    picture = v4.new_output("display_data", {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}, metadata={"w": 1})
    table = v4.new_output("execute_result", {"application/json": {"a": [1, None]}, "text/html": "<b>x</b>\n<i>y</i>"})
    failed = v4.new_output("error", ename="ValueError", evalue="no", traceback=["\x1b[31mline 1", "line 2"])
    cells = [
        v4.new_raw_cell("---\ntitle: front matter\n---"),
        markdown("# Title\n\nwords", attachments={"p.png": {"image/png": "aGVsbG8="}}),
        code("import numpy as np\nnp.arange(3)", outputs=[table], execution_count=3, metadata={"tags": ["keep"]}),
        v4.new_raw_cell("raw after the import"),
        v4.new_raw_cell("a second raw cell"),
        markdown(""),
        code("plot()", outputs=[picture, v4.new_output("stream", text="one\ntwo\n")]),
        markdown("## Plot — 日本語 😀"),
        code("1 / 0", outputs=[failed]),
        v4.new_raw_cell("the end"),
    ]
    return save(tmp_path / "rich.ipynb", cells)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_code_comes_first_then_markdown_in_file_order(rich: Path) -> None:
    notebook = read_ipynb(rich)
    packed = notebook.to_notebooks()
    assert packed.ids == ["rich.ipynb"]
    assert packed.offsets.tolist() == [0, 6]
    assert packed.n_code.tolist() == [3]
    assert packed.true_rank is None
    assert packed.ancestors is None
    assert packed.texts(0) == [
        "import numpy as np\nnp.arange(3)",
        "plot()",
        "1 / 0",
        "# Title\n\nwords",
        "",
        "## Plot — 日本語 😀",
    ]
    assert sorted(packed.cells(0)) == sorted(notebook.order)


def test_raw_cells_belong_to_the_cell_before_them(rich: Path) -> None:
    notebook = read_ipynb(rich)
    assert notebook.head == (0,)
    assert [cell.places for cell in notebook.cells] == [(1,), (2, 3, 4), (5,), (6,), (7,), (8, 9)]


def test_missing_invalid_and_doubled_ids_are_replaced(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ipynb", [code(str(i)) for i in range(6)])
    document = json.loads(path.read_text(encoding="utf-8"))
    for cell, name in zip(document["cells"], ["x", "x", None, "not valid", 7, "cell-2"], strict=True):
        cell["id"] = name
    del document["cells"][2]["id"]
    path.write_text(json.dumps(document), encoding="utf-8")
    notebook = read_ipynb(path)
    assert notebook.order == ["x", "cell-2-", "cell-3", "cell-4", "cell-5", "cell-2"]
    write_ipynb(tmp_path / "b.ipynb", notebook, notebook.order)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nbformat warns where it has to repair ids
        nbformat.validate(json.loads((tmp_path / "b.ipynb").read_text(encoding="utf-8")))


def test_before_format_4_5_cells_get_no_id_in_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "old.ipynb", [markdown("m"), code("c")], minor=2)
    notebook = read_ipynb(path)
    assert notebook.order == ["cell-1", "cell-2"]
    write_ipynb(tmp_path / "new.ipynb", notebook, ["cell-2", "cell-1"])
    written = json.loads((tmp_path / "new.ipynb").read_text(encoding="utf-8"))
    assert (written["nbformat"], written["nbformat_minor"]) == (4, 2)
    assert all("id" not in cell for cell in written["cells"])


def test_format_3_is_converted(tmp_path: Path) -> None:
    cells = [
        v3.new_heading_cell("Title", level=2),
        v3.new_code_cell("x = 1\ny = 2", outputs=[v3.new_output("stream", output_text="hi")]),
        v3.new_text_cell("markdown", source="words"),
    ]
    path = tmp_path / "v3.ipynb"
    path.write_text(json.dumps(v3.new_notebook(worksheets=[v3.new_worksheet(cells=cells)])), encoding="utf-8")
    notebook = read_ipynb(path)
    assert [(c.id, c.kind, c.text) for c in notebook.cells] == [
        ("cell-1", "markdown", "## Title"),
        ("cell-2", "code", "x = 1\ny = 2"),
        ("cell-3", "markdown", "words"),
    ]
    assert notebook.document["cells"][1]["outputs"][0]["text"] in ("hi", ["hi"])
    write_ipynb(tmp_path / "v4.ipynb", notebook, ["cell-1", "cell-3", "cell-2"])
    again = read_ipynb(tmp_path / "v4.ipynb")
    assert again.order == ["cell-1", "cell-3", "cell-2"]
    assert again.document["nbformat"] == 4


def test_byte_order_mark_and_lists_of_lines_are_read(tmp_path: Path) -> None:
    document = v4.new_notebook(cells=[code("x")])
    document["cells"][0]["source"] = ["a = 1\n", "b = 2"]
    (tmp_path / "bom.ipynb").write_text(json.dumps(document), encoding="utf-8-sig")
    assert read_ipynb(tmp_path / "bom.ipynb").cells[0].text == "a = 1\nb = 2"


def test_half_a_surrogate_pair_is_kept_in_the_file_and_replaced_for_the_model(tmp_path: Path) -> None:
    path = tmp_path / "half.ipynb"
    document = v4.new_notebook(cells=[code("x"), markdown("HALF")])
    path.write_text(json.dumps(document).replace("HALF", "broken \\ud83d emoji"), encoding="utf-8")
    notebook = read_ipynb(path)
    assert notebook.to_notebooks().texts(0)[1] == "broken \N{REPLACEMENT CHARACTER} emoji"
    write_ipynb(tmp_path / "out.ipynb", notebook, notebook.order[::-1])
    written = json.loads((tmp_path / "out.ipynb").read_bytes())
    assert written["cells"][0]["source"] == "broken \ud83d emoji"


# --- writing ---------------------------------------------------------------------------------------------------------


def test_permutation_written_is_the_one_asked_and_the_rest_is_kept(rich: Path, tmp_path: Path) -> None:
    before = json.loads(rich.read_text(encoding="utf-8"))
    notebook = read_ipynb(rich)
    by_id = {cell["id"]: cell for cell in before["cells"]}
    generator = random.Random(0)
    for _ in range(20):
        order = generator.sample(notebook.order, len(notebook.order))
        write_ipynb(tmp_path / "out.ipynb", notebook, order)
        after = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))
        assert [c["id"] for c in after["cells"] if c["cell_type"] != "raw"] == order
        assert sorted(by_id) == sorted(c["id"] for c in after["cells"])
        assert all(cell == by_id[cell["id"]] for cell in after["cells"])
        assert {**after, "cells": 0} == {**before, "cells": 0}
        nbformat.validate(after)
        sources = [c["source"] for c in after["cells"]]
        assert after["cells"][0]["cell_type"] == "raw"
        behind = sources.index(by_id[notebook.cells[1].id]["source"])
        assert [c["cell_type"] for c in after["cells"][behind + 1 : behind + 3]] == ["raw", "raw"]


def test_the_same_order_gives_the_same_bytes(rich: Path, tmp_path: Path) -> None:
    notebook = read_ipynb(rich)
    write_ipynb(tmp_path / "same.ipynb", notebook, notebook.order)
    assert (tmp_path / "same.ipynb").read_bytes() == rich.read_bytes()


def test_the_indentation_of_the_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "wide.ipynb"
    text = json.dumps(v4.new_notebook(cells=[code("x")]), indent=4) + "\n"
    path.write_text(text, encoding="utf-8")
    notebook = read_ipynb(path)
    write_ipynb(path, notebook, notebook.order)  # over itself
    assert path.read_text(encoding="utf-8") == text


@UNHURRIED
@given(st.lists(st.sampled_from(["code", "markdown", "raw"]), max_size=12), st.randoms())
def test_any_notebook_comes_back_in_the_order_asked(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], generator: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("any")
    make = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell, "raw": v4.new_raw_cell}
    path = save(folder / "a.ipynb", [code("first"), *(make[kind](f"cell {i}") for i, kind in enumerate(kinds))])
    notebook = read_ipynb(path)
    order = list(notebook.order)
    generator.shuffle(order)
    write_ipynb(folder / "b.ipynb", notebook, order)
    again = read_ipynb(folder / "b.ipynb")
    assert again.order == order
    write_ipynb(folder / "c.ipynb", again, notebook.order)
    assert (folder / "c.ipynb").read_bytes() == path.read_bytes()


def test_an_order_that_is_no_permutation_is_refused(rich: Path, tmp_path: Path) -> None:
    notebook = read_ipynb(rich)
    for order in (notebook.order[1:], [*notebook.order, notebook.order[0]], ["x", *notebook.order[1:]]):
        with pytest.raises(ValueError, match="no permutation"):
            write_ipynb(tmp_path / "out.ipynb", notebook, order)
        with pytest.raises(ValueError, match="no permutation"):
            misplaced(notebook, order)
    assert not (tmp_path / "out.ipynb").exists()


def test_what_breaks_the_schema_is_not_written(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ipynb", [code("x")])
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["cells"][0]["outputs"]
    path.write_text(json.dumps(document), encoding="utf-8")
    notebook = read_ipynb(path)  # enough to order its cells
    with pytest.raises(DataError, match=r"(?s)a\.ipynb.*outputs.*4\.5.*do:"):
        write_ipynb(tmp_path / "b.ipynb", notebook, notebook.order)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ipynb"]


def test_a_folder_is_no_place_to_write(rich: Path, tmp_path: Path) -> None:
    notebook = read_ipynb(rich)
    with pytest.raises(ConfigError, match="folder"):
        write_ipynb(tmp_path, notebook, notebook.order)


# --- what an order changes -------------------------------------------------------------------------------------------


def letters(folder: Path, cells: str) -> Any:
    """A notebook from letters: capitals are code cells; the letter is id and text."""
    made = [code(c, id=c) if c.isupper() else markdown(c, id=c) for c in cells]
    return read_ipynb(save(folder / "letters.ipynb", made))


@pytest.mark.parametrize(
    ("cells", "order", "expected"),
    [
        ("aAbBc", "aAbBc", []),
        ("aAbBc", "AaBbc", [("a", 1, 2, 1), ("b", 3, 4, 1)]),
        ("aABC", "ABCa", [("a", 1, 4, 3)]),  # without fixed code cells one might call A, B, C moved
        ("abcA", "Aabc", [("a", 1, 2, 1), ("b", 2, 3, 1), ("c", 3, 4, 1)]),  # nor is it A that moves
        ("abcdA", "bcdaA", [("a", 1, 4, 0)]),
        ("Aabc", "acAb", [("a", 2, 1, -1), ("c", 4, 2, -1)]),
    ],
)
def test_misplaced(tmp_path: Path, cells: str, order: str, expected: list[tuple[str, int, int, int]]) -> None:
    found = misplaced(letters(tmp_path, cells), list(order))
    assert [(m.cell.id, m.position, m.new_position, m.code_cells_passed) for m in found] == expected


@UNHURRIED
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.randoms())
def test_misplaced_is_the_smallest_set_of_markdown_cells(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[bool], generator: random.Random
) -> None:
    cells = "Z" + "".join(
        letter.upper() if is_code else letter for letter, is_code in zip("abcdef", kinds, strict=False)
    )
    code_cells = [c for c in cells if c.isupper()]
    order = generator.sample([c for c in cells if c.islower()], len(cells) - len(code_cells))
    for number, cell in enumerate(code_cells):  # each behind the one before, anywhere
        first = order.index(code_cells[number - 1]) + 1 if number else 0
        order.insert(generator.randint(first, len(order)), cell)
    found = {m.cell.id for m in misplaced(letters(tmp_path_factory.mktemp("m"), cells), order)}

    def explains(moved: set[str]) -> bool:
        return [c for c in cells if c not in moved] == [c for c in order if c not in moved]

    fewest = next(
        size
        for size in range(len(cells) + 1)
        for moved in itertools.combinations([c for c in cells if c.islower()], size)
        if explains(set(moved))
    )
    assert explains(found)
    assert len(found) == fewest


def test_code_cells_may_not_change_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="code cells"):
        misplaced(letters(tmp_path, "AaB"), ["B", "a", "A"])


def test_describe_shows_every_cell_and_where_it_was(tmp_path: Path) -> None:
    path = save(
        tmp_path / "d.ipynb",
        [
            markdown("## Plot\nmore", id="p"),
            code("\n\n  import x", id="i"),
            code("y\x1b[2J" + "z" * 100, id="y"),
            markdown(" ", id="e"),
        ],
    )
    assert describe(read_ipynb(path), ["i", "p", "y", "e"]) == [
        "1   code      import x",
        "2 ↓ markdown  ## Plot   <- was 1, down past 1 code cell",
        f"3   code      y [2J{'z' * 64}…",
        "4   markdown  (empty)",
        "1 of 2 markdown cells look misplaced",
    ]
    assert (
        describe(read_ipynb(path), ["e", "p", "i", "y"])[0] == "1 ↑ markdown  (empty)   <- was 4, up past 2 code cells"
    )
    assert describe(read_ipynb(path), ["p", "i", "y", "e"])[-1] == "no cell looks misplaced"


# --- bad input -------------------------------------------------------------------------------------------------------

CELL = '{"cell_type": "code", "source": "", "metadata": {}, "outputs": [], "execution_count": null}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no JSON"),
        (b'{"nbformat": 4, "cells": [', "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"nbformat": 4, "cells": []}\xff', "not UTF-8, at 28"),
        ('{"nbformat": 4}'.encode("utf-16"), "not UTF-8, at 0"),
        (b"[1, 2]", r"no notebook \(no object\)"),
        (b"{}", r"no notebook \(no keys\)"),
        (b'{"cell_type": {}, "source": {}}', r"no notebook \('cell_type', 'source'\)"),
        (b'{"nbformat": 4, "metadata": {}}', "no notebook"),
        (b'{"nbformat": 4, "worksheets": []}', 'without a list of "cells"'),
        (b'{"cells": []}', r"no notebook \('cells'\)"),
        (b'{"nbformat": 4, "cells": {}}', 'without a list of "cells"'),
        (b'{"nbformat": 5, "cells": []}', '"nbformat" 5'),
        (b'{"nbformat": "4", "cells": []}', "\"nbformat\" '4'"),
        (b'{"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code"}]}]}', "cannot be converted"),
        (b'{"nbformat": 3, "cells": []}', "cannot be converted"),
        (b'{"nbformat": 4, "cells": []}', "no cells, no code cell"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "markdown", "source": "x"}]}', "1 markdown and 0 raw cells"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code"}]}', r"cell 1: found the source None"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": ["a", 1]}]}', "cell 1: found the source"),
        (b'{"nbformat": 4, "cells": [' + CELL.encode() + b', {"cell_type": "sql"}, 7]}', "2 problems"),
    ],
)
def test_bad_files_are_told_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.ipynb"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"(?s)bad.ipynb.*{words}.*expected: .*do: ") as told:
        read_ipynb(path)
    assert told.value.exit_code == 3


def test_many_bad_cells_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "many.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "cells": [{"cell_type": "sql", "source": "x"}] * 9}), encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)9 problems.*cell 5: found the cell type 'sql'\n  \.\.\. and 4 more"):
        read_ipynb(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)none\.ipynb.*no such file"):
        read_ipynb(tmp_path / "none.ipynb")
    with pytest.raises(DataError, match="a folder"):
        read_ipynb(tmp_path)
