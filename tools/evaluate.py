"""`python tools/evaluate.py ...` is `videomaskfeat evaluate ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["evaluate", *sys.argv[1:]]))
