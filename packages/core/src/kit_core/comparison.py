"""The outcome of `compare A B`: two models scored on the same rows, and the interval of their difference.

    comparison = Comparison(metric="macro_f1", a="runs/a", b="runs/b", score_a=0.71, score_b=0.66, difference=0.05,
                            interval=(0.03, 0.08), n=1272, group_by="groups.csv", n_groups=955)
    print(comparison.to_text())

How the interval is computed is the business of `kit_metrics`; this module only carries and prints it.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from kit_core.console import render_table


@dataclass(frozen=True)
class Comparison:
    """Scores of A and B, their difference A - B and its 95 % interval by a paired bootstrap over groups."""

    metric: str
    a: str
    """Run folder or submission."""
    b: str
    score_a: float
    score_b: float
    difference: float
    interval: tuple[float, float]
    n: int
    """Rows (or queries) that both scored."""
    group_by: str
    """What a group is, as in `summary.json`."""
    n_groups: int
    """Groups that were resampled."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**dataclasses.asdict(self), "interval": list(self.interval)}

    def to_text(self) -> str:
        """Return the comparison as a table."""
        low, high = self.interval
        rows = [
            (f"A: {self.a}", f"{self.score_a:.4f}"),
            (f"B: {self.b}", f"{self.score_b:.4f}"),
            ("A - B", f"{self.difference:+.4f}"),
            ("95 % interval of A - B", f"{low:+.4f} to {high:+.4f}"),
            ("scored by both", f"{self.n:,}"),
            (f"groups resampled ({self.group_by})", f"{self.n_groups:,}"),
        ]
        return render_table(["paired bootstrap", self.metric], rows)

    def render(self, *, as_json: bool) -> str:
        """Return JSON in one line, or the table."""
        return json.dumps(self.to_dict()) if as_json else self.to_text()
