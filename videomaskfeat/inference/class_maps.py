"""Grad-CAM: the positions of a clip that raise the logit of a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from videomaskfeat.models.heads import Classifier


def class_maps(model: Classifier, clips: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM (arXiv 1610.02391) of the tokens before the last block.

    A position's value is the sum over channels of its token times the mean gradient of the class's logit,
    negative values are 0. The tokens after the last block would not do for a head on the class token, whose
    logit does not depend on the others.

    Args:
        model: in evaluation mode.
        clips: float [B, C, T, H, W], normalized.
        labels: int64 [B], class of each clip.

    Returns:
        float32 [B, t, h, w], at least 0, on the token grid before the last block.
    """
    inputs: list[Any] = []

    def keep_input(block: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens = arguments[0].detach().requires_grad_()
        inputs.extend((tokens, arguments[1]))
        return (tokens, *arguments[1:])

    handle = model.blocks[-1].register_forward_pre_hook(keep_input)
    try:
        with torch.enable_grad():
            logits = model.logits(clips)  # [B, L]; also of a frozen encoder with gradient
            selected = logits.gather(1, labels[:, None]).sum()
    finally:
        handle.remove()
    tokens, grid = inputs
    (gradient,) = torch.autograd.grad(selected, tokens)  # [B, P+N, D]
    before = len(model.blocks) - 1
    tokens, gradient = (model.in_grid_order(one, grid, before) for one in (tokens, gradient))
    first = tokens.shape[1] - grid.size
    weights = gradient[:, first:].mean(dim=1, keepdim=True)  # [B, 1, D]
    values = (tokens[:, first:].detach() * weights).sum(dim=-1).clamp(min=0)  # [B, N]
    return values.float().unflatten(1, grid.shape)
