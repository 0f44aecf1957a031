"""Losses of a student and a teacher, and of codes; UserError if a mask's grid does not divide the cells."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.grid import TokenGrid, resize_mask


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
