"""`python tools/check_data.py ...` is `videomaskfeat check-data ...`."""

import sys

from videomaskfeat.cli import main

sys.exit(main(["check-data", *sys.argv[1:]]))
