"""The generated sample: exact official layout, the same for the same seed, and learnable."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from kit_core.errors import ConfigError
from russian_art.data import load, read_label_ids
from russian_art.sample import FEWEST_IMAGES, LABEL_NAMES, MEDIA, paint, write_sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    write_sample(out, images=170, seed=1)
    return out


def digest(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def test_official_layout(sample: Path):
    assert sorted(p.name for p in sample.iterdir()) == ["label_to_id.csv", "test", "test.csv", "train", "train.csv"]
    for name, header in (("train.csv", "image_name\tlabel_id"), ("label_to_id.csv", "label_name\tlabel_id")):
        assert (sample / name).read_text(encoding="utf-8").splitlines()[0] == header
    train, test = load(sample, size=64), load(sample, "test", size=64)
    assert (len(train), len(test)) == (136, 34)
    assert not train.broken
    assert not test.broken
    assert train.labels.names == LABEL_NAMES
    assert train.labels.tops == tuple(MEDIA)
    assert any(name.endswith(" ") for name in LABEL_NAMES)
    assert len(train.labels.genres) < len(LABEL_NAMES)
    assert train.label is not None
    assert train.label.tolist() == sorted(train.label.tolist())
    assert set(Counter(train.label.tolist()).values()) == {8}
    truth = read_label_ids(sample / "test.csv", labels=train.labels)
    assert sorted(truth) == test.names
    assert set(Counter(truth.values()).values()) == {2}
    assert not set(train.names) & set(test.names)
    suffixes = {name.rpartition(".")[2] for name in train.names}
    assert suffixes == {"jpg", "jpeg", "JPG", "webp", "png", "gif"}
    assert sum(p.stat().st_size for p in sample.rglob("*")) < 6_000_000


def test_the_seed_decides(sample: Path, tmp_path: Path):
    for seed in (1, 2):
        write_sample(tmp_path / str(seed), images=FEWEST_IMAGES, seed=seed)
    again = digest(tmp_path / "1")
    assert {
        name: value for name, value in digest(sample).items() if name in again and "/" in name
    }.items() <= again.items()
    assert not {n for n in again if "/" in n} & {n for n in digest(tmp_path / "2") if "/" in n}


def test_a_linear_model_learns_it_and_guessing_does_not(sample: Path):
    train, test = load(sample, size=64), load(sample, "test", size=64)
    truth = read_label_ids(sample / "test.csv", labels=train.labels)

    def features(pixels: np.ndarray) -> np.ndarray:
        small = [np.asarray(Image.fromarray(p).resize((12, 12)), dtype=np.float64).ravel() / 255 for p in pixels]
        return np.array(small)

    model = LogisticRegression(C=0.03, max_iter=1000).fit(features(train.pixels), train.label)
    right = model.predict(features(test.pixels)) == [truth[name] for name in test.names]
    assert right.mean() > 0.6  # of 17 labels; a guess is right in one case of 17


def test_every_label_is_painted():
    for label in LABEL_NAMES:
        picture = paint(label, np.random.default_rng(0))
        assert picture.mode == "RGB"
        assert max(picture.size) == 192
        assert np.asarray(picture).std() > 5


def test_refusals(tmp_path: Path):
    with pytest.raises(ConfigError, match="expected at least 85"):
        write_sample(tmp_path / "a", images=84)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_sample(tmp_path / "b")
    assert [p.name for p in tmp_path.rglob("*")] == ["b", "mine.txt"]
