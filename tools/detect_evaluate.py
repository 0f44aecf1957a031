"""`python tools/detect_evaluate.py ...` is `videomaskfeat detect-evaluate ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["detect-evaluate", *sys.argv[1:]]))
