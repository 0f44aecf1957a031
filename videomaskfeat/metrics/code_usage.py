"""How much of its vocabulary a tokenizer uses."""

from __future__ import annotations

import torch
from torch import Tensor


def code_counts(tokens: Tensor, vocabulary: int) -> Tensor:
    """How often each number occurs: int64 [...] in 0..V-1 -> int64 [V]."""
    return torch.bincount(tokens.reshape(-1), minlength=vocabulary)


def perplexity(counts: Tensor) -> Tensor:
    """The exponential of the entropy of a usage: the number of codes that, used alike, would say as much.

    Args:
        counts: how often each code was used, [V], at least one above 0.

    Returns:
        float64 [], 1 (one code) to V (all codes, equally often).
    """
    shares = counts.double() / counts.sum()
    return torch.special.entr(shares).sum().exp()


def used_codes(counts: Tensor) -> Tensor:
    """How many codes were used at all: counts [V] -> int64 []."""
    return (counts > 0).sum()
