"""Results and run folders of all solutions: one static site, and DataFrames for notebooks."""

from typing import Any

from kit_report.site import Written, write_report

__all__ = ["Written", "load_results", "load_run", "write_report"]


def __getattr__(name: str) -> Any:
    """Import the functions of `frames` when they are asked for: pandas takes a second to load."""
    if name in ("load_results", "load_run"):
        from kit_report import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
