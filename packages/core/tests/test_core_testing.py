"""The helpers of tests fail where they should."""

import pytest

from kit_core.errors import ConfigError, DataError
from kit_core.testing import interrupted_after, refused


def raising(error: Exception):
    def action() -> None:
        raise error

    return action


def test_refused_returns_the_message_of_a_data_error() -> None:
    assert refused(raising(DataError("a.csv: row 7\n  do: repair it")), "row 7") == "a.csv: row 7\n  do: repair it"


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (lambda: None, "not refused"),
        (raising(DataError("row 8\n  do: repair it")), "'row 7' is missing"),
        (raising(DataError("row 7")), "'do: ' is missing"),
        (raising(DataError("row 7\n  do: \x1b[31m")), "not printable"),
        (raising(DataError("row 7\n  do: " + "x" * 3_000)), "characters"),
    ],
)
def test_refused_fails(action, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        refused(action, "row 7")


def test_refused_lets_other_errors_through() -> None:
    with pytest.raises(ConfigError):
        refused(raising(ConfigError("row 7\n  do: repair it")), "row 7")


def test_interrupted_after_returns_until_the_last_call() -> None:
    saved: list[int] = []
    save = interrupted_after(saved.append, 2)
    save(1)
    with pytest.raises(KeyboardInterrupt):
        save(2)
    save(3)
    assert saved == [1, 2, 3]
