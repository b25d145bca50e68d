"""The program `yandex-artists` with the presets of a test, for processes of their own."""

import os
import sys
from pathlib import Path

from yandex_artists import cli

if __name__ == "__main__":
    cli.PRESETS = Path(os.environ["YANDEX_ARTISTS_PRESETS"])
    sys.exit(cli.main())
