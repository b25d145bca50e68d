"""Errors that a person caused and can put right: a message and an exit code, never a traceback."""

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)  # no space or no inode on the disk, or no more for this user
SHOWN = 5  # offenders named in a message; the rest is counted, so that a bad file of any size gives a short message


class KitError(Exception):
    """A failure to be told in one message; `exit_code` is what the command line ends with."""

    exit_code: int = 1


class ConfigError(KitError):
    """Wrong usage, a wrong setting, or an output place that cannot be used."""

    exit_code = 2


class DataError(KitError):
    """Input data that is absent, broken or not what was announced."""

    exit_code = 3


class DiskFullError(DataError):
    """A place without room, and no fault of the data: what was finished there stays, for another call to go on."""


def disk_full(path: str | Path, reason: object) -> DiskFullError:
    """Return the error of a write that a full disk stopped; `reason` is what the system said."""
    return DiskFullError(
        f"{path}: cannot be written: {reason}; free space on that disk, or name a place on another one, and give the "
        "same command again"
    )


class Problems:
    """Collect the offenders of one source while it is read, and raise once at the end.

    Holds the first five texts and a count, whatever the number of offenders.
    """

    def __init__(self, source: str | Path, expected: str, remedy: str) -> None:
        self.source = str(source)
        self.expected = expected
        self.remedy = remedy
        self._first: list[str] = []
        self._count = 0

    def add(self, where: str, found: str) -> None:
        """Note one offender: `where` it is ("row 7", "id 00ab") and what was `found` there."""
        self._count += 1
        if len(self._first) < SHOWN:
            self._first.append(f"{where}: found {found}")

    def __len__(self) -> int:
        """Return the number of offenders so far."""
        return self._count

    def raise_if_any(self) -> None:
        """Do nothing when no offender was added.

        Raises:
            DataError: with the source, the first five offenders, the total count, what was expected and what to do.
        """
        if not self._count:
            return
        noun = "problem" if self._count == 1 else "problems"
        lines = [f"{self.source}: {self._count} {noun}", *(f"  {text}" for text in self._first)]
        if self._count > len(self._first):
            lines.append(f"  ... and {self._count - len(self._first)} more")
        lines += [f"  expected: {self.expected}", f"  do: {self.remedy}"]
        raise DataError("\n".join(lines))
