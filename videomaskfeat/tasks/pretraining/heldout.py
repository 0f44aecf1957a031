"""The held-out loss of masked prediction, and of the constant that does best on the same clips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videomaskfeat.targets.target import Target


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean losses over every hidden position of the held-out clips."""

    model: float
    constant: float | None  # of the best one prediction for all places, in hindsight; None: not known
    clips: int


@torch.no_grad()
def heldout_loss(
    model: nn.Module, target: Target, batches: Iterable[tuple[Tensor, Tensor]], *, autocast: torch.autocast
) -> HeldOutLoss:
    """Evaluate ``model`` on normalised clips and masks; the model's training mode is restored.

    Args:
        model: (clips [B, C, T, H, W], mask) -> predictions [B, t, h, w, K].
        target: what it predicts, with its loss.
        batches: (clips float [B, C, T, H, W], mask bool [B, t', h', w']), all on the model's device.
        autocast: the precision context that training uses.

    Raises:
        ValueError: there are no batches.
    """
    was_training = model.training
    model.eval()
    tally, clip_count = target.tally(), 0
    for clips, mask in batches:
        with autocast:
            predictions = model(clips, mask)
        tally.add(predictions, target(clips), mask)
        clip_count += clips.shape[0]
    model.train(was_training)
    if clip_count == 0:
        raise ValueError("no held-out batches")
    return HeldOutLoss(tally.model, tally.constant, clip_count)
