"""Layers that several models share: linear layers and perceptrons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videomaskfeat.models.kernels.dense import linear
from videomaskfeat.models.kernels.normed import normed_linear


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

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """[..., D] -> [..., D'], after a layer norm if there is one."""
        return self.fc2(apply_linear(self.fc1, x, norm))


def apply_linear(layer: nn.Module, x: Tensor, norm: nn.LayerNorm | None) -> Tensor:
    """A linear layer, after a layer norm if there is one; see :func:`normed_linear`."""
    if type(layer) is Linear:  # LoRA replaces layers
        return normed_linear(x, norm, layer.weight, layer.bias)
    result: Tensor = layer(x if norm is None else norm(x))
    return result


def per_channel(value: float | Sequence[float], axes: int = 2) -> Tensor:
    """One number, or one per channel, as float32 [1 or C, 1, ...], to broadcast over ``axes`` axes."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(-1, *[1] * axes)
