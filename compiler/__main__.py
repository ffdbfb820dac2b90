"""``python -m condensec``: the command line."""

import sys

from condensec.cli import main

if __name__ == "__main__":
    sys.exit(main())
