"""Batch normalization over processes, on the CPU too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError


class BatchNorm(nn.Module):
    """:class:`torch.nn.SyncBatchNorm` in float32, on the CPU too.

    ``momentum`` is the weight of a new batch in the running statistics, which evaluation mode uses.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> float32 [B, D].

        Raises:
            UserError: a training batch of one clip, which has no variance.
        """
        features = features.float()
        running = (self.running_mean, self.running_var)
        if self.training and _several_processes():
            return _normalize(features, *running, self.momentum, self.eps) * self.weight + self.bias
        if self.training:
            _check_batch(features)
        with torch.autocast(features.device.type, enabled=False):
            return F.batch_norm(
                features, *running, self.weight, self.bias, self.training, self.momentum, self.eps
            )


class FeatureNorm(nn.Module):
    """:class:`BatchNorm` without scale and shift, for features that need no gradient in training."""

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, *, momentum: float = 0.1, eps: float = 1e-6) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """See :meth:`BatchNorm.forward`."""
        features = features.float()
        if not self.training:
            return (features - self.mean) * (self.variance + self.eps).rsqrt()
        if not _several_processes():
            _check_batch(features)
        with torch.no_grad():
            return _normalize(features, self.mean, self.variance, self.momentum, self.eps)


def _normalize(features: Tensor, mean: Tensor, variance: Tensor, momentum: float, eps: float) -> Tensor:
    """Normalize features [B, D] over the batch of all processes, with gradients through mean and variance.

    Updates the running ``mean`` and ``variance`` [D] in place; all processes get the same values.
    """
    count = features.new_full((1,), features.shape[0])
    sums = _sum_over_processes(torch.cat([features.sum(dim=0), count]))
    batch_mean, total = sums[:-1] / sums[-1], sums[-1].detach()
    squares = _sum_over_processes((features - batch_mean).square().sum(dim=0))
    with torch.no_grad():
        mean.lerp_(batch_mean, momentum)
        variance.lerp_(squares / (total - 1).clamp(min=1), momentum)  # unbiased, as torch's
    return (features - batch_mean) * (squares / total + eps).rsqrt()


def _check_batch(features: Tensor) -> None:
    if features.shape[0] == 1:
        raise UserError(
            "batch normalization needs at least 2 clips per micro-batch, not 1; change optim.batch_size or "
            "optim.accumulate"
        )


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _sum_over_processes(values: Tensor) -> Tensor:
    return _SumOverProcesses.apply(values) if _several_processes() else values


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)
