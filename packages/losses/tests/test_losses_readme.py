"""The example in the README runs and prints what it says."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_readme_examples_run_and_print_what_they_say():
    for example in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
        assert printed.getvalue().splitlines() == re.findall(r"print\(.*\)  # (.*)", example)
