"""`python tools/finetune.py ...` is `videomaskfeat finetune ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["finetune", *sys.argv[1:]]))
