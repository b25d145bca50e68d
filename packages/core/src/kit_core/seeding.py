"""One seed for every global random generator that is in use."""

import random
import sys

from kit_core.errors import ConfigError


def seed_everything(seed: int) -> None:
    """Seed `random`, and the global generators of NumPy and torch (all devices) where these are already imported.

    Call it after the imports. Generators that code makes for itself (`numpy.random.default_rng`) are its own business.

    Raises:
        ConfigError: the seed is outside 0 .. 2**32 - 1, which NumPy cannot take.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed: found {seed}, expected 0 to {2**32 - 1}")
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
