"""`python tools/extract_features.py ...` is `videomaskfeat extract-features ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["extract-features", *sys.argv[1:]]))
