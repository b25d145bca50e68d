"""Every kind of damaged data: exit code 3, helpful words, nothing half written."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kit_core.errors import ConfigError, DataError
from kit_core.testing import refused
from ntua_lab.data import check_submission, load, prepare, read_answers, write_emotions, write_genres
from ntua_lab.extract import extract_folder

GENRE = "fma_genre_spectrograms"
FILE = f"{GENRE}/train/1000.fused.full.npy.gz"


def refused_everywhere(official: Path, *words: str) -> None:
    refused(lambda: load(official), *words)
    out = official.parent / "packed"
    refused(lambda: prepare(official, out), *words)
    assert not out.exists()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_nan() -> np.ndarray:
    array = np.zeros((140, 9), np.float32)
    array[3, 4] = np.nan
    return array


ARRAYS: dict[str, tuple[np.ndarray, str]] = {
    "time first": (np.zeros((50, 140), np.float32), "float32 [50, 140], time first"),
    "mel alone": (np.zeros((128, 50), np.float32), "float32 [128, 50]"),
    "no steps": (np.zeros((140, 0), np.float32), "float32 [140, 0]"),
    "one axis": (np.zeros(140, np.float32), "float32 [140]"),
    "text": (np.full((140, 3), "x"), "<U1 [140, 3]"),
    "not a number": (with_nan(), "1 values of 1260 that are not finite"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(official: Path, kind: str, make_npy_gz: Callable[[np.ndarray], bytes]) -> None:
    array, words = ARRAYS[kind]
    (official / FILE).write_bytes(make_npy_gz(array))
    refused_everywhere(official, FILE, f"found {words}", "[140, T]")


BYTES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no whole .npy file"),
    "text": (b"<html>", "6 bytes that are no whole gzip file"),
    "no array inside": (b"\x1f\x8b\x08\x00" + b"\0" * 20, "no whole gzip file"),
}


@pytest.mark.parametrize("kind", BYTES)
def test_bytes(official: Path, kind: str) -> None:
    content, words = BYTES[kind]
    (official / FILE).write_bytes(content)
    refused_everywhere(official, FILE, words)


def test_a_gzip_file_that_unfolds_without_end(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ntua_lab.data.MOST_BYTES", 1000)
    refused_everywhere(official, "more than 1,000 bytes when unfolded (a decompression bomb)")


@pytest.mark.parametrize("header", [b"(" * 300, b"{'descr'", b"{'descr': '<f4', 'shape': (", b"1" * 400 + b"L"])
def test_headers_that_numpy_trips_over(
    official: Path, header: bytes, make_npy_gz: Callable[[np.ndarray], bytes]
) -> None:
    whole = gzip.decompress(make_npy_gz(np.zeros((140, 9), np.float32)))
    (official / FILE).write_bytes(gzip.compress(whole[:10] + header.ljust(118)[:118] + whole[128:]))
    refused_everywhere(official, FILE, "no whole .npy file")


def test_a_gzip_file_and_a_npy_file_cut_short(official: Path) -> None:
    path = official / FILE
    path.write_bytes(path.read_bytes()[:-200])
    other = official / GENRE / "train/1001.fused.full.npy"
    other.write_bytes(other.read_bytes()[:-9])
    message = refused(lambda: load(official), "2 problems", "no whole gzip file", "no whole .npy file")
    assert "1001.fused.full.npy" in message


def test_six_broken_files_are_counted(official: Path) -> None:
    for number in range(0, 12, 2):
        (official / GENRE / f"train/{1000 + number}.fused.full.npy.gz").write_bytes(b"x")
    message = refused(lambda: load(official), "6 problems", "and 1 more")
    assert message.count("no whole gzip file") == 5


Change = Callable[[str], str]
LISTS: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "a row without a file": (
        f"{GENRE}/train_labels.txt",
        lambda text: text + "777.fused.full.npy.gz\tRock\n",
        ("clip 777: found a row, but no file", "777.fused.full.npy[.gz]"),
    ),
    "an unknown genre": (
        f"{GENRE}/train_labels.txt",
        lambda text: text.replace("\tClassical", "\tClasical", 1),
        ("line 4, clip 1002", "the genre 'Clasical'; did you mean 'Classical'"),
    ),
    "other answers in the other version": (
        f"{GENRE}_beat/train_labels.txt",
        lambda text: text.replace("\tClassical", "\tRock", 1),
        ("clip 1002", "'Rock', and 'Classical' in the other list"),
    ),
    "a second row": (
        f"{GENRE}/train_labels.txt",
        lambda text: text + "1000\tRock\n",
        ("clip 1000: found a second row",),
    ),
    "no id": (f"{GENRE}/train_labels.txt", lambda text: text + ".npy\tRock\n", ("the id '.npy'",)),
    "ids alone": (
        f"{GENRE}/test_labels.txt",
        lambda text: "\n".join(line.split("\t")[0] for line in text.splitlines()),
        ("header: found Id", "Id,Genre"),
    ),
    "a value above 1": (
        "multitask_dataset/train_labels.txt",
        lambda text: text.replace("0.100", "1.100", 1),
        ("line 2, clip 100000000", "valence '1.100'", "0..1"),
    ),
    "a value that is none": (
        "multitask_dataset/train_labels.txt",
        lambda text: text.replace("0.100", "nan", 1),
        ("valence 'nan'",),
    ),
    "a missing value": (
        "multitask_dataset/train_labels.txt",
        lambda text: text.replace("0.100,", "", 1),
        ("line 2: found 3 values",),
    ),
    "no rows": (f"{GENRE}/train_labels.txt", lambda text: "Id\tGenre\n", ("a header and no rows",)),
}


@pytest.mark.parametrize("fault", LISTS)
def test_lists(official: Path, fault: str) -> None:
    name, change, words = LISTS[fault]
    (official / name).write_text(change((official / name).read_text()))
    refused_everywhere(official, *words)


def test_no_list_no_data_and_a_bad_mapping(official: Path, tmp_path: Path) -> None:
    (official / "class_mapping.json").write_text('{"Rock": 3}')
    with pytest.raises(DataError, match="raw genre -> class or null"):
        load(official)
    (official / "class_mapping.json").unlink()
    (official / GENRE / "train_labels.txt").unlink()
    (official / f"{GENRE}_beat" / "train_labels.txt").unlink()
    refused_everywhere(official, "no list of the train clips", "Id, Genre")
    (tmp_path / "empty").mkdir()
    refused(lambda: load(tmp_path / "empty"), "no spectra")
    refused(lambda: load(tmp_path / "absent"), "absent")


def test_files_without_a_row_are_told(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("", "_beat"):
        lists = official / f"{GENRE}{suffix}" / "train_labels.txt"
        lists.write_text("\n".join(lists.read_text().splitlines()[:-1]) + "\n")
    assert len(load(official)) == 61
    told = capsys.readouterr().err
    assert told.count("1 files have no row and are left out: 1029") == 2  # once for each version


def test_a_damaged_pack(official: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    prepare(official, out)
    (out / "full/values.bin").write_bytes((out / "full/values.bin").read_bytes()[:-2])
    with pytest.raises(DataError, match="expected"):
        load(out)
    (out / "clips.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load(out)
    (out / "manifest.json").write_text((out / "manifest.json").read_text().replace('version": 1', 'version": 9'))
    with pytest.raises(DataError, match="format_version 9"):
        load(out)


# --- sound


def write_songs(folder: Path, *names: str, seconds: float = 4.0, rate: int = 22_050) -> Path:
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (round(seconds * rate), 1))
    for name in names:
        soundfile.write(folder / name, noise, rate)
    return folder


def test_sound_that_is_none_leaves_nothing(tmp_path: Path) -> None:
    folder = write_songs(tmp_path / "songs", "good.wav")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "page.mp3").write_bytes(b"<html>")
    write_songs(folder, "short.wav", seconds=2.0)
    soundfile.write(folder / "silent.wav", np.zeros(100_000), 22_050)
    soundfile.write(folder / "none.wav", np.zeros((0, 1)), 22_050)
    message = refused(lambda: extract_folder(folder, tmp_path / "out"), "5 problems", "3 s or more")
    for words in (
        "empty.wav: found no bytes at all", "page.mp3: found 6 bytes that libsndfile cannot decode",
        "short.wav: found 2.00 s of sound", "silent.wav: found digital silence", "none.wav: found no samples at all",
    ):  # fmt: skip
        assert words in message
    assert not (tmp_path / "out").exists()


def test_folders_and_labels_of_sound(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no such folder"):
        extract_folder(tmp_path / "absent", out)
    (tmp_path / "songs").mkdir()
    with pytest.raises(DataError, match="no sound files"):
        extract_folder(tmp_path / "songs", out)
    folder = write_songs(tmp_path / "songs", "a.wav")
    for seconds in (0.0, 2.0, float("nan")):  # the lowest bands of chroma need 3 seconds
        with pytest.raises(ConfigError, match="clip_seconds: found"):
            extract_folder(folder, out, clip_seconds=seconds)
    labels = tmp_path / "labels.csv"
    for text, words in (
        ("name,genre\na.wav,Rock\n", "header: found 'name,genre'"),
        ("file,genre\nb.wav,Rock\n", "b.wav: found a row, but no such sound file"),
        ("file,genre\na.wav,Rock\na.wav,Rock\n", "a.wav: found a second row"),
        ("file,split\na.wav,valid\n", "the split 'valid'"),
        ("file,valence,energy,danceability\na.wav,0.5,2,0.1\n", "the values '0.5', '2', '0.1'"),
        ("file,valence\na.wav,0.5\n", "the values '0.5', '', ''"),
        ("file,split,artist\na.wav,train,A\n", "the split 'train' without a genre and without values"),
    ):
        labels.write_text(text)
        refused(lambda: extract_folder(folder, out, labels=labels), "labels.csv", words)
    assert not out.exists()


# --- answers


def test_submissions(tmp_path: Path) -> None:
    path = tmp_path / "solution.txt"
    ids = ["11", "12", "13"]
    write_emotions(path, ids, np.array([[0.153, 0.961, 0.013], [0.5, 2.0, -1.0], [0.1, 0.2, 0.3]]))
    assert path.read_text().splitlines()[:2] == [
        "Id.fused.full.npy.gz,valence,energy,danceability", "11.fused.full.npy.gz,0.153000,0.961000,0.013000",
    ]  # fmt: skip
    good = path.read_text()
    np.testing.assert_allclose(check_submission(path, ids, ()).values[1], [0.5, 1.0, 0.0])
    path.write_text(good.replace("Id.fused.full.npy.gz", "Id"))  # the 2020 edition
    assert check_submission(path, ids[::-1], ()).ids == ids[::-1]
    for text, words in (
        (good.replace("13.fused", "14.fused"), ("clip 13: found no row", "clip 14: found a row for a clip")),
        (good.replace("13.fused", "12.fused"), ("clip 12: found a second row",)),
        (good.replace("0.961000", "1.961"), ("clip 11: found energy '1.961'",)),
        (good.replace("0.961000", "inf"), ("energy 'inf'",)),
        (good.replace("valence", "Valence"), ("header",)),
        ("", ("header",)),
    ):
        path.write_text(text)
        refused(lambda: check_submission(path, ids, ()), str(path), *words)
    write_genres(path, ids, ["Rock", "Jazz", "Polka"])
    refused(lambda: check_submission(path, ids, ("Jazz", "Rock")), "the class 'Polka'")
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "absent.txt")
