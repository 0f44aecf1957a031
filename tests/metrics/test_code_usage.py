"""Use of a vocabulary, against usages whose perplexity is known."""

from __future__ import annotations

import math

import pytest
import torch

from videomaskfeat.metrics.accuracy import code_counts, perplexity, used_codes


def test_counts_are_of_every_code_of_the_vocabulary() -> None:
    tokens = torch.tensor([[[0, 2], [2, 4]]])
    assert code_counts(tokens, 6).tolist() == [1, 0, 2, 0, 1, 0]
    assert used_codes(code_counts(tokens, 6)) == 3


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([7, 0, 0, 0], 1.0),  # one code
        ([5, 5, 5, 5], 4.0),  # all alike
        ([3, 0, 3, 0], 2.0),
        # shares 1/2, 1/4, 1/4: an entropy of 1.5 bits
        ([2, 1, 1, 0], 2**1.5),
    ],
)
def test_perplexity_of_known_usage(counts: list[int], expected: float) -> None:
    """A closed form in float64: equal to 1e-12."""
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected, rel=1e-12)


def test_perplexity_of_a_geometric_usage() -> None:
    """Shares 2^-1, 2^-2, ..., the last twice: entropy sum k*2^-k + n*2^-n bits."""
    counts = [64, 32, 16, 8, 4, 2, 1, 1]
    bits = sum(count / 128 * math.log2(128 / count) for count in counts)
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(2**bits, rel=1e-12)
