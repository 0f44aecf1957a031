"""`python tools/report.py ...` is `videomaskfeat report ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["report", *sys.argv[1:]]))
