"""Losses of predictions at hidden positions.

All raise UserError if shapes differ, or if the grid of the mask does not divide the grid of the predictions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid, resize_mask


def masked_mse(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over all hidden positions of the batch and their K values (MaskFeat, section 3.1).

    Visible positions have weight 0, so the shapes are static; the loss is 0 without hidden positions.

    Args:
        predictions, target: float [B, t, h, w, K].
        mask: bool [B, t', h', w'], True = hidden, on a grid that divides (t, h, w).
    """
    predictions, target = _as_pair(predictions, target)
    return _mean_over_hidden((predictions - target).square().mean(dim=-1), mask)


def masked_l1(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error (SimMIM, section 3.4); otherwise as :func:`masked_mse`."""
    predictions, target = _as_pair(predictions, target)
    return _mean_over_hidden((predictions - target).abs().mean(dim=-1), mask)


def masked_smooth_l1(predictions: Tensor, target: Tensor, mask: Tensor, *, beta: float = 1.0) -> Tensor:
    """Mean of d^2 / (2 beta) if abs(d) < beta, else abs(d) - beta/2; otherwise as :func:`masked_mse`."""
    predictions, target = _as_pair(predictions, target)
    error = F.smooth_l1_loss(predictions, target, reduction="none", beta=beta)
    return _mean_over_hidden(error.mean(dim=-1), mask)


def visible_smooth_l1(predictions: Tensor, target: Tensor, mask: Tensor, *, beta: float = 0.0) -> Tensor:
    """Mean smooth L1 error over *visible* positions, each times d^(-1/2) (V-JEPA 2.1, arXiv 2603.14482).

    d is the distance of the position to the nearest hidden one, in cells of (t, h, w). ``beta`` 0 is L1;
    otherwise as :func:`masked_smooth_l1`. The loss is 0 without hidden or without visible positions.
    """
    predictions, target = _as_pair(predictions, target)
    error = F.smooth_l1_loss(predictions, target, reduction="none", beta=beta).mean(dim=-1)
    hidden = resize_mask(mask, TokenGrid(*error.shape[1:4]))  # [B, t, h, w]
    weight = torch.where(hidden, 0.0, squared_distance(hidden).clamp(min=1) ** -0.25)
    return (error * weight).sum() / (~hidden).sum().clamp(min=1)


def squared_distance(hidden: Tensor) -> Tensor:
    """Squared distance of each cell to the nearest hidden one: bool [B, t, h, w] -> float32, in cells.

    Infinite if no cell of a sample is hidden. The square is a sum over the axes, so that the minimum is taken
    over one axis after another.
    """
    squares = torch.where(hidden, 0.0, math.inf)
    for axis in (1, 2, 3):
        place = torch.arange(hidden.shape[axis], device=hidden.device, dtype=squares.dtype)
        steps = (place[:, None] - place).square()  # [n, n]
        squares = (squares.movedim(axis, -1)[..., None, :] + steps).amin(dim=-1).movedim(-1, axis)
    return squares


def masked_cosine(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of one minus the cosine similarity, 0 to 2; otherwise as :func:`masked_mse`."""
    cosine = F.cosine_similarity(*_as_pair(predictions, target), dim=-1)  # [B, t, h, w]
    return _mean_over_hidden(1 - cosine, mask)


def masked_cross_entropy(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy of token numbers, in nats (BEiT, section 2.3); otherwise as :func:`masked_mse`.

    Args:
        predictions: logits, float [B, t, h, w, K], over a vocabulary of K.
        target: token numbers int64 [B, t, h, w], 0..K-1.
        mask: see :func:`masked_mse`.
    """
    if predictions.shape[:-1] != target.shape:
        raise UserError(
            f"predictions {tuple(predictions.shape)} and tokens {tuple(target.shape)} are not on one grid; "
            "build the target with the model's output stride"
        )
    error = F.cross_entropy(predictions.float().flatten(0, -2), target.flatten(), reduction="none")
    return _mean_over_hidden(error.unflatten(0, target.shape), mask)


def _as_pair(predictions: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32."""
    if predictions.shape != target.shape:
        raise UserError(
            f"predictions {tuple(predictions.shape)} and target {tuple(target.shape)} differ in shape; "
            "build the target with the model's output stride and values_per_token"
        )
    return predictions.float(), target.float()


def _mean_over_hidden(error: Tensor, mask: Tensor) -> Tensor:
    """The mean of float32 [B, t, h, w] over hidden positions; 0 without hidden positions."""
    hidden = resize_mask(mask, TokenGrid(*error.shape[1:4]))  # [B, t, h, w]
    weight = hidden.to(error.dtype)
    return (error * weight).sum() / weight.sum().clamp(min=1)
