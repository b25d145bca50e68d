"""The official layout in all its forms, the packed form, folds, and submissions."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kit_core.errors import ConfigError
from kit_io.ragged import RaggedWriter
from yandex_artists import data as official
from yandex_artists.data import (
    as_ids,
    check_submission,
    load,
    prepare,
    read_submission,
    read_truth,
    splits_in,
    track_ids,
    validation_folds,
    write_submission,
)
from yandex_artists.sample import write_sample

CHANNELS = 16


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artists") / "sample"
    write_sample(out, artists=45, channels=CHANNELS)
    return out


def files_of(sample: Path) -> dict[str, bytes]:
    return {
        file.relative_to(sample).as_posix(): file.read_bytes() for file in sorted(sample.rglob("*")) if file.is_file()
    }


def written(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def only(files: dict[str, bytes], *starts: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.startswith(starts)}


def reversed_order(files: dict[str, bytes]) -> dict[str, bytes]:
    return dict(reversed(files.items()))


def as_folder(root: Path, files: dict[str, bytes]) -> Path:
    return written(root, files)


def doubly_nested(root: Path, files: dict[str, bytes]) -> Path:
    return written(
        root, {name.replace("train_features/", "train_features/train_features/"): c for name, c in files.items()}
    )


def without_a_folder(root: Path, files: dict[str, bytes]) -> Path:
    return written(
        root, {name.replace("train_features/", "").replace("test_features/", ""): c for name, c in files.items()}
    )


def as_zip(root: Path, files: dict[str, bytes]) -> Path:
    return zipped(root / "all.zip", {f"download/{name}": content for name, content in files.items()})


def as_tar(root: Path, files: dict[str, bytes]) -> Path:
    # Features in another order than the tables, which come last.
    return tarred(root / "dataset.tar.gz", {f"./dataset/{name}": c for name, c in reversed_order(files).items()})


def as_published(root: Path, files: dict[str, bytes]) -> Path:
    written(root, {name: content for name, content in files.items() if name.endswith(".tsv")})
    for split in ("train", "test"):
        tarred(root / f"{split}_features.tar.gz", reversed_order(only(files, f"{split}_features/")))
    return root


def tables_beside_a_tar(root: Path, files: dict[str, bytes]) -> Path:
    as_published(root, files)
    return root / "train_features.tar.gz"


FORMS: list[Callable[[Path, dict[str, bytes]], Path]] = [
    as_folder, doubly_nested, without_a_folder, as_zip, as_tar, as_published, tables_beside_a_tar,
]  # fmt: skip


def test_every_form_gives_the_same_tracks(sample: Path, tmp_path: Path):
    files = files_of(sample)
    expected = load(sample, "train", dtype="float32")
    assert expected.channels == CHANNELS
    table = [line.split("\t") for line in (sample / "train_meta.tsv").read_text().splitlines()[1:]]
    assert expected.ids == [int(row[0]) for row in table]
    assert expected.artists is not None
    assert expected.artist_ids == sorted({int(row[1]) for row in table})
    assert [expected.artist_ids[a] for a in expected.artists] == [int(row[1]) for row in table]
    for row in (0, 7, len(table) - 1):
        array = np.load(sample / "train_features" / table[row][2])
        np.testing.assert_array_equal(expected.pack.item(expected.rows[row]), array.T)
    for number, form in enumerate(FORMS):
        path = form(tmp_path / str(number), files)
        found = load(path, "train", dtype="float32")
        assert found.fingerprint == expected.fingerprint, form.__name__
        assert found.ids == expected.ids
        np.testing.assert_array_equal(found.pack.item(found.rows[3]), expected.pack.item(expected.rows[3]))
        assert splits_in(path) == (("train",) if form is tables_beside_a_tar else ("train", "test"))


def test_prepared_and_official_are_the_same(sample: Path, tmp_path: Path):
    done = prepare(sample, tmp_path / "packed")
    assert done.splits["train"]["tracks"] == len(load(sample, "train"))
    assert done.splits["test"]["artists"] == 0
    assert 0 < done.splits["train"]["rounding_error"] < 0.02
    for split in ("train", "test"):
        official_tracks, packed = load(sample, split), load(tmp_path / "packed", split)
        assert packed.fingerprint == official_tracks.fingerprint
        assert packed.ids == official_tracks.ids == track_ids(sample, split) == track_ids(tmp_path / "packed", split)
    assert load(tmp_path / "packed", "test").artists is None
    assert splits_in(tmp_path / "packed") == ("train", "test")
    again = prepare(sample, tmp_path / "packed")
    assert again.splits == done.splits
    assert load(sample, "train", dtype="bfloat16").fingerprint != load(sample, "train").fingerprint


@pytest.mark.parametrize("form", [as_folder, as_published])
def test_a_stopped_prepare_goes_on_and_ends_in_the_same_bytes(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Callable[[Path, dict[str, bytes]], Path],
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    source, out = form(tmp_path / "data", files_of(sample)), tmp_path / "packed"
    prepare(source, tmp_path / "whole")
    append, count = RaggedWriter.append, 0

    def stopping(self: RaggedWriter, array: np.ndarray) -> None:
        nonlocal count
        count += 1
        if count == 40:
            raise KeyboardInterrupt
        append(self, array)

    monkeypatch.setattr(RaggedWriter, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out)
    monkeypatch.setattr(RaggedWriter, "append", append)
    with pytest.raises(official.DataError, match="unfinished"):
        load(out, "train")
    prepare(source, out)
    assert "goes on behind 39 packed tracks" in capsys.readouterr().err
    for name in ("train/features/values.bin", "train/tracks.tsv", "test/features/values.bin", "manifest.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_data_or_settings_begin_anew(sample: Path, tmp_path: Path):
    out = tmp_path / "packed"
    prepare(sample, out)
    prepare(sample, out, dtype="float32")
    assert load(out, "train").pack.dtype == "float32"
    other = tmp_path / "other"
    write_sample(other, artists=45, channels=CHANNELS, seed=1)
    prepare(other, out)
    assert load(out, "train").fingerprint == load(other, "train").fingerprint


def test_places_that_prepare_refuses(sample: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="thesis"):
        prepare(sample, tmp_path / "mine")
    with pytest.raises(ConfigError, match="inside the data folder"):
        prepare(sample, sample / "packed")
    prepare(sample, tmp_path / "packed")
    with pytest.raises(ConfigError, match="already prepared"):
        prepare(tmp_path / "packed", tmp_path / "again")


def test_folds_are_the_official_ones_where_paths_give_them(sample: Path, tmp_path: Path):
    tracks = load(sample, "train")
    assert tracks.folds is not None
    assert tracks.artists is not None
    assert tracks.artist_ids is not None
    ids = np.array(tracks.artist_ids)[tracks.artists]
    assert np.array_equal(tracks.folds, ids % 10)
    assert np.array_equal(validation_folds(tracks), tracks.folds)
    assert np.array_equal(validation_folds(tracks, 5), tracks.folds % 5)
    own = validation_folds(tracks, 12)
    assert len(np.unique(own)) == 12
    assert all(len(set(own[tracks.artists == a])) == 1 for a in range(len(tracks.artist_ids)))
    with pytest.raises(ConfigError, match="train split"):
        validation_folds(load(sample, "test"))

    files = files_of(sample)
    table = files["train_meta.tsv"].decode().splitlines()
    track, artist, path = table[1].split("\t")
    moved = f"{(int(path[0]) + 1) % 10}{path[1:]}"  # an artist in two folds
    files["train_meta.tsv"] = "\n".join([table[0], f"{track}\t{artist}\t{moved}", *table[2:], ""]).encode()
    files[f"train_features/{moved}"] = files.pop(f"train_features/{path}")
    assert load(written(tmp_path / "mixed", files), "train").folds is None


def test_columns_in_another_order_and_more_of_them_are_read(sample: Path, tmp_path: Path):
    files = files_of(sample)
    rows = [line.split("\t") for line in files["train_meta.tsv"].decode().splitlines()]
    turned = "\n".join("\t".join([*row[::-1], "x"]) for row in rows) + "\n"
    files["train_meta.tsv"] = turned.encode()
    assert load(written(tmp_path / "turned", files), "train").fingerprint == load(sample, "train").fingerprint


def test_a_hold_out_with_artists_in_the_test_table_is_a_test_split(sample: Path, tmp_path: Path):
    files = files_of(sample)
    truth = dict(line.split("\t") for line in files["test_truth.tsv"].decode().splitlines())
    rows = [line.split("\t") for line in files["test_meta.tsv"].decode().splitlines()]
    table = "\n".join(f"{track}\t{truth[track]}\t{path}" for track, path in rows) + "\n"
    path = written(tmp_path / "held", only(files, "test_features/") | {"test_meta.tsv": table.encode()})
    tracks = load(path, "test")
    assert tracks.artists is None
    assert tracks.ids == load(sample, "test").ids
    assert splits_in(path) == ("test",)
    assert read_truth(path / "test_meta.tsv")["trackid"] == tracks.ids


# --- submissions


def neighbours_for(n: int) -> np.ndarray:
    return np.stack([np.delete(np.arange(n), q)[:100] for q in range(n)])


def test_a_submission_is_written_in_the_exact_form_and_read_back(sample: Path, tmp_path: Path):
    tracks = load(sample, "test")
    rows = neighbours_for(len(tracks))
    path = tmp_path / "submission.txt"
    write_submission(path, tracks.ids, as_ids(tracks, rows))
    content = path.read_bytes()
    first = content.split(b"\n")[0].decode()
    assert first == f"{tracks.ids[0]}\t" + " ".join(str(i) for i in tracks.ids[1:101])
    assert content.endswith(b"\n")
    assert b"\r" not in content
    assert content.count(b"\n") == len(tracks)
    read = read_submission(path)
    assert read.queries.tolist() == tracks.ids
    assert np.array_equal(check_submission(path, tracks), rows)
    lines = content.decode().splitlines()
    path.write_text("\n".join(lines[::-1]) + "\n")  # the order of lines means nothing
    assert np.array_equal(check_submission(path, tracks.ids), rows)


def test_what_is_no_submission_is_not_written(tmp_path: Path):
    rows = neighbours_for(120)
    path = tmp_path / "submission.txt"
    for queries, neighbours in (
        (np.arange(120), rows[:, :99]),
        (np.zeros(120, dtype=np.int64), rows),
        (np.arange(120), rows[::-1]),  # some name themselves
        (np.arange(120), np.where(np.arange(100) == 99, rows[:, :1], rows)),
    ):
        with pytest.raises(ValueError, match=r"found neighbours|comes twice|names itself"):
            write_submission(path, queries, neighbours)
    assert not path.exists()


def test_the_official_sizes_fit(tmp_path: Path):
    rng = np.random.default_rng(0)
    ids = np.arange(167_197, 167_197 + 2_000)
    rows = np.stack([rng.permutation(np.delete(np.arange(2_000), q))[:100] for q in range(2_000)])
    write_submission(tmp_path / "s.txt", ids, ids[rows])
    assert np.array_equal(check_submission(tmp_path / "s.txt", ids.tolist()), rows)


@pytest.mark.data
def test_the_stand_in_is_read_as_its_readme_says():
    root = next((p for p in Path(__file__).resolve().parents if (p / "poetry.lock").exists()), Path("/"))
    path = root.parent / "shared" / "data" / "artists-mini"
    if not path.is_dir():
        pytest.skip("needs ../shared/data/artists-mini beside the repository")
    tracks = load(path, "train")
    assert tracks.artists is not None
    assert tracks.artist_ids is not None
    counts = np.bincount(tracks.artists)
    assert (len(tracks), len(counts), counts.max(), (counts == 1).sum()) == (1429, 595, 10, 345)
    assert tracks.channels == 192
    assert (tracks.pack.lengths.min(), tracks.pack.lengths.max()) == (4, 81)
    assert tracks.folds is not None
    for n_folds in (2, 5, 10):
        folds = validation_folds(tracks, n_folds)
        assert all(len(set(folds[tracks.artists == artist])) == 1 for artist in range(len(tracks.artist_ids)))
    assert np.bincount(tracks.folds).tolist() == [150, 147, 141, 144, 139, 140, 136, 143, 146, 143]
