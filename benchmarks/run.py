"""Measure ours beside a named peer in one run, and write benchmarks/RESULTS.md.

    make bench
    make bench ARGS="inversions"        only bench_inversions.py; RESULTS.md stays as it is

Every benchmarks/bench_*.py has a function `run() -> list[dict]`. A row has these keys:

    name             what is measured, with its size: "inversions, n = 1,000, equal values"
    ours_seconds     median of ours
    peer             the peer by name: "scipy.stats.kendalltau"; "" where only a limit in seconds is set
    peer_seconds     median of the peer in the same process; None without a peer
    ratio            peer_seconds / ours_seconds; without a peer: limit / ours_seconds
    required_ratio   the least ratio that is promised; None when none is
    spread           interquartile range of the repetitions' ratios (or seconds, without a peer) over their median
    memory_mb        optional: peak memory of ours in MiB

Exits with 1 when a row stays below its required ratio.
"""

import argparse
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kit_core.atomic import write_text

HERE = Path(__file__).resolve().parent
VERSIONS_OF = ("numpy", "scipy", "scikit-learn", "lightgbm", "pyarrow", "torch")
REQUIRED_KEYS = {"name", "ours_seconds", "peer", "peer_seconds", "ratio", "spread", "required_ratio"}
OPTIONAL_KEYS = {"memory_mb"}
HEADING = """# Benchmarks

Ours beside a named peer, measured in turn in one process by `make bench`, each section in a fresh one. The ratio is the
peer's time over ours: above 1, ours is faster. A row without a peer has a limit in seconds, and its ratio is that limit
over our time.
"""


def collect(path: Path) -> list[dict[str, Any]]:
    """Import one bench file, run it and return its rows.

    Raises:
        ValueError: a row lacks a key or has an unknown one.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path.name} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows: list[dict[str, Any]] = module.run()
    for row in rows:
        missing, unknown = sorted(REQUIRED_KEYS - row.keys()), sorted(row.keys() - REQUIRED_KEYS - OPTIONAL_KEYS)
        if missing or unknown:
            raise ValueError(f"{path.name}, row {row.get('name')!r}: missing keys {missing}, unknown keys {unknown}")
    return rows


def collect_apart(path: Path) -> list[dict[str, Any]]:
    """The same in a process of its own: what earlier benchmarks imported and freed changes how memory is handed out."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(collect, path).result()


def keeps_promise(row: Mapping[str, Any]) -> bool:
    """Say whether a row reaches its required ratio, where it has one."""
    return row["required_ratio"] is None or row["ratio"] >= row["required_ratio"]


def render_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table; a row below its required ratio is marked in bold."""
    lines = [
        "| what | ours | peer | peer's time | ratio | required | spread | memory |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        required = "" if row["required_ratio"] is None else f"≥ {row['required_ratio']:g}"
        verdict = "" if keeps_promise(row) else " **too slow**"
        cells = [
            row["name"],
            seconds(row["ours_seconds"]),
            row["peer"] or "(a limit)",
            "" if row["peer_seconds"] is None else seconds(row["peer_seconds"]),
            f"{row['ratio']:.2f}{verdict}",
            required,
            f"{100 * row['spread']:.0f} %",
            f"{row['memory_mb']:.0f} MiB" if "memory_mb" in row else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seconds(value: float) -> str:
    """Return a time with three significant digits in the unit that fits."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def describe_machine() -> str:
    """Return processor, cores, memory and the versions that matter, and nothing that identifies the machine."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"Python {platform.python_version()}"]
    for name in VERSIONS_OF:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB of memory. {', '.join(versions)}."


def processor() -> str:
    """Return the model name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> int:
    """Run the benchmarks that are asked for, all by default; return 0 when every promise is kept."""
    parser = argparse.ArgumentParser(description="Measure ours beside named peers.")
    parser.add_argument("only", nargs="*", metavar="NAME", help="the NAME of bench_NAME.py; all by default")
    only = parser.parse_args().only
    paths = sorted(HERE.glob("bench_*.py"))
    names = [path.stem.removeprefix("bench_") for path in paths]
    if unknown := sorted(set(only) - set(names)):
        parser.error(f"no benchmark is called {unknown[0]!r}; there are: {', '.join(names) or 'none'}")

    sections: list[str] = []
    kept = True
    for path, name in zip(paths, names, strict=True):
        if only and name not in only:
            continue
        print(f"bench: {name} …", file=sys.stderr, flush=True)
        started = time.monotonic()
        rows = collect_apart(path)
        kept &= all(keeps_promise(row) for row in rows)
        print(f"bench: {name} took {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        sections.append(f"## {name.replace('_', ' ')}\n\n{render_rows(rows)}\n")
    body = "\n".join(sections)
    print(body)
    if not only:
        text = f"{HEADING}\n{datetime.now(UTC):%Y-%m-%d}. {describe_machine()}\n\n{body}"
        write_text(HERE / "RESULTS.md", text)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
