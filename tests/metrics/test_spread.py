"""Monitors of collapse against closed forms and a slow loop."""

from __future__ import annotations

import math

import pytest
import torch

from tests.reference import self_distillation as reference
from videomaskfeat.metrics.accuracy import direction_std, directions, entropy


def std(features: torch.Tensor) -> float:
    return direction_std(directions(features).mean(dim=0)).item()


def test_direction_std_is_the_deviation_of_unit_vectors() -> None:
    """Against a loop over rows in float64; float32 means, 1e-5."""
    features = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    expected = reference.direction_std(features.flatten(0, 1).tolist())
    assert std(features) == pytest.approx(expected, rel=1e-5)


def test_equal_directions_have_none_and_opposite_ones_all() -> None:
    line = torch.tensor([[1.0, 2.0, 3.0]])
    assert std(torch.cat([line, 5 * line, 0.1 * line])) < 1e-3  # lengths play no part; rounding
    assert std(torch.cat([line, -line])) == pytest.approx(1.0)
    assert std(torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(math.sqrt(0.5), rel=1e-6)


def test_entropy_of_uniform_certain_and_binary_distributions() -> None:
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    expected = torch.tensor([math.log(4), 0.0, math.log(2)])
    torch.testing.assert_close(entropy(rows), expected, atol=1e-6, rtol=1e-6)
