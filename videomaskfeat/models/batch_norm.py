"""Batch normalisation over the clips of all processes, with gradients through the statistics."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError


class BatchNorm(nn.Module):
    """As :class:`torch.nn.SyncBatchNorm`, on the CPU too: scale and shift, one channel a feature.

    In float32. A single process uses torch's own kernel; the formula is the same.

    Args:
        width: features, D.
        momentum: share of a new batch in the running statistics, which evaluation mode uses.
        eps: added to the variance.
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
            UserError: a training batch of a single clip, which has no variance.
        """
        features = features.float()
        several = (
            self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        )
        if several:
            return self._over_processes(features)
        if self.training and features.shape[0] == 1:
            raise UserError(
                "batch normalisation of a single clip leaves nothing of it; take at least 2 videos a "
                "micro-batch (optim.batch_size, optim.accumulate)"
            )
        with torch.autocast(features.device.type, enabled=False):
            return F.batch_norm(
                features,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum,
                self.eps,
            )

    def _over_processes(self, features: Tensor) -> Tensor:
        """Normalise by mean and variance [D] over the clips of all processes."""
        count = features.new_full((1,), features.shape[0])
        sums: Tensor = _SumOverProcesses.apply(torch.cat([features.sum(dim=0), count]))
        mean, total = sums[:-1] / sums[-1], sums[-1].detach()
        squares: Tensor = _SumOverProcesses.apply((features - mean).square().sum(dim=0))
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (total - 1).clamp(min=1), self.momentum)  # unbiased, as torch's
        return (features - mean) * (squares / total + self.eps).rsqrt() * self.weight + self.bias


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
