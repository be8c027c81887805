"""Lets `python -m umbel` do what `umbel` does."""

import sys

from umbel.cli import main

if __name__ == "__main__":
    sys.exit(main())
