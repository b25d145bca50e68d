"""Methods without a network: what scores a left-out fold has seen nothing of it, neither frames nor artists."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_metrics import ndcg_report
from kit_retrieval import top_k
from yandex_artists.baseline import MeanEncoder, Reranker, candidate_table
from yandex_artists.config import Config, DataConfig, TreesConfig
from yandex_artists.data import Tracks
from yandex_artists.frame_matching import FrameMatcher
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


@pytest.mark.parametrize("method", ["whitened", "lightgbm-rerank", "frame-matching"])
def test_held_out_tracks_change_nothing_in_the_models_of_their_fold(method: str, tmp_path: Path):
    """Other frames and other artists in the left-out fold: what scores it is stored in the same bytes."""
    tracks = make_tracks()
    assert tracks.artists is not None
    folds = tracks.artists % 2
    tracks = dataclasses.replace(tracks, folds=folds)
    values, held = np.array(tracks.pack.values), folds == 0
    for row in tracks.rows[held]:
        values[tracks.pack.offsets[row] : tracks.pack.offsets[row + 1]] *= -3.0
    artists = np.where(held, np.roll(tracks.artists, 7) // 2 * 2, tracks.artists)
    pack = RaggedPack(values, tracks.pack.offsets, tracks.pack.dtype)
    changed = dataclasses.replace(tracks, pack=pack, artists=artists)
    config = Config(method=method, data=DataConfig(n_folds=2, fold=0), trees=TreesConfig(rounds=5, smallest_leaf=10))
    files = {}
    for name, given in (("a", tracks), ("b", changed)):
        with RunFolder.create(tmp_path / name, config=config, preset=method, data_hashes={}, seed=0) as run:
            train_baseline(config, given, run)
        models = tmp_path / name / "models"
        files[name] = {path.name: path.read_bytes() for path in (models / "fold0").iterdir()}
        whole = {path.name: path.read_bytes() for path in models.iterdir() if path.is_file()}
        assert whole.keys() == files[name].keys()
        assert all(whole[file] != files[name][file] for file in whole)  # that of all tracks is another
    assert len(files["a"]) == (2 if method == "lightgbm-rerank" else 1)
    assert files["a"] == files["b"]


@pytest.mark.parametrize("method", ["whitened", "lightgbm-rerank", "frame-matching"])
def test_the_score_of_a_fold_is_that_of_the_models_kept_for_it(method: str, tmp_path: Path):
    """A score by other models, such as those of all tracks, would have seen the answers."""
    tracks = make_tracks()
    assert tracks.artists is not None
    tracks = dataclasses.replace(tracks, folds=tracks.artists % 10)
    config = Config(method=method, data=DataConfig(n_folds=2, fold=1), trees=TreesConfig(rounds=20))
    with RunFolder.create(tmp_path / "run", config=config, preset="trees", data_hashes={}, seed=0) as run:
        summary = train_baseline(config, tracks, run)
    models = tmp_path / "run" / "models" / "fold1"
    arrays, held = load_file(models / "whitening.safetensors"), tracks.rows[tracks.artists % 2 == 1]
    if method == "frame-matching":
        found = FrameMatcher.restore(arrays).rank(tracks.pack, held, 99, weights=config.matching.weights)
    else:
        views = [encoder.embed(tracks.pack, held) for encoder in (MeanEncoder(None), MeanEncoder.restore(arrays))]
        found = top_k(views[1], k=99).indices
        if method == "lightgbm-rerank":
            found = Reranker((models / "trees.txt").read_text()).rerank(candidate_table(views)).indices
            assert summary["parameters"] == pytest.approx(20 * 15, abs=20 * 14)
    report = ndcg_report(found, tracks.artists[tracks.artists % 2 == 1], bootstrap=0)
    assert summary["score"] == pytest.approx(report["ndcg@100"], abs=1e-12)
