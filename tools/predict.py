"""`python tools/predict.py ...` is `videomaskfeat predict ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["predict", *sys.argv[1:]]))
