"""`python tools/pretrain.py ...` is `videomaskfeat pretrain ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["pretrain", *sys.argv[1:]]))
