"""Read input data by member name, from a folder or from the zip as it was downloaded, as if they were the same thing.

A `Source` is checked when it is opened, before a byte of any member is read: a zip from the internet can name files
outside of its folder, repeat a name, or unfold a few kilobytes to terabytes. Nothing is ever unpacked to the disk.
"""

import codecs
import functools
import hashlib
import io
import os
import re
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from kit_core.errors import Problems

BOMB_RATIO = 1000  # deflate itself cannot pass 1032, and only on bytes that never change
BOMB_BYTES = 1 << 30  # below this size a high ratio does no harm: long runs of one value are common in real tables
ACCEPTED = "a folder, or a .zip file"
ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000  # encrypted member, strong encryption, encrypted table of contents
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
CHUNK_BYTES = 1 << 16
SUSPICIOUS = re.compile("^/|\\\\|^[A-Za-z]:|[.][.]|[\0-\x1f\x7f]|[\ud800-\udfff]|^[./]*$")  # one quick look at a name
# All that `zipfile` is known to raise on broken files; it has no common base class for them. NotImplementedError is a
# RuntimeError (a feature that it lacks), UnicodeDecodeError a ValueError (a name that is no UTF-8).
READ_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, OverflowError, RuntimeError, ValueError)

# All that `numpy.load` is known to raise on broken files: the header is a Python literal, tokenized and parsed as one.
NPY_ERRORS = (
    ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError, TypeError, MemoryError, RecursionError,
    OverflowError, KeyError, AttributeError, zipfile.BadZipFile,
    UserWarning,  # of a header in Python 2's way, where warnings are errors
)  # fmt: skip
JSON_ERRORS = (ValueError, RecursionError)  # no JSON or no UTF-8; brackets within thousands of brackets


class Entry(NamedTuple):
    """Size in bytes, and a stamp that changes with the content: CRC-32 in a zip, time of change (ns) in a folder."""

    size: int
    stamp: int


class Source:
    """The members of one folder or zip.

    Pickles as a few strings: a worker process opens the file again at its first read, once per process, and a forked
    one uses what its parent has read. Reading is safe from several processes and threads at once.
    """

    def __init__(self, name: str, path: str, top: str) -> None:
        """Take the checked parts from `open_source`, which is what callers use."""
        self.name = name
        self._path = path
        self._top = top

    @staticmethod
    def open_source(
        path: str | os.PathLike[str], *, keep: Collection[str] = (), name_encoding: str | None = None
    ) -> "Source":
        """Open and check a folder or a zip, told apart by their content.

        A single folder that holds everything is stripped from the member names, since archives are often made with one
        around them. `keep` names the folders that belong to the layout (such as "train"), which are never stripped.
        `name_encoding` is how a zip without Unicode names was written (such as "cp866" by a Russian Windows), in place
        of the cp437 that the format says; names marked as Unicode, names in ASCII and folders are the same with any.

        Raises:
            DataError: nothing there, neither a folder nor a zip, a truncated or damaged zip, or a member that is unsafe
                (absolute or `..` name, drive letter, backslash, control character, link, doubled name, decompression
                bomb), encrypted, or compressed by a method other than deflate.
        """
        name, real = os.fspath(path), os.path.realpath(path)
        try:
            status = Path(real).stat()
        except OSError as error:
            remedy = "check the spelling and the permissions, or download the data"
            refuse(name, "the path", reason(error), expected=ACCEPTED, remedy=remedy)
        if stat.S_ISDIR(status.st_mode):
            members = _list_folder(name, real)
            return _FolderSource(name, real, _single_top(members, keep), members)
        _check_zip_magic(name, real, status)
        identity = _identity(status)
        infos = _open_zip(name, real, identity, name_encoding).infos
        return _ZipSource(name, real, _single_top(infos, keep), identity, name_encoding)

    def members(self, prefix: str = "", suffix: str = "") -> list[str]:
        """Return the names of the files, POSIX style and sorted, that begin with `prefix` and end with `suffix`.

        What file managers leave behind (`.DS_Store`, `Thumbs.db`, `__MACOSX/`, `._*`) is left out.
        """
        start, skip = self._top + prefix, len(self._top)
        return sorted(name[skip:] for name in self._names() if name.startswith(start) and name.endswith(suffix))

    def has(self, member: str) -> bool:
        """Return whether there is a file of this name."""
        return self._top + member in self._names()

    def read(self, member: str) -> bytes:
        """Return the content of one file.

        Raises:
            DataError: no such member, not readable, truncated, or its checksum does not fit.
        """
        with self._reading(member), self._open(self._top + member) as stream:
            # A size, not -1: `zipfile` then unfolds no more than what was announced and checked.
            return stream.read(self._size(self._top + member))

    def open_binary(self, member: str) -> IO[bytes]:
        """Open one file to be read as a stream; reading raises as `read` does.

        Raises:
            DataError: no such member, or not readable.
        """
        with self._reading(member):
            return io.BufferedReader(_CheckedStream(self, member, self._open(self._top + member)), CHUNK_BYTES)

    def open_text(self, member: str) -> IO[str]:
        """Open one UTF-8 file, with or without byte order mark, to be read as text with its own line ends.

        Reading raises as `read` does, and DataError with the line and byte of the first NUL or bytes that are no UTF-8.

        Raises:
            DataError: no such member, or not readable.
        """
        return checked_text(self.open_binary(member), f"{self.name}: {member}")

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the names, sizes and stamps of all members.

        Cheap, since no content is read: it tells another version of the data, not a forged one.
        """
        lines = (f"{name[len(self._top) :]}\0{size}\0{stamp}\n" for name, (size, stamp) in self._entries())
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()

    def __repr__(self) -> str:
        """Return the kind and the name as given."""
        return f"<{type(self).__name__[1:]} {self.name}>"

    def _names(self) -> Collection[str]:
        raise NotImplementedError

    def _entries(self) -> Iterable[tuple[str, Entry]]:
        raise NotImplementedError

    def _size(self, full_name: str) -> int:
        raise NotImplementedError

    def _open(self, full_name: str) -> IO[bytes]:
        raise NotImplementedError

    @contextmanager
    def _reading(self, member: str) -> Iterator[None]:
        """Turn what reading one member may raise into a DataError."""
        try:
            yield
        except KeyError:
            refuse(
                self.name,
                f"member {shown(member)}",
                "no such file",
                expected="a file of exactly this name",
                remedy="see that the download is complete, and that this is the data of the right competition",
            )
        except READ_ERRORS as error:
            refuse(
                self.name,
                f"member {shown(member)}",
                reason(error),
                expected="a whole and readable file",
                remedy="download the data again; `unzip -t` tests a zip",
            )


class _FolderSource(Source):
    def __init__(self, name: str, path: str, top: str, members: dict[str, Entry]) -> None:
        super().__init__(name, path, top)
        self._members: dict[str, Entry] | None = members

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_members": None}  # a worker reads by name and seldom needs the list

    def _listed(self) -> dict[str, Entry]:
        if self._members is None:
            self._members = _list_folder(self.name, self._path)
        return self._members

    def _names(self) -> Collection[str]:
        return self._listed()

    def _entries(self) -> Iterable[tuple[str, Entry]]:
        return self._listed().items()

    def _size(self, full_name: str) -> int:
        return -1

    def _open(self, full_name: str) -> IO[bytes]:
        # Checked at every read and without the list: after unpickling there is none, and a link may be new.
        if unsafe_name(full_name) or is_junk(full_name) or normalised(full_name) != full_name:
            raise KeyError(full_name)
        real = Path(os.path.realpath(f"{self._path}/{full_name}"))
        if not _is_inside(str(real), self._path) or not real.is_file():
            raise KeyError(full_name)
        return real.open("rb")


class _ZipSource(Source):
    def __init__(self, name: str, path: str, top: str, identity: str, name_encoding: str | None) -> None:
        super().__init__(name, path, top)
        self._identity = identity
        self._name_encoding = name_encoding

    def _opened(self) -> "_OpenZip":
        return _open_zip(self.name, self._path, self._identity, self._name_encoding)

    def _names(self) -> Collection[str]:
        return self._opened().infos

    def _entries(self) -> Iterable[tuple[str, Entry]]:
        return ((name, Entry(info.file_size, info.CRC)) for name, info in self._opened().infos.items())

    def _size(self, full_name: str) -> int:
        return self._opened().infos[full_name].file_size + 1  # one more: the end is seen and the checksum compared

    def _open(self, full_name: str) -> IO[bytes]:
        opened = self._opened()
        return opened.archive.open(opened.infos[full_name])


class _OpenZip(NamedTuple):
    archive: zipfile.ZipFile
    infos: dict[str, zipfile.ZipInfo]


@functools.lru_cache(maxsize=8)  # more zips than this are not read in turns; each holds one file open
def _open_zip(name: str, path: str, identity: str, name_encoding: str | None) -> _OpenZip:
    """Read and check the table of contents; once for each process and version of the file."""
    try:
        file = _PositionedFile(path)
        archive = zipfile.ZipFile(file, metadata_encoding=name_encoding)
    except READ_ERRORS as error:
        refuse(
            name,
            "the table of contents, at the end of the file",
            reason(error),
            expected="a whole zip file",
            remedy="download it again: an interrupted download is the usual cause",
        )
    if _identity(os.fstat(file.fileno())) != identity:
        refuse(
            name,
            "size and time of change",
            "others than when the file was opened",
            expected="a file that stays the same while it is read",
            remedy="start again when the file is complete",
        )
    return _OpenZip(archive, _checked_infos(name, archive, file.size))


def _checked_infos(name: str, archive: zipfile.ZipFile, archive_bytes: int) -> dict[str, zipfile.ZipInfo]:
    problems = Problems(
        name,
        expected="stored or deflated files, not encrypted, each with one relative name inside the archive",
        remedy="do not unpack this archive; download it again from its official place, or zip the checked files anew",
    )
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # `orig_filename` is what the table says; `filename` ends at a NUL, or comes from a Unicode extra field.
        fault = unsafe_name(info.orig_filename) or unsafe_name(info.filename) or _member_fault(info, archive_bytes)
        member = normalised(info.filename)
        if not fault and not info.is_dir():
            if member in infos:
                fault = "a second member of this name"
            elif not is_junk(member):
                infos[member] = info
        if fault:
            problems.add(f"member {shown(info.orig_filename)}", fault)
    problems.raise_if_any()
    return infos


def _member_fault(info: zipfile.ZipInfo, archive_bytes: int) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a device or pipe"
    if info.flag_bits & ENCRYPTED_FLAGS:
        return "an encrypted member"
    if info.compress_type not in METHODS:
        return f"compression method {info.compress_type}"
    if info.header_offset < 0 or info.header_offset + info.compress_size > archive_bytes:
        return "content beyond the end of the file (a truncated archive)"
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        return f"{info.file_size:,} bytes packed into {info.compress_size:,} (a decompression bomb)"
    return None


def _list_folder(name: str, root: str) -> dict[str, Entry]:
    problems = Problems(
        name,
        expected="files and folders with plain names, and links only to files in the same folder",
        remedy="replace links by what they point to, or name the folder where the data really is",
    )
    members: dict[str, Entry] = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(f"{root}/{folder}") as found:
                for item in found:
                    member = folder + item.name
                    if is_junk(member):
                        continue
                    fault = unsafe_name(member) or _item_fault(item, root)
                    if fault:
                        problems.add(f"member {shown(member)}", fault)
                    elif item.is_dir(follow_symlinks=False):
                        pending.append(member + "/")
                    else:
                        status = item.stat()
                        members[member] = Entry(status.st_size, status.st_mtime_ns)
        except OSError as error:
            refuse(
                name,
                f"folder {shown(folder or '.')}",
                reason(error),
                expected="a folder that may be read",
                remedy="check the permissions",
            )
    problems.raise_if_any()
    return members


def _item_fault(item: "os.DirEntry[str]", root: str) -> str | None:
    if item.is_symlink():
        target = os.path.realpath(item.path)
        if not _is_inside(target, root):
            return "a symbolic link that leads out of the folder"
        if not Path(target).is_file():
            return "a symbolic link to something else than a file"
    elif not (item.is_file(follow_symlinks=False) or item.is_dir(follow_symlinks=False)):
        return "a device, pipe or socket"
    return None


def _check_zip_magic(name: str, path: str, status: os.stat_result) -> None:
    """Say what the file is instead, before `zipfile` says only that it is no zip."""
    if not stat.S_ISREG(status.st_mode):
        refuse(name, "the path", "a device, pipe or socket", expected=ACCEPTED, remedy="name the data itself")
    try:
        with Path(path).open("rb") as file:
            head = file.read(4)
    except OSError as error:
        refuse(name, "the file", reason(error), expected=ACCEPTED, remedy="check the permissions")
    lower = name.lower()
    if head in (b"PK\x03\x04", b"PK\x05\x06") or (head and lower.endswith(".zip")):
        return
    if not head:
        found, remedy = "no bytes at all", "download it again"
    elif lower.endswith((".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")) or head[:2] == b"\x1f\x8b":
        found, remedy = "another kind of archive", "unpack it and name the folder, or pack the files as .zip"
    else:
        found, remedy = "a file that is no archive", "name the folder that holds it, or the .zip as downloaded"
    refuse(name, "the file", found, expected=ACCEPTED, remedy=remedy)


class _PositionedFile(io.RawIOBase):
    """A file that reads by absolute position.

    `zipfile` seeks and then reads; processes forked after opening share the position of an ordinary file, and would
    read one another's bytes. Here the position is a number of this object.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size
        self._position = 0

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if position < 0:
            raise OSError("position before the beginning of the file")
        self._position = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self._position)
        # A damaged table of contents may ask for exabytes: never allocate more than the file holds.
        wanted = left if size is None or size < 0 else min(size, left)
        data = os.pread(self._descriptor, wanted, self._position)
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class _CheckedStream(io.RawIOBase):
    """Pass bytes through, with the errors of `Source.read`."""

    def __init__(self, source: Source, member: str, stream: IO[bytes]) -> None:
        self._source = source
        self._member = member
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # narrower than typeshed's Buffer
        with self._source._reading(self._member):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def checked_text(stream: IO[bytes], name: str) -> IO[str]:
    """Read a stream of bytes as UTF-8 text, with or without byte order mark, line ends as they are.

    Reading raises DataError (under `name`) with the line and byte of the first NUL or bytes that are no UTF-8.
    """
    checked = io.BufferedReader(_CheckedUtf8(stream, name), CHUNK_BYTES)
    return io.TextIOWrapper(checked, encoding="utf-8-sig", newline="")


class _CheckedUtf8(io.RawIOBase):
    """Pass bytes through after checking them: a TextIOWrapper alone knows neither file nor line of a bad byte."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes_before = 0
        self._lines_before = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # narrower than typeshed's Buffer
        data = self._stream.read(len(buffer))
        if self._bytes_before == 0 and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            self._refuse(data, 0, "UTF-16 text")
        held = len(self._decoder.getstate()[0])  # the first bytes of a character that the last chunk cut in two
        nul = data.find(0)
        try:
            self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = error.start - held
            if not 0 <= nul < at:  # what comes first is told
                self._refuse(data, at, f"bytes that are no UTF-8 ({error.object[error.start : error.end].hex(' ')})")
        if nul >= 0:
            self._refuse(data, nul, "a NUL character")
        self._bytes_before += len(data)
        self._lines_before += data.count(b"\n")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _refuse(self, data: bytes, at: int, found: str) -> NoReturn:
        line = self._lines_before + data.count(b"\n", 0, max(at, 0)) + 1
        refuse(
            self._name,
            f"line {line}, byte {self._bytes_before + at}",
            found,
            expected="text in UTF-8",
            remedy="save the file as UTF-8, or download it again",
        )


def refuse(source: str, where: str, found: str, *, expected: str, remedy: str) -> NoReturn:
    """Raise DataError for a single problem, in the words and order of `Problems`."""
    problems = Problems(source, expected, remedy)
    problems.add(where, found)
    problems.raise_if_any()
    raise AssertionError("a problem was added, so raise_if_any has raised")


def unsafe_name(member: str) -> str | None:
    """Return what is wrong with a member's name, if anything."""
    if not SUSPICIOUS.search(member):
        return None
    if not normalised(member):
        return "an empty name"
    if member.startswith("/"):
        return "an absolute name"
    if "\\" in member:
        return "a name with a backslash"
    if re.match("[A-Za-z]:", member):
        return "a name with a drive letter"
    if ".." in member.split("/"):
        return "a name that leads out of the archive (..)"
    if re.search("[\0-\x1f\x7f]", member):
        return "a name with a control character"
    if re.search("[\ud800-\udfff]", member):  # how Python shows bytes of a file name that are no UTF-8
        return "a name that is no UTF-8"
    return None


def normalised(member: str) -> str:
    """Drop the parts that mean nothing: some programs write `./train/x.json` or `train//x.json`."""
    return "/".join(part for part in member.split("/") if part not in ("", "."))


def is_junk(member: str) -> bool:
    """Return whether a file manager left the member behind."""
    base = member.rpartition("/")[2]
    return base in (".DS_Store", "Thumbs.db") or base.startswith("._") or "__MACOSX" in member.split("/")


def _is_inside(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _single_top(members: Collection[str], keep: Collection[str]) -> str:
    """Return the one folder that holds everything, with its slash, or an empty text."""
    tops = {member.partition("/")[0] if "/" in member else "" for member in members}
    if len(tops) != 1 or "" in tops or tops & set(keep):
        return ""
    return tops.pop() + "/"


def _identity(status: os.stat_result) -> str:
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def reason(error: Exception) -> str:
    """Return the words of an error for a message, without the path that OSError repeats."""
    if isinstance(error, EOFError):  # `zipfile` gives it no words
        return "content that ends too early"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(text or type(error).__name__)


def shown(text: str) -> str:
    """Return a text from a file fit for a message: no line breaks or terminal codes, not endless."""
    text = text if len(text) <= 120 else text[:117] + "..."
    return text if text.isprintable() else ascii(text)
