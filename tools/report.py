"""`python tools/report.py ...` is `videomaskfeat report ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["report", *sys.argv[1:]]))
