"""`python tools/detect_evaluate.py ...` is `videomaskfeat detect-evaluate ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["detect-evaluate", *sys.argv[1:]]))
