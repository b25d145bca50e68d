"""The runner of the benchmarks, on rows made by hand."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def runner(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_run", repo_root / "benchmarks" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(**changes: Any) -> dict[str, Any]:
    plain = {"name": "sorting", "ours_seconds": 0.002, "peer": "list.sort", "peer_seconds": 0.02, "ratio": 10.0}
    return {**plain, "spread": 0.05, "required_ratio": 5.0, **changes}


def test_a_row_shows_both_times_in_units_that_fit(runner: ModuleType) -> None:
    line = runner.render_rows([row(memory_mb=12.0)]).splitlines()[-1]
    assert line == "| sorting | 2 ms | list.sort | 20 ms | 10.00 | ≥ 5 | 5 % | 12 MiB |"


def test_a_broken_promise_is_marked(runner: ModuleType) -> None:
    assert not runner.keeps_promise(row(ratio=4.99))
    assert "**too slow**" in runner.render_rows([row(ratio=4.99)])


def test_a_row_may_have_no_peer_and_no_promise(runner: ModuleType) -> None:
    alone = row(peer="", peer_seconds=None, ratio=0.5, required_ratio=None)
    assert runner.keeps_promise(alone)
    assert "(a limit)" in runner.render_rows([alone])


def test_a_row_with_a_wrong_key_is_refused(runner: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "bench_wrong.py"
    path.write_text("def run():\n    return [{'name': 'x', 'second': 1}]\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"bench_wrong\.py, row 'x': missing keys .*'ratio'.*unknown keys \['second'\]"
    ):
        runner.collect(path)


def test_the_machine_is_described_without_its_name(runner: ModuleType) -> None:
    import platform

    text = runner.describe_machine()
    assert "cores" in text
    assert "numpy" in text
    assert platform.node() not in text
