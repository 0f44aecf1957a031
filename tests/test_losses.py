"""The loss against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from videomaskfeat.errors import UserError
from videomaskfeat.losses import (
    masked_cosine,
    masked_cross_entropy,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
    soft_cross_entropy,
)


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


def masked_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 2, 4, 6, 5), torch.randn(2, 2, 4, 6, 5), torch.rand(2, 2, 4, 6) < 0.3


def test_other_losses_are_torchs_own_over_the_hidden_positions() -> None:
    predictions, target, mask = masked_batch()
    p, t = predictions[mask], target[mask]
    tokens = target.argmax(-1)
    pairs = [
        (masked_l1(predictions, target, mask), F.l1_loss(p, t)),
        (masked_smooth_l1(predictions, target, mask, beta=0.3), F.smooth_l1_loss(p, t, beta=0.3)),
        (masked_cosine(predictions, target, mask), (1 - F.cosine_similarity(p, t)).mean()),
        (masked_cross_entropy(predictions, tokens, mask), F.cross_entropy(p, tokens[mask])),
    ]
    for own, expected in pairs:
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-6)


def test_other_losses_are_zero_where_nothing_is_hidden() -> None:
    predictions, target, mask = masked_batch()
    for loss in (masked_l1, masked_smooth_l1, masked_cosine):
        assert loss(predictions, target, torch.zeros_like(mask)).item() == 0
    assert masked_cross_entropy(predictions, target.argmax(-1), torch.zeros_like(mask)).item() == 0


def test_tokens_on_another_grid_are_named() -> None:
    predictions, _, mask = masked_batch()
    with pytest.raises(UserError, match=r"\(2, 2, 4, 6, 5\) and tokens \(2, 2, 4, 3\) are not on one grid"):
        masked_cross_entropy(predictions, torch.zeros(2, 2, 4, 3, dtype=torch.int64), mask)


def test_soft_cross_entropy_of_hard_and_smoothed_labels_is_torchs_own() -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(5, 7), torch.tensor([0, 6, 3, 3, 1])
    for smoothing in (0.0, 0.1):
        hard = F.one_hot(labels, 7).float()
        targets = hard * (1 - smoothing) + smoothing / 7
        expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        torch.testing.assert_close(soft_cross_entropy(logits, targets), expected, atol=1e-6, rtol=1e-6)


def test_soft_cross_entropy_of_mixed_labels_is_the_mixture() -> None:
    logits = torch.randn(2, 4, dtype=torch.bfloat16)
    a, b = torch.tensor([0, 1]), torch.tensor([2, 1])
    mixed = 0.3 * F.one_hot(a, 4) + 0.7 * F.one_hot(b, 4)
    loss = soft_cross_entropy(logits, mixed)
    parts = [F.cross_entropy(logits.float(), labels) for labels in (a, b)]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, 0.3 * parts[0] + 0.7 * parts[1], atol=1e-6, rtol=1e-6)


def test_logits_and_targets_of_other_class_counts_are_named() -> None:
    with pytest.raises(UserError, match=r"logits \(2, 4\) and targets \(2, 5\) differ"):
        soft_cross_entropy(torch.zeros(2, 4), torch.zeros(2, 5))
