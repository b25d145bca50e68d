"""The gradient-boosted models (LightGBM): position regressor, listwise ranker, gap classifier, joint gap classifier.

Every class has `fit` (looks at the true order of the view's notebooks), `place`, `save` and `load`. A notebook without
code has one gap, and one without markdown nothing to place: neither teaches the gap models anything, nor asks them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import lightgbm as lgb
import numpy as np

from ai4code.config import PairsConfig, TreesConfig
from ai4code.decode import Placement
from ai4code.features import View
from ai4code.relations import relation_block
from kit_core.atomic import write_text

BlockSource = Callable[[int], np.ndarray]  # notebook -> [n_markdown, n_code + 1, features]
RANK_LEVELS = 31  # labels 0..30: LightGBM's own table of gains ends there


def _parameters(config: TreesConfig, objective: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "objective": objective,
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.smallest_leaf,
        "feature_fraction": config.feature_share,
        "bagging_fraction": config.row_share,
        "bagging_freq": 1,
        "lambda_l2": config.l2,
        "max_bin": config.bins,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,  # a fixed choice, since LightGBM's own depends on a timing
        "verbose": -1,
    } | more


def _trivial(view: View, index: int) -> Placement | None:
    """The only answer for a notebook without code or markdown."""
    n_code, n_markdown = view.n_code(index), int(view.table.notebooks.n_markdown[index])
    if n_code and n_markdown:
        return None
    return Placement.from_gap_scores(np.ones((n_markdown, n_code + 1)))


@dataclass(frozen=True)
class Position:
    """Least-absolute-deviation regression of each markdown cell's relative place.

    A cell that is d gaps off costs d inversions, whatever the length of the notebook; so cells of long notebooks weigh
    more, by their number of code cells, as in the pooled metric.
    """

    booster: lgb.Booster

    @classmethod
    def fit(cls, view: View, config: TreesConfig, seed: int) -> Self:
        """Learn from the markdown cells of the view."""
        n_code = np.repeat(view.table.notebooks.n_code[view.indices], np.diff(view.offsets))
        rows = view.is_markdown & (n_code > 0)
        target = view.true_gap[rows] / n_code[rows]
        weight = n_code[rows] / n_code[rows].mean()
        data = lgb.Dataset(view.markdown_features[rows[view.is_markdown]], target, weight=weight)
        return cls(lgb.train(_parameters(config, "regression_l1", seed), data, config.rounds))

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""
        share = np.zeros(len(view.rows))
        share[view.is_markdown] = _predict(self.booster, view.markdown_features)
        placements = []
        for index, start, stop in zip(view.indices, view.offsets[:-1], view.offsets[1:], strict=True):
            n_code = view.n_code(index)
            placements.append(Placement(np.clip(share[start + n_code : stop], 0.0, 1.0) * n_code))
        return placements

    def save(self, folder: Path) -> None:
        """Write the trees as LightGBM's text."""
        write_text(folder / "position.txt", self.booster.model_to_string())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(_booster(folder / "position.txt"))


@dataclass(frozen=True)
class Ranker:
    """LambdaRank over all cells of a notebook, code cells among them.

    The scores of the code cells are sorted into their known order and serve as the scale on which the markdown cells
    are placed.
    """

    booster: lgb.Booster

    @classmethod
    def fit(cls, view: View, config: TreesConfig, seed: int) -> Self:
        """Learn from all cells of the view; the label is the relative place in the true order, the later the higher."""
        notebooks = view.table.notebooks
        assert notebooks.true_rank is not None
        sizes = np.diff(view.offsets)
        last = np.repeat(np.maximum(sizes - 1, 1), sizes)
        label = np.rint(notebooks.true_rank[view.rows] / last * (RANK_LEVELS - 1)).astype(np.int64)
        data = lgb.Dataset(view.cell_features, label, group=sizes[sizes > 0])
        parameters = _parameters(
            config,
            "lambdarank",
            seed,
            label_gain=list(range(RANK_LEVELS)),  # a place further is a place further, anywhere in the notebook
            lambdarank_truncation_level=int(sizes.max()),
        )
        return cls(lgb.train(parameters, data, config.rounds))

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""
        score = _predict(self.booster, view.cell_features)
        placements = []
        for index, start, stop in zip(view.indices, view.offsets[:-1], view.offsets[1:], strict=True):
            n_code = view.n_code(index)
            code, markdown = np.sort(score[start : start + n_code]), score[start + n_code : stop]
            placements.append(Placement(between(code, markdown)))
        return placements

    def save(self, folder: Path) -> None:
        """Write the trees as LightGBM's text."""
        write_text(folder / "ranker.txt", self.booster.model_to_string())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(_booster(folder / "ranker.txt"))


def between(code: np.ndarray, markdown: np.ndarray) -> np.ndarray:
    """Gap of each markdown score among ascending code scores, with a fraction in −½..½ that keeps their own order."""
    gap = np.searchsorted(code, markdown).astype(np.float64)
    rank = np.argsort(np.argsort(markdown, kind="stable"), kind="stable")
    return gap + (rank / max(len(markdown), 1) - 0.5) * 0.98


@dataclass(frozen=True)
class Gaps:
    """A classifier of pairs: does this markdown cell stand in this gap? Normalised over the gaps of the notebook."""

    booster: lgb.Booster

    @classmethod
    def fit(cls, view: View, config: TreesConfig, pairs: PairsConfig, seed: int) -> Self:
        """Learn from the true pair of each markdown cell, its neighbours and a draw of the others."""
        data = _pair_data(view, pairs, seed, view.gap_block)
        return cls(lgb.train(_parameters(config, "binary", seed), data, config.rounds))

    def place(self, view: View) -> list[Placement]:
        """Answer every notebook of the view."""
        return [
            _trivial(view, index) or _classify(self.booster, view.gap_block(index)) for index in view.indices.tolist()
        ]

    def save(self, folder: Path) -> None:
        """Write the trees as LightGBM's text."""
        write_text(folder / "gaps.txt", self.booster.model_to_string())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(_booster(folder / "gaps.txt"))


@dataclass(frozen=True)
class Joint:
    """The gap classifier once more, now knowing what the first one said of ALL markdown cells of the notebook.

    So it sees which gaps are taken, where similar cells went, and whether numbered headings would stand in order.
    """

    booster: lgb.Booster

    @classmethod
    def fit(cls, view: View, first: Sequence[Placement], config: TreesConfig, pairs: PairsConfig, seed: int) -> Self:
        """Learn as `Gaps` does; `first` are its answers for the view, each from a model not fitted on that notebook."""
        blocks = _joint_blocks(view, first)
        data = _pair_data(view, pairs, seed, blocks)
        return cls(lgb.train(_parameters(config, "binary", seed), data, config.rounds))

    def place(self, view: View, first: Sequence[Placement]) -> list[Placement]:
        """Answer every notebook of the view, given the first answers."""
        blocks = _joint_blocks(view, first)
        return [_trivial(view, index) or _classify(self.booster, blocks(index)) for index in view.indices.tolist()]

    def place_after(self, view: View, gaps: Gaps) -> list[Placement]:
        """Answer every notebook of the view as `place(view, gaps.place(view))` does, with its pairs described once."""
        placements = []
        for index in view.indices.tolist():
            if (answer := _trivial(view, index)) is None:
                block = view.gap_block(index)
                first = _classify(gaps.booster, block).gap_probability
                assert first is not None
                related = np.concatenate([block, relation_block(view, index, first)], axis=-1)
                answer = _classify(self.booster, related)
            placements.append(answer)
        return placements

    def save(self, folder: Path) -> None:
        """Write the trees as LightGBM's text."""
        write_text(folder / "joint.txt", self.booster.model_to_string())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(_booster(folder / "joint.txt"))


def _joint_blocks(view: View, first: Sequence[Placement]) -> BlockSource:
    answer = dict(zip(view.indices.tolist(), first, strict=True))

    def block(index: int) -> np.ndarray:
        probability = answer[index].gap_probability
        assert probability is not None
        return np.concatenate([view.gap_block(index), relation_block(view, index, probability)], axis=-1)

    return block


def _pair_data(view: View, pairs: PairsConfig, seed: int, block_of: BlockSource) -> lgb.Dataset:
    """Sample pairs notebook by notebook; a drawn far pair stands for those left out, by its weight."""
    rng = np.random.default_rng(seed)
    features, labels, weights = [], [], []
    for index, start, stop in zip(view.indices.tolist(), view.offsets[:-1], view.offsets[1:], strict=True):
        n_code = view.n_code(index)
        if n_code == 0 or stop - start == n_code:
            continue
        distance = np.abs(np.arange(n_code + 1)[None, :] - view.true_gap[start + n_code : stop][:, None])
        share = min(1.0, pairs.far / (n_code + 1))
        drawn = rng.random(distance.shape) < share
        near = distance <= pairs.near
        kept = near | drawn
        features.append(block_of(index)[kept])
        labels.append(distance[kept] == 0)
        weights.append(np.where(near, 1.0, 1.0 / share)[kept])
    return lgb.Dataset(np.concatenate(features), np.concatenate(labels), weight=np.concatenate(weights))


def _classify(booster: lgb.Booster, block: np.ndarray) -> Placement:
    score = booster.predict(block.reshape(-1, block.shape[-1]))
    return Placement.from_gap_scores(np.asarray(score, dtype=np.float64).reshape(block.shape[:2]))


def _predict(booster: lgb.Booster, features: np.ndarray) -> np.ndarray:
    """Predict rows; LightGBM refuses a table of none."""
    return np.asarray(booster.predict(features)) if len(features) else np.zeros(0)


def _booster(path: Path) -> lgb.Booster:
    """Read trees; a text that is not whole is refused here, because LightGBM ends the process over one.

    Raises:
        ValueError: the file is damaged.
    """
    text = path.read_text(encoding="utf-8")
    sizes = re.search(r"^tree_sizes=([\d ]*)$", text, flags=re.M)
    start, stop = text.find("Tree=0\n"), text.find("end of trees\n")
    if not text.startswith("tree\n") or sizes is None or sum(map(int, sizes[1].split())) != stop - start:
        raise ValueError(f"{path.name}: found no whole model of LightGBM")
    return lgb.Booster(model_str=text)
