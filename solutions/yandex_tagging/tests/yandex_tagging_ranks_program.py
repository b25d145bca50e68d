"""The program `yandex-tagging`, for processes of its own."""

import sys

from yandex_tagging import cli

if __name__ == "__main__":
    sys.exit(cli.main())
