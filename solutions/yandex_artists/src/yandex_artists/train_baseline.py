"""From tracks to a run folder without a network, in order: folds → time means → trees → galleries → summary.

Everything is computed from the data and the seed in seconds to minutes, so that `--resume` begins a stopped run anew.

The trees that score a fold learn from its training tracks alone: these are halved, by official directories or else by
artists, and each half is a gallery ranked by means whose whitening was fitted on the other half. The models of a fold
are kept in `models/foldK`, and beside them what was fitted to all tracks in the same way, for data of other artists.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit_core.console import say
from kit_core.errors import ConfigError
from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_metrics import ndcg_per_query
from kit_retrieval import top_k
from kit_splits.folds import count_groups, group_folds
from yandex_artists.baseline import (
    BaselineRun,
    CandidateTable,
    Reranker,
    candidate_table,
    fit_encoders,
)
from yandex_artists.compare import GROUP_BY
from yandex_artists.config import Config
from yandex_artists.data import Tracks
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

    # 1. Rank every left-out fold by what was fitted to the others.
    galleries: list[Gallery] = []
    held_rows: dict[int, Int64] = {}
    for fold in folds_to_fit(config.data):
        if fold is None:
            continue
        split = split_fold(tracks.artists, folds, fold)
        fitted = _fit(config, tracks, split.fitted)
        fitted.save(run.file("models", f"fold{fold}", "x").parent)
        pack, rows = tracks.pack, tracks.rows[split.held]
        if distractors is not None:
            items = [tracks.pack.item(row) for row in rows] + [distractors.pack.item(row) for row in distractors.rows]
            pack, rows = RaggedPack.from_items(items), np.arange(len(items))
        ways = _ways_to_rank(fitted, pack, rows, min(METRIC_K, len(rows) - 1))
        labels = np.full(len(rows), tracks.artists.max() + 1)
        labels[: len(split.held)] = tracks.artists[split.held]
        queries = np.arange(len(split.held))
        scores = {
            way: ndcg_per_query(found[queries], labels, queries=queries, k=METRIC_K) for way, found in ways.items()
        }
        galleries.append(Gallery(scores, labels[queries], len(labels)))
        held_rows[fold] = split.held
        found = {way: round(mean_score(score), 4) for way, score in scores.items()}
        run.log(fold=fold, gallery=len(labels), **{"ndcg@100": found})
        say(f"fold {fold}: gallery of {len(labels)} tracks, nDCG@100 {found}")
    if galleries:
        keep_scores(run, tracks, held_rows, galleries)

    # 2. What inference uses: everything fitted to all tracks.
    whole = _fit(config, tracks, np.arange(len(tracks)))
    whole.save(run.file("models", "x").parent)
    summary = (
        summarise(config, galleries)
        | vars(counts)
        | {"parameters": whole.parameters, "seconds": round(time.monotonic() - started, 1)}
    )
    run.finish(summary)
    return summary


def _ways_to_rank(fitted: BaselineRun, pack: RaggedPack, rows: Int64, k: int) -> dict[str, Int64]:
    """The `k` nearest of each track among `rows` of the pack, int64[n, k], and what the method starts from."""
    if fitted.reranker is not None:
        table = candidate_table(fitted.views(pack, rows), fitted.config.trees.candidates)
        return {
            "score": fitted.reranker.rerank(table).indices[:, :k],
            "by the mean cosine": table.neighbours.indices[:, :k],
        }
    ways = {"score": fitted.neighbours(pack, rows, k)}
    if fitted.config.method == "frame-matching":
        ways["by one vector a track"] = top_k(fitted.embed(pack, rows), k=k).indices
    return ways


def _fit(config: Config, tracks: Tracks, fitted: Int64) -> BaselineRun:
    """Fit a method to the tracks at positions `fitted`; no other track is looked at."""
    encoders = fit_encoders(config, tracks, fitted)
    if config.method != "lightgbm-rerank":
        return BaselineRun(config, encoders, None)
    assert tracks.artists is not None
    artists = tracks.artists[fitted]
    directories = artists if tracks.folds is None else tracks.folds[fitted]
    halves = group_folds(directories if len(np.unique(directories)) > 1 else artists, 2, seed=config.seed)
    learnt = []
    for half in (0, 1):
        gallery = fitted[halves == half]
        of_others = fit_encoders(config, tracks, fitted[halves != half])
        views = [encoder.embed(tracks.pack, tracks.rows[gallery]) for encoder in of_others]
        learnt.append((candidate_table(views, config.trees.candidates), artists[halves == half]))
    return BaselineRun(config, encoders, _fit_trees(config, learnt))


def _fit_trees(config: Config, learnt: Sequence[tuple[CandidateTable, Int64]]) -> Reranker:
    settings = config.trees
    tables, artists = zip(*learnt, strict=True)
    return Reranker.fit(
        tables,
        artists,
        rounds=settings.rounds,
        learning_rate=settings.learning_rate,
        leaves=settings.leaves,
        smallest_leaf=settings.smallest_leaf,
        seed=config.seed,
    )
