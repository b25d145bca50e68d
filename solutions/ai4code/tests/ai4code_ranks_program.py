"""The program `ai4code` with the presets of a test, for processes of their own."""

import os
import sys
from pathlib import Path

from ai4code import cli

if __name__ == "__main__":
    cli.PRESETS = Path(os.environ["AI4CODE_PRESETS"])
    sys.exit(cli.main())
