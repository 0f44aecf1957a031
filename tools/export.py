"""`python tools/export.py ...` is `videomaskfeat export ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["export", *sys.argv[1:]]))
