"""Every kind of damaged data and submission: exit code 3, helpful words, nothing half written."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kit_core.errors import DataError
from kit_core.testing import refused
from yandex_artists.cli import main
from yandex_artists.clips import write_layout
from yandex_artists.data import (
    check_submission,
    load,
    prepare,
    read_submission,
    read_track,
    read_truth,
    splits_in,
    submission_warnings,
    write_submission,
)
from yandex_artists.evaluate import evaluate_submission

C, T = 6, 70
TRACKS = 12


def npy(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def header_of(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def frames(seed: int, channels: int = C, length: int = T) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((channels, length)).astype(np.float32)


def path_of(track: int) -> str:
    return f"{track // 3 % 10}/{track % 10}/{track // 10 % 10}/{track}.npy"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    rows = ["trackid\tartistid\tarchive_features_path"]
    for track in range(1, TRACKS + 1):
        file = root / "train_features" / path_of(track)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(npy(frames(track)))
        rows.append(f"{track}\t{track // 3}\t{path_of(track)}")
    (root / "train_meta.tsv").write_text("\n".join(rows) + "\n")
    return root


def tarred(data: Path) -> Path:
    target = data.with_suffix(".tar.gz")
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for file in sorted(data.rglob("*")):
            if file.is_file():
                archive.add(file, file.relative_to(data).as_posix())
    return target


def refused_everywhere(data: Path, *words: str) -> None:
    """By the reader and by prepare, which leaves nothing behind, from the folder and from a tar."""
    out = data.parent / "packed"
    for form in (data, tarred(data)):
        refused(lambda form=form: load(form, "train"), *words)  # type: ignore[misc]  # a default binds the loop's value
        refused(lambda form=form: prepare(form, out), *words)  # type: ignore[misc]  # the same
        assert not out.exists()


def edit(data: Path, old: str, new: str) -> None:
    table = data / "train_meta.tsv"
    text = table.read_text()
    assert old in text
    table.write_bytes(text.replace(old, new).encode())


# --- arrays

ARRAYS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "transposed": (npy(frames(1).T), ("shape (70, 6): transposed, frames before channels",)),
    "no frames": (npy(frames(1, C, 0)), ("an empty array of shape (6, 0)",)),
    "too many frames": (npy(frames(1, C, 82)), ("82 frames", "`prepare --max-frames`")),
    "other channels": (npy(frames(1, 7)), ("7 channels, where", "has 6")),
    "three dimensions": (npy(frames(1)[None]), ("an array of shape (1, 6, 70)",)),
    "one dimension": (npy(frames(1)[0]), ("an array of shape (70,)",)),
    "objects": (npy(np.array([[{}]], dtype=object), allow_pickle=True), ("an array of Python objects",)),
    "integers": (npy(np.ones((C, T), dtype=np.int16)), ("an array of int16, not of floats",)),
    "complex": (npy(np.ones((C, T), dtype=np.complex64)), ("an array of complex64, not of floats",)),
    "NaN": (npy(np.where(frames(1) > 2.5, np.nan, frames(1)) * np.nan), ("420 values that are not finite",)),
    "infinite": (npy(frames(1) + np.inf), ("420 values that are not finite",)),
    "too large for float16": (npy(frames(1) * 1e6), ("which float16 cannot hold", "`prepare --dtype bfloat16`")),
    "truncated": (npy(frames(1))[:-5], ("bytes of values for shape (6, 70) of float32 (truncated?)",)),
    "longer than announced": (npy(frames(1)) + b"\0", ("bytes of values for shape",)),
    "no bytes": (b"", ("no bytes at all",)),
    "a web page": (b"<html>403 Forbidden</html>" * 9, ("no .npy file",)),
    "a pickle": (b"\x80\x04\x95\x10" + b"\0" * 90, ("no .npy file",)),
    "a huge announcement": (header_of((10**12, T)) + b"1234", ("1000000000000 channels",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_no_features(data: Path, kind: str):
    content, words = ARRAYS[kind]
    (data / "train_features" / path_of(5)).write_bytes(content)
    refused_everywhere(data, "1 problem", path_of(5), *words)


def test_the_first_five_of_many_are_told_with_their_number(data: Path):
    for track in range(2, TRACKS + 1):
        (data / "train_features" / path_of(track)).write_bytes(npy(frames(1).T))
    message = refused(lambda: load(data), "11 problems", "... and 6 more")
    assert message.count("transposed") == 5


def test_float64_float16_and_fortran_order_are_fine(data: Path):
    for track, dtype in ((2, np.float64), (3, np.float16), (4, ">f4")):
        (data / "train_features" / path_of(track)).write_bytes(npy(np.asfortranarray(frames(track).astype(dtype))))
    tracks = load(data, dtype="float32")
    for track in (1, 2, 4):
        np.testing.assert_allclose(tracks.pack.item(tracks.rows[track - 1]), frames(track).T, atol=1e-6)
    np.testing.assert_allclose(tracks.pack.item(tracks.rows[2]), frames(3).T, atol=1e-2)


def test_longer_tracks_are_accepted_where_asked_for(data: Path, tmp_path: Path):
    (data / "train_features" / path_of(5)).write_bytes(npy(frames(5, C, 300)))
    prepare(data, tmp_path / "packed", max_frames=300)
    assert load(tmp_path / "packed").pack.lengths.max() == 300


# --- tables


def test_rows_without_files(data: Path):
    (data / "train_features" / path_of(5)).unlink()
    (data / "train_features" / path_of(7)).unlink()
    refused_everywhere(data, "2 problems", f"track 5, {path_of(5)}: found no such file", "track 7")


def test_no_features_at_all(data: Path):
    for file in data.rglob("*.npy"):
        file.unlink()
    refused_everywhere(data, "12 problems", "no such file")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\n5\t", "\n4\t", ("line 6", "the trackid 4 a second time, after line 5")),
        (path_of(5), path_of(4), ("line 6", "a second time, after line 5")),
        ("\n5\t", "\nfive\t", ("line 6", "the trackid 'five'", "whole number")),
        ("\n5\t1\t", "\n5\t1.0\t", ("line 6", "the artistid '1.0'")),
        ("\n5\t1\t", "\n5\t-1\t", ("line 6", "the artistid '-1'")),
        ("\n5\t1\t", "\n5\t\t", ("line 6", "the artistid ''")),
        (path_of(5), "../../secret.npy", ("line 6", "leads out of the archive")),
        (path_of(5), "/etc/passwd", ("line 6", "an absolute name")),
        (path_of(5), "", ("line 6", "an empty path")),
        (path_of(5), path_of(5) + "\textra", ("line 6", "4 values")),
        ("\t", ",", ("header", "separated by ','", "'\\t'")),
        ("\t", ";", ("header", "separated by ';'")),
        ("artistid", "artist", ("header", "trackid")),
        ("\n", "\r\n", ("CR LF", "sed")),
    ],
)
def test_tables_that_are_not_as_they_must_be(data: Path, old: str, new: str, words: tuple[str, ...]):
    edit(data, old, new)
    refused_everywhere(data, "train_meta.tsv", *words)


def test_an_empty_table_and_one_in_another_encoding(data: Path):
    (data / "train_meta.tsv").write_text("trackid\tartistid\tarchive_features_path\n")
    refused_everywhere(data, "the table: found no rows")
    (data / "train_meta.tsv").write_bytes(b"trackid\tartistid\tarchive_features_path\n1\t1\t\xff.npy\n")
    refused_everywhere(data, "UTF-8")


def test_files_that_no_row_names_are_left_out_and_told(data: Path, capsys: pytest.CaptureFixture[str]):
    (data / "train_features" / "9" / "9").mkdir(parents=True, exist_ok=True)
    (data / "train_features" / "9" / "9" / "999.npy").write_bytes(b"")
    assert len(load(data)) == TRACKS
    assert "1 arrays below train_features/" in capsys.readouterr().err


# --- places


def test_places_without_data(tmp_path: Path, data: Path):
    refused(lambda: load(tmp_path / "absent"), "absent")
    (tmp_path / "empty").mkdir()
    refused(lambda: load(tmp_path / "empty"), "neither train_meta.tsv nor test_meta.tsv")
    refused(lambda: load(data, "test"), "no test tracks", "train only", "test_meta.tsv")
    prepare(data, tmp_path / "packed")
    refused(lambda: load(tmp_path / "packed", "test"), "no test tracks")
    (tmp_path / "text.tar.gz").write_text("nothing of the kind")
    refused(lambda: splits_in(tmp_path / "text.tar.gz"), "text.tar.gz")


def test_a_truncated_archive(data: Path, tmp_path: Path):
    path = tarred(data)
    path.write_bytes(path.read_bytes()[:-200])
    refused(lambda: prepare(path, tmp_path / "packed"), "data.tar.gz", "download")
    assert not (tmp_path / "packed").exists()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "manifest": lambda out: (out / "manifest.json").write_text("{"),
    "version": lambda out: (out / "manifest.json").write_text(
        (out / "manifest.json").read_text().replace('"format_version": 1', '"format_version": 9')
    ),
    "values": lambda out: (out / "train/features/values.bin").write_bytes(b"12"),
    "info": lambda out: (out / "train/features/info.json").unlink(),
    "table": lambda out: (out / "train/tracks.tsv").write_text(
        "\n".join((out / "train/tracks.tsv").read_text().splitlines()[:-1]) + "\n"
    ),
    "numbers": lambda out: (out / "train/tracks.tsv").write_text(
        (out / "train/tracks.tsv").read_text().replace("\n3\t", "\nthree\t")
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_prepared_folder_is_refused_and_made_anew(data: Path, tmp_path: Path, kind: str):
    out = tmp_path / "packed"
    prepare(data, out)
    before = load(data).fingerprint
    DAMAGES[kind](out)
    with pytest.raises(DataError) as caught:
        load(out)
    assert str(out) in str(caught.value)
    if kind not in ("manifest", "version"):  # those are refused: they may be another program's, or a newer one's
        prepare(data, out)
        assert load(out).fingerprint == before


# --- one track


def test_a_single_track_is_checked(tmp_path: Path):
    path = tmp_path / "track.npy"
    refused(lambda: read_track(path), "track.npy", "cannot be read")
    for content, words in (
        (b"", "no bytes"),
        (npy(frames(1)[0]), "shape (70,)"),
        (npy(frames(1) * np.nan), "not finite"),
    ):
        path.write_bytes(content)
        refused(lambda: read_track(path), "track.npy", words)
    path.write_bytes(npy(frames(1)))
    assert read_track(path).shape == (C, T)


# --- submissions

N = 104
IDS = np.arange(1000, 1000 + N)


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    path = tmp_path / "submission.txt"
    rows = np.stack([np.delete(np.arange(N), q)[:100] for q in range(N)])
    write_submission(path, IDS, IDS[rows])
    return path


def changed(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().split("\n")
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new, 1)
    path.write_bytes("\n".join(lines).encode())


@pytest.mark.parametrize(
    ("line", "old", "new", "words"),
    [
        (3, " 1050 ", " 77 ", ("query 1003", "the id 77, which the data does not hold")),
        (3, "\t", " ", ("line 4", "no TAB")),
        (3, "\t", ",", ("line 4", "no TAB")),
        (3, " 1050 ", "\t1050 ", ("line 4", "more than one TAB")),
        (3, " 1050 ", ",1050 ", ("line 4", "something else than whole numbers")),
        (3, " 1050 ", " 1050.0 ", ("line 4", "something else than whole numbers")),
        (3, " 1050 ", "  1050 ", ("line 4", "something else than whole numbers")),
        (3, " 1050 ", " \u0661050 ", ("line 4", "something else than whole numbers")),
    ],
)
def test_submissions_that_the_judge_would_not_take_or_would_misread(
    submission: Path, line: int, old: str, new: str, words: tuple[str, ...]
):
    assert check_submission(submission, IDS.tolist()).shape == (N, 100)
    changed(submission, line, old, new)
    refused(lambda: check_submission(submission, IDS.tolist()), "submission.txt", *words)


def test_empty_lines_headers_and_files_that_are_none(submission: Path):
    good = submission.read_bytes()
    submission.write_bytes(good.replace(b"\n", b"\n\n", 1))
    refused(lambda: read_submission(submission), "line 2: found an empty line")
    submission.write_bytes(b"")
    refused(lambda: read_submission(submission), "no lines")
    submission.write_bytes(b"query\tneighbours\n" + good)
    refused(lambda: read_submission(submission), "line 1")
    submission.unlink()
    refused(lambda: read_submission(submission), "cannot be read")


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda query, ids: [(query, ids[:99])], "1 of 104 lines name fewer than 100 other tracks"),
        (lambda query, ids: [(query, [query, *ids])], "1 of 104 lines name the query itself, which the judge drops"),
        (lambda query, ids: [(query, [*ids[:50], ids[0], *ids[50:99]])], "1 of 104 lines name an id more than once"),
        (lambda query, ids: [], "1 of 104 lines are missing; the judge scores such a query 0"),
        (
            lambda query, ids: [(query, [*ids, *(set(IDS.tolist()) - {query, *ids})])],
            "1 of 104 lines name more than 100 other tracks; those behind do not count",
        ),
    ],
)
def test_what_the_judge_takes_is_taken_with_a_warning_and_scored_as_it_does(
    submission: Path,
    tmp_path: Path,
    change: Callable[[int, list[int]], list[tuple[int, list[int]]]],
    warning: str,
    capsys: pytest.CaptureFixture[str],
):
    split = (line.split("\t") for line in submission.read_text().splitlines())
    rng = np.random.default_rng(0)
    lines = {int(query): [int(i) for i in rng.permutation(ids.split())] for query, ids in split}
    written = [pair for pair in lines.items() if pair[0] != 1003] + change(1003, lines[1003])
    submission.write_text("".join(f"{query}\t{' '.join(map(str, ids))}\n" for query, ids in written))
    rows = check_submission(submission, IDS.tolist())
    assert len(submission_warnings(rows)) == 1
    assert submission_warnings(rows)[0].startswith(warning)

    truth = tmp_path / "truth.tsv"
    truth.write_text("trackid\tartistid\n" + "".join(f"{i}\t{i // 4}\n" for i in IDS))
    expected, answers = [], dict(written)
    for query in IDS.tolist():  # the judge, line by line
        others = [i for i in answers.get(query, []) if i != query][:100]
        gain = sum(1 / np.log2(place + 2) for place, i in enumerate(others) if i // 4 == query // 4)
        ideal = sum(1 / np.log2(place + 2) for place in range((query // 4 == IDS // 4).sum() - 1))
        expected.append(gain / ideal)
    assert evaluate_submission(submission, truth)["ndcg@100"] == pytest.approx(np.mean(expected), abs=1e-12)

    meta = tmp_path / "data" / "test_meta.tsv"
    meta.parent.mkdir()
    meta.write_text("trackid\tarchive_features_path\n" + "".join(f"{i}\t0/0/{i}.npy\n" for i in IDS))
    (meta.parent / "test_features").mkdir()
    assert main(["check", "--submission", str(submission), "--data", str(meta.parent)]) == 0
    printed = capsys.readouterr()
    assert f"warning: {submission}: {warning}" in printed.err
    assert printed.out == f"{submission}: valid, 104 tracks\n"


def test_truths_that_are_none(submission: Path, tmp_path: Path):
    truth = tmp_path / "truth.tsv"
    refused(lambda: evaluate_submission(submission, truth), "truth.tsv", "no such file")
    truth.write_text("trackid,artistid\n1,1\n")
    refused(lambda: evaluate_submission(submission, truth), "separated by ','")
    truth.write_text("trackid\tartistid\n" + "".join(f"{i}\t{i}\n" for i in IDS))
    refused(lambda: evaluate_submission(submission, truth), "no query can be answered")
    truth.write_text("trackid\tartistid\n1000\t1\n1000\t2\n")
    refused(lambda: read_truth(truth), "trackid 1000: found 2 rows")
    truth.write_text("trackid\tartistid\n1000\tone\n")
    refused(lambda: read_truth(truth), "the artistid 'one'")


def test_tables_of_clips_that_are_not_as_they_must_be(tmp_path: Path):
    features = tmp_path / "features"
    features.mkdir()
    table, out = tmp_path / "clips.csv", tmp_path / "out"
    table.write_text("id;artist\n1;a\n")
    refused(lambda: write_layout(table, [features], out), "clips.csv", "header")
    table.write_text("id,artist\n1,a\n")
    refused(lambda: write_layout(table, [features], out), "no clip with an artist and features")
    (features / "1.x.npy").write_bytes(b"broken")
    refused(lambda: write_layout(table, [features], out), "1.x.npy")
    (features / "one.npy").write_bytes(npy(frames(1)))
    table.write_text("id,artist\none,a\n")
    refused(lambda: write_layout(table, [features], out), "the id 'one'")
    assert not out.exists()
