"""Held-out losses and best constants against definitions and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from videomaskfeat.losses.masked import masked_cosine, masked_cross_entropy, masked_l1
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.target import CosineTally, CrossEntropyTally, LossTally, SumTally


def batches(values: int = 5) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Predictions, targets and masks (on a coarser grid) of two batches with different mask ratios."""
    torch.manual_seed(0)
    masks = [torch.rand(size, 2, 1, 2) < share for size, share in ((2, 0.3), (3, 0.8))]
    return [
        (torch.randn(len(mask), 2, 2, 4, values), torch.randn(len(mask), 2, 2, 4, values), mask)
        for mask in masks
    ]


def hidden_rows(data: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Predictions and targets at the hidden positions of all batches, [n, ...] each."""
    rows = []
    for predictions, target, mask in data:
        fine = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
        rows.append((predictions[fine], target[fine]))
    predicted, true = zip(*rows, strict=True)
    return torch.cat(predicted), torch.cat(true)


def test_squared_error_and_its_constant_are_exact() -> None:
    """Bit for bit: float64 sums in this order."""
    data = batches()
    tally = HogTarget().tally()
    squared, cells = 0.0, 0
    sums, squares = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for one in data:
        tally.add(*one)
        predicted, true = (rows.double() for rows in hidden_rows([one]))
        squared += float((predicted - true).square().sum())
        sums, squares = sums + true.sum(0), squares + true.square().sum(0)
        cells += len(true)
    assert tally.model == squared / (cells * 5)
    assert tally.constant == float((squares / cells - (sums / cells).square()).mean())


def test_mean_is_over_hidden_positions_not_batches() -> None:
    data = batches()
    tally = LossTally(masked_l1)
    for one in data:
        tally.add(*one)
    predicted, true = hidden_rows(data)
    assert tally.model == pytest.approx((predicted - true).abs().mean().item(), rel=1e-6)
    assert tally.hidden == len(true)
    assert tally.constant is None


def test_best_constant_of_the_cosine_is_optimal() -> None:
    data = batches()
    tally = CosineTally(masked_cosine)
    for one in data:
        tally.add(*one)
    _, true = hidden_rows(data)
    best = torch.nn.functional.normalize(true, dim=-1).mean(0)

    def loss(constant: Tensor) -> float:
        return (1 - torch.nn.functional.cosine_similarity(constant[None], true, dim=-1)).mean().item()

    assert tally.constant is not None
    assert tally.constant == pytest.approx(loss(best), abs=1e-6)
    assert all(loss(best + 0.1 * torch.randn(5)) >= tally.constant - 1e-6 for _ in range(50))


def test_best_constant_of_tokens_is_their_entropy() -> None:
    tally = CrossEntropyTally(masked_cross_entropy, vocabulary=4)
    assert tally.constant is None
    tokens = torch.tensor([0, 0, 1, 3]).view(1, 1, 1, 4)
    logits = torch.zeros(1, 1, 1, 4, 4)
    tally.add(logits, tokens, torch.ones(1, 1, 1, 4, dtype=torch.bool))
    assert tally.constant == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert tally.model == pytest.approx(math.log(4))
    tally.add(logits, torch.full_like(tokens, 2), torch.zeros(1, 1, 1, 4, dtype=torch.bool))  # nothing hidden
    assert tally.constant == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))


def test_sum_is_the_weighted_sum_of_its_parts() -> None:
    data = batches(values=8)
    tallies = [HogTarget().tally(), CosineTally(masked_cosine)]
    total = SumTally(tallies, [2.0, 0.5], lambda predictions: predictions.split([5, 3], dim=-1))
    alone = [HogTarget().tally(), CosineTally(masked_cosine)]
    for predictions, target, mask in data:
        total.add(predictions, (target[..., :5], target[..., 5:]), mask)
        alone[0].add(predictions[..., :5], target[..., :5], mask)
        alone[1].add(predictions[..., 5:], target[..., 5:], mask)
    assert total.model == 2 * alone[0].model + 0.5 * alone[1].model
    constants = [tally.constant for tally in alone]
    assert constants[0] is not None
    assert constants[1] is not None
    assert total.constant == 2 * constants[0] + 0.5 * constants[1]
    unknown = SumTally([tallies[0], LossTally(masked_l1)], [1.0, 1.0], total._split)
    assert unknown.constant is None
