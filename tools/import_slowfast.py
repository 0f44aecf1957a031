"""`python tools/import_slowfast.py ...` is `videomaskfeat import-slowfast ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["import-slowfast", *sys.argv[1:]]))
