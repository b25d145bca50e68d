"""Whole runs on a few generated tracks: exact resume, stages, averages, leaks between folds, inference."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import yandex_artists.train as training
from kit_core.config import load_preset, preset_header, preset_names
from kit_core.errors import ConfigError, DataError
from kit_core.run import RunFolder
from kit_core.testing import interrupted_after
from kit_io.ragged import RaggedPack
from kit_metrics.bootstrap import bootstrap_ratio
from kit_metrics.retrieval import ndcg_per_query
from kit_retrieval.search import top_k
from kit_retrieval.vectors import l2_normalise
from yandex_artists.cli import PRESETS
from yandex_artists.config import AugmentConfig, Config, DataConfig, MemberConfig, ModelConfig, PostConfig, StageConfig
from yandex_artists.data import Tracks
from yandex_artists.infer import FittedRun, neighbours
from yandex_artists.train import folds_to_fit, learning_rate_factor, margin_at, split_fold, train
from yandex_artists.vectors import load_vectors

CHANNELS = 6


def make_tracks(n: int = 60, each: int = 4, seed: int = 0, test: bool = False) -> Tracks:
    """Tracks around a vector of their artist; the last artist has one track."""
    generator = np.random.default_rng(seed)
    artists = np.arange(n) // each
    artists[-1] = artists[-2] + 1
    centres = generator.normal(size=(artists.max() + 1, CHANNELS))
    items = [
        (centres[artist] + 0.8 * generator.normal(size=(generator.integers(3, 12), CHANNELS))).astype(np.float32)
        for artist in artists
    ]
    order = generator.permutation(n)  # the pack need not be in the order of the table
    pack = RaggedPack.from_items([items[i] for i in order])
    rows = np.argsort(order)
    ids = [1000 + 3 * i for i in range(n)]
    if test:
        return Tracks("test", ids, pack, rows, None, None, None, "made")
    return Tracks("train", ids, pack, rows, artists, [10 * a for a in range(artists.max() + 1)], artists % 10, "made")


SET = ModelConfig(architecture="set", channels=8, layers=2, heads=2, ff=8, out=0, standardise="data")
MAP = ModelConfig(architecture="mean-map", landmarks=30, out=5, correction=0, within=0.9, standardise="data")
STAGES = (
    StageConfig(epochs=2, crop=4, batch=10, learning_rate=1e-2, keep="best", augment=AugmentConfig(bootstrap=True)),
    StageConfig(
        epochs=3, loss="pairs", batching="artists", batch=4, learning_rate=1e-3, schedule="cyclic", cycle=4,
        keep="average", augment=AugmentConfig(seed_recipe=True), ema=0.5,
    ),
)  # fmt: skip
CONFIG = Config(
    data=DataConfig(fold="all", n_folds=2),
    members=(MemberConfig("set", SET, STAGES), MemberConfig("map", MAP, (), copies=2)),
    post=PostConfig(steps=("smoothing",), normalise="whiten"),
)


def run_in(path: Path, config: Config = CONFIG, tracks: Tracks | None = None, **options: Any) -> dict[str, Any]:
    tracks = tracks or make_tracks()
    with RunFolder.create(
        path, config=config, preset="made", data_hashes={}, seed=config.seed, resume=options.pop("resume", False)
    ) as run:
        return train(config, tracks, run, **options)


def weights_in(run: Path) -> dict[str, list[float]]:
    """All numbers of all networks and cohorts, by file and name."""
    files = sorted((run / "models").rglob("*.safetensors"))
    return {
        f"{path.relative_to(run)} {name}": tensor.flatten().tolist()
        for path in files
        for name, tensor in load_file(path).items()
    }


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "whole"
    run_in(path)
    return path


def test_a_run_leaves_what_the_house_expects(whole_run: Path) -> None:
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["metric"] == "ndcg@100"
    assert 0.3 < summary["interval"][0] <= summary["score"] <= summary["interval"][1] <= 1.0
    assert summary["n"] == 59  # the artist with one track cannot be asked for
    assert summary["without_answer"] == 1
    assert sum(summary["gallery"]) == 60
    networks = [path for path in (whole_run / "models" / "fold1").glob("*.safetensors") if "cohort" not in path.name]
    stored = [tensor.numel() for path in networks for tensor in load_file(path).values()]
    assert summary["parameters"] == sum(stored)
    assert set(summary["others"]) == {"without post-processing", "set", "map-0", "map-1"}
    for name in ("vectors/joint", "vectors/set", "models/fold0/map-1", "models/fold1/set.cohort"):
        assert (whole_run / f"{name}.safetensors").exists()
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line.get("part") == "fold1/set" and "epoch" in line]
    assert [(line["stage"], line["epoch"]) for line in epochs] == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert len((whole_run / "queries.csv").read_text().splitlines()) == 61
    assert not list((whole_run / "state").glob("*.pt"))


def test_intervals_are_those_of_a_bootstrap_over_artists(whole_run: Path) -> None:
    """Of the score and of every other way of ranking; rows resampled one by one would give another interval."""
    summary = json.loads((whole_run / "summary.json").read_text())
    with (whole_run / "queries.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["score"]]
    artists = np.array([int(row["artist"]) for row in rows])
    reports = {"score": summary} | summary["others"]
    assert len(reports) == 5
    for way, report in reports.items():
        scores = np.array([float(row[way]) for row in rows])
        ones = np.ones(len(scores))
        assert report["score"] == pytest.approx(scores.mean(), abs=1e-8)
        assert report["interval"] == pytest.approx(bootstrap_ratio(scores, ones, artists), abs=1e-7)
        assert report["interval"] != pytest.approx(bootstrap_ratio(scores, ones, np.arange(len(scores))), abs=1e-3)


def test_the_untrained_start_is_never_kept(tmp_path: Path) -> None:
    """A rate that destroys the network scores below the start at every epoch; what is kept is still an epoch."""
    wild = StageConfig(epochs=2, crop=4, batch=10, learning_rate=50.0, keep="best")
    member = MemberConfig("set", dataclasses.replace(SET, residual=True), (wild,))
    config = Config(data=DataConfig(n_folds=2, fold=0), members=(member,))
    summary = run_in(tmp_path / "run", config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [line["ndcg@100"] for line in lines if "epoch" in line]
    assert scores[0] > max(scores[1:]) + 0.05
    assert summary["score"] == pytest.approx(max(scores[1:]))
    assert summary["selected_on_scored_fold"] is True
    member = dataclasses.replace(member, stages=(dataclasses.replace(wild, keep="last"),))
    last = run_in(tmp_path / "last", dataclasses.replace(config, members=(member,)))
    assert last["selected_on_scored_fold"] is False
    assert last["score"] == pytest.approx(scores[-1])


def test_no_artist_is_cut_and_groups_are_counted(whole_run: Path) -> None:
    summary = json.loads((whole_run / "summary.json").read_text())
    assert (summary["group_by"], summary["n_groups"], summary["largest_group"]) == ("artist", 16, 4)
    with (whole_run / "queries.csv").open() as file:
        rows = list(csv.DictReader(file))
    artists = dict(zip(map(str, make_tracks().ids), make_tracks().artists.tolist(), strict=True))
    placed = {(artists[row["trackid"]], row["fold"]) for row in rows}
    assert len(rows) == 60
    assert len(placed) == len({artist for artist, _ in placed}) == 16
    with pytest.raises(DataError, match="rows in folds 0, 1"):
        training.assign_folds(dataclasses.replace(make_tracks(), folds=np.arange(60) % 10), DataConfig(n_folds=2))


@pytest.mark.parametrize("after", [1, 2, 3, 6])
def test_a_stopped_run_goes_on_to_the_same_bits(
    after: int, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops inside the first stage, between the stages, inside the second, and in the next fold."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_state", interrupted_after(training.save_state, after))
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "run")
    summary = run_in(tmp_path / "run", resume=True)
    assert weights_in(tmp_path / "run") == weights_in(whole_run)
    assert summary["score"] == json.loads((whole_run / "summary.json").read_text())["score"]


def test_refit_takes_everything_and_inference_takes_the_refit(tmp_path: Path) -> None:
    members = (dataclasses.replace(CONFIG.members[1], copies=1),)
    config = dataclasses.replace(CONFIG, data=DataConfig(fold="all", n_folds=2, refit=True), members=members)
    run_in(tmp_path / "run", config)
    assert len(FittedRun.open(tmp_path / "run").units) == 1
    assert folds_to_fit(config.data) == [0, 1, None]
    assert folds_to_fit(DataConfig(fold="none")) == [None]


def test_without_a_left_out_fold_there_is_no_score(tmp_path: Path) -> None:
    member = MemberConfig("set", SET, (dataclasses.replace(STAGES[0], keep="last"),))
    config = Config(data=DataConfig(fold="none"), members=(member,))
    summary = run_in(tmp_path / "run", config)
    assert (summary["score"], summary["n"]) == (None, 0)
    assert "none was held out" in training.summary_text("made", summary | {"seconds": 1.0})
    assert neighbours([FittedRun.open(tmp_path / "run")], make_tracks(test=True), k=10).shape == (60, 10)


def test_distractors_join_the_gallery_and_are_never_asked_for(tmp_path: Path) -> None:
    members = (dataclasses.replace(CONFIG.members[1], copies=1),)
    config = dataclasses.replace(CONFIG, members=members, post=PostConfig())
    alone = run_in(tmp_path / "a", config)
    with_more = run_in(tmp_path / "b", config, distractors=make_tracks(80, seed=5, test=True))
    assert with_more["n"] == alone["n"]
    assert with_more["gallery"] == [size + 80 for size in alone["gallery"]]
    assert with_more["score"] < alone["score"]


def test_distractors_of_other_features_are_refused_before_training(tmp_path: Path) -> None:
    pack = RaggedPack.from_items([np.ones((3, CHANNELS + 1), np.float32)] * 3)
    others = dataclasses.replace(make_tracks(3, test=True), pack=pack)
    with pytest.raises(ConfigError, match="distractors of 7 channels for tracks of 6"):
        run_in(tmp_path / "run", distractors=others)
    assert not (tmp_path / "run" / "models").exists()


def lonely_in_fold_0() -> Tracks:
    """Ten artists, two tracks each, of which the official folds 0, 2, ... have lost one."""
    tracks = make_tracks(20, each=2)
    artists = np.arange(20) // 2
    kept = np.flatnonzero((artists % 2 == 1) | (np.arange(20) % 2 == 0))
    return dataclasses.replace(
        tracks,
        ids=[tracks.ids[i] for i in kept],
        pack=RaggedPack.from_items([tracks.pack.item(tracks.rows[i]) for i in kept]),
        rows=np.arange(len(kept)),
        artists=artists[kept],
        folds=artists[kept],
    )


def test_no_epoch_is_chosen_on_a_fold_that_cannot_be_scored(tmp_path: Path) -> None:
    """Without an answer the score is no number, and the best epoch would be the untrained network."""
    config = dataclasses.replace(CONFIG, members=CONFIG.members[:1])
    with pytest.raises(ConfigError, match="fold 0: no artist of the 5 left-out tracks has two"):
        run_in(tmp_path / "run", config, lonely_in_fold_0())


def test_a_fold_that_cannot_be_scored_counts_nothing(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, members=(dataclasses.replace(CONFIG.members[1], copies=1),), post=PostConfig())
    summary = run_in(tmp_path / "run", config, lonely_in_fold_0())
    assert (summary["n"], summary["without_answer"]) == (10, 5)


def test_kept_vectors_rank_each_fold_as_the_run_did(whole_run: Path) -> None:
    tracks = make_tracks()
    assert tracks.artists is not None
    kept = load_vectors(whole_run / "vectors" / "joint.safetensors")
    assert kept.folds is not None
    assert kept.fingerprint == tracks.fingerprint
    artist_of = dict(zip(tracks.ids, tracks.artists.tolist(), strict=True))
    scores = []
    for fold in (0, 1):
        inside = kept.folds == fold
        near = top_k(l2_normalise(kept.embeddings[inside]), k=inside.sum() - 1).indices
        scores.append(ndcg_per_query(near, np.array([artist_of[i] for i in kept.ids[inside].tolist()])))
    summary = json.loads((whole_run / "summary.json").read_text())
    found = float(np.nanmean(np.concatenate(scores)))
    assert found == pytest.approx(summary["others"]["without post-processing"]["score"])
    with pytest.raises(DataError, match="no stored vectors"):
        load_vectors(whole_run / "queries.csv")


def test_a_track_gets_the_same_vector_in_any_company(whole_run: Path) -> None:
    tracks = make_tracks(seed=3, test=True)
    run = FittedRun.open(whole_run)
    together = run.embed(tracks.pack, tracks.rows)
    alone = run.embed(tracks.pack, tracks.rows[7:8])
    np.testing.assert_allclose(alone[0], together[7], atol=1e-4)


def test_damaged_runs_are_refused(whole_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole_run, copy)
    path = copy / "models" / "fold0" / "set.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"set\.safetensors"):
        FittedRun.open(copy)
    path.unlink()
    with pytest.raises(DataError, match=r"set\.safetensors"):
        FittedRun.open(copy)


def test_other_channels_are_refused(whole_run: Path) -> None:
    pack = RaggedPack.from_items([np.ones((3, 4), np.float32)] * 3)
    with pytest.raises(DataError, match="4 channels, expected 6"):
        FittedRun.open(whole_run).embed(pack, np.arange(3))


def test_a_gallery_that_is_too_small_is_refused(whole_run: Path) -> None:
    with pytest.raises(DataError, match="found 60 tracks, expected more than 100"):
        neighbours([FittedRun.open(whole_run)], make_tracks(test=True), k=100)


def test_classes_have_no_gaps_whatever_the_artists() -> None:
    artists = np.array([500, 7, 500, 9000, 12, 7])
    split = split_fold(artists, np.array([0, 1, 0, 1, 1, 1]), 0)
    assert split.held.tolist() == [0, 2]
    assert split.classes.tolist() == [0, 2, 1, 0]
    with pytest.raises(ConfigError, match="0 held out"):
        split_fold(artists, np.zeros(6, np.int64), 4)


def test_schedules_end_inside_the_run() -> None:
    ramp = StageConfig(margin=0.5, margin_from=0.5)
    assert [margin_at(ramp, step, 100) for step in (0, 25, 50, 99)] == [0.0, 0.25, 0.5, 0.5]
    assert margin_at(StageConfig(margin=0.5, margin_from=0.0), 0, 100) == 0.5
    cyclic = StageConfig(schedule="cyclic", cycle=10, floor=0.0)
    factors = [learning_rate_factor(cyclic, step, 100) for step in range(30)]
    assert factors[0] == factors[10] == 1.0
    assert min(range(30), key=factors.__getitem__) % 10 == 9
    assert learning_rate_factor(StageConfig(schedule="cosine", floor=0.0), 99, 100) < 0.01
    assert learning_rate_factor(StageConfig(), 5, 100) == 1.0


def test_a_batch_without_pairs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = StageConfig(epochs=1, loss="pairs", batching="tracks", batch=2, keep="last")
    config = Config(data=DataConfig(fold=0, n_folds=2), members=(MemberConfig("set", SET, (stage,)),))
    run_in(tmp_path / "run", config)
    assert "batches held no two tracks of one artist" in capsys.readouterr().err


def test_a_stage_without_artists_is_refused(tmp_path: Path) -> None:
    stage = StageConfig(smallest_artist=5)
    config = Config(data=DataConfig(fold=0, n_folds=2), members=(MemberConfig("set", SET, (stage,)),))
    with pytest.raises(ConfigError, match="no artist has 5 tracks"):
        run_in(tmp_path / "run", config)


@pytest.mark.parametrize("name", preset_names(PRESETS))
def test_every_preset_builds_and_says_what_it_is(name: str) -> None:
    config = load_preset(Config, PRESETS, name)
    header = preset_header(PRESETS, name)
    assert f"yandex-artists train {name} " in header
    for member in config.members if config.method == "networks" else ():
        small = dataclasses.replace(member.model, landmarks=min(member.model.landmarks, 8), ff=8, kernel=3)
        encoder = training.build_model(dataclasses.replace(small, channels=small.channels and 8), 16, 0)
        x = torch.randn(2, 5, 16)
        assert encoder.eval()(x, torch.zeros(2, 5, dtype=torch.bool)).shape == (2, encoder.d)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": ()}, "expected one or more"),
        ({"members": (MemberConfig("a"), MemberConfig("a"))}, "all different"),
        ({"members": (MemberConfig(stages=()),)}, "only 'mean-map'"),
        ({"members": (MemberConfig(model=ModelConfig(architecture="mean-map"), stages=()),)}, "correction"),
        ({"members": (MemberConfig(stages=(StageConfig(keep="average"),)),)}, "cyclic"),
        ({"members": (MemberConfig(stages=(StageConfig(schedule="cyclic"),)),)}, "cycle"),
        ({"members": (MemberConfig(stages=(StageConfig(loss="roadmap"),)),)}, "several tracks of an artist"),
        ({"data": DataConfig(fold="none")}, "keep 'last'"),
        ({"data": DataConfig(fold=10)}, "0..9"),
        ({"post": PostConfig(steps=("threshold", "as-norm"))}, "threshold"),
        ({"post": PostConfig(weights=(0.0,))}, "post.weights"),
        ({"members": (MemberConfig(model=ModelConfig(channels=10, heads=4)),)}, "heads: found 4"),
        ({"members": (MemberConfig(stages=(StageConfig(margin=2.0),)),)}, "margin"),
        ({"members": (MemberConfig(stages=(StageConfig(scale=0.0),)),)}, "scale"),
        ({"members": (MemberConfig(stages=(StageConfig(sub_centers=0),)),)}, "sub_centers"),
        ({"members": (MemberConfig(stages=(StageConfig(temperature=0.0),)),)}, "temperature"),
        ({"post": PostConfig(share=1.1)}, "post.share"),
        ({"post": PostConfig(jaccard=-0.1)}, "post.jaccard"),
        ({"post": PostConfig(whitening=2.0)}, "post.whitening"),
        ({"post": PostConfig(alpha=-1.0)}, "post.alpha"),
        ({"post": PostConfig(cohort=1)}, "post.cohort"),
        ({"post": PostConfig(k2=0)}, "post.k2"),
        ({"post": PostConfig(links=0)}, "post.links"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_views_give_artists_with_one_track_something_to_learn_from(tmp_path: Path) -> None:
    tracks = dataclasses.replace(make_tracks(), artists=np.arange(60), artist_ids=list(range(60)))
    lonely = {}
    for views in (1, 2):
        stage = StageConfig(
            epochs=1, loss="nt-xent", projector=False, batch=20, keep="last", views=views,
            augment=AugmentConfig(keep=0.5),
        )  # fmt: skip
        model = ModelConfig(architecture="attention", ff=4, out=0, standardise="data")
        config = Config(data=DataConfig(n_folds=2, fold="none"), members=(MemberConfig("a", model, (stage,)),))
        run_in(tmp_path / str(views), config, tracks)
        lines = [json.loads(line) for line in (tmp_path / str(views) / "metrics.jsonl").read_text().splitlines()]
        lonely[views] = [line["lonely_batches"] for line in lines if "lonely_batches" in line]
    assert lonely == {1: [3], 2: [0]}
