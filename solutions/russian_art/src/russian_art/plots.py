"""The pictures of a run as one page: confusion at both levels, F1 of every label, a gallery of the surest mistakes."""

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kit_core.atomic import atomic_path, write_text
from kit_metrics import confusion_matrix
from russian_art.data import Art

GALLERY = 48


def write_plots(
    folder: Path, art: Art, rows: NDArray[np.int64], probabilities: NDArray[np.float64], report: dict[str, Any]
) -> Path:
    """Write `confusion.png`, `tops.png`, `labels.png` and the page `index.html` that holds them; return the page.

    `rows` are the pictures scored and `probabilities` float64[rows, labels] what was said about them.
    """
    assert art.label is not None
    true, predicted = art.label[rows], probabilities.argmax(axis=1)
    names = [art.labels.shown(label) for label in range(len(art.labels))]
    tops = art.labels.top_of
    order = np.argsort(tops, kind="stable")  # labels of one top side by side: mistakes inside of it are a block
    by_top = confusion_matrix(true, predicted, len(names))[np.ix_(order, order)]
    figures = {
        "tops.png": _confusion(confusion_matrix(tops[true], tops[predicted], len(art.labels.tops)), art.labels.tops),
        "confusion.png": _confusion(by_top, [names[label] for label in order], np.flatnonzero(np.diff(tops[order]))),
        "labels.png": _bars(report["f1_per_label"], np.bincount(true, minlength=len(names)), names),
    }
    for name, figure in figures.items():
        with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
            figure.savefig(file, format="png", dpi=90, bbox_inches="tight")
    wrong = np.flatnonzero(true != predicted)
    surest = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:GALLERY]
    cards = [
        f'<figure><img src="{_inline(art.pixels[rows[i]])}" alt=""><figcaption>{html.escape(names[true[i]])}<br>'
        f"taken for <b>{html.escape(names[predicted[i]])}</b>, {probabilities[i, predicted[i]]:.0%}<br>"
        f"<small>{html.escape(art.names[rows[i]])}</small></figcaption></figure>"
        for i in surest
    ]
    images = "".join(f'<h2>{title}</h2><img src="{name}" alt="">' for name, title in _TITLES.items())
    page = _PAGE.format(n=len(rows), score=report["macro_f1"], wrong=len(wrong), images=images, cards="".join(cards))
    write_text(folder / "index.html", page)
    return folder / "index.html"


_TITLES = {
    "tops.png": "Confusion of the tops",
    "labels.png": "F1 of every label",
    "confusion.png": "Confusion of labels",
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Pictures of a run</title><style>
body {{ font: 15px sans-serif; max-width: 1200px; margin: 2em auto }} img {{ max-width: 100% }}
figure {{ display: inline-block; width: 170px; margin: 6px; vertical-align: top; font-size: 12px }}
</style><h1>Macro F1 {score:.4f} on {n} pictures</h1><p>Rows are true, columns predicted, as shares of a row.</p>
{images}<h2>The surest of {wrong} mistakes</h2>{cards}</html>
"""


def _confusion(
    counts: NDArray[np.int64], names: tuple[str, ...] | list[str], last_of_blocks: NDArray[np.int64] | tuple[()] = ()
) -> Figure:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    edge = 3 + 0.28 * len(names)
    figure = Figure(figsize=(edge, edge))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for last in last_of_blocks:
        axes.axhline(last + 0.5, color="gray", linewidth=0.7)
        axes.axvline(last + 0.5, color="gray", linewidth=0.7)
    for i, j in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7, color=colour)
    return figure


def _bars(f1: list[float], counts: NDArray[np.int64], names: list[str]) -> Figure:
    order = np.argsort(f1)
    figure = Figure(figsize=(7, 1 + 0.24 * len(names)))
    axes = figure.subplots()
    axes.barh(range(len(names)), [f1[i] for i in order])
    axes.set_yticks(range(len(names)), [f"{names[i]} ({counts[i]})" for i in order])
    axes.set_xlim(0, 1)
    axes.set_xlabel("F1 (number of pictures in brackets)")
    return figure


def _inline(pixels: NDArray[np.uint8]) -> str:
    """Return a thumbnail as a data address, so that the page is whole by itself."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).resize((160, 160)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
