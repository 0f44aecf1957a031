"""Losses of classes and actions; UserError if logits and labels differ in shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits float [B, L] and probabilities float [B, L], which sum to 1 per row."""
    _check_classes(logits, targets, "targets")
    return -(targets * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


def multi_label_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits float [B, L] and targets float [B, L] in 0..1, over all values."""
    _check_classes(logits, targets, "targets")
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, focusing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean binary cross-entropy over boxes and classes, or focal loss (arXiv 1708.02002, equation 4).

    Args:
        logits: float [R, L]; without boxes (R = 0) the loss is 0.
        labels: bool [R, L], any number of classes per box.
        focusing: gamma of the focal loss, a factor (1 - p)^gamma for the probability p of the label of each
            class; 0: plain cross-entropy.
        class_weights: factors float [L] on the losses of the classes.

    Raises:
        UserError: ``focusing`` is negative.
    """
    _check_classes(logits, labels, "labels")
    if focusing < 0:
        raise UserError(
            f"focusing={focusing:g} must be 0 (plain cross-entropy) or more; the focal loss paper uses 2"
        )
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
    """Softmax cross-entropy of mutually exclusive classes plus binary cross-entropy of the others.

    A person has exactly one of AVA's poses (ids 1 to 14). The first term is the mean over the boxes with a
    pose; several poses of a box have equal shares.

    Args:
        logits: float [R, L].
        labels: bool [R, L].
        poses: int64 [P], the mutually exclusive classes, ascending; from 0, on the device of the logits.
        focusing, class_weights: see :func:`binary_cross_entropy`, for the other classes alone.
    """
    _check_classes(logits, labels, "labels")
    # Indices instead of a mask, for whose number of columns the host would wait.
    marks = torch.zeros(logits.shape[1], dtype=torch.uint8, device=logits.device).index_fill(0, poses, 1)
    others = marks.argsort(stable=True)[: logits.shape[1] - len(poses)]
    chosen = labels.index_select(1, poses).float()  # [R, P]
    count = chosen.sum(dim=1)
    logs = torch.log_softmax(logits.index_select(1, poses).float(), dim=1)
    posed = -(chosen * logs).sum(dim=1) / count.clamp(min=1)  # 0 for a box without a pose
    rest = binary_cross_entropy(
        logits.index_select(1, others),
        labels.index_select(1, others),
        focusing=focusing,
        class_weights=None if class_weights is None else class_weights.to(logits.device)[others],
    )
    return posed.sum() / (count > 0).sum().clamp(min=1) + rest


def _check_classes(logits: Tensor, labels: Tensor, name: str) -> None:
    if logits.shape != labels.shape:
        raise UserError(
            f"logits {tuple(logits.shape)} and {name} {tuple(labels.shape)} differ in shape; "
            f"build the model with as many classes as the {name} have"
        )
