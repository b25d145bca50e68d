"""Generated rows in the official layout: scores on them say that the program works, nothing else."""

from pathlib import Path

import numpy as np

from kit_core.atomic import atomic_dir
from kit_core.errors import ConfigError
from kit_io.tables import write_csv
from new_solution.data import COLUMNS, FEATURES, SUBMISSION_COLUMNS

LABELS = 4
ROWS_OF_A_GROUP = 3
FEWEST_ROWS = 60


def write_sample(out: Path, rows: int = 400, seed: int = 0) -> str:
    """Write `rows` rows, a quarter of them as test, into the new folder `out`; the same seed gives the same files.

    Beside the official files lies test_truth.csv, the answers that a competition would hide.

    Raises:
        ConfigError: `out` exists and is not empty, or there are too few rows.
    """
    if rows < FEWEST_ROWS:
        raise ConfigError(f"rows: found {rows}, expected at least {FEWEST_ROWS}")
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1.6, (LABELS, len(FEATURES)))
    labels = np.arange(rows) // ROWS_OF_A_GROUP % LABELS  # a group has one label
    values = centres[labels] + rng.normal(0, 1, (rows, len(FEATURES)))
    texts = [[f"{value:.4f}" for value in row] for row in values]
    names = [f"{number:06d}" for number in rng.permutation(rows)]
    n_test = rows // 4
    with atomic_dir(out) as folder:
        train = [
            [names[i], f"g{i // ROWS_OF_A_GROUP}", *texts[i], str(labels[i])] for i in range(rows - n_test)
        ]  # fmt: skip
        test = [[names[i], *texts[i]] for i in range(rows - n_test, rows)]
        write_csv(folder / "train.csv", COLUMNS["train"], train)
        write_csv(folder / "test.csv", COLUMNS["test"], test)
        truth = [[names[i], str(labels[i])] for i in range(rows - n_test, rows)]
        write_csv(folder / "test_truth.csv", SUBMISSION_COLUMNS, truth)
    return f"{out}: {rows - n_test} rows of train, {n_test} of test"
