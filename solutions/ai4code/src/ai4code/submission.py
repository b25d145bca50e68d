"""Submissions of AI4Code: written, read, checked, and set against the truth for the metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ai4code.data import (
    ORDER_COLUMNS,
    Bool,
    Int64,
    Notebooks,
    Split,
    keyed,
    load,
    official_source,
    offsets_of,
    order_faults,
    same_ids,
    shown,
    some,
    splits_in,
)
from kit_core.errors import DataError, Problems
from kit_io.tables import read_csv, write_csv

HIDDEN_ORDERS = "test_orders.csv"  # which only a generated sample has


def write_submission(path: Path, ids: Sequence[str], orders: Iterable[Sequence[str]]) -> None:
    """Writes `id,cell_order`, one row a notebook in the order of `ids`; atomic.

    orders: for every notebook, all of its cell ids in predicted order.
    """
    rows = ((id_, " ".join(order)) for id_, order in zip(ids, orders, strict=True))
    write_csv(path, ORDER_COLUMNS, rows)


def read_orders(path: Path | str) -> dict[str, list[str]]:
    """The rows of a submission, or of train_orders.csv: notebook id -> cell ids in order.

    Raises:
        DataError: not a csv with the header id,cell_order, or a notebook has two rows.
    """
    path = Path(path)
    columns = read_csv(path, None, ORDER_COLUMNS)
    problems = Problems(path, "one row a notebook", "keep one row of each notebook")
    rows = keyed(problems, path.name, columns["id"], columns["cell_order"])
    problems.raise_if_any()
    return {id_: order.split() for id_, order in rows.items()}


def check_submission(path: Path | str, notebooks: Notebooks) -> dict[str, list[str]]:
    """The orders of a submission that the judge would take for these notebooks.

    Every notebook once, every cell of it once, code cells too; that code cells keep their order is not asked.

    Raises:
        DataError: notebooks or cells are missing, doubled or unknown, or the header is another.
    """
    cells = {id_: notebooks.cells(i) for i, id_ in enumerate(notebooks.ids)}
    return _checked_orders(Path(path), cells)


def _checked_orders(path: Path, cells: Mapping[str, list[str]]) -> dict[str, list[str]]:
    orders = read_orders(path)
    problems = Problems(
        path,
        f"{len(cells)} rows, one a notebook, each with every cell id of the notebook exactly once",
        "write the submission again from the same notebooks; code cells belong into it as well",
    )
    for id_ in cells:
        if id_ not in orders:
            problems.add(f"notebook {id_}", "no row")
    for id_, order in orders.items():
        if id_ not in cells:
            problems.add(f"notebook {shown(id_)}", "a row for a notebook that the data does not hold")
            continue
        for fault in order_faults(order, cells[id_], None):
            problems.add(f"notebook {id_}", fault)
    problems.raise_if_any()
    return orders


@dataclass(frozen=True, eq=False)
class PredictedRanks:
    """Orders against the truth, packed as `kit_metrics.ordering.Orderings` takes them.

    true_rank    int64[cells]: cells in predicted order, the value being the true position inside the notebook.
    is_markdown  bool[cells], aligned; None where the truth does not tell (then only tau has a meaning).
    offsets      int64[n + 1].
    groups       n ancestor ids, or the notebook ids where ancestors are unknown.
    ids          n notebook ids.
    """

    true_rank: Int64
    is_markdown: Bool | None
    offsets: Int64
    groups: list[str]
    ids: list[str]


def predicted_true_ranks(notebooks: Notebooks, orders: Mapping[str, Sequence[str]]) -> PredictedRanks:
    """Packs orders of these notebooks for the metrics; `orders` must hold all of them, checked by `check_submission`.

    Raises:
        DataError: the notebooks have no true order.
    """
    if notebooks.true_rank is None:
        raise DataError(f"notebooks {some(notebooks.ids)}: found no true order, expected train notebooks")
    parts: list[Int64] = []
    for i, id_ in enumerate(notebooks.ids):
        position = {cell: j for j, cell in enumerate(notebooks.cells(i))}
        parts.append(np.array([position[cell] for cell in orders[id_]], np.int64) + notebooks.offsets[i])
    cells = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    groups = notebooks.ancestors or notebooks.ids
    rank, is_markdown = notebooks.true_rank[cells], notebooks.is_markdown[cells]
    return PredictedRanks(rank, is_markdown, notebooks.offsets, list(groups), list(notebooks.ids))


def submission_ranks(submission: Path | str, truth: Path | str, data: Path | str | None = None) -> PredictedRanks:
    """Checks a submission against the truth and packs both for the metrics.

    truth: a csv of orders in the layout of train_orders.csv, or a folder, zip or prepared folder that holds orders
        (train_orders.csv, or test_orders.csv as a generated sample has it); of two splits, the one that the submission
        names is taken.
    data: with a csv as truth, where to read cell types; without it `is_markdown` is None.

    Raises:
        DataError: the submission is not one for this truth, or the truth is damaged.
    """
    submission, truth = Path(submission), Path(truth)
    if truth.is_file() and truth.suffix.lower() == ".csv":
        true_orders = read_orders(truth)
        if data is None:
            return _ranks_without_types(true_orders, _checked_orders(submission, true_orders))
        notebooks = _with_orders(_best_split(Path(data), splits_in(data), true_orders), true_orders, truth)
    else:
        notebooks = _load_truth(truth, read_orders(submission))
    return predicted_true_ranks(notebooks, check_submission(submission, notebooks))


def _ranks_without_types(truth: Mapping[str, list[str]], orders: Mapping[str, list[str]]) -> PredictedRanks:
    parts: list[Int64] = []
    for id_, order in truth.items():
        rank = {cell: i for i, cell in enumerate(order)}
        parts.append(np.array([rank[cell] for cell in orders[id_]], np.int64))
    lengths = np.array([len(part) for part in parts], np.int64)
    ranks = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return PredictedRanks(ranks, None, offsets_of(lengths), list(truth), list(truth))


def _load_truth(path: Path, wanted: Mapping[str, object]) -> Notebooks:
    """The notebooks, with their orders, of the split in `path` that shares most notebooks with `wanted`."""
    source = official_source(path)
    hidden = source is not None and source.has(HIDDEN_ORDERS)
    splits = [split for split in splits_in(path) if split == "train" or hidden]
    if not splits:
        raise DataError(
            f"{path}: no truth\n  found: notebooks without orders\n  expected: train_orders.csv or test_orders.csv\n"
            "  do: give the data that the orders belong to, or a csv of orders"
        )
    notebooks = _best_split(path, splits, wanted)
    if notebooks.true_rank is not None or source is None:
        return notebooks
    columns = read_csv(source, HIDDEN_ORDERS, ORDER_COLUMNS)
    orders = {id_: order.split() for id_, order in zip(columns["id"], columns["cell_order"], strict=True)}
    return _with_orders(notebooks, orders, path / HIDDEN_ORDERS)


def _best_split(path: Path, splits: Sequence[Split], wanted: Mapping[str, object]) -> Notebooks:
    """The split of `path`, among `splits`, that shares most notebooks with `wanted`."""
    if len(splits) == 1:
        return load(path, splits[0])
    loaded = [load(path, split) for split in splits]
    return max(loaded, key=lambda notebooks: sum(id_ in wanted for id_ in notebooks.ids))


def _with_orders(notebooks: Notebooks, orders: Mapping[str, list[str]], file: Path) -> Notebooks:
    """The notebooks with the true orders of a csv; DataError when these are not orders of exactly these notebooks."""
    problems = Problems(
        file, "one row for each notebook of the data, with each of its cells once", "give the truth of this data"
    )
    same_ids(problems, file.name, orders, {id_: id_ for id_ in notebooks.ids})
    ranks: list[int] = []
    for i, id_ in enumerate(notebooks.ids):
        order, cells = orders.get(id_, []), notebooks.cells(i)
        for fault in order_faults(order, cells, int(notebooks.n_code[i])) if id_ in orders else []:
            problems.add(f"notebook {id_}", fault)
        position = {cell: rank for rank, cell in enumerate(order)}
        ranks += [position.get(cell, -1) for cell in cells]
    problems.raise_if_any()
    return replace(notebooks, true_rank=np.array(ranks, np.int64))
