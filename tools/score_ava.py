"""`python tools/score_ava.py ...` is `videomaskfeat score-ava ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":
    sys.exit(main(["score-ava", *sys.argv[1:]]))
