"""`python tools/finetune.py ...` is `videomaskfeat finetune ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["finetune", *sys.argv[1:]]))
