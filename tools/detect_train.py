"""`python tools/detect_train.py ...` is `videomaskfeat detect-train ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["detect-train", *sys.argv[1:]]))
