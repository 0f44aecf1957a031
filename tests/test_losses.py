"""The loss against its definition."""

from __future__ import annotations

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.losses import masked_mse


def test_loss_is_the_mean_over_hidden_positions_and_values() -> None:
    torch.manual_seed(0)
    predictions, target = torch.randn(2, 2, 4, 6, 5), torch.randn(2, 2, 4, 6, 5)
    mask = torch.rand(2, 2, 4, 6) < 0.3
    expected = (predictions[mask] - target[mask]).square().mean()
    torch.testing.assert_close(masked_mse(predictions, target, mask), expected, atol=1e-6, rtol=1e-6)


def test_visible_positions_add_nothing_to_loss_or_gradient() -> None:
    predictions = torch.randn(1, 2, 4, 4, 3, requires_grad=True)
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 1] = True  # positions t 0, h 0..1, w 2..3
    masked_mse(predictions, torch.zeros(1, 2, 4, 4, 3), mask).backward()
    assert predictions.grad is not None
    touched = (predictions.grad != 0).any(dim=-1)[0]
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, :2, 2:] = True
    assert torch.equal(touched, expected)


def test_loss_is_float32_whatever_the_predictions() -> None:
    predictions = torch.randn(1, 1, 2, 2, 9)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    target = predictions.bfloat16().float() + 0.01
    loss = masked_mse(predictions.bfloat16(), target, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1e-4, rel=1e-3)


def test_nothing_hidden_is_a_loss_of_zero() -> None:
    predictions = torch.randn(1, 1, 2, 2, 9, requires_grad=True)
    loss = masked_mse(predictions, torch.zeros(1, 1, 2, 2, 9), torch.zeros(1, 1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert predictions.grad is not None
    assert (predictions.grad == 0).all()


def test_shapes_that_do_not_fit_are_named() -> None:
    ones = torch.ones(1, 1, 4, 4, 9)
    with pytest.raises(
        UserError, match=r"predictions \(1, 1, 4, 4, 9\) and target \(1, 1, 4, 4, 27\) differ"
    ):
        masked_mse(ones, torch.ones(1, 1, 4, 4, 27), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    with pytest.raises(UserError, match="mask on the grid 1x3x3 does not divide"):
        masked_mse(ones, ones, torch.ones(1, 1, 3, 3, dtype=torch.bool))
