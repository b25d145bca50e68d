"""The generated sample: official layout, determinism, and how hard it is."""

from pathlib import Path

import numpy as np
import pytest

from kit_core.errors import ConfigError
from kit_metrics import ndcg_report
from kit_retrieval import top_k
from yandex_artists.baseline import MeanEncoder
from yandex_artists.data import Tracks, load, read_truth
from yandex_artists.sample import FEWEST_FRAMES, MOST_FRAMES, TRACKS, write_sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artists") / "sample"
    write_sample(out, artists=45)
    return out


def test_it_has_the_official_layout(sample: Path):
    train = (sample / "train_meta.tsv").read_bytes().decode().split("\n")
    test = (sample / "test_meta.tsv").read_bytes().decode().split("\n")
    assert train[0] == "trackid\tartistid\tarchive_features_path"
    assert test[0] == "trackid\tarchive_features_path"
    assert train[-1] == test[-1] == ""
    train_rows = [line.split("\t") for line in train[1:-1]]
    test_rows = [line.split("\t") for line in test[1:-1]]
    ids = [int(row[0]) for row in train_rows + test_rows]
    assert ids == list(range(1, len(ids) + 1))  # the test goes on where train ends
    for track, artist, path in train_rows:
        assert path == f"{int(artist) % 10}/{int(track) % 10}/{int(track) // 10 % 10}/{track}.npy"
    for track, path in test_rows:
        assert path.split("/")[1:] == [str(int(track) % 10), str(int(track) // 10 % 10), f"{track}.npy"]
    lengths = set()
    for split, rows in (("train", train_rows), ("test", test_rows)):
        for row in rows:
            array = np.load(sample / f"{split}_features" / row[-1])
            assert array.dtype == np.float32
            lengths.add(array.shape[1])
    assert min(lengths) >= FEWEST_FRAMES
    assert max(lengths) == MOST_FRAMES


def test_artists_of_train_and_test_are_others_and_only_training_artists_may_have_one_track(sample: Path):
    truth = read_truth(sample / "test_truth.tsv")
    train = load(sample, "train")
    assert train.artist_ids is not None
    assert train.artists is not None
    assert not set(train.artist_ids) & set(truth["artistid"])
    of_train = np.bincount(train.artists)
    of_test = np.unique(truth["artistid"], return_counts=True)[1]
    assert of_train.max() == of_test.max() == TRACKS
    assert of_train.min() == 1
    assert of_test.min() >= 2
    assert len(truth["trackid"]) > 100
    assert truth["trackid"] == load(sample, "test").ids


def test_paths_of_the_test_say_nothing_about_artists(sample: Path):
    truth = read_truth(sample / "test_truth.tsv")
    firsts = [line.split("\t")[1][0] for line in (sample / "test_meta.tsv").read_text().splitlines()[1:]]
    artists = np.array(truth["artistid"])
    largest = [artist for artist in np.unique(artists) if (artists == artist).sum() == TRACKS]
    assert all(len({f for f, a in zip(firsts, artists, strict=True) if a == artist}) > 2 for artist in largest)


def test_the_same_seed_gives_the_same_files_and_another_gives_others(sample: Path, tmp_path: Path):
    write_sample(tmp_path / "again", artists=45)
    write_sample(tmp_path / "other", artists=45, seed=1)
    names = [file.relative_to(sample) for file in sorted(sample.rglob("*")) if file.is_file()]
    assert all((tmp_path / "again" / name).read_bytes() == (sample / name).read_bytes() for name in names)
    arrays = [name for name in names if name.parts[0] == "train_features"]  # paths of the test are drawn
    assert all((tmp_path / "other" / name).read_bytes() != (sample / name).read_bytes() for name in arrays)


def score(tracks: Tracks, artists: np.ndarray, whiten: bool, fitted: Tracks) -> float:
    encoder = MeanEncoder.fit(fitted.pack, fitted.rows, whiten=whiten)
    found = top_k(encoder.embed(tracks.pack, tracks.rows), k=100).indices
    return float(ndcg_report(found, artists, bootstrap=0)["ndcg@100"])


def test_chance_naive_and_whitened_are_clearly_apart(sample: Path):
    train, test = load(sample, "train"), load(sample, "test")
    artists = np.unique(read_truth(sample / "test_truth.tsv")["artistid"], return_inverse=True)[1]
    rng = np.random.default_rng(0)
    n = len(test)
    chance = np.stack([rng.permutation(np.delete(np.arange(n), q))[:100] for q in range(n)])
    by_chance = float(ndcg_report(chance, artists, bootstrap=0)["ndcg@100"])
    naive = score(test, artists, False, train)
    whitened = score(test, artists, True, train)
    assert by_chance + 0.05 < naive
    assert naive + 0.1 < whitened < 0.95


def test_what_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_sample(tmp_path / "full")
    with pytest.raises(ConfigError, match="at least 45"):
        write_sample(tmp_path / "out", artists=44)
    with pytest.raises(ConfigError, match="channels"):
        write_sample(tmp_path / "out", channels=3)
    assert not (tmp_path / "out").exists()
