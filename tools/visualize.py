"""`python tools/visualize.py ...` is `videomaskfeat visualize ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["visualize", *sys.argv[1:]]))
