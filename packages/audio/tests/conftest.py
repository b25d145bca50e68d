"""What the tests of kit_audio share."""

import pytest

from kit_audio import ensure_compiled


@pytest.fixture(scope="session", autouse=True)
def compiled_librosa() -> None:
    """Before any test calls librosa itself: two test processes must not fill numba's cache at once."""
    ensure_compiled()
