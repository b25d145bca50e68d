"""Time means against plain loops, the features of pairs by hand, and trees that put a bad order right."""

import csv
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_metrics import bootstrap_ratio, ndcg_report
from kit_retrieval import l2_normalise, top_k
from kit_splits.folds import group_folds
from yandex_artists.baseline import BaselineRun, MeanEncoder, Reranker, candidate_table, time_means
from yandex_artists.config import Config, DataConfig, TreesConfig
from yandex_artists.data import Tracks
from yandex_artists.train_baseline import train_baseline


def make_tracks(artists: int = 40, each: int = 5, seed: int = 0, d: int = 10, noise: float = 0.7) -> Tracks:
    rng = np.random.default_rng(seed)
    voices = rng.standard_normal((artists, d)).repeat(each, axis=0)
    loud = np.where(np.arange(d) < 2, 6.0, noise)  # two directions say nothing and are loud
    items = [
        (voice + loud * rng.standard_normal(d) + rng.standard_normal((length, d))).astype(np.float32)
        for voice, length in zip(voices, rng.integers(3, 30, len(voices)), strict=True)
    ]
    order = rng.permutation(len(items))
    pack = RaggedPack.from_items([items[i] for i in order])
    rows = np.argsort(order)
    labels = np.arange(artists).repeat(each)
    return Tracks("train", list(range(len(items))), pack, rows, labels, list(range(artists)), None, "made here")


def test_time_means_equal_a_loop_and_padding_does_not_count():
    tracks = make_tracks()
    found = time_means(tracks.pack, tracks.rows)
    for i in (0, 9, 111):
        np.testing.assert_allclose(found[i], tracks.pack.item(tracks.rows[i]).mean(axis=0), atol=1e-5)
    alone = time_means(tracks.pack, tracks.rows[9:10])
    np.testing.assert_allclose(alone[0], found[9], atol=1e-6)


def test_the_naive_encoder_is_the_cosine_of_time_means():
    tracks = make_tracks()
    encoder = MeanEncoder.fit(tracks.pack, tracks.rows, whiten=False)
    assert encoder.arrays() == {}
    found = top_k(encoder.embed(tracks.pack, tracks.rows), k=3).indices
    means = time_means(tracks.pack, tracks.rows).astype(np.float64)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosine = means @ means.T
    np.fill_diagonal(cosine, -2)
    assert np.array_equal(found, np.argsort(-cosine, axis=1, kind="stable")[:, :3])


def test_whitening_quietens_loud_directions_and_survives_storage():
    tracks = make_tracks()
    assert tracks.artists is not None
    scores = {}
    for whiten in (False, True):
        encoder = MeanEncoder.restore(MeanEncoder.fit(tracks.pack, tracks.rows, whiten=whiten).arrays())
        vectors = encoder.embed(tracks.pack, tracks.rows)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        scores[whiten] = ndcg_report(top_k(vectors, k=100).indices, tracks.artists, bootstrap=0)["ndcg@100"]
    assert scores[True] > scores[False] + 0.1
    other = RaggedPack.from_items([np.zeros((4, 3), dtype=np.float32)])
    with pytest.raises(DataError, match=r"3 channels, expected 10"):
        encoder.embed(other, np.zeros(1, dtype=np.int64))


def test_features_of_pairs_by_hand():
    # Angles on a circle; the neighbours of 0 degrees are 10, -20, 40, 90.
    degrees = np.radians([0, 10, -20, 40, 90])
    x = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    table = candidate_table([x], k=4)
    assert table.neighbours.indices[0].tolist() == [1, 2, 3, 4]
    columns = {name: table.features.reshape(5, 4, -1)[:, :, i] for i, name in enumerate(table.names)}
    cosine = np.cos(np.radians([10, 20, 40, 90]))
    np.testing.assert_allclose(columns["all: cosine"][0], cosine, atol=1e-6)
    np.testing.assert_allclose(columns["all: above the query's usual"][0], cosine - cosine.mean(), atol=1e-6)
    usual_of_1 = np.cos(np.radians([10, 30, 30, 80])).mean()
    assert columns["all: above the candidate's usual"][0, 0] == pytest.approx(cosine[0] - usual_of_1, abs=1e-6)
    np.testing.assert_allclose(columns["all: 1 / rank for the query"][0], [1, 1 / 2, 1 / 3, 1 / 4])
    # For 10 degrees, 0 comes first; for -20 first; for 40 second, after 10; for 90 third, after 40 and 10.
    np.testing.assert_allclose(columns["all: 1 / rank for the candidate"][0], [1, 1, 1 / 2, 1 / 3])
    assert (columns["shared neighbours"][0] == 3 / 4).all()  # of four neighbours each, all but the two themselves
    two = candidate_table([x, x[:, ::-1]], k=3)
    assert two.features.shape == (15, 3 * 5 + 2)


def test_trees_learn_an_order_that_the_mean_cosine_does_not_have():
    artists = np.arange(30).repeat(6)

    def views(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        good = rng.standard_normal((30, 8)).repeat(6, axis=0) + 0.5 * rng.standard_normal((180, 8))
        return [l2_normalise(v.astype(np.float32)) for v in (good, rng.standard_normal((180, 8)))]  # one view is noise

    tables = [candidate_table(views(seed), 50) for seed in (1, 2)]
    trees = Reranker.fit(tables, [artists, artists], rounds=40, smallest_leaf=20)
    unseen = candidate_table(views(3), 50)
    before = ndcg_report(unseen.neighbours.indices, artists, bootstrap=0)["ndcg@100"]
    found = trees.rerank(unseen)
    assert ndcg_report(found.indices, artists, bootstrap=0)["ndcg@100"] > before + 0.1
    assert [set(row) for row in found.indices.tolist()] == [set(row) for row in unseen.neighbours.indices.tolist()]
    assert np.array_equal(Reranker(trees.text).rerank(unseen).indices, found.indices)
    with pytest.raises(DataError, match="as many views"):
        trees.rerank(candidate_table(views(3)[:1], 50))
    with pytest.raises(DataError, match="no query has a track of its own artist"):
        Reranker.fit(tables, [np.arange(180)] * 2)


@pytest.mark.parametrize("method", ["naive", "whitened", "lightgbm-rerank", "frame-matching"])
def test_a_run_is_scored_on_left_out_artists_and_answers_others(method: str, tmp_path: Path):
    tracks, others = make_tracks(), make_tracks(seed=1)
    config = Config(method=method, data=DataConfig(n_folds=2), trees=TreesConfig(rounds=20, smallest_leaf=10))
    with RunFolder.create(tmp_path / "run", config=config, preset=method, data_hashes={}, seed=0) as run:
        summary = train_baseline(config, tracks, run)
    assert (summary["metric"], summary["n"], summary["gallery"]) == ("ndcg@100", 200, [100, 100])
    assert summary["interval"][0] < summary["score"] < summary["interval"][1]
    fitted = BaselineRun.open(tmp_path / "run")
    found = fitted.neighbours(others.pack, others.rows, 100)
    assert found.shape == (200, 100)
    assert not (found == np.arange(200)[:, None]).any()
    assert all(len(set(row)) == 100 for row in found.tolist())
    assert others.artists is not None
    score = ndcg_report(found, others.artists, bootstrap=0)["ndcg@100"]
    # Around one centre a track the mean says all that there is; frames alone find less.
    assert score > {"naive": 0.15, "frame-matching": 0.2}.get(method, 0.3)
    np.testing.assert_allclose(np.linalg.norm(fitted.embed(others.pack, others.rows), axis=1), 1, atol=1e-5)


def test_the_score_of_a_fold_is_that_of_means_whitened_without_it(tmp_path: Path):
    tracks = make_tracks()
    assert tracks.artists is not None
    config = Config(method="whitened", data=DataConfig(n_folds=4, fold=1))
    with RunFolder.create(tmp_path / "run", config=config, preset="whitened", data_hashes={}, seed=0) as run:
        summary = train_baseline(config, tracks, run)
    from yandex_artists.data import validation_folds

    folds = validation_folds(tracks, 4)
    held, fitted = np.flatnonzero(folds == 1), np.flatnonzero(folds != 1)
    vectors = MeanEncoder.fit(tracks.pack, tracks.rows[fitted], whiten=True).embed(tracks.pack, tracks.rows[held])
    found = top_k(vectors, k=len(held) - 1).indices
    assert summary["score"] == pytest.approx(ndcg_report(found, tracks.artists[held], bootstrap=0)["ndcg@100"])


def test_distractors_join_the_gallery_and_lower_the_score(tmp_path: Path):
    tracks = make_tracks()
    scores = []
    for name, distractors in (("without", None), ("with", make_tracks(seed=5, artists=200))):
        config = Config(method="naive", data=DataConfig(n_folds=2))
        with RunFolder.create(tmp_path / name, config=config, preset="naive", data_hashes={}, seed=0) as run:
            summary = train_baseline(config, tracks, run, distractors)
        assert summary["gallery"] == ([100, 100] if distractors is None else [1100, 1100])
        assert summary["n"] == 200
        scores.append(summary["score"])
    assert scores[1] < scores[0] - 0.05
    with pytest.raises(ConfigError, match="channels"):
        train_baseline(config, tracks, run, make_tracks(d=4))


def test_distractors_are_matched_by_their_frames(tmp_path: Path):
    tracks, scores = make_tracks(), []
    for name, distractors in (("without", None), ("with", make_tracks(seed=5, artists=20))):
        config = Config(method="frame-matching", data=DataConfig(n_folds=2, fold=0))
        with RunFolder.create(tmp_path / name, config=config, preset="best", data_hashes={}, seed=0) as run:
            summary = train_baseline(config, tracks, run, distractors)
        assert summary["gallery"] == [100 if distractors is None else 200]
        assert (summary["n"], summary["group_by"], summary["n_groups"], summary["largest_group"]) == (
            100,
            "artist",
            40,
            5,
        )
        scores.append(summary["score"])
    assert scores[1] < scores[0] - 0.02


def test_trees_learn_from_two_halves_each_ranked_by_the_means_of_the_other(tmp_path: Path):
    tracks = make_tracks()
    assert tracks.artists is not None
    trees = TreesConfig(candidates=30, rounds=7, learning_rate=0.2, leaves=6, smallest_leaf=11)
    config = Config(method="lightgbm-rerank", seed=4, data=DataConfig(n_folds=2, fold=1, seed=3), trees=trees)
    with RunFolder.create(tmp_path / "run", config=config, preset="trees", data_hashes={}, seed=4) as run:
        summary = train_baseline(config, tracks, run)
    fitted = np.flatnonzero(group_folds(tracks.artists, 2, seed=3) != 1)
    halves = group_folds(tracks.artists[fitted], 2, seed=4)
    tables, rows = [], []
    for half in (0, 1):
        own, other = tracks.rows[fitted[halves == half]], tracks.rows[fitted[halves != half]]
        encoders = [MeanEncoder.fit(tracks.pack, other, whiten=whiten) for whiten in (False, True)]
        tables.append(candidate_table([encoder.embed(tracks.pack, own) for encoder in encoders], 30))
        artists = tracks.artists[fitted[halves == half]]
        hits = artists[tables[-1].neighbours.indices] == artists[:, None]
        rows.append((tables[-1].features.reshape(*hits.shape, -1), hits))
    useful = [hits.any(axis=1) & ~hits.all(axis=1) for _, hits in rows]
    features = np.concatenate([x[kept].reshape(-1, x.shape[2]) for (x, _), kept in zip(rows, useful, strict=True)])
    labels = np.concatenate([hits[kept].reshape(-1) for (_, hits), kept in zip(rows, useful, strict=True)])
    settings = {
        "objective": "lambdarank", "learning_rate": 0.2, "num_leaves": 6, "min_data_in_leaf": 11, "seed": 4,
        "lambdarank_truncation_level": 30, "deterministic": True, "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    sizes = [30] * int(sum(kept.sum() for kept in useful))
    data = lightgbm.Dataset(features, labels.astype(int), group=sizes)
    expected = lightgbm.train(settings, data, num_boost_round=7)
    stored = lightgbm.Booster(model_file=str(tmp_path / "run" / "models" / "fold1" / "trees.txt"))
    assert stored.num_trees() == 7
    np.testing.assert_allclose(stored.predict(features), expected.predict(features), rtol=1e-9)
    of_all = lightgbm.Booster(model_file=str(tmp_path / "run" / "models" / "trees.txt"))
    leaves = [tree["num_leaves"] for tree in of_all.dump_model()["tree_info"]]
    assert summary["parameters"] == sum(leaves)
    assert max(leaves) == 6


@pytest.mark.parametrize("method", ["whitened", "lightgbm-rerank", "frame-matching"])
def test_intervals_are_those_of_a_bootstrap_over_artists(method: str, tmp_path: Path):
    config = Config(method=method, data=DataConfig(n_folds=2), trees=TreesConfig(rounds=3))
    with RunFolder.create(tmp_path / "run", config=config, preset=method, data_hashes={}, seed=0) as run:
        summary = train_baseline(config, make_tracks(artists=24), run)
    with (tmp_path / "run" / "queries.csv").open() as file:
        rows = list(csv.DictReader(file))
    artists = np.array([int(row["artist"]) for row in rows])
    for way, report in ({"score": summary} | summary["others"]).items():
        scores = np.array([float(row[way]) for row in rows])
        ones = np.ones(len(scores))
        assert report["score"] == pytest.approx(scores.mean(), abs=1e-8)
        assert report["interval"] == pytest.approx(bootstrap_ratio(scores, ones, artists), abs=1e-7)
        assert report["interval"] != pytest.approx(bootstrap_ratio(scores, ones, np.arange(len(scores))), abs=1e-3)
