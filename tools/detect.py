"""`python tools/detect.py ...` is `videomaskfeat detect ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["detect", *sys.argv[1:]]))
