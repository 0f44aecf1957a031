"""Parameter groups and their optimiser."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from videomaskfeat.errors import UserError

# Parameters of the stem belong to layer 0, whatever module wraps the encoder ("encoder.cls_token").
# A decoder's own position table ("decoder_pos_embed") is none of them: it stands behind the last block.
_STEM = re.compile(r"(?:^|\.)(?:patch_embed|cls_token|mask_token|pos_embed)")
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def layer_of(name: str, *, depth: int) -> int:
    """The layer a parameter belongs to: 0 = stem, i + 1 = block i, ``depth + 1`` = everything behind.

    Relative-position tables belong to their block; class, mask and absolute position parameters to the stem.
    """
    block = _BLOCK.search(name)
    if block:
        return int(block.group(1)) + 1
    return 0 if _STEM.search(name) else depth + 1


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    base_lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    depth: int = 0,
) -> list[dict[str, Any]]:
    """Sort parameters into optimiser groups of one weight decay and one learning-rate factor each.

    Parameters of one dimension (biases, scales of norms) do not decay. A parameter of layer ``l`` learns at
    ``layer_decay ** (depth + 1 - l)`` of the full rate (BEiT, arXiv 2106.08254, as in PySlowFast). Frozen
    parameters are left out.

    Args:
        named_parameters: ``model.named_parameters()``.
        base_lr: rate that the groups start with (the training loop sets it anew every step).
        weight_decay: decay of all parameters that are not excluded.
        layer_decay: factor from each layer to the one before it, in (0, 1]; 1 = all layers alike.
        depth: number of blocks of the encoder; only needed where ``layer_decay`` is not 1.

    Returns:
        Groups for ``torch.optim``: ``params``, ``names``, ``weight_decay``, ``lr`` and ``lr_scale``. The loop
        sets ``lr = schedule(epoch) * lr_scale``. Their order depends only on the order of the parameters.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 else weight_decay
        scale = layer_decay ** (depth + 1 - layer_of(name, depth=depth)) if layer_decay != 1.0 else 1.0
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "names": [], "weight_decay": decay, "lr": base_lr * scale, "lr_scale": scale},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group to ``lr`` times the group's ``lr_scale`` (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def adamw(groups: list[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW with one fused kernel a group, on the CPU as on a GPU.

    Args:
        groups: from :func:`parameter_groups`.
        betas: decay of the first and second moment; (0.9, 0.95) in MAE's recipes.
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"betas={betas}: both must be at least 0 and below 1, such as (0.9, 0.999)")
    return torch.optim.AdamW(groups, betas=betas, fused=True)


def sgd(groups: list[dict[str, Any]], *, momentum: float = 0.9) -> torch.optim.SGD:
    """SGD with Nesterov's momentum, one fused kernel a group.

    Args:
        groups: from :func:`parameter_groups`.
        momentum: share of the last step that goes on, 0..1.
    """
    if not 0 <= momentum < 1:
        raise UserError(f"momentum={momentum}: must be at least 0 and below 1, such as 0.9")
    return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True)
