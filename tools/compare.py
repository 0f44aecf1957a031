"""`python tools/compare.py ...` is `videomaskfeat compare ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["compare", *sys.argv[1:]]))
