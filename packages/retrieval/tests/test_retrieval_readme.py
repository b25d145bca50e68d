"""The example in the README runs and prints what it says, and the table names everything that there is."""

import contextlib
import io
import re
from pathlib import Path

import kit_retrieval

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_readme_example_runs_and_prints_what_it_says():
    [example] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    assert printed.getvalue().splitlines() == re.findall(r"print\(.*\)  # (.*)", example)


def test_readme_names_every_step():
    functions = [
        name for name in kit_retrieval.__all__ if name not in ("CohortStatistics", "Trial", "mutual", "reorder")
    ]
    assert [name for name in functions if f"`{name}`" not in README] == []
