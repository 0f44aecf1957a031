"""`python tools/export.py ...` is `videomaskfeat export ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
