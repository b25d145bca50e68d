"""Helpers for tests of this repository's members; they need no pytest."""

from collections.abc import Callable
from typing import Any

from kit_core.errors import DataError

LONGEST_MESSAGE = 3_000  # characters; the first five problems and their count fit


def refused(action: Callable[[], object], *words: str) -> str:
    """Call `action`, which must raise a `DataError` that a user can act on, and return its message.

    The message must hold each of `words` and a remedy ("do: "), be printable, and be short; the exit code must be 3.

    Raises:
        AssertionError: `action` raised nothing, or the message lacks something.
    """
    try:
        action()
    except DataError as error:
        message, code = str(error), error.exit_code
    else:
        raise AssertionError(f"not refused; expected a DataError with {words}")
    assert code == 3, f"exit code {code}, expected 3"
    for word in (*words, "do: "):
        assert word in message, f"{word!r} is missing in:\n{message}"
    assert len(message) < LONGEST_MESSAGE, f"{len(message)} characters"
    assert all(line.isprintable() for line in message.splitlines()), f"not printable: {message!r}"
    return message


def interrupted_after(function: Callable[..., Any], n_calls: int) -> Callable[..., Any]:
    """Return `function`, changed to raise KeyboardInterrupt at the end of its `n_calls`-th call.

    In place of a function that saves state it stops a training at a known point.
    """
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = function(*args, **kwargs)
        calls += 1
        if calls == n_calls:
            raise KeyboardInterrupt
        return result

    return wrapped
