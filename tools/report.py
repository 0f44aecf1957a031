"""`python tools/report.py ...` is `videomaskfeat report ...`."""

import sys

from videomaskfeat.cli import main

sys.exit(main(["report", *sys.argv[1:]]))
