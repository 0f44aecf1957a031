"""`python tools/check_data.py ...` is `videomaskfeat check-data ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["check-data", *sys.argv[1:]]))
