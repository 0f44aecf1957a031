"""Layers that several models share: linear layers and perceptrons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.models.kernels.dense import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster in float32 on the CPU, where it supports first derivatives only."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D']."""
        return linear(x, self.weight, self.bias)


class GeluLinear(nn.Linear):
    """GELU, then a linear layer; see :func:`~videomaskfeat.models.kernels.dense.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D], before the activation -> [..., D']."""
        return linear(x, self.weight, self.bias, gelu=True)


class Perceptron(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int) -> None:
        super().__init__()
        self.fc1 = Linear(in_width, hidden_width)
        self.fc2 = GeluLinear(hidden_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D']."""
        return self.fc2(self.fc1(x))


def initialize(layers: Iterable[nn.Module], *, std: float = 0.02, bias: float = 0.0) -> None:
    """Draw the weights of linear layers from a truncated normal distribution, and set their biases."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Set the number that all layer norms of a module add to the variance."""
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = eps


def per_channel(value: float | Sequence[float], axes: int = 2) -> Tensor:
    """One number, or one per channel, as float32 [1 or C, 1, ...], to broadcast over ``axes`` axes."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(-1, *[1] * axes)


def check_positive(**numbers: int) -> None:
    """Raise UserError for the first number below 1, by name."""
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} {number} must be positive")


def check_transformer(depth: int, width: int, heads: int, *, prefix: str = "") -> None:
    """Raise UserError unless all are positive and the heads divide the width; ``prefix`` of their names."""
    if depth < 1 or width < 1 or heads < 1 or width % heads:
        raise UserError(
            f"{prefix}depth {depth}, {prefix}width {width}, {prefix}heads {heads}: all must be positive, and "
            f"{prefix}heads must divide {prefix}width"
        )
