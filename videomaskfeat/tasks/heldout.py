"""The held-out loss of masked prediction, and of the constant that does best on the same clips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videomaskfeat.grid import TokenGrid, resize_mask


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean squared errors over every hidden position and value of the held-out clips."""

    model: float
    constant: float  # the best one vector of K values in hindsight: the variance of the targets
    clips: int


@torch.no_grad()
def heldout_loss(
    model: nn.Module, target: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, autocast: torch.autocast
) -> HeldOutLoss:
    """Evaluate ``model`` on normalised clips and masks; the model's training mode is restored.

    Args:
        model: (clips [B, C, T, H, W], mask) -> predictions [B, t, h, w, K].
        target: clips -> targets [B, t, h, w, K].
        batches: (clips float [B, C, T, H, W], mask bool [B, t', h', w']), all on the model's device.
        autocast: the precision context that training uses.

    Raises:
        ValueError: there are no batches.
    """
    was_training = model.training
    model.eval()
    squared, cells, clip_count = 0.0, 0.0, 0
    sums: Tensor | None = None
    squares: Tensor | None = None
    for clips, mask in batches:
        with autocast:
            predictions = model(clips, mask)
        truth = target(clips).double()  # [B, t, h, w, K]
        hidden = resize_mask(mask, TokenGrid(*truth.shape[1:4]))
        values = truth[hidden]  # [hidden, K]; eager code, so the boolean index costs nothing that matters
        squared += float((predictions.double()[hidden] - values).square().sum())
        sums = values.sum(0) if sums is None else sums + values.sum(0)
        squares = values.square().sum(0) if squares is None else squares + values.square().sum(0)
        cells += values.shape[0]
        clip_count += clips.shape[0]
    model.train(was_training)
    if sums is None or squares is None:
        raise ValueError("no held-out batches")
    variance = squares / cells - (sums / cells).square()  # [K]
    return HeldOutLoss(squared / (cells * sums.numel()), float(variance.mean()), clip_count)
