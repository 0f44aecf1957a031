"""`python tools/finetune.py ...` is `videomaskfeat finetune ...`."""

import sys

from videomaskfeat.cli import main

sys.exit(main(["finetune", *sys.argv[1:]]))
