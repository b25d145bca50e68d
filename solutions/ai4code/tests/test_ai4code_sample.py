"""The generated sample: official layout, learnable, the same for the same seed, no module on both sides."""

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from ai4code import sample
from ai4code.data import Notebooks, load, splits_in
from ai4code.sample import write_sample
from ai4code.submission import check_submission, read_orders, submission_ranks
from kit_core.errors import ConfigError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "out"
    summary = write_sample(out)
    assert (summary.train, summary.test) == (128, 32)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def tau(true_rank: np.ndarray, offsets: np.ndarray) -> float:
    """The competition's formula, pair by pair."""
    inversions = sum(
        np.count_nonzero(true_rank[i] > true_rank[i:stop])
        for start, stop in pairwise(offsets.tolist())
        for i in range(start, stop)
    )
    lengths = np.diff(offsets)
    return float(1 - 4 * inversions / np.sum(lengths * (lengths - 1)))


def placed(notebooks: Notebooks, places: list[np.ndarray]) -> float:
    """Tau when each markdown cell gets a place on the axis of code cells, code cell j standing at j."""
    assert notebooks.true_rank is not None
    orders = []
    for i, (start, stop) in enumerate(pairwise(notebooks.offsets.tolist())):
        axis = np.concatenate([np.arange(notebooks.n_code[i]), places[i]])
        orders.append(notebooks.true_rank[start:stop][np.argsort(axis, kind="stable")])
    return tau(np.concatenate(orders), notebooks.offsets)


def test_official_layout(written: Path) -> None:
    assert splits_in(written) == ("train", "test")
    names = {path.name for path in written.iterdir()}
    official = {"train", "test", "train_orders.csv", "train_ancestors.csv", "sample_submission.csv"}
    assert names == official | {"test_orders.csv"}
    train, test = load(written, "train"), load(written, "test")
    assert (len(train), len(test)) == (128, 32)
    assert test.true_rank is None
    assert not set(train.ids) & set(test.ids)
    for notebooks in (train, test):
        assert notebooks.lengths.min() >= sample.MIN_CELLS
        assert notebooks.lengths.max() <= sample.MAX_CELLS
        assert min(notebooks.n_code.min(), notebooks.n_markdown.min()) >= 1
        assert all(text.strip() for text in notebooks.sources.to_pylist())
        assert all(len(id_) == 14 and int(id_, 16) >= 0 for id_ in notebooks.ids)
        assert all(len(cell) == 8 and int(cell, 16) >= 0 for cell in notebooks.cell_ids.to_pylist())
    assert len(set(train.ancestors or ())) >= 32


def test_sample_submission_is_the_order_as_given_and_the_hidden_truth_fits(written: Path) -> None:
    test = load(written, "test")
    orders = check_submission(written / "sample_submission.csv", test)
    assert list(orders.values()) == [test.cells(i) for i in range(len(test))]
    packed = submission_ranks(written / "sample_submission.csv", written)
    assert tau(packed.true_rank, packed.offsets) < 0.35
    best = submission_ranks(written / "test_orders.csv", written)
    assert tau(best.true_rank, best.offsets) == 1.0
    assert read_orders(written / "test_orders.csv").keys() == set(test.ids)


def test_no_module_on_both_sides_and_ancestors_are_modules(written: Path) -> None:
    module_of = {
        sample._hex(f"0 {module} {part}", 14): module
        for module in sample._modules()
        for part in range(sample.MODULE_NOTEBOOKS)
    }
    train, test = load(written, "train"), load(written, "test")
    assert not {module_of[i] for i in train.ids} & {module_of[i] for i in test.ids}
    pairs = {(module_of[i], ancestor) for i, ancestor in zip(train.ids, train.ancestors or (), strict=True)}
    assert len(pairs) == len({module for module, _ in pairs}) == len({ancestor for _, ancestor in pairs})


def test_similarity_finds_the_place(written: Path) -> None:
    train = load(written)
    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"[A-Za-z]+").fit_transform(train.sources.to_pylist())
    nearest = []
    for i, (start, stop) in enumerate(pairwise(train.offsets.tolist())):
        middle = start + int(train.n_code[i])
        similarity = (vectors[middle:stop] @ vectors[start:middle].T).toarray()
        nearest.append(similarity.argmax(axis=1) - 0.5)
    as_given = placed(train, [np.full(m, np.inf) for m in train.n_markdown])
    middle_of_all = placed(
        train, [np.full(m, (c - 1) / 2) for m, c in zip(train.n_markdown, train.n_code, strict=True)]
    )
    similar = placed(train, nearest)
    assert as_given < 0.35
    assert 0.4 < middle_of_all < 0.6
    assert similar > middle_of_all + 0.15


def test_same_seed_same_files_other_seed_other_notebooks(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sample(tmp_path / name, notebooks=20, seed=seed)
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    assert not {name for name in a if name.endswith(".json")} & set(c)
    assert len(a) == 24


def test_no_path_of_this_machine_in_it(written: Path) -> None:
    roots = {str(file.parent).encode() for file in sample._modules().values()}
    text = b"".join(files(written).values())
    assert not [root for root in roots if root in text]


def test_markdown_order_says_nothing(written: Path) -> None:
    """Markdown is shuffled: its json order and its true order agree no better than chance."""
    train = load(written)
    assert train.true_rank is not None
    agreeing = [
        np.corrcoef(train.true_rank[stop - m : stop], np.arange(m))[0, 1]
        for stop, m in zip(train.offsets[1:], train.n_markdown, strict=True)
        if m >= 5
    ]
    assert abs(np.mean(agreeing)) < 0.15


def test_refusals_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="found 9, expected at least 10"):
        write_sample(tmp_path / "few", notebooks=9)
    modules = dict(sorted(sample._modules().items())[:40])
    monkeypatch.setattr(sample, "_modules", lambda: modules)
    with pytest.raises(ConfigError, match="found 1000, expected at most"):
        write_sample(tmp_path / "many", notebooks=1_000)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError):
        write_sample(tmp_path / "full", notebooks=10)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert files(tmp_path / "full") == {"mine.txt": b"kept"}


def test_notebook_of_a_small_module(tmp_path: Path) -> None:
    """By hand: heading, description, code with a comment turned to text, examples."""
    source = '''"""Sums of things.

More about sums.
"""
import math


def total(values):
    """Add all the values of a list together.

    Nothing is rounded.

    Examples
    --------
    Two numbers make one:

    >>> total([1, 2])
    3
    """
    result = 0
    # Start from nothing and add one value after the other.
    for value in values:
        result += value  # short
    return result


def hidden(): return 1
'''
    (tmp_path / "sums.py").write_text(source)
    (tmp_path / "broken.py").write_text("def (:")
    rng = random.Random(0)
    assert list(sample._notebooks("broken", tmp_path / "broken.py", rng)) == []
    assert list(sample._notebooks("sums", tmp_path / "sums.py", rng)) == [
        [
            ("markdown", "# Sums of things.\n\nMore about sums."),
            ("code", "import math"),
            ("markdown", "## total\n\nAdd all the values of a list together."),
            ("markdown", "Nothing is rounded."),
            ("code", "def total(values):\n    result = 0"),
            ("markdown", "Start from nothing and add one value after the other."),
            ("code", "for value in values:\n    result += value  # short\nreturn result"),
            ("markdown", "Two numbers make one:"),
            ("code", "total([1, 2])"),
        ]
    ]
    assert json.dumps(sample._official([("code", "x")], rng)[0]).startswith('{"cell_type": {"')
