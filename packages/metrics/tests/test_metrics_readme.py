"""The example in the README runs and prints what it says."""

import contextlib
import io
import re
from pathlib import Path

from kit_metrics import Orderings, ordering_report

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_readme_example_runs_and_prints_what_it_says():
    [example] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    printed = io.StringIO()
    scope = {"__name__": "__main__"}
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), scope)
    assert printed.getvalue().splitlines() == re.findall(r"print\(.*\)  # (.*)", example)
    assert isinstance(scope["orderings"], Orderings)
    for key in ordering_report(scope["orderings"], bootstrap=0):
        assert f"`{key}`" in README
