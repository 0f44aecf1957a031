"""`python tools/check_data.py ...` is `videomaskfeat check-data ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["check-data", *sys.argv[1:]]))
