"""`python tools/detect_train.py ...` is `videomaskfeat detect-train ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["detect-train", *sys.argv[1:]]))
