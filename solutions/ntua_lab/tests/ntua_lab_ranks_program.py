"""The program `ntua-lab`, for processes of its own; NTUA_LAB_STOP=1 asks each of them to stop at once."""

import os
import sys

from kit_core import interrupt
from ntua_lab import cli

if os.environ.get("NTUA_LAB_STOP"):
    interrupt.ask()

if __name__ == "__main__":
    sys.exit(cli.main())
