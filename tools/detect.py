"""`python tools/detect.py ...` is `videomaskfeat detect ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["detect", *sys.argv[1:]]))
