"""`python tools/compare.py ...` is `videomaskfeat compare ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["compare", *sys.argv[1:]]))
