"""Shared by all tests of this solution."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_flushing() -> Iterator[None]:
    """Hundreds of files are made here, and no power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit_core.atomic._sync", lambda path: None)
        yield
