"""Read a tar, plain or gzipped, once from its beginning to its end, member by member, and write nothing to the disk.

A tar has no table of contents, and a gzipped one cannot be entered in the middle: what `kit_io.source` checks on
opening is checked here when its turn comes. `tarfile` takes an archive that breaks off between two members for a whole
one; here the end mark of the tar and the checksum of gzip must be there.
"""

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NoReturn

from kit_io.source import READ_ERRORS, is_junk, normalised, reason, refuse, shown, unsafe_name

BLOCK_BYTES = tarfile.BLOCKSIZE
BUFFER_BYTES = 1 << 18
HEADER_BYTES = 1 << 20  # a long name or the pax records of one member: far more than any real one has
LARGEST_BYTES = 1 << 30  # of a member that is handed out whole
GZIP_MAGIC = b"\x1f\x8b"
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar or gzipped, by its content."""
    try:
        with path.open("rb") as file:
            head = file.read(BLOCK_BYTES)
    except OSError:
        return False
    return head.startswith(GZIP_MAGIC) or head[257:262] == b"ustar"


def read_tar(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of a tar or tar.gz that are `wanted`, in the order of the archive.

    Names are POSIX style without a leading "./". What file managers leave behind is passed over, folders too; nothing
    of the rest is held in memory.

    Raises:
        DataError: no such file or not a tar, a truncated or damaged archive (also when the damage lies behind the last
            member), or a member that is unsafe (absolute or `..` name, drive letter, backslash, control character, a
            link or device, a doubled name) or above 1 GiB.
    """
    try:
        with path.open("rb", buffering=BUFFER_BYTES) as file:
            zipped = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            if zipped:
                with io.BufferedReader(gzip.GzipFile(fileobj=file), BUFFER_BYTES) as content:
                    yield from _members(path, content, wanted)
            else:
                yield from _members(path, file, wanted)
    except (EOFError, *READ_ERRORS) as error:
        _refuse_archive(path, reason(error))


def _members(path: Path, stream: IO[bytes], wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    long_name = ""
    long_size: int | None = None
    first = True
    while True:
        header = _read(stream, BLOCK_BYTES)
        if not any(header):
            break
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if first:
                _refuse_archive(path, "content that is no tar")
            _refuse_archive(path, f"a damaged header ({error})")
        first = False
        if info.type in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
            if info.size > HEADER_BYTES:
                _refuse_archive(path, f"a header of {info.size:,} bytes")
            record = _read_padded(stream, info.size)
            if info.type == LONG_NAME:
                long_name = record.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type == PAX:
                long_name, long_size = _pax(path, record, long_name)
            continue
        name, size = long_name or info.name, info.size if long_size is None else long_size
        long_name, long_size = "", None
        member = normalised(name)
        fault = unsafe_name(name) or _type_fault(info)
        if info.isdir() and not fault:
            continue
        if not fault and member in seen:
            fault = "a second member of this name"
        chosen = not fault and not is_junk(member) and wanted(member)
        if chosen and size > LARGEST_BYTES:
            fault = f"{size:,} bytes"
        if fault:
            refuse(
                str(path),
                f"member {shown(name)}",
                fault,
                expected="plain files, each with one relative name inside the archive",
                remedy="do not unpack this archive; download it again from its official place, or pack the files anew",
            )
        seen.add(member)
        if chosen:
            yield member, _read_padded(stream, size)
        else:
            _skip(stream, size)
    while stream.read(BUFFER_BYTES):  # to the end, where gzip has its checksum
        pass


def _type_fault(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "a link"
    if info.isdir() or info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return None
    return "a device, pipe, or sparse file"


def _pax(path: Path, record: bytes, name: str) -> tuple[str, int | None]:
    """Name and size from the extended header of one member: lines "length key=value"."""
    size = None
    at = 0
    while at < len(record):
        digits, _, _ = record[at : at + 20].partition(b" ")
        if not digits.isdigit() or int(digits) <= len(digits):
            _refuse_archive(path, "a damaged extended header")
        key, _, value = record[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        at += int(digits)
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            size = int(value)
    return name, size


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _read_padded(stream: IO[bytes], size: int) -> bytes:
    data = _read(stream, size)
    _read(stream, -size % BLOCK_BYTES)
    return data


def _skip(stream: IO[bytes], size: int) -> None:
    left = size + -size % BLOCK_BYTES
    while left:
        left -= len(_read(stream, min(left, BUFFER_BYTES)))


def _refuse_archive(path: Path, found: str) -> NoReturn:
    refuse(
        str(path),
        "the archive",
        found,
        expected="a whole .tar or .tar.gz",
        remedy="download it again: an interrupted download is the usual cause; `gzip -t` and `tar -t` test it",
    )
