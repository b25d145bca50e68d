"""From tracks to a run folder without a network, in order: folds → time means → trees → galleries → summary.

Everything is computed from the data and the seed in seconds to minutes, so that `--resume` begins a stopped run anew.

The trees that score a fold have learnt from the galleries of the other folds, each ranked by means whose whitening has
not seen it. The run keeps a whitening of all tracks and trees of all galleries, for data of other artists.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit_core.console import say
from kit_core.errors import ConfigError
from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_metrics import ndcg_per_query
from kit_retrieval import top_k
from kit_splits.folds import count_groups
from yandex_artists.baseline import (
    BaselineRun,
    CandidateTable,
    Reranker,
    candidate_table,
    fit_encoders,
    match,
)
from yandex_artists.compare import GROUP_BY
from yandex_artists.config import Config
from yandex_artists.data import Tracks
from yandex_artists.frame_matching import FrameMatcher
from yandex_artists.train import (
    METRIC_K,
    Gallery,
    assign_folds,
    folds_to_fit,
    keep_scores,
    mean_score,
    require_same_channels,
    split_fold,
    summarise,
)

Int64 = NDArray[np.int64]


def train_baseline(config: Config, tracks: Tracks, run: RunFolder, distractors: Tracks | None = None) -> dict[str, Any]:
    """Rank every left-out fold by a method without a network, and finish the run.

    Args:
        config: with a method other than "networks".
        tracks: a train split.
        run: an open run folder.
        distractors: tracks that join every gallery that is scored, under artists that nobody asks for.

    Returns:
        The summary, as written to `summary.json`; its keys are those of `yandex_artists.train.summarise`.

    Raises:
        ConfigError: no artists, fewer artists than folds, or distractors of other features.
    """
    started = time.monotonic()
    if tracks.artists is None:
        raise ConfigError("training needs a train split, with artistid in its meta file")
    require_same_channels(tracks, distractors)
    folds = assign_folds(tracks, config.data)
    counts = count_groups(tracks.artists, GROUP_BY)
    say(str(counts))
    with_trees = config.method == "lightgbm-rerank"

    # 1. The gallery of every fold, by encoders that have not seen it. Trees need all of them, whatever fold is scored.
    left_out = folds_to_fit(config.data)
    needed = list(range(config.data.n_folds)) if with_trees else [fold for fold in left_out if fold is not None]
    learnt: dict[int, tuple[CandidateTable, Int64]] = {}  # without distractors: nobody knows who made those
    scored: dict[int, list[NDArray[np.float32]]] = {}
    matched: dict[int, Int64] = {}
    for fold in needed:
        split = split_fold(tracks.artists, folds, fold)
        encoders = fit_encoders(config, tracks, split.fitted)
        views = [encoder.embed(tracks.pack, tracks.rows[split.held]) for encoder in encoders]
        if with_trees:
            learnt[fold] = candidate_table(views, config.trees.candidates), tracks.artists[split.held]
        if distractors is not None:
            more = [encoder.embed(distractors.pack, distractors.rows) for encoder in encoders]
            views = [np.concatenate(pair) for pair in zip(views, more, strict=True)]
        scored[fold] = views
        if isinstance(encoders[0], FrameMatcher):
            pack, rows = tracks.pack, tracks.rows[split.held]
            if distractors is not None:
                items = [tracks.pack.item(row) for row in rows] + [distractors.pack.item(r) for r in distractors.rows]
                pack, rows = RaggedPack.from_items(items), np.arange(len(items))
            matched[fold] = match(config, encoders[0], pack, rows, min(METRIC_K, len(rows) - 1))

    # 2. Rank what is left out.
    galleries = []
    held_rows: dict[int, Int64] = {}
    for fold in [fold for fold in left_out if fold is not None]:
        held = split_fold(tracks.artists, folds, fold).held
        views = scored[fold]
        labels = np.full(len(views[0]), tracks.artists.max() + 1)
        labels[: len(held)] = tracks.artists[held]
        k = min(METRIC_K, len(labels) - 1)
        ways = {}
        if with_trees:
            trees = _fit_trees(config, {other: pair for other, pair in learnt.items() if other != fold})
            table = learnt[fold][0] if distractors is None else candidate_table(views, config.trees.candidates)
            ways["score"] = trees.rerank(table).indices[:, :k]
            ways["by the mean cosine"] = table.neighbours.indices[:, :k]
        elif fold in matched:
            ways["score"] = matched[fold]
            ways["by one vector a track"] = top_k(views[0], k=k).indices
        else:
            ways["score"] = top_k(views[0], k=k).indices
        queries = np.arange(len(held))
        scores = {
            way: ndcg_per_query(found[: len(held)], labels, queries=queries, k=METRIC_K) for way, found in ways.items()
        }
        galleries.append(Gallery(scores, labels[: len(held)], len(labels)))
        held_rows[fold] = held
        found = {way: round(mean_score(score), 4) for way, score in scores.items()}
        run.log(fold=fold, gallery=len(labels), **{"ndcg@100": found})
        say(f"fold {fold}: gallery of {len(labels)} tracks, nDCG@100 {found}")

    if galleries:
        keep_scores(run, tracks, held_rows, galleries)

    # 3. What inference uses: everything learnt from all tracks.
    encoders = fit_encoders(config, tracks, np.arange(len(tracks)))
    reranker = _fit_trees(config, learnt) if with_trees else None
    fitted = BaselineRun(config, encoders, reranker)
    fitted.save(run.file("models", "x").parent)
    summary = (
        summarise(config, galleries)
        | vars(counts)
        | {"parameters": fitted.parameters, "seconds": round(time.monotonic() - started, 1)}
    )
    run.finish(summary)
    return summary


def _fit_trees(config: Config, learnt: dict[int, tuple[CandidateTable, Int64]]) -> Reranker:
    settings = config.trees
    return Reranker.fit(
        [table for table, _ in learnt.values()],
        [artists for _, artists in learnt.values()],
        rounds=settings.rounds,
        learning_rate=settings.learning_rate,
        leaves=settings.leaves,
        smallest_leaf=settings.smallest_leaf,
        seed=config.seed,
    )
