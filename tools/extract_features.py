"""`python tools/extract_features.py ...` is `videomaskfeat extract-features ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["extract-features", *sys.argv[1:]]))
