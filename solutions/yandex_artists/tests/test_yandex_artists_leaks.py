"""What scores a left-out fold has seen nothing of it: its models keep their bytes whatever is held out."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import yandex_artists.train as training
from kit_core.config import load_preset, preset_names
from kit_core.run import RunFolder
from kit_io.ragged import RaggedPack
from kit_metrics import ndcg_report
from kit_retrieval import top_k
from yandex_artists.baseline import MeanEncoder, Reranker, candidate_table
from yandex_artists.cli import PRESETS
from yandex_artists.config import (
    AugmentConfig,
    Config,
    DataConfig,
    MemberConfig,
    ModelConfig,
    PostConfig,
    StageConfig,
    TreesConfig,
)
from yandex_artists.data import Tracks
from yandex_artists.embed import Embedded, make_cohort
from yandex_artists.frame_matching import FrameMatcher
from yandex_artists.post import rank
from yandex_artists.train import score_fold, train
from yandex_artists.train_baseline import train_baseline

FOLD = 0
METHODS = ("naive", "whitened", "lightgbm-rerank", "frame-matching")
SMALL = ModelConfig(channels=8, layers=1, heads=2, ff=8, kernel=3, out=4, landmarks=12, correction=4, within=0.5)
ONE_EPOCH = StageConfig(epochs=1, loss="arcface", batch=20, learning_rate=1e-2, keep="last")
PAIRS = dataclasses.replace(
    ONE_EPOCH, loss="pairs", batching="artists", batch=4, crop=4, schedule="cyclic", cycle=2, keep="average", ema=0.5,
    augment=AugmentConfig(bootstrap=True, keep=0.5, roll=0.5, splice=0.5, seed_recipe=True, noise=0.1),
)  # fmt: skip
RANKS = dataclasses.replace(ONE_EPOCH, loss="smooth-ap", batching="groups", batch=5, per_artist=2)
VIEWS = dataclasses.replace(ONE_EPOCH, loss="nt-xent", views=2, augment=AugmentConfig(keep=0.5))
# Every architecture, every loss and every kind of batch; two stages, copies, and what is only fitted.
MEMBERS = {
    "convolution": (VIEWS,),
    "transformer": (PAIRS,),
    "conformer": (PAIRS, dataclasses.replace(ONE_EPOCH, loss="roadmap", batching="groups", batch=5)),
    "set": (ONE_EPOCH,),
    "mean-map": (RANKS,),
    "codebook": (dataclasses.replace(VIEWS, loss="supcon"),),
    "attention": (VIEWS, PAIRS),
}


def make_tracks(artists: int = 40, each: int = 5, seed: int = 0, d: int = 10, noise: float = 0.7) -> Tracks:
    """Tracks around a voice of their artist; the official folds are those of the artists' numbers."""
    rng = np.random.default_rng(seed)
    voices = rng.standard_normal((artists, d)).repeat(each, axis=0)
    loud = np.where(np.arange(d) < 2, 6.0, noise)  # two directions say nothing and are loud
    items = [
        (voice + loud * rng.standard_normal(d) + rng.standard_normal((length, d))).astype(np.float32)
        for voice, length in zip(voices, rng.integers(3, 30, len(voices)), strict=True)
    ]
    order = rng.permutation(len(items))
    pack = RaggedPack.from_items([items[i] for i in order])
    labels = np.arange(artists).repeat(each)
    names = list(range(artists))
    return Tracks("train", list(range(len(items))), pack, np.argsort(order), labels, names, labels % 10, "made here")


def with_another_fold(tracks: Tracks) -> Tracks:
    """The same tracks, but in the left-out fold of two with other frames, other lengths and other artists."""
    assert tracks.artists is not None
    held = tracks.artists % 2 == FOLD
    items = [np.asarray(tracks.pack.item(int(row)), dtype=np.float32) for row in range(len(tracks))]
    for row in tracks.rows[held]:
        items[row] = np.concatenate([-3.0 * items[row], items[row][:2]])
    artists = np.where(held, np.roll(tracks.artists, 7) // 2 * 2, tracks.artists)
    return dataclasses.replace(tracks, pack=RaggedPack.from_items(items), artists=artists, folds=artists % 10)


def trained(path: Path, config: Config, tracks: Tracks, distractors: Tracks | None = None) -> Path:
    fit = train if config.method == "networks" else train_baseline
    with RunFolder.create(path, config=config, preset="made", data_hashes={}, seed=config.seed) as run:
        fit(config, tracks, run, distractors)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Networks


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Every kind of network, on the tracks as they are, and with another left-out fold 0 and distractors."""
    members = [
        MemberConfig(kind, dataclasses.replace(SMALL, architecture=kind, standardise="data"), stages)
        for kind, stages in MEMBERS.items()
    ]
    mean_map = dataclasses.replace(SMALL, architecture="mean-map", standardise="data", correction=0)
    members.append(MemberConfig("fitted-only", mean_map, (), copies=2, views="rolling", window=9, hop=5))
    config = Config(data=DataConfig(n_folds=2), members=tuple(members), post=PostConfig(steps=("as-norm", "diffusion")))
    folder, tracks = tmp_path_factory.mktemp("leaks"), make_tracks(20)
    return (
        trained(folder / "a", config, tracks),
        trained(folder / "b", config, with_another_fold(tracks), make_tracks(4, seed=9)),
    )


@pytest.mark.parametrize("name", [*MEMBERS, "fitted-only-0", "fitted-only-1"])
def test_a_network_keeps_its_bytes_whatever_is_held_out(name: str, two_runs: tuple[Path, Path]) -> None:
    of_fold, of_other = (
        [(run / "models" / fold / f"{name}.safetensors").read_bytes() for run in two_runs]
        for fold in ("fold0", "fold1")
    )
    assert of_fold[0] == of_fold[1]
    assert of_other[0] != of_other[1]  # which has learnt from what was changed


@pytest.mark.parametrize("name", [*MEMBERS, "fitted-only-0"])
def test_the_whitening_and_the_centres_that_rank_a_fold_are_of_fitted_artists(
    name: str, two_runs: tuple[Path, Path]
) -> None:
    """Centres of held-out artists are stored for inference, and left out where the fold is ranked (next test)."""
    a, b = (load_file(run / "models" / "fold0" / f"{name}.cohort.safetensors") for run in two_runs)
    for part in ("mean", "projection"):
        np.testing.assert_array_equal(a[part], b[part])
    np.testing.assert_array_equal(a["centres"][1::2], b["centres"][1::2])
    assert not np.isclose(a["centres"][::2], b["centres"][::2]).all(axis=1).any()


def test_what_is_held_out_decides_the_score(two_runs: tuple[Path, Path]) -> None:
    """The change reaches the run: its held-out tracks are scored by other answers, those of the other fold as well."""
    tables = []
    for run in two_runs:
        with (run / "queries.csv").open() as file:
            tables.append({row["trackid"]: row["score"] for row in csv.DictReader(file)})
    assert tables[0].keys() == tables[1].keys()
    assert sum(tables[0][track] != tables[1][track] for track in tables[0]) > len(tables[0]) / 2


def test_the_artists_of_held_out_tracks_do_not_move_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who made a left-out track decides what counts as right, and nothing about the order of the answers."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 4)).astype(np.float32)
    artists = np.arange(60) // 4
    fitted = artists >= 8
    ranked = []

    def spy(*args: Any, **options: Any) -> Any:
        ranked.append(rank(*args, **options))
        return ranked[-1]

    monkeypatch.setattr(training, "rank", spy)
    config = Config(post=PostConfig(steps=("as-norm",), share=1.0, cohort=5))
    for others in (artists, np.where(fitted, artists, np.roll(np.arange(60) % 8, 1))):
        cohort = make_cohort(vectors, others, fitted, 0.5)
        score_fold(config, {"one": Embedded(vectors[~fitted], cohort)}, others[~fitted], int((~fitted).sum()))
    np.testing.assert_array_equal(ranked[0], ranked[2])


# ---------------------------------------------------------------------------------------------------------------------
# An epoch that the left-out fold chooses


@pytest.mark.parametrize("name", preset_names(PRESETS))
def test_a_preset_that_chooses_an_epoch_by_the_scored_fold_says_so(name: str) -> None:
    config = load_preset(Config, PRESETS, name)
    stages = [stage for member in config.members for stage in member.stages] if config.method == "networks" else []
    chooses = any(stage.keep == "best" or stage.patience for stage in stages)
    assert training.selects_on_scored_fold(config) is chooses or config.method != "networks"
    assert not (chooses and name.endswith("-mini"))


@pytest.mark.parametrize("changes", [{"keep": "best"}, {"patience": 1}, {}])
def test_a_run_whose_epoch_is_chosen_by_the_scored_fold_says_so(changes: dict[str, Any], tmp_path: Path) -> None:
    stage = dataclasses.replace(ONE_EPOCH, **changes)
    member = MemberConfig("one", dataclasses.replace(SMALL, architecture="attention"), (stage,))
    run = trained(tmp_path / "run", Config(data=DataConfig(n_folds=2, fold=FOLD), members=(member,)), make_tracks(8))
    assert json.loads((run / "summary.json").read_text())["selected_on_scored_fold"] is bool(changes)


# ---------------------------------------------------------------------------------------------------------------------
# Methods without a network


@pytest.mark.parametrize("method", METHODS)
def test_the_models_of_a_fold_keep_their_bytes_whatever_is_held_out(method: str, tmp_path: Path) -> None:
    tracks = make_tracks()
    config = Config(method=method, data=DataConfig(n_folds=2, fold=FOLD), trees=TreesConfig(rounds=5, smallest_leaf=10))
    files = []
    for name, given in (("a", tracks), ("b", with_another_fold(tracks))):
        models = trained(tmp_path / name, config, given) / "models"
        files.append({path.name: path.read_bytes() for path in (models / f"fold{FOLD}").glob("*")})
        whole = {path.name: path.read_bytes() for path in models.glob("*.*")}
        assert whole.keys() == files[-1].keys()
        assert all(whole[file] != files[-1][file] for file in whole)  # that of all tracks is another
    assert len(files[0]) == {"naive": 0, "lightgbm-rerank": 2}.get(method, 1)
    assert files[0] == files[1]


@pytest.mark.parametrize("method", METHODS)
def test_the_score_of_a_fold_is_that_of_the_models_kept_for_it(method: str, tmp_path: Path) -> None:
    """A score by other models, such as those of all tracks, would have seen the answers."""
    tracks = make_tracks()
    assert tracks.artists is not None
    config = Config(method=method, data=DataConfig(n_folds=2, fold=1), trees=TreesConfig(rounds=20))
    run = trained(tmp_path / "run", config, tracks)
    summary, models = json.loads((run / "summary.json").read_text()), run / "models" / "fold1"
    arrays = {} if method == "naive" else load_file(models / "whitening.safetensors")
    held = tracks.rows[tracks.artists % 2 == 1]
    if method == "frame-matching":
        found = FrameMatcher.restore(arrays).rank(tracks.pack, held, 99, weights=config.matching.weights)
    else:
        views = [encoder.embed(tracks.pack, held) for encoder in (MeanEncoder(None), MeanEncoder.restore(arrays))]
        found = top_k(views[1], k=99).indices
        if method == "lightgbm-rerank":
            found = Reranker((models / "trees.txt").read_text()).rerank(candidate_table(views)).indices
    report = ndcg_report(found, tracks.artists[tracks.artists % 2 == 1], bootstrap=0)
    assert summary["score"] == pytest.approx(report["ndcg@100"], abs=1e-12)
