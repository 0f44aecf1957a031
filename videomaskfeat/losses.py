"""Losses: predictions and targets in, one number out.

All compute in float32 and return a float32 scalar, unless they say otherwise. All raise UserError for shapes
that do not match, or a mask whose grid does not divide that of the predictions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid, resize_mask


def masked_mse(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden positions and their K values (MaskFeat, section 3.1).

    The mean is over all hidden positions of the batch together. Visible positions have weight 0,
    so the shapes stay static; with nothing hidden the loss is 0.

    Args:
        predictions: float [B, t, h, w, K].
        target: float [B, t, h, w, K].
        mask: bool [B, t', h', w'], True = hidden, on a grid that divides (t, h, w).
    """
    predictions, target = _as_pair(predictions, target)
    return _mean_over_hidden((predictions - target).square().mean(dim=-1), mask)


def masked_l1(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error (SimMIM, section 3.4); shapes and weights as :func:`masked_mse`."""
    predictions, target = _as_pair(predictions, target)
    return _mean_over_hidden((predictions - target).abs().mean(dim=-1), mask)


def masked_smooth_l1(predictions: Tensor, target: Tensor, mask: Tensor, *, beta: float = 1.0) -> Tensor:
    """The mean of d^2 / (2 beta) if abs(d) < beta, else abs(d) - beta/2; the rest as :func:`masked_mse`.

    Args:
        predictions, target, mask: see :func:`masked_mse`.
        beta: difference at which the parabola becomes a line, above 0.
    """
    predictions, target = _as_pair(predictions, target)
    error = F.smooth_l1_loss(predictions, target, reduction="none", beta=beta)
    return _mean_over_hidden(error.mean(dim=-1), mask)


def masked_cosine(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """One minus the cosine between prediction and target, 0 to 2; the rest as :func:`masked_mse`."""
    cosine = F.cosine_similarity(*_as_pair(predictions, target), dim=-1)  # [B, t, h, w]
    return _mean_over_hidden(1 - cosine, mask)


def masked_cross_entropy(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the right token, in nats (BEiT, section 2.3); weights as
    :func:`masked_mse`.

    Args:
        predictions: logits, float [B, t, h, w, K] over a vocabulary of K.
        target: int64 [B, t, h, w], the number of the right token, 0..K-1.
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
    """Both in float32, of one shape."""
    if predictions.shape != target.shape:
        raise UserError(
            f"predictions {tuple(predictions.shape)} and target {tuple(target.shape)} differ in shape; "
            "build the target with the model's output stride and values_per_token"
        )
    return predictions.float(), target.float()


def _mean_over_hidden(error: Tensor, mask: Tensor) -> Tensor:
    """The mean of float32 [B, t, h, w] where a mask [B, t', h', w'] hides, 0 where it hides nothing."""
    hidden = resize_mask(mask, TokenGrid(*error.shape[1:4]))  # [B, t, h, w]
    weight = hidden.to(error.dtype)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a distribution per clip, the mean over the batch.

    Args:
        logits: float [B, L].
        targets: float [B, L], each row sums to 1: smoothed labels, or those of a mixed batch.
    """
    _check_classes(logits, targets, "targets")
    return -(targets * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, focusing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of each class by itself, the mean over boxes and classes.

    With ``focusing`` above 0 this is the focal loss (arXiv 1708.02002, equation 4): what is already right
    counts less, by (1 - p)^focusing of the probability p given to the truth.

    Args:
        logits: float [R, L]; without boxes (R = 0) the loss is 0.
        labels: bool [R, L], any number of classes per box.
        focusing: gamma of the focal loss, 0 or more.
        class_weights: float [L], factors on the losses of the classes; None: all 1.

    Raises:
        UserError: ``focusing`` is negative.
    """
    _check_classes(logits, labels, "labels")
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
    """Softmax over classes that exclude each other, and binary cross-entropy over the rest.

    A person has exactly one of AVA's poses (ids 1 to 14). The loss is the mean of the poses' cross-entropy
    over the boxes that have one (of several, each has the same share; negatives have none), plus
    :func:`binary_cross_entropy` of the other classes.

    Args:
        logits: float [R, L].
        labels: bool [R, L].
        poses: bool [L], which classes exclude each other.
        focusing: of the other classes, see :func:`binary_cross_entropy`.
        class_weights: of the other classes; those of the poses are not used.
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
    """Cross-entropy of a student's softmax against a teacher's distribution, in nats, row by row.

    ``-sum_k p_k log softmax(z / temperature)_k``, computed as ``logsumexp(z / temperature) - p.z /
    temperature``: no tensor of logarithms is kept for the backward pass.

    Args:
        cosines: float [..., K], the student's outputs z before temperature and softmax.
        teacher: float [..., K], the teacher's probabilities p; each row sums to 1.
        temperature: the student's, above 0.

    Returns:
        Float32 [...].
    """
    logits = cosines.float() / temperature
    return torch.logsumexp(logits, dim=-1) - (teacher.float() * logits).sum(dim=-1)


def across_views(student: Tensor, local: Tensor | None, teacher: Tensor, *, temperature: float) -> Tensor:
    """The mean cross-entropy between each view of a video and every *other* one that the teacher saw.

    The class-token loss of DINO and iBOT (arXiv 2104.14294, equation 3): a view is never compared with
    itself, and the small local crops only have a student.

    Args:
        student: float [V, G, K], the student's outputs for G views of each of V videos.
        local: float [V, L, K], its outputs for the local crops; None: there are none.
        teacher: float [V, G, K], the teacher's probabilities for the G views.
        temperature: the student's.

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
    """The cross-entropy at the hidden cells, the mean over each clip's, then over the clips (iBOT, eq. 2).

    A clip of which nothing is hidden counts as 0, as in the published code: if half of the clips are shown
    whole, the others weigh half.

    Args:
        cosines: float [B, t, h, w, K], see :func:`teacher_cross_entropy`.
        teacher: float [B, t, h, w, K], the teacher's probabilities for the same clips, unmasked.
        mask: bool [B, t', h', w'], True = hidden, on a grid that divides (t, h, w).
        temperature: the student's.
    """
    error = teacher_cross_entropy(cosines, teacher, temperature=temperature)  # [B, t, h, w]
    weight = resize_mask(mask, TokenGrid(*error.shape[1:])).to(error.dtype)
    clips = (error * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1).clamp(min=1)
    return clips.mean()


def direction_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """``2 - 2 cos`` between prediction and target, the mean over the batch; 0 to 4 (BYOL, equation 2).

    The squared distance of the two as unit vectors.

    Args:
        predictions: float [B, P].
        targets: float [B, P].
    """
    return 2.0 - 2.0 * F.cosine_similarity(predictions.float(), targets.float(), dim=-1).mean()


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL divergence of categorical distributions to the uniform one, the mean over all, in nats.

    Args:
        logits: float [B, V, ...], the distributions over axis 1.

    Returns:
        0 if all V are alike, log V if each distribution is a single one.
    """
    log_shares = torch.log_softmax(logits.float(), dim=1)
    return (log_shares.exp() * log_shares).sum(dim=1).mean() + math.log(logits.shape[1])
