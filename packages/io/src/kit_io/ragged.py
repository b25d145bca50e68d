"""Sequences of unequal length in one memory map: written as a stream, opened at once, read by any list of rows.

A pack is a folder: `values.bin` (frames of all items one behind the other, row-major, little-endian), `offsets.npy`
(int64 [n + 1]: item i has the frames offsets[i] to offsets[i + 1]) and, written last, `info.json` with sizes, digests
and the largest rounding error. While it is being written, `journal.bin` says which items are whole, so that a killed
writer goes on where it stopped.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import weakref
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from kit_core.atomic import atomic_path, names_in, write_json
from kit_core.errors import FULL, ConfigError, DataError, DiskFullError
from kit_io.source import JSON_ERRORS, NPY_ERRORS

FORMAT_VERSION = 1
VALUES, OFFSETS, INFO, JOURNAL, WRITER = "values.bin", "offsets.npy", "info.json", "journal.bin", "writer.json"

Dtype = Literal["float16", "float32", "bfloat16"]
STORED: dict[str, np.dtype[Any]] = {  # how a value lies on the disk; bfloat16 is the upper half of a float32
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
}
FLOAT16_BITS = np.uint32(0x8FFFE000).view(np.int32)  # sign, exponent and mantissa, where float32 has them
FLOAT16_BIAS = np.float32(2.0 ** (127 - 15))
RECORD = np.dtype([("length", "<i8"), ("error", "<f8")])  # one of the journal, for each whole item
FLUSH_BYTES = 8 << 20  # what a kill can cost; small against the minutes of a pack, large against a system call

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class PackInfo:
    """What `info.json` says of a pack; `max_abs_error` is the largest |stored − given| of any value."""

    dtype: Dtype
    dim: int
    n: int
    frames: int
    max_abs_error: float
    values_sha256: str
    offsets_sha256: str


class RaggedWriter:
    """Append items of shape [T, dim] to a new pack; memory stays flat, and a killed writer can be continued.

    `appended` is the number of items so far. Use it as a context manager, or call `close`, which alone makes the pack
    readable; leaving the block by an exception keeps what is whole for `resume`.
    """

    def __init__(self, path: str | Path, *, dim: int, dtype: Dtype = "float16") -> None:
        """Begin a pack in a new or empty folder.

        Raises:
            ValueError: `dim` is not positive, or the dtype is none of the three.
            ConfigError: the folder holds something, or cannot be written.
        """
        if dim < 1:
            raise ValueError(f"dim: found {dim}, expected 1 or more")
        if dtype not in STORED:
            raise ValueError(f"dtype: found {dtype!r}, expected one of {', '.join(STORED)}")
        path = Path(path)
        if path.exists() and (not path.is_dir() or names_in(path)):
            raise ConfigError(f"{path}: exists and is not an empty folder; remove it, resume it or name another place")
        write_json(path / WRITER, {"format_version": FORMAT_VERSION, "dtype": dtype, "dim": dim})
        self._begin(path, dim, dtype, np.zeros(0, RECORD))

    @classmethod
    def resume(cls, path: str | Path) -> Self:
        """Go on with a pack that a stopped writer left, behind its last whole item.

        Raises:
            DataError: there is no unfinished pack, or its files do not belong together.
        """
        path = Path(path)
        if (path / INFO).exists():
            raise DataError(f"{path}: the pack is finished (found {INFO}); open it, or remove the folder to pack again")
        settings = _read_json(path / WRITER, "an unfinished pack", ("format_version", "dtype", "dim"))
        dim, dtype = settings["dim"], settings["dtype"]
        if settings["format_version"] != FORMAT_VERSION or dtype not in list(STORED) or not _is_count(dim, least=1):
            raise DataError(f"{path / WRITER}: found {settings}, expected format_version {FORMAT_VERSION}; pack again")
        try:
            raw = (path / JOURNAL).read_bytes()
            size = (path / VALUES).stat().st_size
        except FileNotFoundError:
            raw, size = b"", 0
        records = np.frombuffer(raw[: len(raw) // RECORD.itemsize * RECORD.itemsize], RECORD)
        ends = np.cumsum(records["length"]) * dim * STORED[dtype].itemsize
        whole = int(np.searchsorted(ends, size, side="right"))  # journal entries come after their values were written
        writer = cls.__new__(cls)
        writer._begin(path, dim, dtype, records[:whole])
        return writer

    def _begin(self, path: Path, dim: int, dtype: Dtype, records: NDArray[Any]) -> None:
        self.path, self.dim, self.dtype = path, dim, dtype
        self.appended = len(records)
        self._frames = int(records["length"].sum())
        self._error = float(records["error"].max(initial=0.0))
        self._digest = hashlib.sha256()
        self._pending: list[tuple[int, float]] = []
        self._pending_bytes = 0
        bytes_whole = self._frames * dim * STORED[dtype].itemsize
        self._values: IO[bytes] = (path / VALUES).open("a+b", buffering=1 << 20)
        self._journal: IO[bytes] = (path / JOURNAL).open("a+b")
        os.truncate(path / VALUES, bytes_whole)
        os.truncate(path / JOURNAL, len(records) * RECORD.itemsize)
        self._values.seek(0)
        while block := self._values.read(1 << 22):  # what stands already belongs to the digest
            self._digest.update(block)

    def append(self, array: NDArray[Any]) -> None:
        """Add one item, float [T, dim] of any float dtype; T = 0 is an item too.

        Raises:
            ValueError: the array is not [T, dim] or not of floats.
            DataError: a value is NaN or infinite, the dtype of the pack cannot hold it, or the disk is full.
        """
        array = np.asarray(array)
        if array.ndim != 2 or array.shape[1] != self.dim or array.dtype.kind != "f":
            raise ValueError(
                f"item {self.appended}: found {array.dtype} {list(array.shape)}, expected floats [T, {self.dim}]"
            )
        with np.errstate(over="ignore"):  # an overflow is told below, with the item's number
            stored = encode(array, self.dtype)
            error = _largest_difference(array, stored, self.dtype)
        if not np.isfinite(error):
            self._refuse_values(array)
        data = np.ascontiguousarray(stored).tobytes()
        try:
            self._values.write(data)
            self._digest.update(data)
            self._pending.append((len(array), error))
            self._pending_bytes += len(data)
            if self._pending_bytes >= FLUSH_BYTES:
                self._flush()
        except OSError as failure:
            self._refuse_disk(failure)
        self.appended += 1
        self._frames += len(array)
        self._error = max(self._error, error)

    def close(self) -> PackInfo:
        """Flush everything to the disk and make the pack readable; returns what `info.json` says.

        Raises:
            DataError: the disk is full.
        """
        try:
            self._flush()
            os.fsync(self._values.fileno())
            records = np.fromfile(self.path / JOURNAL, RECORD)
            offsets = np.zeros(len(records) + 1, np.int64)
            np.cumsum(records["length"], out=offsets[1:])
            with atomic_path(self.path / OFFSETS) as temporary, temporary.open("wb") as file:
                np.save(file, offsets)
            info = PackInfo(
                dtype=self.dtype,
                dim=self.dim,
                n=self.appended,
                frames=self._frames,
                max_abs_error=self._error,
                values_sha256=self._digest.hexdigest(),
                offsets_sha256=hashlib.sha256(offsets.tobytes()).hexdigest(),
            )
            self._values.close()
            self._journal.close()
            write_json(self.path / INFO, {"format_version": FORMAT_VERSION} | dataclasses.asdict(info))
        except OSError as failure:
            self._refuse_disk(failure)
        (self.path / JOURNAL).unlink()
        (self.path / WRITER).unlink()
        return info

    def _flush(self) -> None:
        self._values.flush()
        self._journal.write(np.array(self._pending, RECORD).tobytes())
        self._journal.flush()
        self._pending.clear()
        self._pending_bytes = 0

    def _release(self) -> None:
        for file in (self._values, self._journal):
            with contextlib.suppress(OSError):  # the disk is still full: what is not whole is cut off on resuming
                file.close()

    def _refuse_values(self, array: NDArray[Any]) -> NoReturn:
        wrong = np.argwhere(~np.isfinite(array))
        if len(wrong):
            frame, column = wrong[0]
            raise DataError(
                f"item {self.appended}: found {array[frame, column]} at frame {frame}, column {column} "
                f"({len(wrong)} such values), expected finite numbers; repair or leave out the item"
            )
        raise DataError(
            f"item {self.appended}: found values up to {np.abs(array).max():.6g}, which {self.dtype} cannot hold; "
            "pack as bfloat16 or float32"
        )

    def _refuse_disk(self, failure: OSError) -> NoReturn:
        self._release()
        kind = DiskFullError if failure.errno in FULL else DataError
        raise kind(
            f"{self.path}: cannot be written: {failure.strerror or failure}, after {self.appended} items; "
            "free space and run the same command again: it goes on behind the last whole item"
        ) from failure

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pack; after an exception only save what is whole."""
        if kind is None and not self._values.closed:
            self.close()
        elif not self._values.closed:
            with contextlib.suppress(OSError):  # the disk is full: resuming finds the last flush
                self._flush()
            self._release()


class RaggedPack:
    """Items of shape [T, dim] over one array of values; `open` maps a folder, the constructor takes arrays.

    Attributes: `values` (as stored, [frames, dim]), `offsets` int64 [n + 1], `n`, `dim`, `dtype`, `path` (or None) and
    `info` (None for arrays). A pack that was opened pickles as its path.
    """

    def __init__(
        self,
        values: NDArray[Any],
        offsets: Integers,
        dtype: Dtype,
        *,
        path: Path | None = None,
        info: PackInfo | None = None,
    ) -> None:
        if values.ndim != 2 or values.dtype != STORED[dtype] or offsets[0] != 0 or offsets[-1] != len(values):
            raise ValueError(f"found values {values.dtype} {values.shape} and offsets to {offsets[-1]} for {dtype}")
        self.values, self.offsets, self.dtype, self.path, self.info = values, offsets, dtype, path, info
        self.n, self.dim = len(offsets) - 1, values.shape[1]
        self._memory = _BatchMemory()

    @classmethod
    def open(cls, path: str | Path) -> "RaggedPack":
        """Map a finished pack; nothing is read but `info.json`, whatever the size.

        Raises:
            DataError: the folder holds no finished pack, its files have other sizes than announced, or its format is
                not the one that this code reads.
        """
        path = Path(path)
        stored = _read_json(path / INFO, "a finished pack", ("format_version",))
        if stored.pop("format_version") != FORMAT_VERSION:
            raise DataError(f"{path / INFO}: unknown format_version, expected {FORMAT_VERSION}; pack the data again")
        try:
            info = PackInfo(**stored)
            if not (_is_count(info.dim, least=1) and _is_count(info.n) and _is_count(info.frames)):
                raise TypeError("dim, n and frames must be whole numbers")
            item_bytes = info.dim * STORED[info.dtype].itemsize
        except (TypeError, KeyError) as error:
            raise DataError(f"{path / INFO}: found keys or values of another format ({error}); pack again") from error
        _expect_size(path / VALUES, info.frames * item_bytes)
        try:
            offsets = np.load(path / OFFSETS, mmap_mode="r", allow_pickle=False)
        except NPY_ERRORS as error:
            raise DataError(f"{path / OFFSETS}: cannot be read ({error}); pack the data again") from error
        if offsets.dtype != np.int64 or offsets.shape != (info.n + 1,) or offsets[0] != 0 or offsets[-1] != info.frames:
            raise DataError(
                f"{path / OFFSETS}: found {offsets.dtype} {list(offsets.shape)}, expected int64 [{info.n + 1}] from 0 "
                f"to {info.frames}; pack the data again"
            )
        shape = (info.frames, info.dim)
        empty = np.zeros(shape, STORED[info.dtype])  # no frames: an empty file cannot be mapped
        values = np.memmap(path / VALUES, STORED[info.dtype], "r", shape=shape) if info.frames else empty
        return cls(values, offsets, info.dtype, path=path, info=info)

    @classmethod
    def from_items(cls, items: list[NDArray[Any]], dtype: Dtype = "float32") -> "RaggedPack":
        """Hold one or more arrays [T, dim] of finite values, which `dtype` can hold, in memory as a pack."""
        offsets = np.concatenate([[0], np.cumsum([len(item) for item in items])]).astype(np.int64)
        return cls(encode(np.concatenate(items), dtype), offsets, dtype)

    def verify(self) -> None:
        """Read everything and compare the digests.

        Raises:
            DataError: a byte changed since the pack was written.
        """
        if self.info is None:
            return
        digest = hashlib.sha256()
        step = max(1, (1 << 24) // max(1, self.dim * self.values.itemsize))
        for start in range(0, len(self.values), step):
            digest.update(self.values[start : start + step].tobytes())
        found = {VALUES: digest.hexdigest(), OFFSETS: hashlib.sha256(np.asarray(self.offsets).tobytes()).hexdigest()}
        for name, expected in ((VALUES, self.info.values_sha256), (OFFSETS, self.info.offsets_sha256)):
            if found[name] != expected:
                raise DataError(
                    f"{self.path}: {name}: found sha256 {found[name][:16]}…, expected {expected[:16]}…; pack again"
                )

    @cached_property
    def lengths(self) -> Integers:
        """Frames of each item, int64 [n].

        Raises:
            DataError: an offset is smaller than the one before it.
        """
        lengths: Integers = self.offsets[1:] - self.offsets[:-1]
        if len(lengths) and lengths.min() < 0:
            raise DataError(f"{self.path}: {OFFSETS}: item {int(lengths.argmin())} ends before it begins; pack again")
        return np.asarray(lengths)

    def item(self, i: int) -> Floats:
        """Return one item, float32 [T, dim], as a copy.

        Raises:
            IndexError: there is no such item.
        """
        if not 0 <= i < self.n:
            raise IndexError(f"item {i} of {self.n}")
        return decode(self.values[self.offsets[i] : self.offsets[i + 1]], self.dtype)

    def gather(
        self,
        rows: NDArray[Any],
        *,
        start: NDArray[Any] | None = None,
        length: NDArray[Any] | None = None,
        pad_to: int | None = None,
    ) -> tuple[Floats, Integers]:
        """Return items as one batch, float32 [b, L, dim] with zeros behind the end, and their lengths, int64 [b].

        With `start` and `length` (int64 [b], frames) only this window of each item is taken. L is the longest length,
        or `pad_to`.

        Raises:
            IndexError: a row is not in the pack.
            ValueError: a window leaves its item, or `pad_to` is below a length.
        """
        begin, lengths, width = self.windows(rows, start, length, pad_to)
        batch = self._memory.take((len(begin), width, self.dim))  # each value is written once, not twice
        for place, (first, count) in enumerate(zip(begin.tolist(), lengths.tolist(), strict=True)):
            _decode_into(batch[place, :count], self.values[first : first + count], self.dtype)
            batch[place, count:] = 0
        return batch, lengths

    def windows(
        self,
        rows: NDArray[Any],
        start: NDArray[Any] | None = None,
        length: NDArray[Any] | None = None,
        pad_to: int | None = None,
    ) -> tuple[Integers, Integers, int]:
        """Check what `gather` is asked for, and return first frames and lengths, int64 [b], and the width L.

        Raises:
            IndexError, ValueError: as `gather`.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.n):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self.n} items")
        whole = self.lengths[rows]
        begin = np.zeros(len(rows), np.int64) if start is None else np.asarray(start, np.int64)
        lengths = whole - begin if length is None else np.asarray(length, np.int64)
        outside = (begin < 0) | (lengths < 0) | (begin + lengths > whole)
        if outside.any():
            i = int(outside.argmax())
            raise ValueError(
                f"row {rows[i]}: found the window {begin[i]} to {begin[i] + lengths[i]}, expected 0 to {whole[i]}"
            )
        longest = int(lengths.max(initial=0))
        if pad_to is not None and pad_to < longest:
            raise ValueError(f"pad_to: found {pad_to}, expected at least the longest length {longest}")
        return np.asarray(self.offsets)[rows] + begin, lengths, longest if pad_to is None else pad_to

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle an opened pack as its path, so that a worker process maps it again."""
        if self.path is not None:
            return RaggedPack.open, (self.path,)
        return RaggedPack, (self.values, self.offsets, self.dtype)


class _BatchMemory:
    """Memory for batches, given out again once nobody holds any part of a batch: fresh pages cost as much as the copy.

    At most two blocks are kept: a loop still holds one batch while it asks for the next.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[Any]] = []  # append and pop are atomic, so threads may share it

    def take(self, shape: tuple[int, ...]) -> Floats:
        """Return float32 of this shape, with anything in it."""
        size = math.prod(shape)
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(max(1, size), np.float32)
        if len(block) < size:
            block = np.empty(size, np.float32)
        # Every view that anyone makes has `owner` as its base, not the block, so it lives as long as they do.
        owner = np.frombuffer(block.data, np.float32)
        weakref.finalize(owner, self._give_back, block).atexit = False
        return owner[:size].reshape(shape)

    def _give_back(self, block: NDArray[Any]) -> None:
        if len(self._free) < 2:
            self._free.append(block)


def is_finished(path: Path) -> bool:
    """Return whether a folder holds a finished pack, for packers that go on where they were stopped.

    What a writer that was killed at its very last step left beside the pack is removed.
    """
    if not (path / INFO).is_file():
        return False
    for name in (JOURNAL, WRITER):
        (path / name).unlink(missing_ok=True)
    return True


def encode(values: NDArray[Any], dtype: Dtype) -> NDArray[Any]:
    """Return floats as they are stored: float16, float32, or bfloat16 as uint16, rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        return values.astype(STORED[dtype], copy=False)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + rounding) >> np.uint32(16)).astype("<u2")


def decode(stored: NDArray[Any], dtype: Dtype) -> Floats:
    """Return stored values as a new float32 array."""
    values = np.empty(stored.shape, np.float32)
    _decode_into(values, stored, dtype)
    return values


def _decode_into(out: Floats, stored: NDArray[Any], dtype: Dtype) -> None:
    """Decode finite values: infinity as float16 would become a number, and the writer lets none pass."""
    # Integers are widened by an assignment of their own: within a shift NumPy does that piece by piece in a buffer.
    if dtype == "bfloat16":
        wide = out.view(np.uint32)
        wide[...] = stored
        np.left_shift(wide, np.uint32(16), out=wide)
    elif dtype == "float16":
        # NumPy converts half floats one by one. Moving the bits of a whole array into place, the sign at the top, and
        # mending the bias of the exponent by a factor is three to four times faster, and as exact.
        bits = out.view(np.int32)
        bits[...] = stored.view(np.int16)
        np.left_shift(bits, np.int32(13), out=bits)
        np.bitwise_and(bits, FLOAT16_BITS, out=bits)
        np.multiply(out, FLOAT16_BIAS, out=out)
    else:
        out[...] = stored


def _largest_difference(array: NDArray[Any], stored: NDArray[Any], dtype: Dtype) -> float:
    """Return max |stored − given|, in float64 for wide input; NaN or infinity where a value is not finite in both."""
    if array.size == 0:
        return 0.0
    wide = np.float64 if array.dtype.itemsize > 4 else np.float32
    with np.errstate(invalid="ignore"):  # infinity minus infinity: the NaN says what is wrong
        kept = stored if dtype != "bfloat16" else decode(stored, dtype)  # NumPy's own conversion keeps infinity
        return float(np.abs(kept.astype(wide) - array.astype(wide)).max())


def _is_count(value: object, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _expect_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        shown = "no file" if found is None else f"{found:,} bytes"
        raise DataError(f"{path}: found {shown}, expected {size:,} bytes; pack the data again")


def _read_json(path: Path, what: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path.parent}: not {what}: found no {path.name}; run `prepare`") from error
    except (OSError, *JSON_ERRORS) as error:
        raise DataError(f"{path}: cannot be read ({error}); pack the data again") from error
    if not isinstance(value, dict) or any(key not in value for key in keys):
        raise DataError(f"{path}: found no {', '.join(keys)}; expected what the packer wrote; pack the data again")
    return value
