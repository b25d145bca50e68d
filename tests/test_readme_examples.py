"""The Python examples in the READMEs of the packages run and print what their comments say."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest


def test_python_blocks_print_what_their_comments_say(
    member: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (member.folder / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert blocks or member.is_solution, "a package shows an example of its use"
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, f"{member.label}/README.md", "exec"), {"__name__": "__main__"})
        assert printed.getvalue().splitlines() == re.findall(r"print\(.*\)  # (.*)", block)
