"""Inference by hand: each stored model by itself, in plain NumPy, against `infer` and `predict`; post-processing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from kit_core.config import load_preset
from kit_core.run import RunFolder
from kit_retrieval.vectors import Whitening, l2_normalise
from kit_train.state import mixed_seed
from yandex_artists.baseline import candidate_table
from yandex_artists.cli import PRESETS, main
from yandex_artists.config import (
    Config,
    DataConfig,
    MatchingConfig,
    MemberConfig,
    ModelConfig,
    PostConfig,
    StageConfig,
    TreesConfig,
)
from yandex_artists.data import Tracks, load
from yandex_artists.embed import Cohort, Embedded, join, make_cohort
from yandex_artists.model import Encoder
from yandex_artists.post import rank
from yandex_artists.train import train
from yandex_artists.train_baseline import train_baseline

# ---------------------------------------------------------------------------------------------------------------------
# Runs, each stored model by itself

CHANNELS = 16
ROLLING = MemberConfig(
    "frames", ModelConfig(architecture="attention", ff=4, out=5, standardise="track"),
    (StageConfig(epochs=1, batch=60, learning_rate=0.05, keep="last"),), copies=2, views="rolling", window=20, hop=9,
)  # fmt: skip
DRAWN = MemberConfig(
    "drawn", ModelConfig(architecture="codebook", landmarks=9, out=4, dropout=0.5, standardise="data"), (),
    views="bootstrap", draws=3,
)  # fmt: skip
WHOLE = MemberConfig(
    "map", ModelConfig(architecture="mean-map", landmarks=11, out=6, correction=0, standardise="data", dropout=0.5), ()
)
ONE = Config(
    seed=3, data=DataConfig(n_folds=2), members=(ROLLING, DRAWN),
    post=PostConfig(steps=("smoothing",), normalise="whiten", weights=(4.0, 2.0, 1.0)),
)  # fmt: skip
OTHER = Config(seed=11, data=DataConfig(n_folds=3), members=(WHOLE, DRAWN), post=PostConfig(normalise="no"))
REFIT = Config(seed=5, data=DataConfig(n_folds=2, refit=True), members=(WHOLE,))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artists") / "sample"
    assert main(["sample", "--out", str(folder), "--artists", "45", "--channels", str(CHANNELS)]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[str, Path]:
    """Finished runs of several kinds on one data set."""
    tracks, found = load(data, "train"), {}
    methods = ("naive", "whitened", "lightgbm-rerank", "frame-matching")
    trees = TreesConfig(rounds=10, smallest_leaf=10, candidates=103)
    baselines = {
        name: Config(
            method=name, data=DataConfig(n_folds=2, fold=0), trees=trees, matching=MatchingConfig(candidates=105)
        )
        for name in methods
    }
    for name, config in ({"one": ONE, "other": OTHER, "refit": REFIT} | baselines).items():
        found[name] = data.parent / name
        with RunFolder.create(found[name], config=config, preset=name, data_hashes={}, seed=config.seed) as run:
            (train if config.method == "networks" else train_baseline)(config, tracks, run)
    return found


def items_of(tracks: Tracks) -> list[np.ndarray]:
    """The frames [T, channels] of every track, in the order of the table."""
    return [np.asarray(tracks.pack.item(int(row)), dtype=np.float32) for row in tracks.rows]


def unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def windows_of(item: np.ndarray, member: MemberConfig) -> list[np.ndarray]:
    if member.views == "whole" or len(item) <= member.window:
        return [item]
    return [item[end - member.window : end] for end in range(len(item), member.window - 1, -member.hop)]


def drawn_again(items: list[np.ndarray], member: MemberConfig, seed: int) -> list[list[np.ndarray]]:
    """Each track, and `draws` - 1 times as many of its frames, drawn by the generator of the run's network."""
    views = [[item] for item in items]
    order = np.argsort([-len(item) for item in items], kind="stable")
    torch.manual_seed(seed)
    for _ in range(member.draws - 1):
        shares = torch.rand(len(items), len(items[order[0]])).numpy()
        for share, i in zip(shares, order, strict=True):
            places = (share[: len(items[i])] * np.float32(len(items[i]))).astype(int)
            views[i].append(items[i][places])
    return views


def vectors_by_hand(
    run: Path, config: Config, folds: Sequence[str], items: list[np.ndarray], post: PostConfig
) -> np.ndarray:
    """The vectors of all stored networks side by side; a track alone at a time, so that nothing is padded."""
    side_by_side, number = [], 0
    for fold in folds:
        for member in config.members:
            for copy in range(member.copies):
                name = member.name if member.copies == 1 else f"{member.name}-{copy}"
                path = run / "models" / fold / f"{name}.safetensors"
                encoder = Encoder(member.model, CHANNELS)
                encoder.load_state_dict(load_file(path))
                encoder.eval()
                if member.views == "bootstrap":
                    views = drawn_again(items, member, mixed_seed(config.seed, number))
                else:
                    views = [windows_of(item, member) for item in items]
                vectors = np.empty((len(items), encoder.d))
                with torch.no_grad():
                    for i, of_track in enumerate(views):
                        answers = [
                            encoder(torch.from_numpy(view)[None], torch.zeros(1, len(view), dtype=torch.bool))[
                                0
                            ].numpy()
                            for view in of_track
                        ]
                        vectors[i] = np.mean(answers, axis=0)
                if post.normalise == "whiten":
                    cohort = load_numpy(path.with_name(f"{name}.cohort.safetensors"))
                    vectors = (vectors - cohort["mean"]) @ cohort["projection"]
                side_by_side.append(vectors if post.normalise == "no" else unit_rows(vectors))
                number += 1
    return np.concatenate(side_by_side, axis=1)


def smoothed(vectors: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    unit = unit_rows(vectors)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, : len(weights) - 1]
    return unit_rows(weights[0] * unit + sum(w * unit[order[:, i]] for i, w in enumerate(weights[1:])))


def assert_ranked_by(found: np.ndarray, scores: np.ndarray, tolerance: float = 2e-4) -> None:
    """Rows int64[n, k] are the best of `scores` [n, n], themselves left out, but for the order of near ties."""
    scores = scores.astype(np.float64).copy()
    np.fill_diagonal(scores, -np.inf)
    best = -np.sort(-scores, axis=1)[:, : found.shape[1]]
    assert all(len(set(row)) == found.shape[1] for row in found.tolist())
    np.testing.assert_allclose(np.take_along_axis(scores, found, axis=1), best, atol=tolerance)


def submitted(data: Path, out: Path, *paths: Path) -> np.ndarray:
    """What `infer` writes for the test tracks, as rows int64[n, 100] into the table."""
    assert (
        main(
            [
                "infer",
                *(word for path in paths for word in ("--run", str(path))),
                "--data",
                str(data),
                "--out",
                str(out),
            ]
        )
        == 0
    )
    tracks = load(data, "test")
    place = {track: i for i, track in enumerate(tracks.ids)}
    rows = [line.split() for line in out.read_text().replace(",", " ").replace("\t", " ").splitlines()]
    answers = {int(row[0]): [place[int(word)] for word in row[1:]] for row in rows}
    return np.array([answers[track] for track in tracks.ids])


def test_infer_joins_every_fold_copy_and_member_of_a_run(data: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    items = items_of(load(data, "test"))
    vectors = vectors_by_hand(runs["one"], ONE, ("fold0", "fold1"), items, ONE.post)
    assert vectors.shape[1] == 2 * (5 + 5 + 4)
    final = smoothed(vectors, ONE.post.weights)
    found = submitted(data, tmp_path / "out.txt", runs["one"])
    assert_ranked_by(found, final @ final.T)
    for part in (vectors[:, :14], vectors[:, 14:], vectors[:, 5:], vectors[:, 9:]):  # without a fold, without a network
        less = smoothed(part, ONE.post.weights)
        with pytest.raises(AssertionError):
            assert_ranked_by(found, less @ less.T)


def test_infer_joins_two_different_runs_under_the_settings_of_the_first(
    data: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    items = items_of(load(data, "test"))
    for first, second in (("one", "other"), ("other", "one")):
        configs = {"one": (ONE, ("fold0", "fold1")), "other": (OTHER, ("fold0", "fold1", "fold2"))}
        post = configs[first][0].post
        parts = [vectors_by_hand(runs[name], *configs[name], items, post) for name in (first, second)]
        joint = np.concatenate(parts, axis=1)
        final = smoothed(joint, post.weights) if post.steps else unit_rows(joint)
        found = submitted(data, tmp_path / "out.txt", runs[first], runs[second])
        assert_ranked_by(found, final @ final.T)
        for part in parts:
            less = smoothed(part, post.weights) if post.steps else unit_rows(part)
            with pytest.raises(AssertionError):
                assert_ranked_by(found, less @ less.T)


def test_after_a_refit_only_the_network_of_all_tracks_answers(
    data: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    vectors = vectors_by_hand(runs["refit"], REFIT, ("whole",), items_of(load(data, "test")), REFIT.post)
    assert_ranked_by(submitted(data, tmp_path / "out.txt", runs["refit"]), vectors @ vectors.T)


def test_infer_without_a_network_is_the_cosine_of_time_means(data: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    means = np.stack([item.astype(np.float64).mean(axis=0) for item in items_of(load(data, "test"))])
    plain = unit_rows(means)
    assert_ranked_by(submitted(data, tmp_path / "naive.txt", runs["naive"]), plain @ plain.T)
    stored = load_numpy(runs["whitened"] / "models" / "whitening.safetensors")
    white = unit_rows((means - stored["mean"]) @ stored["projection"])
    assert_ranked_by(submitted(data, tmp_path / "whitened.txt", runs["whitened"]), white @ white.T)


def test_infer_with_trees_orders_the_nearest_by_the_stored_trees(
    data: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    means = np.stack([item.astype(np.float64).mean(axis=0) for item in items_of(load(data, "test"))])
    models = runs["lightgbm-rerank"] / "models"
    stored = load_numpy(models / "whitening.safetensors")
    views = [unit_rows(means), unit_rows((means - stored["mean"]) @ stored["projection"])]
    table = candidate_table([view.astype(np.float32) for view in views], 103)
    booster = lightgbm.Booster(model_file=str(models / "trees.txt"))
    scores = np.full((len(means), len(means)), -1e9)
    np.put_along_axis(
        scores, table.neighbours.indices, booster.predict(table.features).reshape(len(means), 103), axis=1
    )
    assert_ranked_by(submitted(data, tmp_path / "out.txt", runs["lightgbm-rerank"]), scores, tolerance=1e-2)


def test_infer_by_frames_is_a_vote_of_every_frame(data: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    """All pairs of tracks at once in NumPy; the gallery has so few tracks that each is compared with nearly all."""
    items = items_of(load(data, "test"))
    stored = load_numpy(runs["frame-matching"] / "models" / "whitening.safetensors")
    frames = [unit_rows((item - stored["frame_mean"]) @ stored["frame_projection"]) for item in items]
    flat, starts = np.concatenate(frames), np.cumsum([0, *map(len, frames)])[:-1]
    vectors = np.stack([np.concatenate([f.mean(axis=0), f.std(axis=0)]) for f in frames])
    vectors = unit_rows((vectors - stored["track_mean"]) @ stored["track_projection"])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    near = np.zeros(cosines.shape, dtype=bool)
    np.put_along_axis(near, np.argsort(-cosines, axis=1)[:, :105], True, axis=1)
    pairs = near | near.T
    assert not pairs[~np.eye(len(items), dtype=bool)].all()
    votes = np.zeros(cosines.shape)
    for i, own in enumerate(frames):
        best = np.maximum.reduceat(own @ flat.T, starts, axis=1)
        shares = np.where(pairs[i], np.exp(8.0 * best), 0.0)
        votes[i] = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    logs = np.where(pairs, np.log(np.maximum(votes, 1e-6)) - np.log(1e-6), 0.0)
    scores = np.where(pairs, logs + logs.T, 0.0)
    scores = np.where(pairs, scores - scores[pairs].min() + 1e-6, 0.0)
    weights = np.array([25.0, 8.0, 5.0, 3.0, 2.0, 1.0])
    mixing = np.zeros(scores.shape)
    for i in range(len(items)):
        others = np.where(np.arange(len(items)) == i, -np.inf, scores[i])
        mixing[i, [i, *np.argsort(-others, kind="stable")[:5]]] = weights / weights.sum()
    final = mixing @ (scores + np.diag(scores.max(axis=1))) @ mixing.T
    assert_ranked_by(submitted(data, tmp_path / "out.txt", runs["frame-matching"]), final, tolerance=2e-3)


@pytest.mark.parametrize("name", ["other", "whitened"])
def test_predict_prints_the_order_and_the_cosines_of_infer(
    name: str, data: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without post-processing both are cosines of the same vectors: the best first, the track itself before all."""
    tracks = load(data, "test")
    items = items_of(tracks)
    config = replace(OTHER, members=(WHOLE,), post=PostConfig())
    if name == "other":
        run = tmp_path / "run"
        with RunFolder.create(run, config=config, preset="made", data_hashes={}, seed=config.seed) as folder:
            train(config, load(data, "train"), folder)
        vectors = vectors_by_hand(run, config, ("fold0", "fold1", "fold2"), items, config.post)
    else:
        run, stored = runs[name], load_numpy(runs[name] / "models" / "whitening.safetensors")
        vectors = (np.stack([item.mean(axis=0) for item in items]) - stored["mean"]) @ stored["projection"]
    cosines = unit_rows(vectors) @ unit_rows(vectors).T
    row = 7
    order = submitted(data, tmp_path / "out.txt", run)[row]
    np.save(tmp_path / "track.npy", items[row].T)
    capsys.readouterr()
    arguments = ["predict", str(tmp_path / "track.npy"), "--run", str(run), "--gallery", str(data), "--top", "6"]
    assert main(arguments) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in table] == list("123456")
    assert [int(line[1]) for line in table] == [tracks.ids[i] for i in (row, *order[:5])]
    shown = [float(line[2]) for line in table]
    assert shown == sorted(shown, reverse=True)
    np.testing.assert_allclose(shown, cosines[row, [row, *order[:5]]], atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Post-processing, step by step


def _part(scale: float, seed: int) -> Embedded:
    generator = np.random.default_rng(seed)
    vectors = scale * generator.normal(size=(30, 4)).astype(np.float32)
    artists = np.arange(30) // 3
    return Embedded(vectors, make_cohort(vectors, artists, np.ones(30, dtype=bool), 1.0))


def test_every_step_gives_whole_lists_and_changes_something() -> None:
    generator = np.random.default_rng(0)
    gallery = l2_normalise(generator.normal(size=(50, 8)).astype(np.float32))
    centres = l2_normalise(generator.normal(size=(20, 8)).astype(np.float32))
    plain = rank(gallery, centres, PostConfig(), k=10)
    for step in ("threshold", "smoothing", "alpha", "as-norm", "reciprocal", "diffusion"):
        found = rank(gallery, centres, PostConfig(steps=(step,), threshold=0.3), k=10)
        assert found.shape == (50, 10)
        assert all(i not in row and len(set(row.tolist())) == 10 for i, row in enumerate(found))
        assert not np.array_equal(found, plain), step


def test_a_small_gallery_is_enough_for_every_step() -> None:
    gallery = np.eye(4, dtype=np.float32) + 0.1
    for step in ("threshold", "smoothing", "alpha", "as-norm", "reciprocal", "diffusion"):
        assert rank(gallery, gallery, PostConfig(steps=(step,)), k=3).shape == (4, 3)


def test_members_count_alike_whatever_their_length() -> None:
    short, long = _part(1.0, 0), _part(100.0, 1)
    joint, centres = join([short, long], PostConfig())
    np.testing.assert_allclose(np.linalg.norm(joint[:, :4], axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(joint[:, 4:], axis=1), 1.0, rtol=1e-5)
    assert centres.shape == (10, 8)
    as_they_are, _ = join([short, long], PostConfig(normalise="no"))
    np.testing.assert_array_equal(as_they_are[:, 4:], long.vectors)


def test_whitening_is_that_of_the_training_tracks() -> None:
    part = _part(3.0, 2)
    joint, _ = join([part], PostConfig(normalise="whiten"))
    np.testing.assert_allclose(joint, l2_normalise(part.cohort.whitening.apply(part.vectors)), rtol=1e-5)


def test_centres_are_means_at_length_one() -> None:
    vectors = np.array([[2.0, 0], [0, 5.0], [1.0, 1.0]], np.float32)
    cohort = make_cohort(vectors, np.array([1, 1, 0]), np.ones(3, dtype=bool), 0.5)
    np.testing.assert_allclose(cohort.centres, [[0.5**0.5, 0.5**0.5], [0.5, 0.5]], rtol=1e-5)
    assert isinstance(cohort, Cohort)
    assert isinstance(cohort.whitening, Whitening)


@pytest.mark.data
def test_frames_of_real_tracks_that_vote_beat_one_vector_a_track(tmp_path: Path) -> None:
    """On one left-out half `best` has 0.76, and 0.65 by its own vectors of whole tracks."""
    root = next((p for p in Path(__file__).resolve().parents if (p / "poetry.lock").exists()), Path("/"))
    path = root.parent / "shared" / "data" / "artists-mini"
    if not path.exists():
        pytest.skip("needs ../shared/data/artists-mini beside the repository")
    config = load_preset(Config, PRESETS, "best")
    config = replace(config, data=DataConfig(fold=0, n_folds=2))
    with RunFolder.create(tmp_path / "run", config=config, preset="best", data_hashes={}, seed=0) as run:
        summary = train_baseline(config, load(path), run)
    assert summary["gallery"] == [712]
    assert summary["score"] > 0.74
    assert summary["others"]["by one vector a track"]["score"] < 0.67


# ---------------------------------------------------------------------------------------------------------------------
# Every setting of a step against NumPy


def made_gallery(n: int = 24, d: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of unlike lengths, and centres."""
    rng = np.random.default_rng(seed)
    gallery = rng.normal(size=(n, d)) * rng.uniform(0.5, 2.0, size=(n, 1)) + 0.4
    return gallery.astype(np.float32), (rng.normal(size=(12, d)) + 0.4).astype(np.float32)


def order_of(scores: np.ndarray) -> np.ndarray:
    scores = scores.copy()
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :-1]


def alpha_by_hand(x: np.ndarray, post: PostConfig) -> np.ndarray:
    unit = unit_rows(x.astype(np.float64))
    out = unit.copy()
    for i, row in enumerate(order_of(unit @ unit.T)[:, : post.neighbours]):
        for j in row:
            out[i] += max(float(unit[i] @ unit[j]), 0.0) ** post.alpha * unit[j]
    return unit_rows(out)


def cosine_order(x: np.ndarray, k: int) -> np.ndarray:
    unit = unit_rows(x.astype(np.float64))
    return order_of(unit @ unit.T)[:, :k]


def as_norm_by_hand(x: np.ndarray, centres: np.ndarray, post: PostConfig, k: int) -> np.ndarray:
    unit, cohort = unit_rows(x.astype(np.float64)), unit_rows(centres.astype(np.float64))
    best = -np.sort(-(unit @ cohort.T), axis=1)[:, : post.cohort]
    mean, deviation = best.mean(axis=1), best.std(axis=1)
    s = unit @ unit.T
    normalised = ((s - mean[:, None]) / deviation[:, None] + (s - mean[None]) / deviation[None]) / 2
    listed = np.zeros(s.shape, dtype=bool)
    np.put_along_axis(listed, order_of(s)[:, : min(len(x) - 1, 3 * k)], True, axis=1)
    even = [(values - values[listed].mean()) / values[listed].std() for values in (normalised, s)]
    return order_of(np.where(listed, post.share * even[0] + (1 - post.share) * even[1], -1e9))[:, :k]


def threshold_by_hand(x: np.ndarray, post: PostConfig, k: int) -> np.ndarray:
    x = x.astype(np.float64)
    unit = unit_rows(x)
    cosines, out = unit @ unit.T, []
    for i, row in enumerate(order_of(cosines)):
        near = [j for j in row[:k] if cosines[i, j] > post.threshold]
        second = x[[i, *near]].mean(axis=0)
        again = [j for j in np.argsort(-(unit @ second), kind="stable") if j != i and j not in near]
        out.append([*near, *again][:k] if near else row[:k].tolist())
    return np.array(out)


def reciprocal_by_hand(x: np.ndarray, post: PostConfig, k: int) -> np.ndarray:
    """Sets and dense descriptions, as the paper has them, among the candidates of every track."""
    unit = unit_rows(x.astype(np.float64))
    cosines = unit @ unit.T
    order, n = order_of(cosines), len(x)
    candidates = order[:, : min(n - 1, 3 * k)]

    def mutual(i: int, size: int) -> set[int]:
        return {i} | {int(j) for j in order[i, :size] if i in order[j, :size]}

    described = np.zeros((n, n))
    half = max(1, round(post.k1 / 2))
    for i in range(n):
        core = mutual(i, post.k1)
        whole = set(core)
        for j in core:
            small = mutual(j, half)
            if len(small & core) > 2 / 3 * len(small):
                whole |= small
        for j in whole:
            cosine = 1.0 if j == i else cosines[i, j] if j in candidates[i] else cosines[i, candidates[i, -1]]
            described[i, j] = np.exp(-(2 - 2 * cosine))
    described /= described.sum(axis=1, keepdims=True)
    described = np.stack([described[[i, *order[i, : post.k2 - 1]]].mean(axis=0) for i in range(n)])
    jaccard = np.array([[np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in described] for a in described])
    mixed = (1 - post.jaccard) * cosines + post.jaccard * jaccard
    listed = np.zeros((n, n), dtype=bool)
    np.put_along_axis(listed, candidates, True, axis=1)
    return order_of(np.where(listed, mixed, -1e9))[:, :k]


def by_hand(gallery: np.ndarray, centres: np.ndarray, post: PostConfig, k: int) -> np.ndarray:
    for step in post.steps:
        if step == "smoothing":
            gallery = smoothed(gallery.astype(np.float64), post.weights)
        elif step == "alpha":
            gallery = alpha_by_hand(gallery, post)
        elif step == "as-norm":
            return as_norm_by_hand(gallery, centres, post, k)
        elif step == "threshold":
            return threshold_by_hand(gallery, post, k)
        elif step == "reciprocal":
            return reciprocal_by_hand(gallery, post, k)
    return cosine_order(gallery, k)


SETTINGS: dict[str, dict[str, Any]] = {
    "smoothing": {"weights": ((3.0, 2.0, 1.0), (1.0, 4.0), (2.0, 0.0, 5.0))},
    "alpha": {"alpha": (3.0, 0.5, 8.0), "neighbours": (6, 1, 3)},
    "as-norm": {"share": (0.3, 0.0, 1.0, 0.7), "cohort": (400, 2, 5)},
    "threshold": {"threshold": (0.85, 0.5, 0.7)},
    "reciprocal": {"k1": (15, 4, 8), "k2": (4, 1, 2), "jaccard": (0.3, 0.0, 0.9)},
}


@pytest.mark.parametrize(("step", "name"), [(step, name) for step, names in SETTINGS.items() for name in names])
def test_every_setting_of_a_step_is_that_of_plain_numpy(step: Any, name: str) -> None:
    gallery, centres = made_gallery()
    answers = []
    for value in SETTINGS[step][name]:
        post = PostConfig(steps=(step,), **({"share": 0.8} if name == "cohort" else {}) | {name: value})
        for k in (5, 23):
            found = rank(gallery, centres, post, k=k)
            np.testing.assert_array_equal(found, by_hand(gallery, centres, post, k), err_msg=f"{name} {value}")
        answers.append(found.tolist())
    assert all(a != b for i, a in enumerate(answers) for b in answers[:i])  # each value has its effect


def test_diffusion_is_the_solution_of_its_linear_system() -> None:
    gallery, centres = made_gallery(16)
    unit = unit_rows(gallery.astype(np.float64))
    cosines = unit @ unit.T
    order, answers = order_of(cosines), []
    for links in (3, 6):
        weights = np.zeros(cosines.shape)
        for i in range(16):
            for j in order[i, :links]:
                if i in order[j, :links]:
                    weights[i, j] = max(cosines[i, j], 0.0) ** 3
        degree = np.maximum(weights.sum(axis=1), 1e-12)
        reached = np.linalg.inv(np.eye(16) - 0.99 * weights / np.sqrt(np.outer(degree, degree)))
        found = rank(gallery, centres, PostConfig(steps=("diffusion",), links=links), k=4)
        for i, row in enumerate(found):
            expected = sorted((j for j in range(16) if j != i and reached[i, j] > 1e-9), key=lambda j: -reached[i, j])
            expected += [j for j in order[i] if j not in expected]
            assert row.tolist() == expected[:4]
        answers.append(found.tolist())
    assert answers[0] != answers[1]


def test_steps_on_vectors_work_in_their_order_and_before_those_on_lists() -> None:
    gallery, centres = made_gallery()
    found = {}
    for steps in (("smoothing", "alpha"), ("alpha", "smoothing"), ("alpha", "as-norm"), ("as-norm", "alpha")):
        post = PostConfig(steps=steps, weights=(3.0, 2.0, 1.0), alpha=2.0, neighbours=2, share=0.9)
        found[steps] = rank(gallery, centres, post, k=10).tolist()
        ordered = tuple(sorted(steps, key="as-norm".__eq__))
        assert found[steps] == by_hand(gallery, centres, replace(post, steps=ordered), 10).tolist()
    assert found["smoothing", "alpha"] != found["alpha", "smoothing"]
    assert found["alpha", "as-norm"] == found["as-norm", "alpha"]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_whitening_of_a_run_is_the_power_of_its_eigenvalues(power: float) -> None:
    vectors, _ = made_gallery(40)
    fitted = np.arange(40) < 30
    cohort = make_cohort(vectors, np.arange(40) // 4, fitted, power)
    x = vectors[fitted].astype(np.float64)
    values, directions = np.linalg.eigh(np.cov(x, rowvar=False))
    values = 0.9 * values + 0.1 * values.mean()
    expected = (vectors - x.mean(axis=0)) @ (directions * values ** (-power / 2))
    joint, centres = join([Embedded(vectors, cohort)], PostConfig(normalise="whiten"))
    np.testing.assert_allclose(joint @ joint.T, unit_rows(expected) @ unit_rows(expected).T, atol=1e-4)
    of_artists = (np.stack([unit_rows(vectors[i : i + 4]).mean(axis=0) for i in range(0, 40, 4)]) - x.mean(axis=0)) @ (
        directions * values ** (-power / 2)
    )
    np.testing.assert_allclose(joint @ centres.T, unit_rows(expected) @ unit_rows(of_artists).T, atol=1e-4)
