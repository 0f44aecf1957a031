"""`python tools/import_weights.py ...` is `videomaskfeat import-weights ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["import-weights", *sys.argv[1:]]))
