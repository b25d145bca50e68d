"""Being asked to stop: a signal asks, the training loop answers at its next step, with everything saved.

A handler runs between any two instructions, where nothing is whole; so it only leaves the wish here. A loop that knows
`asked` saves its state after the step and raises `Interrupted`; one that does not ends its work as if nobody had asked.
"""

from kit_core.errors import KitError


class Interrupted(KitError):  # noqa: N818 - not an error: what was asked for was done
    """A run was asked to stop and did, with its state saved: `--resume` goes on at the same step."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


_wish = False


def ask() -> None:
    """Ask the loop of this process to save and stop; safe in a signal handler."""
    global _wish
    _wish = True


def asked() -> bool:
    """Whether somebody asked."""
    return _wish


def withdraw() -> None:
    """Forget the wish, before another run in the same process."""
    global _wish
    _wish = False
