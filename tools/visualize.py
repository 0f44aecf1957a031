"""`python tools/visualize.py ...` is `videomaskfeat visualize ...`."""

import sys

from videomaskfeat.cli import main

sys.exit(main(["visualize", *sys.argv[1:]]))
