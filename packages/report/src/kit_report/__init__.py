"""One static site from the results tables and the run folders of all solutions."""

from kit_report.site import Written, write_report

__all__ = ["Written", "write_report"]
