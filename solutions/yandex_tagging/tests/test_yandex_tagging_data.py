"""Reading, packing and submissions on good input (bad input has a file of its own)."""

import csv
import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kit_core.errors import ConfigError
from kit_io.ragged import RaggedPack
from yandex_tagging import data
from yandex_tagging.config import DataConfig
from yandex_tagging.data import fingerprint, load, prepare, read_truth, read_wanted, splits_in
from yandex_tagging.submission import align_submission, check_submission, read_submission, write_submission
from yandex_tagging.train import assign_folds

DIM = 6
TRAIN = {17: "0,2,5", 3: "1", 40: "0,1", 8: "2,3,4", 0: "0", 21: "5"}
TEST = [33, 2, 19, 5]  # in no order, as in the official file
REPOSITORY = next(folder for folder in Path(__file__).resolve().parents if (folder / "poetry.lock").exists())
SHARED = REPOSITORY.parent / "shared" / "data"


def frames(track: int) -> Any:
    return np.random.default_rng(track).standard_normal((3 + track % 7, DIM)).astype(np.float32)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def files() -> dict[str, bytes]:
    tables = {
        "train.csv": "track,tags\n" + "".join(f'{i},"{tags}"\n' for i, tags in TRAIN.items()),
        "test.csv": "track\n" + "".join(f"{i}\n" for i in TEST),
    }
    found = {name: text.encode() for name, text in tables.items()}
    return found | {f"track_embeddings/{i}.npy": npy(frames(i)) for i in [*TRAIN, *TEST]}


def write_folder(root: Path, content: dict[str, bytes]) -> Path:
    for name, body in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
    return root


def write_tar(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, body in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return path


def split_off(content: dict[str, bytes], prefix: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    inside = {name: body for name, body in content.items() if name.startswith(prefix)}
    return inside, {name: body for name, body in content.items() if name not in inside}


def flat(content: dict[str, bytes]) -> dict[str, bytes]:
    return {name.rpartition("/")[2]: body for name, body in content.items()}


def as_folder(root: Path, content: dict[str, bytes]) -> Path:
    return write_folder(root, content)


def as_zip(root: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for name, body in content.items():
            archive.writestr(f"yandex-cup/{name}", body)
    return root.with_suffix(".zip")


def as_tar_beside(root: Path, content: dict[str, bytes]) -> Path:
    """The official form: a flat track_embeddings.tar.gz beside the csv files."""
    embeddings, rest = split_off(content, "track_embeddings/")
    write_folder(root, rest)
    write_tar(root / "track_embeddings.tar.gz", dict(reversed(flat(embeddings).items())))
    return root


def as_tar_itself(root: Path, content: dict[str, bytes]) -> Path:
    return as_tar_beside(root, content) / "track_embeddings.tar.gz"


def as_plain_tar_with_a_folder(root: Path, content: dict[str, bytes]) -> Path:
    embeddings, rest = split_off(content, "track_embeddings/")
    write_folder(root, rest)
    write_tar(root / "track_embeddings.tar", {f"./{name}": body for name, body in embeddings.items()})
    return root


def as_inner_folder(root: Path, content: dict[str, bytes]) -> Path:
    embeddings, rest = split_off(content, "track_embeddings/")
    write_folder(root / "data", rest)
    write_folder(root, embeddings)
    return root


def as_downloads(root: Path, content: dict[str, bytes]) -> Path:
    """Both archives as they are downloaded."""
    embeddings, rest = split_off(content, "track_embeddings/")
    write_tar(root / "data.tar.gz", {f"data/{name}": body for name, body in rest.items()})
    write_tar(root / "track_embeddings.tar.gz", flat(embeddings))
    return root


def as_bare_files(root: Path, content: dict[str, bytes]) -> Path:
    return write_folder(root, flat(content))


Form = Callable[[Path, dict[str, bytes]], Path]
FORMS: list[Form] = [
    as_folder, as_zip, as_tar_beside, as_tar_itself, as_plain_tar_with_a_folder, as_inner_folder, as_downloads,
    as_bare_files,
]  # fmt: skip


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return as_folder(tmp_path / "official", files())


def assert_official(path: Path) -> None:
    assert splits_in(path) == ("train", "test")
    train, test = load(path, "train"), load(path, "test")
    assert (train.ids, test.ids) == (list(TRAIN), TEST)
    for tracks in (train, test):
        for row, track in zip(tracks.rows, tracks.ids, strict=True):
            np.testing.assert_array_equal(tracks.pack.item(row), frames(track).astype(np.float16))
        assert tracks.n_tags == 6
        assert tracks.lengths.tolist() == [3 + i % 7 for i in tracks.ids]
    assert test.tags is None
    assert train.tags is not None
    assert [",".join(map(str, np.flatnonzero(row))) for row in train.tags] == list(TRAIN.values())


@pytest.mark.parametrize("form", FORMS)
def test_every_layout_gives_the_same_tracks_directly_and_packed(form: Form, tmp_path: Path) -> None:
    path = form(tmp_path / "official", files())
    assert_official(path)
    done = prepare(path, tmp_path / "packed", workers=2)
    assert (done.tracks, done.n_tags, done.dim, done.kept) == ({"train": 6, "test": 4}, 6, DIM, 0)
    assert_official(tmp_path / "packed")
    assert fingerprint(path) == fingerprint(tmp_path / "packed") == load(path).fingerprint
    assert read_wanted(path, "test") == read_wanted(tmp_path / "packed", "test") == (TEST, 6)


def test_another_version_of_the_data_has_another_fingerprint(official: Path) -> None:
    before = fingerprint(official)
    (official / "track_embeddings" / "17.npy").write_bytes(npy(frames(18)))
    assert fingerprint(official) != before


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 0.0), ("float16", 2**-9), ("bfloat16", 2**-6)])
def test_the_largest_error_is_measured(official: Path, tmp_path: Path, dtype: Any, limit: float) -> None:
    done = prepare(official, tmp_path / "packed", dtype=dtype)
    tracks = load(tmp_path / "packed")
    differences = [
        np.abs(tracks.pack.item(row) - frames(i)).max() for row, i in zip(tracks.rows, tracks.ids, strict=True)
    ]
    assert max(differences) <= done.max_abs_error <= limit
    manifest = json.loads((tmp_path / "packed" / "manifest.json").read_text())
    assert (manifest["dtype"], manifest["max_abs_error"]) == (dtype, done.max_abs_error)
    assert manifest["splits"]["train"]["tags_without_a_track"] == 0


@pytest.mark.parametrize(
    "stored",
    [
        lambda x: x.astype(np.float16),
        np.asfortranarray,
        lambda x: x.astype(">f4"),
    ],
)
def test_other_ways_to_store_floats_are_read(official: Path, stored: Callable[[Any], Any]) -> None:
    (official / "track_embeddings" / "17.npy").write_bytes(npy(stored(frames(17))))
    assert_official(official)


def test_names_of_tags_and_groups_are_read_where_they_are(official: Path, tmp_path: Path) -> None:
    (official / "tag_names.txt").write_text("rock\njazz\nпоп\nd\ne\nf\nnever used\n", encoding="utf-8")
    groups = {track: str(track) for track in TRAIN} | {17: "a", 3: "b", 40: "a", 0: "b"}
    (official / "groups.csv").write_text(
        "track,group\n" + "".join(f"{track},{group}\n" for track, group in groups.items())
    )
    prepare(official, tmp_path / "packed")
    for path in (official, tmp_path / "packed"):
        tracks = load(path)
        assert tracks.n_tags == 7
        assert tracks.tag_names is not None
        assert tracks.tag_names[2] == "поп"
        assert tracks.groups is not None
        by_track = dict(zip(tracks.ids, tracks.groups.tolist(), strict=True))
        assert by_track[17] == by_track[40]
        assert by_track[3] == by_track[0]
        assert len(set(by_track.values())) == len(TRAIN) - 2
        assert load(path, "test").groups is None


def test_one_split_alone_is_enough(official: Path, tmp_path: Path) -> None:
    (official / "train.csv").unlink()
    for track in TRAIN:
        (official / "track_embeddings" / f"{track}.npy").unlink()
    assert splits_in(official) == ("test",)
    assert load(official, "test").n_tags == 0
    prepare(official, tmp_path / "packed")
    assert load(tmp_path / "packed", "test").ids == TEST


def test_harmless_oddities_are_told(official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (official / "train.csv").write_text((official / "train.csv").read_text().replace("0,2,5", "0,2,5,2"))
    for stray in ("notes.txt", "track_embeddings.tar.gz", "copy.npy", "007.npy"):
        (official / "track_embeddings" / stray).write_text("x")
    (official / "track_embeddings" / "99.npy").write_bytes(npy(frames(99)))
    prepare(official, tmp_path / "packed")
    said = capsys.readouterr().err
    assert "1 row with a tag that comes twice" in said
    assert "leaves out 4 files that are no <id>.npy" in said
    assert "leaves out 1 tracks without a row" in said
    assert_official(tmp_path / "packed")


def test_a_second_prepare_is_a_look_at_the_manifest(official: Path, tmp_path: Path) -> None:
    prepare(official, tmp_path / "packed")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "packed").rglob("*")}
    again = prepare(official, tmp_path / "packed")
    assert again.kept == 10
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "packed").rglob("*")} == before


KILLED = """
import os, signal, sys
from pathlib import Path
import kit_io.ragged
from yandex_tagging.data import prepare
kit_io.ragged.FLUSH_BYTES = 1
append = kit_io.ragged.RaggedWriter.append
def killing(self, array):
    append(self, array)
    if self.appended == 7:
        os.kill(os.getpid(), signal.SIGKILL)
kit_io.ragged.RaggedWriter.append = killing
prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
"""


@pytest.mark.parametrize("form", [as_folder, as_tar_beside])
def test_a_killed_prepare_goes_on_where_it_was(form: Form, tmp_path: Path) -> None:
    path, out = form(tmp_path / "official", files()), tmp_path / "packed"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(out)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(data.DataError, match="run prepare again"):
        load(out)
    assert prepare(path, out).kept == 7
    assert_official(out)
    fresh = tmp_path / "fresh"
    prepare(path, fresh)
    assert (out / "embeddings" / "values.bin").read_bytes() == (fresh / "embeddings" / "values.bin").read_bytes()
    RaggedPack.open(out / "embeddings").verify()


def test_a_stop_between_the_pack_and_the_manifest_loses_nothing(
    official: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data, "_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(official, tmp_path / "packed")
    assert prepare(official, tmp_path / "packed").kept == 10
    assert_official(tmp_path / "packed")


def test_an_unfinished_pack_of_other_data_is_begun_anew(official: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    subprocess.run([sys.executable, "-c", KILLED, str(official), str(out)], capture_output=True)
    (official / "track_embeddings" / "17.npy").write_bytes(npy(np.ones((2, DIM), np.float32)))
    assert prepare(official, out).kept == 0
    assert load(out).pack.item(load(out).rows[0]).tolist() == np.ones((2, DIM)).tolist()


@pytest.mark.parametrize("change", ["dtype", "data", "foreign"])
def test_a_folder_that_holds_something_else_is_refused(official: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "packed"
    if change == "foreign":
        out.mkdir()
        (out / "thesis.tex").write_text("x")
    else:
        prepare(official, out)
    if change == "data":
        (official / "test.csv").write_text("track\n2\n")
    with pytest.raises(ConfigError, match="other"):
        prepare(official, out, dtype="float32" if change == "dtype" else "float16")
    with pytest.raises(ConfigError, match="inside the data"):
        prepare(official, official / "packed")


def test_an_already_prepared_folder_is_not_prepared_again(official: Path, tmp_path: Path) -> None:
    prepare(official, tmp_path / "packed")
    with pytest.raises(ConfigError, match="already prepared"):
        prepare(tmp_path / "packed", tmp_path / "again")


def test_truth_is_read_with_as_many_tags_as_asked(official: Path) -> None:
    ids, tags = read_truth(official / "train.csv")
    assert (ids, tags.shape) == (list(TRAIN), (6, 6))
    assert read_truth(official / "train.csv", 9)[1].shape == (6, 9)


# --- submissions


@settings(max_examples=50, deadline=None)
@given(
    values=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 5)),
        elements=st.floats(0, 1, width=32) | st.sampled_from([0.0, 1.0, 1e-38, 1.4e-45, 0.99999994]),
    ),
    data=st.data(),
)
def test_a_submission_is_read_back_bit_by_bit(tmp_path_factory: Any, values: Any, data: Any) -> None:
    path = tmp_path_factory.mktemp("submission") / "s.csv"
    ids = data.draw(st.permutations(range(len(values))))
    write_submission(path, ids, values)
    found, read = read_submission(path)
    assert found == ids
    np.testing.assert_array_equal(read.view(np.uint32) & 0x7FFFFFFF, values.view(np.uint32) & 0x7FFFFFFF)
    rows = list(csv.reader(path.read_text().splitlines()))
    assert rows[0] == ["track", "prediction"]
    for track, row, expected in zip(ids, rows[1:], values, strict=True):
        assert row[0] == str(track)
        assert [np.float32(text) for text in row[1].split(",")] == expected.tolist()


def test_a_submission_looks_as_the_judge_wants_it(tmp_path: Path) -> None:
    write_submission(tmp_path / "s.csv", [17730, 5], np.array([[0.0287, 0.5], [1e-7, 1]], np.float32))
    assert (tmp_path / "s.csv").read_text() == 'track,prediction\n17730,"0.0287,0.5"\n5,"1e-7,1.0"\n'


def test_many_rows_are_read_in_pieces(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3000, 9), dtype=np.float32)
    ids = np.random.default_rng(1).permutation(3000).tolist()
    write_submission(tmp_path / "s.csv", ids, values)
    found, read = read_submission(tmp_path / "s.csv")
    assert found == ids
    np.testing.assert_array_equal(read, values)
    np.testing.assert_array_equal(check_submission(tmp_path / "s.csv", ids, 9), values)
    shuffled = sorted(ids)
    np.testing.assert_array_equal(align_submission(tmp_path / "s.csv", shuffled), values[np.argsort(ids)])


@pytest.mark.parametrize(
    "text",
    [
        'track,prediction\r\n3,"0.1,0.25"\r\n1,"0.5,1"\r\n',
        '\ufefftrack,prediction\n3,"1e-1,2.5E-01"\n1,".5,1."',
        'track,prediction\n3,"0.1,0.25"\n1,"0.50000000000000000000,1.000"\n\n',
    ],
)
def test_forms_that_other_programs_write_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.csv").write_text(text, encoding="utf-8", newline="")
    ids, values = read_submission(tmp_path / "s.csv")
    assert ids == [3, 1]
    np.testing.assert_array_equal(values, np.array([[0.1, 0.25], [0.5, 1]], np.float32))


@pytest.mark.parametrize("bad", [np.nan, -0.01, 1.01, np.inf])
def test_what_is_no_probability_is_not_written(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        write_submission(tmp_path / "s.csv", [1], np.array([[0.5, bad]], np.float32))
    assert not list(tmp_path.iterdir())


# --- real data


@pytest.mark.data
def test_the_official_tables_are_read_exactly(tmp_path: Path) -> None:
    folder = SHARED / "official-meta" / "yandex_tagging"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest()[:8] for name in ("train.csv", "test.csv")}
    assert md5 == {"train.csv": "6f9001db", "test.csv": "ff5a435a"}
    for name in md5:
        shutil.copy(folder / name, tmp_path)
    train, n_tags = read_wanted(tmp_path, "train")
    test, _ = read_wanted(tmp_path, "test")
    assert (len(train), len(test), n_tags) == (51_134, 25_580, 256)
    assert sorted(train + test) == list(range(76_714))
    assert test[:3] == [17730, 32460, 11288]
    ids, tags = read_truth(tmp_path / "train.csv")
    assert ids == train
    assert tags.sum() == 201_562 - 2  # two rows repeat a tag
    assert tags[:, 0].sum() == 20_095
    assert tags.sum(axis=0).min() == tags[:, 238].sum() == 208
    assert np.flatnonzero(tags[0]).tolist() == [5, 6, 9, 26, 32, 55, 96]


@pytest.mark.data
def test_the_stand_in_is_packed_without_loss() -> None:
    folder = SHARED / "tagging-mini"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    tracks = load(folder)
    assert (len(tracks), tracks.n_tags, tracks.pack.dim) == (1875, 81, 192)
    assert tracks.tag_names is not None
    assert tracks.tag_names[0] == "numpy"
    for row in (0, 900, 1874):
        stored = np.load(folder / "track_embeddings" / f"{tracks.ids[row]}.npy")
        np.testing.assert_array_equal(tracks.pack.item(tracks.rows[row]), stored.astype(np.float32))


@pytest.mark.data
@pytest.mark.parametrize(("name", "n_groups", "largest"), [("tagging-mini", 585, 81), ("music-tags", 86, 28)])
def test_folds_cut_no_group_of_the_stand_ins(name: str, n_groups: int, largest: int) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    with (folder / "groups.csv").open(newline="") as file:
        group_of = {int(row["track"]): row["group"] for row in csv.DictReader(file)}
    tracks = load(folder)
    assert sorted(group_of) == sorted(tracks.ids)
    assert Counter(group_of.values()).most_common(1)[0][1] == largest
    for n_folds, seed in ((3, 0), (5, 0), (5, 1), (10, 2)):
        folds, _ = assign_folds(tracks, DataConfig(n_folds=n_folds, seed=seed))  # type: ignore[arg-type]  # 5 and 10 are allowed numbers of folds
        found = {(group_of[track], fold) for track, fold in zip(tracks.ids, folds.tolist(), strict=True)}
        assert len(found) == len(set(group_of.values())) == n_groups
