"""`python tools/predict.py ...` is `videomaskfeat predict ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["predict", *sys.argv[1:]]))
