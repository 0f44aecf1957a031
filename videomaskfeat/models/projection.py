"""Batch normalisation over the clips of all processes, with gradients through the statistics."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.encoder_base import joint_positions
from videomaskfeat.models.kernels.dense import Linear, Perceptron
from videomaskfeat.models.vit import Block


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


# Heads of self-distillation: from the features of an encoder to where two views are compared.


class Projector(nn.Module):
    """Linear, batch normalisation, ReLU, linear: BYOL's projector and predictor (arXiv 2006.07733, 3.2).

    Args:
        width: width of the incoming features, D.
        hidden_width: width between the two layers; 4096 in the paper.
        out_width: width of the projection, P; 256 in the paper.

    Raises:
        UserError: a width below 1.
    """

    def __init__(self, width: int, *, hidden_width: int = 4096, out_width: int = 256) -> None:
        super().__init__()
        _check_positive(width=width, hidden_width=hidden_width, out_width=out_width)
        self.fc1 = nn.Linear(width, hidden_width, bias=False)  # the normalisation brings a shift
        self.norm = BatchNorm(hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, P]."""
        return self.fc2(F.relu(self.norm(self.fc1(features))))


class PrototypeHead(nn.Module):
    """A perceptron, unit length, then the cosines to K learnt prototypes: the head of DINO and iBOT.

    The prototypes are the rows of a weight-normalised layer whose gain stays 1. Unit vectors and cosines are
    computed in float32: a temperature of 0.04 multiplies their rounding by 25.

    Args:
        width: width of the incoming features, D.
        prototypes: K; 8192 in iBOT (arXiv 2111.07832, section 4.1 of its supplement).
        hidden_width: width of the perceptron's hidden layers; 2048 there.
        bottleneck: width of what has unit length; 256 there.
        layers: linear layers of the perceptron, at least 1; 3 there.

    Raises:
        UserError: a number below 1, or a single prototype.
    """

    def __init__(
        self,
        width: int,
        *,
        prototypes: int = 8192,
        hidden_width: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
    ) -> None:
        super().__init__()
        _check_positive(width=width, hidden_width=hidden_width, bottleneck=bottleneck, layers=layers)
        if prototypes < 2:
            raise UserError(f"prototypes {prototypes}: must be at least 2, such as 8192; one is a constant")
        self.prototypes = prototypes
        widths = [width, *[hidden_width] * (layers - 1), bottleneck]
        parts: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layer = nn.Linear(before, after)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
            parts += [nn.GELU(), layer] if parts else [layer]
        self.perceptron = nn.Sequential(*parts)
        # As a linear layer starts: a cosine has no use for their length, but the longer they are, the less a
        # step of AdamW turns them.
        self.directions = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.uniform_(self.directions, -(bottleneck**-0.5), bottleneck**-0.5)

    def forward(self, features: Tensor, *, learn_prototypes: bool = True) -> Tensor:
        """Cosines to the prototypes.

        Args:
            features: [..., D].
            learn_prototypes: False: the prototypes get a gradient of 0 (and not none at all, for which
                several processes would wait).

        Returns:
            Float32 [..., K], in -1..1.
        """
        hidden = self.perceptron(features)
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(hidden.float(), dim=-1)
            prototypes = F.normalize(self.directions, dim=-1)
            if not learn_prototypes:
                prototypes = prototypes.detach() + 0.0 * prototypes
            return F.linear(unit, prototypes)


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} {number} must be positive")


# Predictors: from what a student makes of a masked clip to what a teacher makes of the whole one.


class MlpPredictor(nn.Module):
    """Linear, GELU, linear, on each cell by itself.

    Args:
        width: width of the cells, D.
        hidden_width: width between the two layers.

    Raises:
        UserError: a width below 1.
    """

    def __init__(self, width: int, *, hidden_width: int) -> None:
        super().__init__()
        if hidden_width < 1:
            raise UserError(f"a predictor of width {hidden_width}: must be positive")
        self.perceptron = Perceptron(width, hidden_width, width)
        _initialise(self)

    def forward(self, cells: Tensor) -> Tensor:
        """[B, t, h, w, D] -> [B, t, h, w, D]."""
        return self.perceptron(cells)


class TransformerPredictor(nn.Module):
    """A small transformer over all cells, narrower than the encoder, with learnt positions.

    V-JEPA's predictor (arXiv 2404.08471, section 3.2) in the dense form: the encoder brings its mask tokens
    along, so that every cell of the grid comes in and none is put in here.

    Args:
        width: width of the cells, D.
        hidden_width: width inside.
        depth: blocks.
        heads: attention heads, a divisor of ``hidden_width``.
        grid: of the cells of a clip of the native size; positions are interpolated for others.

    Raises:
        UserError: heads that do not divide the width, or no block.
    """

    def __init__(self, width: int, *, hidden_width: int, depth: int, heads: int, grid: TokenGrid) -> None:
        super().__init__()
        if depth < 1 or heads < 1 or hidden_width < 1 or hidden_width % heads:
            raise UserError(
                f"a predictor of depth {depth}, width {hidden_width}, heads {heads}: all must be positive, "
                "heads a divisor of the width"
            )
        self.native_grid = grid
        self.narrow = Linear(width, hidden_width)
        self.positions = nn.Parameter(torch.empty(1, grid.size, hidden_width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        # Not "blocks": the optimiser takes those for the encoder's.
        self.layers = nn.ModuleList(Block(hidden_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_width, eps=1e-6)
        self.widen = Linear(hidden_width, width)
        _initialise(self)

    def forward(self, cells: Tensor) -> Tensor:
        """[B, t, h, w, D] -> [B, t, h, w, D]."""
        grid = TokenGrid(*cells.shape[1:4])
        tokens = self.narrow(cells).flatten(1, 3)  # [B, N, hidden]
        tokens = tokens + joint_positions(self.positions, self.native_grid, grid)
        for layer in self.layers:
            tokens, _ = layer(tokens, grid)
        return self.widen(self.norm(tokens)).unflatten(1, grid.shape)


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
