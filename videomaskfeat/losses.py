"""Losses: predictions and targets in, one float32 scalar out, computed in float32.

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
        poses: bool [L], the mutually exclusive classes.
        focusing, class_weights: see :func:`binary_cross_entropy`, for the other classes alone.
    """
    _check_classes(logits, labels, "labels")
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


def _check_classes(logits: Tensor, labels: Tensor, name: str) -> None:
    if logits.shape != labels.shape:
        raise UserError(
            f"logits {tuple(logits.shape)} and {name} {tuple(labels.shape)} differ in shape; "
            f"build the model with as many classes as the {name} have"
        )


def teacher_cross_entropy(cosines: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of a student's softmax with a teacher's distribution, in nats, float32 [...].

    Computed as ``logsumexp(z / temperature) - p.z / temperature``: the backward pass needs no tensor of
    logarithms.

    Args:
        cosines: float [..., K], the student's outputs z before temperature and softmax.
        teacher: float [..., K], the teacher's probabilities p.
        temperature: temperature of the student, above 0.
    """
    logits = cosines.float() / temperature
    return torch.logsumexp(logits, dim=-1) - (teacher.float() * logits).sum(dim=-1)


def across_views(student: Tensor, local: Tensor | None, teacher: Tensor, *, temperature: float) -> Tensor:
    """Mean cross-entropy between each view of a video and every *other* view that the teacher saw.

    The class token loss of DINO and iBOT (arXiv 2104.14294, equation 3). The student alone sees local crops.

    Args:
        student: float [V, G, K], the student's outputs for G views of each of V videos.
        local: float [V, L, K], the student's outputs for local crops.
        teacher: float [V, G, K], the teacher's probabilities.
        temperature: temperature of the student.

    Returns:
        The mean over the videos and the G*(G-1) + G*L pairs.
    """
    views = student if local is None else torch.cat([student, local], dim=1)  # [V, S, K]
    pairs = teacher_cross_entropy(views[:, None], teacher[:, :, None], temperature=temperature)  # [V, G, S]
    other = 1.0 - torch.eye(teacher.shape[1], views.shape[1], device=pairs.device)
    return (pairs * other).sum() / (other.sum() * len(pairs))


def masked_teacher_cross_entropy(
    cosines: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float
) -> Tensor:
    """Cross-entropy at the hidden cells, the mean over the cells of each clip, then over clips (iBOT, eq. 2).

    A clip without hidden cells counts as 0, as in the published code.

    Args:
        cosines: float [B, t, h, w, K], see :func:`teacher_cross_entropy`.
        teacher: float [B, t, h, w, K], the teacher's probabilities for the whole clips.
        mask: bool [B, t', h', w'], True = hidden, on a grid that divides (t, h, w).
        temperature: temperature of the student.
    """
    error = teacher_cross_entropy(cosines, teacher, temperature=temperature)  # [B, t, h, w]
    weight = resize_mask(mask, TokenGrid(*error.shape[1:])).to(error.dtype)
    clips = (error * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1).clamp(min=1)
    return clips.mean()


def direction_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``2 - 2 cos`` between predictions and targets float [B, P]; 0 to 4 (BYOL, equation 2)."""
    return 2.0 - 2.0 * F.cosine_similarity(predictions.float(), targets.float(), dim=-1).mean()


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Mean KL divergence of categorical distributions to the uniform one, in nats; 0 to log V.

    Args:
        logits: float [B, V, ...], the distributions over axis 1.
    """
    log_shares = torch.log_softmax(logits.float(), dim=1)
    return (log_shares.exp() * log_shares).sum(dim=1).mean() + math.log(logits.shape[1])
