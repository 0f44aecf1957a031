"""`python tools/evaluate.py ...` is `videomaskfeat evaluate ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["evaluate", *sys.argv[1:]]))
