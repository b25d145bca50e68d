"""What goes wrong when several processes train one model."""

from kit_core.errors import KitError


class RankError(KitError):
    """A rank failed, and the others were ended."""


class PeerError(KitError):
    """Another rank failed, and says why itself; this one only cannot go on."""
