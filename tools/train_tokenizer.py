"""`python tools/train_tokenizer.py ...` is `videomaskfeat train-tokenizer ...`."""

import sys

from videomaskfeat.__main__ import run

if __name__ == "__main__":  # worker processes import this file
    sys.exit(run(["train-tokenizer", *sys.argv[1:]]))
