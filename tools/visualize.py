"""`python tools/visualize.py ...` is `videomaskfeat visualize ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["visualize", *sys.argv[1:]]))
