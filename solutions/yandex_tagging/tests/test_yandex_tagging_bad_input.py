"""Every kind of damaged data and submission: exit code 3, helpful words, nothing half written, a rerun that works."""

import errno
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit_core.errors import DataError
from kit_core.testing import refused
from kit_io.ragged import RaggedWriter
from yandex_tagging import submission
from yandex_tagging.cli import main
from yandex_tagging.data import load, prepare, read_truth
from yandex_tagging.submission import align_submission, check_submission, read_submission, write_submission

DIM = 4
TRAIN = 'track,tags\n1,"0,2"\n2,"1"\n3,"0"\n4,"2"\n'
TEST = "track\n7\n5\n"
TRACKS = (1, 2, 3, 4, 7, 5)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def frames(length: int = 5, dim: int = DIM) -> Any:
    return np.random.default_rng(length).standard_normal((length, dim)).astype(np.float32)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    root = tmp_path / "official"
    (root / "track_embeddings").mkdir(parents=True)
    (root / "train.csv").write_text(TRAIN)
    (root / "test.csv").write_text(TEST)
    for track in TRACKS:
        (root / "track_embeddings" / f"{track}.npy").write_bytes(npy(frames(5 + track)))
    return root


def file_of(root: Path, track: int) -> Path:
    return root / "track_embeddings" / f"{track}.npy"


def as_zip(root: Path) -> Path:
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, file.relative_to(root).as_posix())
    return root.with_suffix(".zip")


def as_tar(root: Path) -> Path:
    """The csv files beside track_embeddings.tar.gz."""
    target = root.parent / "tarred"
    target.mkdir(exist_ok=True)
    with tarfile.open(target / "track_embeddings.tar.gz", "w:gz") as archive:
        for file in sorted((root / "track_embeddings").iterdir()):
            archive.add(file, file.name)
    for file in root.glob("*.*"):
        (target / file.name).write_bytes(file.read_bytes())
    return target


def refused_everywhere(root: Path, *words: str) -> None:
    """By the reader and by prepare, which leaves nothing behind, from a folder, a zip, and a tar.gz."""
    for form in (root, as_zip(root), as_tar(root)):
        out = root.parent / f"packed {form.name}"
        refused(lambda form=form: load(form), *words)  # type: ignore[misc]  # a default binds the loop's value
        refused(lambda form=form, out=out: prepare(form, out, workers=2), *words)  # type: ignore[misc]  # the same
        assert not out.exists()


# --- embeddings that are none

HEADER = len(npy(frames(1))) - 4 * DIM
NO_FRAMES = np.zeros((0, DIM), np.float32)
WITH_NAN, WITH_INFINITY = frames(), frames()
WITH_NAN[3, 1], WITH_INFINITY[4, 0] = np.nan, -np.inf
BROKEN: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "no bytes at all"),
    "truncated": (npy(frames())[:-7], "(a truncated file)"),
    "truncated header": (npy(frames())[:30], "a damaged or truncated .npy header"),
    "a web page": (b"<html>503 Service Unavailable</html>", "a damaged or truncated .npy header"),
    "two arrays": (npy(frames()) * 2, "more than one array"),
    "another D": (npy(frames(5, DIM + 1)), f"D = {DIM + 1}, but {DIM} in"),
    "one dimension": (npy(np.ones(DIM, np.float32)), "an array of 1 dimension, shape (4,)"),
    "three dimensions": (npy(np.ones((2, 2, DIM), np.float32)), "an array of 3 dimensions"),
    "objects": (npy(np.array([[None, 1]], dtype=object)), "dtype object (pickled Python objects)"),
    "double precision": (npy(frames().astype(np.float64)), "dtype float64"),
    "integers": (npy(np.ones((3, DIM), np.int32)), "dtype int32"),
    "no frames": (npy(NO_FRAMES), "0 frames (T)"),
    "too many frames": (npy(np.ones((10_001, DIM), np.float16)), "10,001 frames (T)"),
    "NaN": (npy(WITH_NAN), "nan in frame 3, dimension 1"),
    "infinity": (npy(WITH_INFINITY), "-inf in frame 4, dimension 0"),
    "above float16": (npy(frames() * 1e6), "which float16 cannot hold"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_embedding_is_named(official: Path, kind: str) -> None:
    content, words = BROKEN[kind]
    file_of(official, 3).write_bytes(content)
    refused_everywhere(official, "track 3 (", "3.npy): found ", words)


def test_what_float16_cannot_hold_float32_can(official: Path, tmp_path: Path) -> None:
    file_of(official, 3).write_bytes(npy(frames() * 1e6))
    message = refused(lambda: prepare(official, tmp_path / "packed"))
    assert "--dtype float32" in message
    assert prepare(official, tmp_path / "packed", dtype="float32").max_abs_error == 0


def test_all_faults_are_told_at_once_five_by_name(official: Path) -> None:
    for track in TRACKS:
        file_of(official, track).write_bytes(b"")
    message = refused(lambda: load(official), ": 6 problems", "... and 1 more")
    assert message.count("no bytes at all") == 5


def test_a_row_without_a_file_and_a_file_twice(official: Path) -> None:
    file_of(official, 3).unlink()
    refused_everywhere(official, "track 3: found a row, but no 3.npy")
    file_of(official, 3).write_bytes(npy(frames()))
    (official / "track_embeddings" / "copy").mkdir()
    (official / "track_embeddings" / "copy" / "3.npy").write_bytes(npy(frames()))
    refused(lambda: load(official), "track 3: found a second file")


# --- tables


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("train.csv", 'track,tags\n1.0,"0"\n', "line 2: found track 1.0"),
        ("test.csv", "track\n10178.0\n", "line 2: found track 10178.0"),
        ("test.csv", "track\n7\n7\n", "line 3: found track 7 a second time"),
        ("test.csv", "track\n7\n1\n", "track 1: found a row in both"),
        ("test.csv", "track\n-7\n", "track -7"),
        ("test.csv", "track\n", "no tracks"),
        ("test.csv", "id\n7\n", "header"),
        ("train.csv", 'track\ttags\n1\t"0"\n', "separated by '\\t'"),
        ("train.csv", 'track,tags\n1,"0,256"\n', "tag 256, above the 256 tags"),
        ("train.csv", 'track,tags\n1,"0,rock"\n', "the tag 'rock'"),
        ("train.csv", 'track,tags\n1,"0,-1"\n', "the tag '-1'"),
        ("train.csv", 'track,tags\n1,"0,1.0"\n', "the tag '1.0'"),
        ("train.csv", "track,tags\n1,\n", "no tags"),
        ("train.csv", "track,tags\n1,0,2\n", "3 values"),
    ],
)
def test_a_wrong_table_is_told_with_its_line(official: Path, file: str, text: str, words: str) -> None:
    (official / file).write_text(text)
    refused_everywhere(official, file if "both" not in words else "", words)


def test_tags_beyond_the_names_are_refused(official: Path) -> None:
    (official / "tag_names.txt").write_text("a\nb\n")
    refused_everywhere(official, "line 2: found tag 2, above the 2 tags")
    (official / "tag_names.txt").write_text("a\n\nc\n")
    with pytest.raises(DataError, match="an empty line"):
        load(official)


def test_groups_without_a_name_are_refused(official: Path) -> None:
    (official / "groups.csv").write_text("track,group\n1,a\n2,\n")
    refused_everywhere(official, "groups.csv", "line 3: found 2,")


def test_a_tsv_in_place_of_the_csv(official: Path) -> None:
    (official / "test.csv").rename(official / "test.tsv")
    refused_everywhere(official, "test.csv: found test.tsv in its place", "rename test.tsv")


def test_a_missing_split_or_everything_missing(official: Path, tmp_path: Path) -> None:
    (official / "test.csv").unlink()
    refused(lambda: load(official, "test"), "no test.csv", "found: train.csv")
    prepare(official, tmp_path / "packed")
    refused(lambda: load(tmp_path / "packed", "test"), "no test.csv", "found: train.csv")
    (official / "train.csv").unlink()
    refused(lambda: load(official), "neither train.csv nor test.csv")
    with pytest.raises(DataError, match="absent"):
        load(tmp_path / "absent")


def test_tables_without_embeddings(official: Path, tmp_path: Path) -> None:
    for file in (official / "track_embeddings").iterdir():
        file.unlink()
    refused(lambda: load(official), "found no embeddings")
    refused(lambda: prepare(official, tmp_path / "packed"), "found no embeddings")


# --- archives


def test_a_truncated_archive_leaves_nothing_and_a_whole_one_is_read(official: Path, tmp_path: Path) -> None:
    target = as_tar(official)
    archive = target / "track_embeddings.tar.gz"
    whole = archive.read_bytes()
    out = tmp_path / "packed"
    for length in (len(whole) // 2, len(whole) - 3):
        archive.write_bytes(whole[:length])
        refused(lambda: prepare(target, out), "track_embeddings.tar.gz", "download it again")
        assert not out.exists()
    archive.write_bytes(whole)
    assert prepare(target, out).tracks == {"train": 4, "test": 2}


def test_an_archive_that_leads_outside_is_refused(official: Path, tmp_path: Path) -> None:
    target = as_tar(official)
    with tarfile.open(target / "track_embeddings.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("../1.npy")
        archive.addfile(info)
    refused(lambda: prepare(target, tmp_path / "packed"), "leads out of the archive")


def test_a_gzip_that_is_no_tar(official: Path, tmp_path: Path) -> None:
    target = as_tar(official)
    (target / "track_embeddings.tar.gz").write_bytes(gzip.compress(b"not a tar" * 200))
    refused(lambda: load(target), "content that is no tar")


# --- the disk


@pytest.mark.parametrize("where", ["append", "close", "tables"])
def test_a_full_disk_ends_with_words_and_a_rerun_goes_on(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    out = tmp_path / "packed"
    full = OSError(errno.ENOSPC, "No space left on device")
    append = RaggedWriter.append

    def fail_at_the_fourth(self: RaggedWriter, array: Any) -> None:
        if self.appended == 3:
            self._refuse_disk(full)
        append(self, array)

    def fail(*_: Any, **__: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        if where == "append":
            patch.setattr(RaggedWriter, "append", fail_at_the_fourth)
        else:
            patch.setattr(
                "kit_io.ragged.RaggedWriter.close" if where == "close" else "yandex_tagging.data.write_bytes", fail
            )
        with pytest.raises(DataError, match="again") as caught:
            prepare(official, out, workers=1)
    assert str(out) in str(caught.value)
    with pytest.raises(DataError, match="run prepare again"):
        load(out)
    assert prepare(official, out).tracks == {"train": 4, "test": 2}
    assert load(out).tags is not None


# --- a prepared folder that was damaged later


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("manifest.json", lambda b: b.replace(b'"format_version": 1', b'"format_version": 9'), "format_version 9"),
        ("manifest.json", lambda b: b.replace(b'"dim"', b'"dimension"'), "no dim"),
        ("train.csv", lambda b: b + b'9,"1"\n', "another content"),
        ("ids.npy", lambda b: b[:-8], "ids.npy"),
        ("embeddings/values.bin", lambda b: b[:-2], "values.bin"),
        ("embeddings/info.json", lambda b: b"{}", "info.json"),
    ],
)
def test_a_damaged_prepared_folder(
    official: Path, tmp_path: Path, file: str, change: Callable[[bytes], bytes], words: str
) -> None:
    out = tmp_path / "packed"
    prepare(official, out)
    (out / file).write_bytes(change((out / file).read_bytes()))
    with pytest.raises(DataError, match=words.replace(".", r"\.")) as caught:
        load(out)
    assert str(out / file) in str(caught.value)


# --- submissions

IDS = [7, 5, 9]
GOOD = 'track,prediction\n7,"0.1,0.2"\n5,"0.3,0.4"\n9,"0.5,0.6"\n'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("track,prediction", "track,tags", "header: found track,tags"),
        ("track,prediction\n", "", "header"),
        ('7,"0.1,0.2"\n5,"0.3,0.4"\n9,"0.5,0.6"\n', "", "no rows"),
        ("5,", "5.0,", "line 3: found track 5.0"),
        ("5,", ",", "line 3: found track without a number"),
        ('"0.3,0.4"', '"0.3"', "line 3: found 1 probabilities"),
        ('"0.3,0.4"', '"0.3,0.4,0.5"', "line 3: found 3 probabilities"),
        ('"0.3,0.4"', "0.3,0.4", "line 3: found no prediction in double quotes"),
        ('"0.3,0.4"', '"0.3,nan"', "line 3: found the probability nan"),
        ('"0.3,0.4"', '"0.3,"', "line 3: found the probability (empty)"),
        ('"0.3,0.4"', '"0.3, 0.4"', "line 3: found the probability  0.4"),
        ('"0.3,0.4"', '"0.3,1.5"', "line 3: found the probability 1.5"),
        ('"0.3,0.4"', '"0.3,-0.5"', "line 3: found the probability -0.5"),
        ('"0.3,0.4"', '"0.3,inf"', "line 3: found the probability inf"),
        ('"0.3,0.4"', '"0.3,rock"', "line 3: found the probability rock"),
        ('7,"0.1,0.2"', "7", "line 2: found no prediction in double quotes"),
        ("5,", "6,", "track 6: found a row, but it is not to be answered"),
        ('5,"0.3,0.4"\n', "", "track 5: found no row"),
        ("5,", "7,", "track 7: found 2 rows"),
        ('7,"0.1,0.2"\n5,"0.3,0.4"\n', '5,"0.3,0.4"\n7,"0.1,0.2"\n', "line 2: found track 5 where 7 comes"),
    ],
)
def test_a_wrong_submission_is_refused_with_words(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(GOOD)
    assert check_submission(path, IDS, 2).shape == (3, 2)
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    refused(lambda: check_submission(path, IDS, 2), str(path), words)


def test_another_number_of_tags_and_another_set_of_tracks(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(GOOD)
    refused(lambda: check_submission(path, IDS, 3), "found 2 probabilities", "expected: 3")
    refused(lambda: align_submission(path, [5, 7]), "track 9: found a row, but it is not to be answered")
    refused(lambda: align_submission(path, [5, 7, 9, 11]), "track 11: found no row")
    assert align_submission(path, [5, 7, 9])[:, 0].tolist() == pytest.approx([0.3, 0.1, 0.5])
    with pytest.raises(DataError, match="cannot be read"):
        read_submission(tmp_path / "absent.csv")


def test_the_size_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "LARGEST_SUBMISSION", 60)
    path = tmp_path / "s.csv"
    path.write_text("what was there")
    refused(lambda: write_submission(path, [1, 2, 3], np.full((3, 9), 1 / 3, np.float32)), "not written", "60")
    assert path.read_text() == "what was there"
    assert len(list(tmp_path.iterdir())) == 1
    path.write_text(GOOD + " " * 60)
    refused(lambda: check_submission(path, IDS, 2), "bytes", "60")


def test_the_command_line_ends_with_three(official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file_of(official, 3).write_bytes(b"")
    assert main(["prepare", "--data", str(official), "--out", str(tmp_path / "packed")]) == 3
    assert "track 3" in capsys.readouterr().err
    path = tmp_path / "s.csv"
    path.write_text(GOOD)
    assert main(["check", "--submission", str(path), "--data", str(official)]) == 3
    assert "found 2 probabilities" in capsys.readouterr().err
    (tmp_path / "truth.csv").write_text('track,tags\n7,"5"\n5,"0"\n9,"1"\n')
    assert main(["evaluate", "--submission", str(path), "--truth", str(tmp_path / "truth.csv")]) == 3
    assert "has the tag 5" in capsys.readouterr().err
    (tmp_path / "truth.csv").write_text('track,tags\nx,"5"\n')
    with pytest.raises(DataError, match="line 2"):
        read_truth(tmp_path / "truth.csv")
