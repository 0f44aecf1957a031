"""Tokenizers of frames: the verb ``train-tokenizer``."""
