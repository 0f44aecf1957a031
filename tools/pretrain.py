"""`python tools/pretrain.py ...` is `videomaskfeat pretrain ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["pretrain", *sys.argv[1:]]))
