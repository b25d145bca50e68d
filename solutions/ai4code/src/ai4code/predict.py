"""One notebook file of a person → the order a run would give it, and the markdown cells that look misplaced."""

from pathlib import Path

from ai4code.decode import decode_jointly
from ai4code.infer import FittedRun, place_with_runs
from ai4code.ipynb import IpynbNotebook, describe, read_ipynb, write_ipynb


def predict_order(notebook: IpynbNotebook, runs: list[FittedRun]) -> list[str]:
    """Return the cell ids of a notebook file in predicted order."""
    notebooks = notebook.to_notebooks()
    placement = place_with_runs(runs, notebooks)[0]
    cells = notebooks.cells(0)
    return [cells[i] for i in decode_jointly(placement, int(notebooks.n_code[0]))]


def predict_file(path: Path, runs: list[FittedRun], write: Path | None) -> str:
    """Describe the predicted order of an .ipynb file for a person, and write the reordered notebook if asked.

    The file's own order of markdown cells is used only to break ties.

    Raises:
        DataError: the file is no notebook.
    """
    notebook = read_ipynb(path)
    order = predict_order(notebook, runs)
    lines = describe(notebook, order)
    if write is not None:
        write_ipynb(write, notebook, order)
        lines.append(f"written: {write}")
    return "\n".join(lines)
