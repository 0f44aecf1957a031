"""From the logits of a detector of actions to the scores that are judged."""

from __future__ import annotations

import torch
from torch import Tensor


def action_scores(logits: Tensor, poses: Tensor | None = None) -> Tensor:
    """The probability of each action of each box, in 0..1.

    Args:
        logits: float [R, L].
        poses: bool [L], actions of which a person has exactly one, as they were trained by
            `losses.pose_cross_entropy`: their probabilities sum to 1. None: each action by itself.

    Returns:
        float32 [R, L]; float64 stays.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = torch.sigmoid(logits)
    if poses is None or not poses.any():
        return scores
    poses = poses.to(logits.device)
    chances = logits.masked_fill(~poses, -torch.inf).softmax(dim=1)
    return torch.where(poses, chances, scores)
