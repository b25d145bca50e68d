"""Two runs or two submissions on the same notebooks: the difference of their tau, by a paired bootstrap over families.

A run keeps in `scored.parquet` what this needs: a row for each held-out notebook, with its family, its number of cells
and the inversions of the order that the run gave it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ai4code.data import ANCESTOR_COLUMNS, keyed
from ai4code.submission import PredictedRanks, submission_ranks
from kit_core.atomic import atomic_path
from kit_core.comparison import Comparison
from kit_core.errors import DataError, Problems
from kit_core.run import RunFolder
from kit_io.tables import read_csv
from kit_metrics.bootstrap import bootstrap_paired_ratio
from kit_metrics.ordering import Orderings, inversions_per_segment, kendall_tau_pooled

SCORED_FILE = "scored.parquet"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ancestor_id", pa.string()),
        ("fold", pa.int32()),
        ("n_cells", pa.int64()),
        ("inversions", pa.int64()),
    ]
)


@dataclass(frozen=True, eq=False)
class ScoredNotebooks:
    """Notebooks that were given an order: ids and groups [n]; lengths and inversions int64 [n]."""

    ids: list[str]
    groups: list[str]
    lengths: np.ndarray
    inversions: np.ndarray


def write_scored(run: Path, ids: list[str], folds: np.ndarray, orderings: Orderings) -> None:
    """Write the held-out notebooks of a run, in the order of `orderings`."""
    inversions = inversions_per_segment(orderings.true_rank, orderings.offsets)
    columns = [ids, orderings.groups.tolist(), folds, np.diff(orderings.offsets), inversions]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    with atomic_path(run / SCORED_FILE) as temporary:
        pq.write_table(pa.table(arrays, schema=_SCHEMA), temporary, compression="zstd")


def read_scored(run: Path) -> ScoredNotebooks:
    """Read what `write_scored` wrote.

    Raises:
        DataError: the run has no such file, because an earlier version made it or nothing was held out.
    """
    path = run / SCORED_FILE
    if not path.is_file():
        raise DataError(
            f"{path}: not found\n  expected: the held-out notebooks of the run, as `train` writes them since it has "
            "`compare`\n  do: train again, with held-out notebooks (not --data.fold none)"
        )
    table = pq.read_table(path, schema=_SCHEMA).to_pydict()
    lengths, inversions = (np.array(table[name], np.int64) for name in ("n_cells", "inversions"))
    return ScoredNotebooks(table["id"], table["ancestor_id"], lengths, inversions)


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare the out-of-fold answers of two finished runs.

    Raises:
        DataError: a run is unfinished or lacks its held-out notebooks, or the two were made of other data or scored
            other notebooks.
    """
    runs = [RunFolder.open(path) for path in (a, b)]
    prints = [run.manifest["data"] for run in runs]
    if prints[0] != prints[1]:
        raise DataError(
            f"{a} and {b}: found runs on different data ({_short(prints[0])} and {_short(prints[1])})\n"
            "  expected: two runs on the same notebooks\n  do: train both with the same --data"
        )
    group_by = str(runs[0].summary.get("group_by", "ancestor"))
    return _compare(str(a), str(b), read_scored(a), read_scored(b), group_by)


def compare_submissions(a: Path, b: Path, truth: Path, ancestors: Path | None = None) -> Comparison:
    """Compare two submissions on the same truth; groups are those of `evaluate`, or the families in a csv.

    Args:
        truth: as `evaluate` takes it.
        ancestors: a csv id,ancestor_id,parent_id that names every notebook.

    Raises:
        DataError: a submission, the truth or the csv is not as it must be.
    """
    first, second = submission_ranks(a, truth), submission_ranks(b, truth)
    families = {} if ancestors is None else _read_ancestors(ancestors, first.ids)
    group_by = "notebook" if ancestors is None and first.groups == first.ids else "ancestor"
    return _compare(str(a), str(b), _scored(first, families), _scored(second, families), group_by)


def _scored(ranks: PredictedRanks, families: dict[str, str]) -> ScoredNotebooks:
    groups = [families.get(id_, group) for id_, group in zip(ranks.ids, ranks.groups, strict=True)]
    inversions = inversions_per_segment(ranks.true_rank, ranks.offsets)
    return ScoredNotebooks(ranks.ids, groups, np.diff(ranks.offsets), inversions)


def _compare(name_a: str, name_b: str, a: ScoredNotebooks, b: ScoredNotebooks, group_by: str) -> Comparison:
    if a.ids != b.ids or not np.array_equal(a.lengths, b.lengths) or a.groups != b.groups:
        only_a, only_b = set(a.ids) - set(b.ids), set(b.ids) - set(a.ids)
        raise DataError(
            f"{name_a} and {name_b}: found other scored notebooks: {len(only_a)} in the first only, {len(only_b)} in "
            "the second only\n  expected: the same notebooks, cells and families\n"
            "  do: score both on the same notebooks, such as all folds of one --data"
        )
    # tau is 1 - 4 S / P with P = n (n - 1); a notebook of one cell has no pairs and no weight.
    pairs = a.lengths * (a.lengths - 1)
    difference, low, high = bootstrap_paired_ratio(
        a.inversions,
        b.inversions,
        pairs,
        np.array(a.groups),
        transform=lambda lost: 1.0 - 4.0 * lost,
        limits=(-1.0, 1.0),
    )
    return Comparison(
        metric="tau",
        a=name_a,
        b=name_b,
        score_a=kendall_tau_pooled(a.inversions, a.lengths),
        score_b=kendall_tau_pooled(b.inversions, b.lengths),
        difference=difference,
        interval=(low, high),
        n=len(a.ids),
        group_by=group_by,
        n_groups=len(set(a.groups)),
    )


def _read_ancestors(path: Path, ids: list[str]) -> dict[str, str]:
    columns = read_csv(path, None, ANCESTOR_COLUMNS)
    problems = Problems(path, "one row a notebook, with its ancestor_id", "give the train_ancestors.csv of the truth")
    families = keyed(problems, path.name, columns["id"], columns["ancestor_id"])
    for id_ in ids:
        if not families.get(id_, "").strip():
            problems.add(f"notebook {id_}", "no ancestor_id")
    problems.raise_if_any()
    return families


def _short(prints: dict[str, str]) -> str:
    return ", ".join(f"{split} {digest[:12]}" for split, digest in prints.items())
