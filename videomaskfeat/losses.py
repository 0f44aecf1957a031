"""Losses: predictions and targets in, one number out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    focusing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of each class by itself, the mean over boxes and classes, in float32.

    With ``focusing`` above 0 this is the focal loss (arXiv 1708.02002, equation 4): what is already right
    counts less, by (1 - p)^focusing of the probability p given to the truth.

    Args:
        logits: float [R, L]; without boxes (R = 0) the loss is 0.
        labels: bool [R, L], any number of classes a box.
        focusing: gamma of the focal loss, 0 or more.
        class_weights: float [L], factors on the losses of the classes; None: all 1.

    Returns:
        A scalar, float32.

    Raises:
        UserError: logits and labels differ in shape, or ``focusing`` is negative.
    """
    _check_labels(logits, labels)
    if focusing < 0:
        raise UserError(f"focusing={focusing:g} must be 0 (plain cross-entropy) or more; the paper has 2")
    logits = logits.float()
    signed = torch.where(labels, logits, -logits)  # p = sigmoid(signed)
    loss = F.softplus(-signed)  # -log p, finite for any logit
    if focusing:
        loss = loss * torch.exp(-focusing * F.softplus(signed))  # (1 - p)^focusing, smooth at p = 1
    if class_weights is not None:
        loss = loss * class_weights.to(loss)
    return loss.sum() / max(loss.numel(), 1)


def pose_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    poses: Tensor,
    *,
    focusing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Softmax over classes that exclude each other, and binary cross-entropy over the rest, in float32.

    A person has exactly one of AVA's poses (ids 1 to 14). The loss is the mean of the poses' cross-entropy
    over the boxes that have one (of several, each has the same share; negatives have none), plus
    :func:`binary_cross_entropy` of the other classes.

    Args:
        logits: float [R, L].
        labels: bool [R, L].
        poses: bool [L], which classes exclude each other.
        focusing: of the other classes, see :func:`binary_cross_entropy`.
        class_weights: of the other classes; those of the poses are not used.

    Returns:
        A scalar, float32.

    Raises:
        UserError: as :func:`binary_cross_entropy`.
    """
    _check_labels(logits, labels)
    poses = poses.to(logits.device)
    chosen = labels[:, poses].float()  # [R, P]
    count = chosen.sum(dim=1)
    logs = torch.log_softmax(logits[:, poses].float(), dim=1)
    posed = -(chosen * logs).sum(dim=1) / count.clamp(min=1)  # 0 for a box without a pose
    rest = binary_cross_entropy(
        logits[:, ~poses],
        labels[:, ~poses],
        focusing=focusing,
        class_weights=None if class_weights is None else class_weights.to(logits.device)[~poses],
    )
    return posed.sum() / (count > 0).sum().clamp(min=1) + rest


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.shape != labels.shape:
        raise UserError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} differ in shape; "
            "build the model with as many classes as the labels have"
        )
