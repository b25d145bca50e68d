"""The program `russian-art`, for processes of its own; RUSSIAN_ART_STOP=1 asks each of them to stop at once."""

import os
import sys

from kit_core import interrupt
from russian_art import cli

if os.environ.get("RUSSIAN_ART_STOP"):
    interrupt.ask()

if __name__ == "__main__":
    sys.exit(cli.main())
