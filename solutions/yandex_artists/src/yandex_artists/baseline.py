"""The methods without a network: time means, plain or whitened, trees that put the nearest tracks in a new order, and
tracks compared frame by frame (`frame_matching`).

    encoder = MeanEncoder.fit(pack, rows, whiten=True)
    table = candidate_table([encoder.embed(pack, rows)], k=100)
    better = Reranker.fit([table], [artists]).rerank(table)

`BaselineRun` reads a finished run of these methods; `yandex_artists.train_baseline` writes one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from kit_core.atomic import write_bytes, write_text
from kit_core.config import config_from_dict
from kit_core.errors import DataError
from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_retrieval import Neighbours, Whitening, concatenate, l2_normalise, reorder, top_k
from yandex_artists.config import Config
from yandex_artists.data import Tracks
from yandex_artists.frame_matching import FrameMatcher

Floats = NDArray[np.float32]
Int64 = NDArray[np.int64]

TRACKS_AT_ONCE = 512  # 85 MB of official frames
CLOSE = 10  # an artist has at most so many tracks: the size of the neighbourhoods that features are made of
SHARED = 20  # of neighbourhoods that two tracks may share
POWER, SHRINKAGE = 0.5, 0.1  # of the whitening: half of it, and of variances towards their mean
WHITENING, TREES = "whitening.safetensors", "trees.txt"


def time_means(pack: RaggedPack, rows: Int64) -> Floats:
    """The mean frame of tracks, float32[n, channels], computed in float64."""
    out = np.empty((len(rows), pack.dim), dtype=np.float32)
    for start in range(0, len(rows), TRACKS_AT_ONCE):
        values, lengths = pack.gather(rows[start : start + TRACKS_AT_ONCE])
        out[start : start + len(lengths)] = values.sum(axis=1, dtype=np.float64) / lengths[:, None]
    return out


@dataclass(frozen=True, eq=False)
class MeanEncoder:
    """Tracks as time means at length 1; with `whitening`, after it."""

    whitening: Whitening | None

    @staticmethod
    def fit(pack: RaggedPack, rows: Int64, *, whiten: bool) -> "MeanEncoder":
        """Learn from tracks, items `rows` of the pack; nothing without `whiten`, as in the official naive baseline."""
        if not whiten:
            return MeanEncoder(None)
        return MeanEncoder(Whitening.fit(time_means(pack, rows), power=POWER, shrinkage=SHRINKAGE))

    def embed(self, pack: RaggedPack, rows: Int64) -> Floats:
        """Embeddings float32[n, d] of tracks.

        Raises:
            DataError: the tracks have another number of channels than those that were learnt from.
        """
        if self.whitening is not None and len(self.whitening.mean) != pack.dim:
            raise DataError(
                f"found tracks of {pack.dim} channels, expected {len(self.whitening.mean)} as in training\n"
                "  do: give data made by the same feature extractor, or train on these"
            )
        means = time_means(pack, rows)
        return l2_normalise(means if self.whitening is None else self.whitening.apply(means))

    def arrays(self) -> dict[str, Floats]:
        """What `restore` needs; empty where nothing was learnt."""
        return {} if self.whitening is None else {"mean": self.whitening.mean, "projection": self.whitening.projection}

    @staticmethod
    def restore(arrays: Mapping[str, Floats]) -> "MeanEncoder":
        """The encoder that `arrays` came from."""
        return MeanEncoder(Whitening(arrays["mean"], arrays["projection"]) if arrays else None)


# ---------------------------------------------------------------------------------------------------------------------
# Re-ranking by trees


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """The nearest tracks of every query, and what is known of each pair: `features` float32[n * k, number of names]."""

    neighbours: Neighbours
    features: Floats
    names: tuple[str, ...]


def candidate_table(views: Sequence[Floats], k: int = 100) -> CandidateTable:
    """The `k` nearest of every track by the mean cosine of all views, with features of each pair.

    Per view: the cosine, how far it lies above what is usual for the query and for the candidate (mean of their
    ten best), and the ranks of each in the other's list, as reciprocals. Of all views together: the same, how often the
    candidate is among anybody's ten nearest (a hub), and how many of their 20 nearest the two share.

    Args:
        views: float32[n, d] of the same n tracks, by one or more models.
        k: cut to n - 1.
    """
    joined = concatenate(views)
    k = min(k, len(joined) - 1)
    candidates = top_k(joined, k=k)
    columns: dict[str, NDArray[np.floating]] = {}
    sources = {"all": joined} | (
        {f"view {i}": l2_normalise(view) for i, view in enumerate(views)} if len(views) > 1 else {}
    )
    for name, view in sources.items():
        own = candidates if name == "all" else top_k(view, k=k)
        usual = own.scores[:, : min(CLOSE, k)].mean(axis=1)
        cosine = candidates.scores if name == "all" else _cosines(view, candidates.indices)
        columns |= {
            f"{name}: cosine": cosine,
            f"{name}: above the query's usual": cosine - usual[:, None],
            f"{name}: above the candidate's usual": cosine - usual[candidates.indices],
            f"{name}: 1 / rank for the query": _reciprocal_ranks(own.indices, candidates.indices),
            f"{name}: 1 / rank for the candidate": _reciprocal_ranks(own.indices, candidates.indices, backwards=True),
        }
    close = candidates.indices[:, : min(CLOSE, k)]
    popularity = np.bincount(close.reshape(-1), minlength=len(joined)) / close.shape[1]
    columns["hub: how often among anybody's ten nearest"] = popularity[candidates.indices]
    columns["shared neighbours"] = _shared(candidates.indices[:, : min(SHARED, k)], candidates.indices)
    features = np.stack([np.asarray(c, dtype=np.float32).reshape(-1) for c in columns.values()], axis=1)
    return CandidateTable(candidates, features, tuple(columns))


def _cosines(x: Floats, indices: Int64) -> Floats:
    out = np.empty(indices.shape, dtype=np.float32)
    for start in range(0, len(x), TRACKS_AT_ONCE):
        part = slice(start, start + TRACKS_AT_ONCE)
        out[part] = np.einsum("nd,nkd->nk", x[part], x[indices[part]])
    return out


def _reciprocal_ranks(lists: Int64, pairs: Int64, *, backwards: bool = False) -> NDArray[np.float64]:
    """1 / the place of the candidate in the query's list, or of the query in the candidate's; 0 where it has none."""
    n, k = lists.shape
    listed = np.repeat(np.arange(n), k) * n + lists.reshape(-1)
    order = np.argsort(listed, kind="stable")
    queries = np.repeat(np.arange(n), pairs.shape[1])
    wanted = pairs.reshape(-1) * n + queries if backwards else queries * n + pairs.reshape(-1)
    place = np.minimum(np.searchsorted(listed, wanted, sorter=order), len(listed) - 1)
    hit = listed[order[place]] == wanted
    return np.where(hit, 1.0 / (order[place] % k + 1), 0.0).reshape(pairs.shape)


def _shared(near: Int64, pairs: Int64) -> NDArray[np.float64]:
    """Share of the nearest of a query that are also among the nearest of the candidate, [n, k]."""
    n, width = near.shape
    out = np.empty(pairs.shape)
    member = np.zeros((TRACKS_AT_ONCE, n), dtype=np.bool_)
    for start in range(0, n, TRACKS_AT_ONCE):
        rows = np.arange(start, min(start + TRACKS_AT_ONCE, n))
        member[:] = False
        np.put_along_axis(member[: len(rows)], near[rows], True, axis=1)
        for column in range(pairs.shape[1]):
            theirs = near[pairs[rows, column]]
            out[rows, column] = np.take_along_axis(member[: len(rows)], theirs, axis=1).sum(axis=1) / width
    return out


@dataclass(frozen=True, eq=False)
class Reranker:
    """LambdaRank over candidate tables; `text` is LightGBM's own form of the trees."""

    text: str

    @staticmethod
    def fit(
        tables: Sequence[CandidateTable],
        artists: Sequence[Int64],
        *,
        rounds: int = 200,
        learning_rate: float = 0.05,
        leaves: int = 15,
        smallest_leaf: int = 50,
        seed: int = 0,
    ) -> "Reranker":
        """Learn from galleries whose artists are known.

        Args:
            tables: one for each gallery, made of vectors by models that have not seen its artists.
            artists: for every table the artist of each of its tracks, int64[n].

        Raises:
            DataError: no query has a candidate of its own artist.

        Source: Burges, From RankNet to LambdaRank to LambdaMART: an overview, 2010, as in LightGBM.
        """
        rows, labels, sizes = [], [], []
        for table, artist in zip(tables, artists, strict=True):
            hits = artist[table.neighbours.indices] == artist[:, None]
            useful = hits.any(axis=1) & ~hits.all(axis=1)  # the others have no order to learn
            rows.append(table.features.reshape(*hits.shape, -1)[useful].reshape(-1, len(table.names)))
            labels.append(hits[useful].reshape(-1))
            sizes += [hits.shape[1]] * int(useful.sum())
        if not sizes:
            raise DataError(
                "no query has a track of its own artist among its candidates\n  expected: artists with two tracks or "
                "more\n  do: give more tracks, or fewer folds"
            )
        names = [name.replace(":", " -").replace(",", " ") for name in tables[0].names]  # LightGBM refuses JSON's signs
        data = lightgbm.Dataset(
            np.concatenate(rows), np.concatenate(labels).astype(np.int32), group=sizes, feature_name=names
        )
        settings = {
            "objective": "lambdarank",
            "learning_rate": learning_rate,
            "num_leaves": leaves,
            "min_data_in_leaf": smallest_leaf,
            "lambdarank_truncation_level": max(sizes),
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        return Reranker(lightgbm.train(settings, data, num_boost_round=rounds).model_to_string())

    def rerank(self, table: CandidateTable) -> Neighbours:
        """The candidates of every query, those of its artist first as far as the trees can tell.

        Raises:
            DataError: the table has other features than the trees have learnt from (made of another number of views).
        """
        booster = lightgbm.Booster(model_str=self.text)
        if booster.num_feature() != table.features.shape[1]:
            raise DataError(
                f"found {table.features.shape[1]} features of each pair, expected {booster.num_feature()}\n"
                "  do: give as many views as in training"
            )
        scores = np.asarray(booster.predict(table.features), dtype=np.float32)
        return reorder(table.neighbours.indices, scores.reshape(table.neighbours.indices.shape))


# ---------------------------------------------------------------------------------------------------------------------
# A run of these methods


@dataclass(frozen=True, eq=False)
class BaselineRun:
    """A fitted baseline: the views that it makes of tracks, and the trees where there are some."""

    config: Config
    encoders: tuple[MeanEncoder | FrameMatcher, ...]
    reranker: Reranker | None

    @staticmethod
    def open(path: Path) -> "BaselineRun":
        """Read a finished run.

        Raises:
            DataError: the run is unfinished, damaged, of another format, or one of networks.
        """
        run = RunFolder.open(path)
        config = config_from_dict(Config, run.config, source=str(path / "config.json"))
        if config.method == "networks":
            raise DataError(f"{path}: found a run of networks, expected one of a baseline")
        models = path / "models"
        try:
            arrays = {} if config.method == "naive" else load_file(models / WHITENING)
            text = (models / TREES).read_text(encoding="utf-8") if config.method == "lightgbm-rerank" else None
            return BaselineRun(config, _encoders(config, arrays), None if text is None else Reranker(text))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DataError(f"{path}: damaged run: {error}\n  do: restore the folder, or train again") from error

    def save(self, models: Path) -> None:
        """Write what `open` reads into the folder `models` of a run."""
        arrays = self.encoders[-1].arrays()
        if arrays:
            write_bytes(models / WHITENING, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        if self.reranker is not None:
            write_text(models / TREES, self.reranker.text)

    @property
    def parameters(self) -> int:
        """Fitted numbers: those of the whitenings, or the leaves of all trees."""
        if self.reranker is not None:
            return sum(map(int, re.findall(r"^num_leaves=(\d+)$", self.reranker.text, re.MULTILINE)))
        return sum(array.size for encoder in self.encoders for array in encoder.arrays().values())

    def views(self, pack: RaggedPack, rows: Int64) -> list[Floats]:
        """Embeddings float32[n, d] of tracks, one for each encoder."""
        return [encoder.embed(pack, rows) for encoder in self.encoders]

    def embed(self, pack: RaggedPack, rows: Int64) -> Floats:
        """Embeddings float32[n, D] of tracks at length 1: all views side by side."""
        return concatenate(self.views(pack, rows))

    def neighbours(self, pack: RaggedPack, rows: Int64, k: int = 100) -> Int64:
        """The `k` nearest of each track among these, itself left out, the best first: int64[n, k].

        Raises:
            ValueError: fewer than k + 1 tracks.
        """
        if isinstance(self.encoders[0], FrameMatcher):
            return match(self.config, self.encoders[0], pack, rows, k)
        if self.reranker is None:
            return top_k(self.embed(pack, rows), k=k).indices
        candidates = min(max(k, self.config.trees.candidates), len(rows) - 1)
        return self.reranker.rerank(candidate_table(self.views(pack, rows), candidates)).indices[:, :k]


def match(config: Config, matcher: FrameMatcher, pack: RaggedPack, rows: Int64, k: int) -> Int64:
    """The `k` nearest of each track by frames, with the settings of a run, on a GPU where there is one: int64[n, k]."""
    settings = config.matching
    return matcher.rank(
        pack, rows, k, candidates=max(k, settings.candidates), sharpness=settings.sharpness, weights=settings.weights,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip


def fit_encoders(config: Config, tracks: Tracks, fitted: Int64) -> tuple[MeanEncoder | FrameMatcher, ...]:
    """The encoders of a method, learnt from the tracks at positions `fitted`."""
    if config.method == "frame-matching":
        return (FrameMatcher.fit(tracks.pack, tracks.rows[fitted]),)
    whitened = (
        {} if config.method == "naive" else MeanEncoder.fit(tracks.pack, tracks.rows[fitted], whiten=True).arrays()
    )
    return _encoders(config, whitened)


def _encoders(config: Config, whitening: Mapping[str, Floats]) -> tuple[MeanEncoder | FrameMatcher, ...]:
    """By method: the plain mean, the whitened one, or both; or what compares frames."""
    if config.method == "frame-matching":
        return (FrameMatcher.restore(whitening),)
    if config.method == "naive":
        return (MeanEncoder(None),)
    whitened = MeanEncoder.restore({"mean": whitening["mean"], "projection": whitening["projection"]})
    return (whitened,) if config.method == "whitened" else (MeanEncoder(None), whitened)
