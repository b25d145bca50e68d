"""kit_io.tar: whole archives read in order, and all that an archive may do wrong."""

import gzip
import io
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from kit_core.errors import DataError
from kit_io.tar import is_tar, read_tar

LONG = "a" * 90 + "/" + "b" * 120 + ".npy"  # longer than a header holds
FILES = {
    "17.npy": random.Random(0).randbytes(5000),
    "./deep/трек.npy": b"name of another alphabet",
    "empty.npy": b"",
    LONG: b"long name",
    "block.npy": bytes(1024),
}
NAMES = [name.removeprefix("./") for name in FILES]


def pack(
    path: Path,
    files: dict[str, bytes],
    change: Callable[[tarfile.TarInfo], None] = lambda info: None,
    form: int = tarfile.PAX_FORMAT,
) -> Path:
    """Write a tar, gzipped where the name says so; `change` may falsify the headers."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content))
    data = stream.getvalue()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture(params=["data.tar", "data.tar.gz"])
def target(request, tmp_path):
    return tmp_path / request.param


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_tar(path))
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n  expected: " in message
    assert "\n  do: " in message
    assert all(line.isprintable() for line in message.splitlines())
    return message


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files_come_in_their_order(target, form):
    pack(target, FILES, form=form)
    assert list(read_tar(target)) == list(zip(NAMES, FILES.values(), strict=True))


def test_only_what_is_wanted_is_read_and_junk_is_not_even_asked_for(target):
    asked = []

    def wanted(name: str) -> bool:
        asked.append(name)
        return name.startswith("block")

    pack(target, FILES | {".DS_Store": b"x", "deep/._17.npy": b"x"})
    assert list(read_tar(target, wanted)) == [("block.npy", bytes(1024))]
    assert asked == NAMES


def test_several_gzip_members_are_one_archive(tmp_path):
    plain = pack(tmp_path / "a.tar", FILES).read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(plain[:3000]) + gzip.compress(plain[3000:]))
    assert [name for name, _ in read_tar(tmp_path / "b.tar.gz")] == NAMES


def test_a_size_in_an_extended_header_counts(tmp_path):
    """As for files above 8 GiB, whose size a plain header cannot hold."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("1.npy")
        info.size = 700
        info.pax_headers = {"size": "700"}
        archive.addfile(info, io.BytesIO(bytes(700)))
    data = bytearray(stream.getvalue())
    at = data.index(b"1.npy", 1024)  # the header of the file itself
    data[at + 124 : at + 136] = b"00000000000\0"
    data[at + 148 : at + 156] = b"        "
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    (tmp_path / "big.tar").write_bytes(bytes(data))
    assert list(read_tar(tmp_path / "big.tar")) == [("1.npy", bytes(700))]


def test_memory_stays_flat(tmp_path):
    path = pack(tmp_path / "large.tar.gz", {f"{i}.npy": bytes(1_000_000) for i in range(40)})
    tracemalloc.start()
    try:
        assert sum(len(content) for _, content in read_tar(path)) == 40_000_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_a_tar_is_known_by_its_content(target, tmp_path):
    assert is_tar(pack(target, FILES))
    (tmp_path / "fake.tar").write_text("no tar")
    assert not is_tar(tmp_path / "fake.tar")
    assert not is_tar(tmp_path / "absent.tar")
    assert not is_tar(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/x.npy", "an absolute name"),
        ("../x.npy", "leads out of the archive"),
        ("a/../../x.npy", "leads out of the archive"),
        ("C:/x.npy", "a drive letter"),
        ("a\\x.npy", "a backslash"),
        ("a\nx.npy", "a control character"),
    ],
)
def test_unsafe_names_are_refused(target, name, words):
    assert words in refused(pack(target, {"1.npy": b"x", name: b"x"}))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_what_is_no_plain_file_is_refused(target, kind):
    def change(info: tarfile.TarInfo) -> None:
        if info.name == "2.npy":
            info.type, info.linkname, info.size = kind, "1.npy", 0

    assert "member 2.npy: found a " in refused(pack(target, {"1.npy": b"x", "2.npy": b""}, change))


def test_a_doubled_name_is_refused(tmp_path):
    first = pack(tmp_path / "a.tar", {"1.npy": b"x"}).read_bytes()
    second = pack(tmp_path / "b.tar", {"./1.npy": b"y"}).read_bytes()
    (tmp_path / "c.tar").write_bytes(first[: 3 * 512] + second[512:])  # without the end mark of the first
    assert "a second member of this name" in refused(tmp_path / "c.tar")


def test_every_truncated_archive_is_refused(target):
    whole = pack(target, {"1.npy": bytes(700), "2.npy": bytes(100)}).read_bytes()
    last = 6 * 512 if target.suffix == ".tar" else len(whole) - 1  # the end mark of the tar, the end of gzip's checksum
    for length in {1, 100, 511, 512, 513, 1024, 1025, 2000, 2560, last // 2, last}:
        if length <= last:
            target.write_bytes(whole[:length])
            refused(target)
    target.write_bytes(whole)
    assert len(list(read_tar(target))) == 2


def test_a_changed_byte_of_gzip_is_found_also_behind_the_last_member(tmp_path):
    path = pack(tmp_path / "a.tar.gz", {"1.npy": random.Random(1).randbytes(3000)})
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1  # of the checksum
    path.write_bytes(bytes(whole))
    assert "CRC" in refused(path)


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"text " * 500)
    assert "content that is no tar" in refused(tmp_path / "a.tar")
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(b"text " * 500))
    assert "content that is no tar" in refused(tmp_path / "b.tar.gz")
    (tmp_path / "c.tar").write_bytes(b"")
    assert "ends too early" in refused(tmp_path / "c.tar")
    assert "No such file" in refused(tmp_path / "absent.tar")


def test_a_damaged_header_is_refused(tmp_path):
    path = pack(tmp_path / "a.tar", {"1.npy": b"x", "2.npy": b"y"})
    whole = bytearray(path.read_bytes())
    whole[3 * 512 + 10] ^= 0xFF
    path.write_bytes(bytes(whole))
    assert "a damaged header" in refused(path)


def test_headers_that_announce_too_much_are_refused(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.tar", FILES, form=tarfile.GNU_FORMAT)
    monkeypatch.setattr("kit_io.tar.HEADER_BYTES", 100)
    assert "a header of " in refused(path)
    monkeypatch.undo()
    monkeypatch.setattr("kit_io.tar.LARGEST_BYTES", 4000)
    assert "member 17.npy: found 5,000 bytes" in refused(path)
