"""Losses: predictions and targets in, one number out."""

from __future__ import annotations

import torch
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid, resize_mask


def masked_mse(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden positions and their K values (MaskFeat, section 3.1).

    The mean is over all hidden positions of the batch together, in float32. Visible positions are weighted
    by zero, so the shapes stay static; with nothing hidden the loss is 0.

    Args:
        predictions: float [B, t, h, w, K].
        target: float [B, t, h, w, K].
        mask: bool [B, t', h', w'], True = hidden, on a grid that divides (t, h, w).

    Returns:
        A scalar, float32.

    Raises:
        UserError: predictions and target differ in shape, or the mask's grid does not divide theirs.
    """
    if predictions.shape != target.shape:
        raise UserError(
            f"predictions {tuple(predictions.shape)} and target {tuple(target.shape)} differ in shape; "
            "build the target with the model's output stride and values_per_token"
        )
    hidden = resize_mask(mask, TokenGrid(*predictions.shape[1:4]))  # [B, t, h, w]
    difference = predictions.float() - target.float()
    error = difference.square().mean(dim=-1)  # [B, t, h, w]
    weight = hidden.to(error.dtype)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a distribution a clip, the mean over the batch, in float32.

    Args:
        logits: float [B, L].
        targets: float [B, L], each row sums to 1: smoothed labels, or those of a mixed batch.

    Returns:
        A scalar, float32.

    Raises:
        UserError: the two differ in shape.
    """
    if logits.shape != targets.shape:
        raise UserError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape; "
            "build the model with as many classes as the targets have"
        )
    return -(targets * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()
