"""`python tools/pretrain.py ...` is `videomaskfeat pretrain ...`."""

import sys

from videomaskfeat.cli import main

sys.exit(main(["pretrain", *sys.argv[1:]]))
