"""What a person reads when a training is done."""

from typing import Any

from kit_core.console import render_table


def summary_text(preset: str, summary: dict[str, Any]) -> str:
    """Render the summary of a run: held-out tau with its interval, members with weights, seconds."""
    if summary["score"] is None:
        return f"{preset}: fitted on every notebook in {summary['seconds']} s; no notebook was held out, so no score"
    low, high = summary["interval"]
    lines = [
        f"{preset}: tau {summary['score']:.4f} ({low:.4f} to {high:.4f}, 95 %) on {summary['n']} held-out notebooks, "
        f"{summary['seconds']} s"
    ]
    if len(summary["members"]) > 1:
        scores = summary["score_of_members"]
        rows = [(name, f"{weight:.3f}", f"{scores[name]:.4f}") for name, weight in summary["members"].items()]
        lines.append(render_table(["member", "weight", "tau alone"], rows))
    return "\n".join(lines)
