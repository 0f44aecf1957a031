"""`python tools/train_tokenizer.py ...` is `videomaskfeat train-tokenizer ...`."""

import sys

from videomaskfeat.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["train-tokenizer", *sys.argv[1:]]))
