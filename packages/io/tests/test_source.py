"""kit_io.source: one interface for folders and zips, and everything that a zip or a folder may do wrong."""

import contextlib
import io
import multiprocessing
import os
import pickle
import random
import shutil
import stat
import struct
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_core.errors import DataError
from kit_io.source import CHUNK_BYTES, Source, _open_zip, checked_text

FILES = {
    "train/00e1234.json": b'{"a": 1}',
    "train/1e5000.json": "é—日本\r\n".encode(),
    "train_orders.csv": b"id,cell_order\n",
    "empty.txt": b"",
    "large.bin": random.Random(0).randbytes(100_000),
}
JUNK = [".DS_Store", "train/._00e1234.json", "__MACOSX/train/x.json", "train/Thumbs.db"]


def make_zip(path: Path, files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    """Write a zip; `change` may falsify what the table of contents says of each member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for info in archive.filelist if change else []:
            change(info)
    return path


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture(params=["folder", "zip"])
def make(request, tmp_path):
    """Make the same files as a folder or as a zip."""

    def build(files: dict[str, bytes]) -> Path:
        place = tmp_path / f"data-{len(list(tmp_path.iterdir()))}"
        return make_folder(place, files) if request.param == "folder" else make_zip(place.with_suffix(".zip"), files)

    return build


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        Source.open_source(path)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n  expected: " in message
    assert "\n  do: " in message
    return message


def read_stream(source: Source) -> Callable[[str], bytes]:
    def read(member: str) -> bytes:
        with source.open_binary(member) as stream:
            return stream.read()

    return read


def read_text(source: Source) -> Callable[[str], str]:
    def read(member: str) -> str:
        with source.open_text(member) as text:
            return text.read()

    return read


# --- what works ---


def test_members_are_sorted_filtered_and_free_of_junk(make):
    source = Source.open_source(make(FILES | dict.fromkeys(JUNK, b"junk")))
    assert source.members() == sorted(FILES)
    assert source.members("train/") == ["train/00e1234.json", "train/1e5000.json"]
    assert source.members("train/", ".csv") == []
    assert source.members(suffix=".csv") == ["train_orders.csv"]


def test_content_is_the_same_by_every_way_of_reading(make):
    source = Source.open_source(make(FILES))
    for name, content in FILES.items():
        assert source.has(name)
        assert source.read(name) == content
        with source.open_binary(name) as stream:
            assert stream.read(7) + stream.read() == content
    with source.open_text("train/1e5000.json") as text:
        assert text.read() == "é—日本\r\n"


def test_name_is_the_path_as_given(make, monkeypatch):
    path = make(FILES)
    monkeypatch.chdir(path.parent)
    assert Source.open_source(Path(path.name)).name == path.name
    assert path.name in repr(Source.open_source(path.name))


def test_single_top_folder_is_stripped(make):
    source = Source.open_source(make({f"download/{name}": content for name, content in FILES.items()}))
    assert source.members() == sorted(FILES)
    assert source.read("train_orders.csv") == FILES["train_orders.csv"]
    assert source.members("train/") == ["train/00e1234.json", "train/1e5000.json"]
    assert not source.has("download/train_orders.csv")


def test_only_one_top_folder_is_stripped(make):
    assert Source.open_source(make({"a/b/x": b"1", "a/b/y": b"2"})).members() == ["b/x", "b/y"]


def test_junk_beside_the_top_folder_does_not_keep_it(make):
    assert Source.open_source(make({"a/x": b"", "__MACOSX/a/._x": b"", ".DS_Store": b""})).members() == ["x"]


def test_folders_of_the_layout_are_kept(make):
    path = make({"test/0a.json": b"{}"})
    assert Source.open_source(path).members() == ["0a.json"]
    assert Source.open_source(path, keep=("train", "test")).members() == ["test/0a.json"]


def test_nothing_but_folders_is_an_empty_source(tmp_path):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    assert Source.open_source(tmp_path / "empty").members() == []
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.mkdir("inner")
    assert Source.open_source(tmp_path / "empty.zip").members() == []


def test_meaningless_parts_of_names_are_dropped(tmp_path):
    source = Source.open_source(make_zip(tmp_path / "x.zip", {"./train//0a.json": b"{}", "./a.csv": b""}))
    assert source.members() == ["a.csv", "train/0a.json"]
    assert source.read("train/0a.json") == b"{}"


def test_zip_is_told_by_its_content(tmp_path):
    assert Source.open_source(make_zip(tmp_path / "download", FILES)).members() == sorted(FILES)


def test_stored_members_and_comments(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a", b"123")
        archive.comment = b"a comment " * 100
    assert Source.open_source(tmp_path / "x.zip").read("a") == b"123"


def test_fingerprint_follows_sizes_and_names(make):
    path = make(FILES)
    first = Source.open_source(path).fingerprint()
    assert len(first) == 64
    assert first == Source.open_source(path).fingerprint()
    assert first != Source.open_source(make(FILES | {"empty.txt": b"x"})).fingerprint()
    assert first != Source.open_source(make({**FILES, "more.txt": b""})).fingerprint()


def test_fingerprint_of_a_zip_survives_repacking(tmp_path):
    backwards = dict(reversed(list(FILES.items())))
    wrapped = {f"top/{name}": content for name, content in FILES.items()}
    zips = [make_zip(tmp_path / f"{i}.zip", files) for i, files in enumerate([FILES, backwards, wrapped])]
    assert len({Source.open_source(path).fingerprint() for path in zips}) == 1


def test_fingerprint_of_a_folder_follows_the_time_of_change(tmp_path):
    folder = make_folder(tmp_path / "x", FILES)
    first = Source.open_source(folder).fingerprint()
    assert first == Source.open_source(folder).fingerprint()
    os.utime(folder / "empty.txt", ns=(1, 1))
    assert first != Source.open_source(folder).fingerprint()


def test_missing_member_is_named(make):
    source = Source.open_source(make(FILES))
    for read in (source.read, source.open_binary, source.open_text):
        with pytest.raises(DataError, match=r"member train/none\.json: found no such file"):
            read("train/none.json")
    assert not source.has("train/none.json")
    assert not source.has("train")
    with pytest.raises(DataError, match="member train: found no such file"):
        source.read("train")


# --- processes ---


def test_pickle_is_small_and_reads_the_same(make):
    source = Source.open_source(make({f"top/{name}": content for name, content in FILES.items()}))
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    again = pickle.loads(packed)
    assert again.read("large.bin") == FILES["large.bin"]
    assert again.members() == source.members()
    assert again.fingerprint() == source.fingerprint()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the test runner's threads
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_at_the_same_time(make, method):
    files = {f"{i}.bin": random.Random(i).randbytes(20_000) for i in range(100)}
    source = Source.open_source(make(files))
    with multiprocessing.get_context(method).Pool(2) as pool:
        contents = pool.map(source.read, list(files) * 3, chunksize=1)
    assert contents == list(files.values()) * 3


def test_threads_read_at_the_same_time(make):
    files = {f"{i}.bin": random.Random(i).randbytes(20_000) for i in range(50)}
    source = Source.open_source(make(files))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, list(files) * 4)) == list(files.values()) * 4


def test_zip_that_changed_since_is_refused(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"a": b"1"})
    packed = pickle.dumps(Source.open_source(path))
    other = make_zip(tmp_path / "y.zip", {"a": b"1", "b": b"2"})
    other.replace(path)
    _open_zip.cache_clear()  # as in a fresh process
    with pytest.raises(DataError, match="others than when the file was opened"):
        pickle.loads(packed).read("a")
    assert Source.open_source(path).members() == ["a", "b"]


# --- what a zip may do wrong ---


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/passwd", "an absolute name"),
        ("//server/share", "an absolute name"),
        ("C:/windows/x", "a name with a drive letter"),
        ("c:x", "a name with a drive letter"),
        ("../x", "a name that leads out of the archive"),
        ("a/../../x", "a name that leads out of the archive"),
        ("a/..", "a name that leads out of the archive"),
        ("..", "a name that leads out of the archive"),
        ("../", "a name that leads out of the archive"),
        ("..\\x", "a name with a backslash"),
        ("a\\b", "a name with a backslash"),
        ("a\nb", "a name with a control character"),
        ("a\x1b[31mb", "a name with a control character"),
        (".", "an empty name"),
        ("./", "an empty name"),
        ("./.", "an empty name"),
    ],
)
def test_unsafe_names_in_a_zip(tmp_path, name, words):
    message = refusal(make_zip(tmp_path / "x.zip", {"good": b"1", name: b"2"}))
    assert f"found {words}" in message
    assert message.isascii()
    assert "\x1b" not in message
    assert "1 problem\n" in message


def test_name_with_nul_in_a_zip(tmp_path):
    def change(info: zipfile.ZipInfo) -> None:
        info.filename = info.filename.replace("#", "\0")

    assert "a name with a control character" in refusal(make_zip(tmp_path / "x.zip", {"good.json#.exe": b""}, change))


def test_names_that_only_look_odd_are_fine(make):
    files = {"a..b/c...json": b"1", "...": b"2", "a/.hidden": b"3", "a b/é—日本.json": b"4", "C/:": b"5", "~/x": b"6"}
    source = Source.open_source(make(files))
    assert {name: source.read(name) for name in source.members()} == files


@pytest.mark.parametrize("second", ["a/b", "./a/b", "a//b", "a/b/."])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # the point of the test
def test_doubled_names_in_a_zip(tmp_path, second):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/b", b"1")
        archive.writestr(second, b"2")
    assert "found a second member of this name" in refusal(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("kind", "words"),
    [(stat.S_IFLNK, "a symbolic link"), (stat.S_IFIFO, "a device or pipe"), (stat.S_IFCHR, "a device")],
)
def test_links_and_devices_in_a_zip(tmp_path, kind, words):
    def change(info: zipfile.ZipInfo) -> None:
        info.external_attr = (kind | 0o777) << 16

    assert words in refusal(make_zip(tmp_path / "x.zip", {"a": b"/etc/passwd"}, change))


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x2000])
def test_encrypted_zip(tmp_path, flag):
    def change(info: zipfile.ZipInfo) -> None:
        info.flag_bits |= flag

    assert "found an encrypted member" in refusal(make_zip(tmp_path / "x.zip", {"a": b"1"}, change))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a", b"1" * 100)
    assert f"found compression method {method}" in refusal(tmp_path / "x.zip")


def test_bomb_is_refused_on_opening(tmp_path):
    def change(info: zipfile.ZipInfo) -> None:
        info.file_size = 3 << 30

    message = refusal(make_zip(tmp_path / "x.zip", {"a": bytes(1_000_000)}, change))
    assert "3,221,225,472 bytes packed into" in message
    assert "decompression bomb" in message


def test_long_runs_of_one_value_are_no_bomb(tmp_path):
    content = bytes(5_000_000)
    assert Source.open_source(make_zip(tmp_path / "x.zip", {"a": content})).read("a") == content


def test_member_larger_than_announced_takes_no_more_memory_than_announced(tmp_path):
    def change(info: zipfile.ZipInfo) -> None:
        info.file_size = 1000

    source = Source.open_source(make_zip(tmp_path / "x.zip", {"a": bytes(50_000_000)}, change))
    tracemalloc.start()
    with pytest.raises(DataError, match="Bad CRC-32"):
        source.read("a")
    with source.open_binary("a") as stream, pytest.raises(DataError, match="Bad CRC-32"):
        stream.read()
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_five_offenders_are_named_and_all_counted(tmp_path):
    message = refusal(make_zip(tmp_path / "x.zip", {f"../{i}": b"" for i in range(12)}))
    assert "12 problems" in message
    assert "member ../4: " in message
    assert "member ../5: " not in message
    assert "and 7 more" in message


def test_checksum_error_names_the_member_by_every_way_of_reading(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("orders.csv", b"id")
        archive.writestr("train/a.json", b"0123456789")
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780"))
    source = Source.open_source(path)
    for read in (source.read, read_stream(source), read_text(source)):
        with pytest.raises(DataError, match=r"member train/a\.json: found Bad CRC-32"):
            read("train/a.json")


def test_damaged_deflate_stream(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"a": FILES["large.bin"]})
    data = bytearray(path.read_bytes())
    data[40:60] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(DataError, match="member a: found "):
        Source.open_source(path).read("a")


def test_content_cut_out_of_an_archive(tmp_path):
    def change(info: zipfile.ZipInfo) -> None:
        info.compress_size = 3 * info.compress_size // 4

    source = Source.open_source(make_zip(tmp_path / "x.zip", {"a": FILES["large.bin"]}, change))
    with pytest.raises(DataError, match="member a: found "):
        source.read("a")


def test_name_that_differs_between_table_and_member(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"good.json": b"1"})
    path.write_bytes(path.read_bytes().replace(b"good.json", b"evil.json", 1))
    source = Source.open_source(path)
    with pytest.raises(DataError, match=r"member good\.json: found File name in directory"):
        source.read("good.json")


def test_every_truncation_is_refused(tmp_path):
    data = make_zip(tmp_path / "x.zip", {"a": b"123", "b/c": b"456" * 50}).read_bytes()
    for length in range(len(data)):
        path = tmp_path / f"{length}.zip"
        path.write_bytes(data[:length])
        refusal(path)


def test_truncation_says_what_to_do(tmp_path):
    data = make_zip(tmp_path / "x.zip", FILES).read_bytes()
    (tmp_path / "y.zip").write_bytes(data[: len(data) // 2])
    assert "download it again" in refusal(tmp_path / "y.zip")


def test_table_that_points_behind_the_end(tmp_path):
    def change(info: zipfile.ZipInfo) -> None:
        info.header_offset += 10_000

    assert "content beyond the end of the file" in refusal(make_zip(tmp_path / "x.zip", {"a": b"1"}, change))


# --- what is no zip and no folder ---


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.tar.gz", b"\x1f\x8b\x08\x00rest", "another kind of archive"),
        ("data.tgz", b"\x1f\x8b\x08\x00rest", "another kind of archive"),
        ("data", b"\x1f\x8b\x08\x00rest", "another kind of archive"),
        ("data.tar", b"name of the first file", "another kind of archive"),
        ("data.7z", b"7z\xbc\xaf", "another kind of archive"),
        ("train.csv", b"id,cell_order\n", "a file that is no archive"),
        ("data.zip", b"<html>Log in</html>", "not a zip file"),
        ("data.zip", b"", "no bytes at all"),
    ],
)
def test_other_files_are_told_what_is_accepted(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert words in message
    assert "zip" in message.split("expected: ")[1]


def test_nothing_there(tmp_path):
    assert "No such file" in refusal(tmp_path / "none")


def test_pipe_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    assert "a device, pipe or socket" in refusal(tmp_path / "pipe.zip")


# --- what a folder may do wrong ---


def test_link_to_a_folder_is_opened(tmp_path):
    make_folder(tmp_path / "real", FILES)
    (tmp_path / "link").symlink_to("real")
    assert Source.open_source(tmp_path / "link").members() == sorted(FILES)


def test_links_inside_a_folder(tmp_path):
    folder = make_folder(tmp_path / "x", FILES)
    (folder / "copy.csv").symlink_to("train_orders.csv")
    source = Source.open_source(folder)
    assert source.read("copy.csv") == FILES["train_orders.csv"]
    assert source.members(suffix=".csv") == ["copy.csv", "train_orders.csv"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("../secret", "a symbolic link that leads out of the folder"),
        ("/etc/passwd", "a symbolic link that leads out of the folder"),
        ("..", "a symbolic link that leads out of the folder"),
        (".", "a symbolic link that leads out of the folder"),
        ("none", "a symbolic link to something else than a file"),
        ("train", "a symbolic link to something else than a file"),
    ],
)
def test_links_that_are_refused(tmp_path, target, words):
    (tmp_path / "secret").write_text("secret")
    folder = make_folder(tmp_path / "x", FILES)
    (folder / "link").symlink_to(target)
    assert f"member link: found {words}" in refusal(folder)


def test_link_that_appears_after_opening_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    folder = make_folder(tmp_path / "x", FILES)
    source = Source.open_source(folder)
    (folder / "empty.txt").unlink()
    (folder / "empty.txt").symlink_to("../secret")
    for reader in (source, pickle.loads(pickle.dumps(source))):
        with pytest.raises(DataError, match="no such file"):
            reader.read("empty.txt")


@pytest.mark.parametrize(
    "member",
    [
        "../secret",
        "/etc/passwd",
        "train/../../secret",
        "train\\x",
        "",
        "train",
        "a\0b",
        ".DS_Store",
        "train//1e5000.json",
    ],
)
def test_reading_by_a_name_that_is_not_listed_finds_nothing(make, member):
    path = make(FILES | dict.fromkeys(JUNK, b"junk"))
    (path.parent / "secret").write_text("secret")
    source = pickle.loads(pickle.dumps(Source.open_source(path)))
    with pytest.raises(DataError, match="no such file"):
        source.read(member)


def test_pipe_in_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "member pipe: found a device, pipe or socket" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"), [(b"a\\b", "a backslash"), (b"a\nb", "a control character"), (b"\xff.json", "no UTF-8")]
)
def test_odd_names_in_a_folder(tmp_path, name, words):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")
    message = refusal(tmp_path)
    assert words in message
    assert message.isascii()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_read(tmp_path):
    folder = make_folder(tmp_path / "x", FILES)
    (folder / "train").chmod(0)
    try:
        assert "folder train/: found Permission denied" in refusal(folder)
    finally:
        (folder / "train").chmod(0o700)


def test_folder_that_vanishes(tmp_path):
    folder = make_folder(tmp_path / "x", FILES)
    source = pickle.loads(pickle.dumps(Source.open_source(folder)))
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="No such file"):
        source.members()


# --- text ---


@pytest.mark.parametrize("lines", [0, 3])
@pytest.mark.parametrize("before", [0, 1, CHUNK_BYTES - 2, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES - 1])
@pytest.mark.parametrize(
    ("bad", "words"),
    [(b"\xff", r"no UTF-8 \(ff\)"), (b"\xe2\x82x", r"no UTF-8 \(e2 82\)"), (b"\0", "a NUL"), (b"\xe2\x82", "no UTF-8")],
)
def test_bad_bytes_are_found_by_line_and_byte(before, lines, bad, words):
    content = b"\n" * min(lines, before) + b"x" * (before - min(lines, before)) + bad
    with checked_text(io.BytesIO(content), "a.csv") as text, pytest.raises(DataError, match=words) as caught:
        text.read()
    assert f"line {min(lines, before) + 1}, byte {before}: " in str(caught.value)


@given(st.integers(-4, 4), st.text(alphabet="aé€😀\n", min_size=1, max_size=9))
def test_characters_cut_by_the_end_of_a_chunk(shift, content):
    data = b"x" * (CHUNK_BYTES + shift) + content.encode()
    with checked_text(io.BytesIO(data), "a.csv") as text:
        assert text.read() == data.decode()


@given(st.binary(max_size=30))
def test_text_is_what_python_decodes_or_a_refusal_at_the_same_byte(data):
    try:
        expected = data.decode("utf-8")
        fault = data.find(0)
    except UnicodeDecodeError as error:
        nul = data.find(0)
        fault = nul if 0 <= nul < error.start else error.start
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        fault = 0
    with checked_text(io.BytesIO(data), "x") as text:
        if fault < 0:
            assert text.read() == expected.removeprefix("\ufeff")
        else:
            with pytest.raises(DataError, match=f"byte {fault}:"):
                text.read()


def test_utf16_is_called_by_its_name():
    with checked_text(io.BytesIO("id,x\n".encode("utf-16")), "a.csv") as text, pytest.raises(DataError, match="UTF-16"):
        text.read()


# --- anything ---


def many_members(n: int) -> bytes:
    """Write only the table of contents of a zip with n members: it is all that opening reads."""
    table = io.BytesIO()
    for i in range(n):
        name = b"data/train/%014x.json" % i
        table.write(struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 8, 0, 0, i, 0, 9, len(name), *[0] * 6))
        table.write(name)
    count = min(n, 0xFFFF)  # more need a longer end record, which `zipfile` writes, and does without when reading
    return table.getvalue() + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, table.tell(), 0, 0)


def test_zip_of_70_000_members(tmp_path):
    (tmp_path / "x.zip").write_bytes(many_members(70_000))  # more than the 65,535 of a short end record
    source = Source.open_source(tmp_path / "x.zip", keep=("train",))
    assert len(source.members("train/", ".json")) == 70_000
    assert sum(source.has(f"train/{i:014x}.json") for i in range(70_000)) == 70_000
    assert len(pickle.dumps(source)) < 1000


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Change bytes, cut, repeat and insert, in any order."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 60)))
        change = draw(st.sampled_from(["set", "cut", "repeat", "insert", "end"]))
        if change == "set":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
        elif change == "cut":
            del data[at:to]
        elif change == "repeat":
            data[at:at] = data[at:to]
        elif change == "insert":
            data[at:at] = draw(
                st.sampled_from([b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"\xff" * 8, b"\0" * 8, b'"', b"\r"])
            )
        else:
            del data[at:]
    return bytes(data)


def small_zip(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.mkdir("train")
        archive.writestr("train/a.json", b'{"x": "' + b"y" * 40 + b'"}')
        archive.writestr("é.csv", "id,x\n1,é\n")
        with archive.open("big.txt", "w", force_zip64=True) as member:  # a member with a 64-bit extra field
            member.write(b"text " * 20)
    return buffer.getvalue()


@settings(max_examples=300, deadline=None)  # each example makes a file: too uneven for a deadline
@given(st.one_of(damaged(small_zip(zipfile.ZIP_DEFLATED)), damaged(small_zip(zipfile.ZIP_STORED))))
def test_damaged_zips_are_read_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.zip")
        path.write_bytes(data)
        try:
            source = Source.open_source(path)
        except DataError:
            return
        assert len(source.fingerprint()) == 64
        for member in source.members():
            for read in (source.read, read_stream(source), read_text(source)):
                with contextlib.suppress(DataError):
                    read(member)


def test_undamaged_small_zips_are_read():
    """Keep the fuzzing honest: what it damages is read when it is whole."""
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.zip")
            path.write_bytes(small_zip(method))
            source = Source.open_source(path)
            assert source.members() == ["big.txt", "train/a.json", "é.csv"]
            assert zlib.crc32(source.read("big.txt")) == zlib.crc32(b"text " * 20)


# --- the real corpus ---


@pytest.mark.data
def test_real_corpus_is_read_whole():
    root = next(folder for folder in Path(__file__).parents if (folder / "poetry.lock").exists())
    path = root / "../shared/data/ai4code-mini/ai4code-mini.zip"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    source = Source.open_source(path)
    notebooks = source.members("train/", ".json")
    assert len(notebooks) == 1911
    with zipfile.ZipFile(path) as archive:
        assert all(source.read(name) == archive.read(name) for name in source.members())


def test_names_of_a_zip_in_an_old_code_page(tmp_path: Path):
    path = make_zip(tmp_path / "a.zip", {"XXXXXXX/1.txt": b"1", "plain.txt": b"2", "日本.txt": b"3"})
    path.write_bytes(path.read_bytes().replace(b"XXXXXXX", "картина".encode("cp866")))
    source = Source.open_source(path, name_encoding="cp866")
    assert source.members() == ["plain.txt", "картина/1.txt", "日本.txt"]
    assert pickle.loads(pickle.dumps(source)).read("картина/1.txt") == b"1"
    assert "картина/1.txt" not in Source.open_source(path).members()
    folder = make_folder(tmp_path / "b", {"картина/1.txt": b"1", "plain.txt": b"2"})
    assert Source.open_source(folder, name_encoding="cp866").members() == ["plain.txt", "картина/1.txt"]
