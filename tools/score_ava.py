"""`python tools/score_ava.py ...` is `videomaskfeat score-ava ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":
    sys.exit(run(["score-ava", *sys.argv[1:]]))
