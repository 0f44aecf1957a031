"""`python tools/import_slowfast.py ...` is `videomaskfeat import-slowfast ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":
    sys.exit(main(["import-slowfast", *sys.argv[1:]]))
