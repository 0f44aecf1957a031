"""Schedules as pure functions of the progress, parameter groups, and optimizers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from videomaskfeat.engine.distributed import SHARD, local
from videomaskfeat.errors import UserError


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up from ``start_lr`` to ``base_lr``, then half a cosine down to ``end_lr``.

    The cosine begins where the warm-up ends, as in the published recipes. The training loop reads the
    learning rate before every optimizer step at the fractional epoch of that step.

    Args:
        base_lr: peak learning rate, reached after ``warmup_epochs``.
        start_lr: learning rate of the first step.
        end_lr: learning rate after ``epochs``.
        warmup_epochs: length of the warm-up, 0 or more; may be a fraction.
        epochs: length of the whole training.

    Raises:
        UserError: the warm-up is not shorter than the training, or a value is negative.
    """

    base_lr: float
    start_lr: float
    end_lr: float
    warmup_epochs: float
    epochs: float

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UserError(
                f"warmup_epochs={self.warmup_epochs:g} with epochs={self.epochs:g}: the warm-up must be 0 or"
                " longer and end before the training does; shorten it"
            )
        for name in ("base_lr", "start_lr", "end_lr"):
            if not getattr(self, name) >= 0:  # also refuses NaN
                raise UserError(f"{name}={getattr(self, name)}: a learning rate must not be negative")

    def __call__(self, epoch: float) -> float:
        """The learning rate at a fractional epoch from 0; constant past the end."""
        if epoch < self.warmup_epochs:
            return self.start_lr + (self.base_lr - self.start_lr) * epoch / self.warmup_epochs
        return self.after_warmup(epoch)

    def after_warmup(self, epoch: float) -> float:
        """The learning rate at a fractional epoch after the warm-up."""
        part = min((epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs), 1.0)
        return self.end_lr + (self.base_lr - self.end_lr) * (math.cos(math.pi * part) + 1.0) / 2.0

    def scaled(self, batch_size: int, reference_batch_size: int) -> WarmupCosine:
        """The schedule for another batch size: all three learning rates scale linearly with it.

        Args:
            batch_size: samples per optimizer step, over all ranks and micro-batches.
            reference_batch_size: batch size of the published learning rates.

        Raises:
            UserError: a batch size below 1.
        """
        for name, size in (("batch_size", batch_size), ("base_batch_size", reference_batch_size)):
            if size < 1:
                raise UserError(f"{name}={size}: must be 1 or more")
        factor = batch_size / reference_batch_size
        return replace(
            self, base_lr=self.base_lr * factor, start_lr=self.start_lr * factor, end_lr=self.end_lr * factor
        )


@dataclass(frozen=True)
class WarmupSteps(WarmupCosine):
    """Linear warm-up from ``start_lr`` to ``base_lr``, then a multiplication by ``factor`` at each step.

    SimMIM's schedule (arXiv 2111.09886: a factor of 0.1 at epoch 700 of 800). ``end_lr`` has no effect.

    Args:
        steps: ascending epochs, not before the end of the warm-up; those past ``epochs`` have no effect.
        factor: above 0 and at most 1.

    Raises:
        UserError: as :class:`WarmupCosine`; or the steps or the factor are out of range.
    """

    steps: tuple[float, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = (self.warmup_epochs, *self.steps)
        if not self.steps or any(b < a for a, b in itertools.pairwise(ascending)):
            raise UserError(
                f"optim.step_epochs {list(self.steps)} must be ascending epochs after the warm-up of "
                f"{self.warmup_epochs:g} epochs, such as [700]"
            )
        if not 0 < self.factor <= 1:
            raise UserError(f"optim.step_factor {self.factor:g} must be above 0 and at most 1, such as 0.1")

    def after_warmup(self, epoch: float) -> float:
        return self.base_lr * self.factor ** sum(step <= epoch for step in self.steps)


@dataclass(frozen=True)
class CosineRamp:
    """Half a cosine from ``start`` to ``end`` over the whole training.

    BYOL's schedule of the teacher momentum (arXiv 2006.07733, section 3.2), which DINO and iBOT share.
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """The value at a completed share of the training, 0..1."""
        return self.end + (self.start - self.end) * (math.cos(math.pi * progress) + 1.0) / 2.0


@dataclass(frozen=True)
class LinearRamp:
    """A line from ``start`` to ``end`` over a share ``length`` (0..1) of the training, then ``end``.

    Raises:
        UserError: the length is outside 0..1.
    """

    start: float
    end: float
    length: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.length <= 1:
            raise UserError(
                f"the warm-up, {self.length:g} of the training, must be between 0 and 1; shorten it"
            )

    def __call__(self, progress: float) -> float:
        """The value at a completed share of the training, 0..1."""
        part = 1.0 if progress >= self.length else progress / self.length
        return self.start + (self.end - self.start) * part


class Layered(Protocol):
    """An encoder, or a module that wraps one, with numbered layers for layer decay."""

    @property
    def layer_count(self) -> int:
        """Number of layers."""

    def layer_of(self, name: str) -> int:
        """The layer of a parameter by name, from 0."""


def layers_behind(model: nn.Module) -> Callable[[str], int]:
    """A function from the name of a parameter to the number of encoder layers behind its own.

    It returns 0 for parameters outside the encoder, which is a :class:`Layered` module in the model.

    Raises:
        UserError: the model has no such module.
    """
    layered = [
        (f"{prefix}." if prefix else "", cast(Layered, module))
        for prefix, module in model.named_modules()
        if hasattr(module, "layer_of")
    ]
    if not layered:
        raise UserError(f"layer decay needs an encoder, and a {type(model).__name__} has none; set it to 1")

    def count(name: str) -> int:
        for prefix, module in layered:  # the outermost first
            if name.startswith(prefix):
                return module.layer_count - 1 - module.layer_of(name.removeprefix(prefix))
        return 0

    return count


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    base_lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    layers: Callable[[str], int] | None = None,
) -> list[dict[str, Any]]:
    """Group parameters by weight decay and learning rate factor; frozen parameters are left out.

    Parameters of one dimension (biases, scales of norms) have no weight decay. The learning rate factor is
    ``layer_decay ** n`` with ``n`` layers behind the parameter's own (BEiT, arXiv 2106.08254, as in
    PySlowFast).

    Args:
        named_parameters: ``model.named_parameters()``.
        base_lr: initial learning rate, which the training loop replaces before every step.
        weight_decay: weight decay of all other parameters.
        layer_decay: factor from each layer to the one before it, in (0, 1].
        layers: from :func:`layers_behind`; only needed if ``layer_decay`` is not 1.

    Returns:
        Groups for ``torch.optim``: ``params``, ``names``, ``weight_decay``, ``lr`` and ``lr_scale``, in the
        order of the parameters. The loop sets ``lr = schedule(epoch) * lr_scale``.
    """
    assert layers is not None or layer_decay == 1.0
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 else weight_decay
        scale = 1.0 if layers is None else layer_decay ** layers(name)
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "names": [], "weight_decay": decay, "lr": base_lr * scale, "lr_scale": scale},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to ``lr`` times its ``lr_scale`` (default 1)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Set the weight decay of every group that has one."""
    for group in optimizer.param_groups:
        if group["weight_decay"] > 0:
            group["weight_decay"] = weight_decay


def clip_gradients(
    parameters: Iterable[nn.Parameter], *, limit: float | None, limit_each: float | None
) -> Tensor:
    """Scale down gradients, and return the L2 norm of all of them before that, 0-d.

    The norm is on the device of the parameters; it is 0 if none has a gradient.

    Args:
        parameters: the parameters; those without a gradient are skipped. If they are sharded, all ranks must
            call it.
        limit: maximum L2 norm of all gradients; None: no limit.
        limit_each: maximum L2 norm of each gradient, after ``limit`` (DINO, iBOT); None: no limit.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    local_gradients = [local(gradient) for gradient in gradients]
    total = torch.linalg.vector_norm(torch.stack(gradient_norms(gradients)))
    if limit is not None:
        torch._foreach_mul_(local_gradients, (limit / (total + 1e-6)).clamp(max=1.0))
    if limit_each is not None:
        norms = gradient_norms(gradients)
        torch._foreach_mul_(local_gradients, [(limit_each / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return total


def gradient_norms(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The L2 norm of each gradient, 0-d; all ranks must call it if they are sharded."""
    norms = torch._foreach_norm([local(gradient) for gradient in gradients])
    if not hasattr(gradients[0], "device_mesh"):
        return list(norms)
    squares = torch.stack(norms).float().square()
    dist.all_reduce(squares, group=gradients[0].device_mesh.get_group(SHARD))
    return list(squares.sqrt().unbind())


def adamw(groups: list[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """Fused AdamW.

    Args:
        groups: from :func:`parameter_groups`.
        betas: decay of the first and second moment, 0..1; (0.9, 0.95) in MAE's recipes.
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"betas={betas}: both must be at least 0 and below 1, such as (0.9, 0.999)")
    return torch.optim.AdamW(groups, betas=betas, fused=True)


def sgd(groups: list[dict[str, Any]], *, momentum: float = 0.9) -> torch.optim.SGD:
    """SGD with Nesterov momentum (0..1); fused unless the parameters are sharded."""
    if not 0 <= momentum < 1:
        raise UserError(f"momentum={momentum}: must be at least 0 and below 1, such as 0.9")
    # The fused step of torch 2.13 does not take sharded parameters.
    fused = not any(hasattr(parameter, "device_mesh") for group in groups for parameter in group["params"])
    return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=fused)


def lars(groups: list[dict[str, Any]], *, momentum: float = 0.9) -> torch.optim.Optimizer:
    """LARS (arXiv 1708.03888), of the package pytorch_optimizer: BYOL's optimizer.

    SGD in which the gradient g and the weight decay c of a matrix w are multiplied by
    0.001 |w| / (|g| + c |w|); vectors, such as biases and norms, have neither this factor nor a decay.

    Args:
        groups: from :func:`parameter_groups`.
        momentum: 0..1, not Nesterov's.

    Raises:
        UserError: the momentum is out of range, or the package is not installed.
    """
    if not 0 <= momentum < 1:
        raise UserError(f"momentum={momentum}: must be at least 0 and below 1, such as 0.9")
    try:
        from pytorch_optimizer import LARS
    except ImportError as error:
        raise UserError(
            "optim.optimizer lars: the package pytorch_optimizer is not installed; "
            "pip install 'videomaskfeat[lars]', or use adamw"
        ) from error
    optimizer = cast(torch.optim.Optimizer, LARS(groups, momentum=momentum, trust_coefficient=0.001))
    for group in optimizer.param_groups:
        # Its operations on lists of tensors have no form for sharded weights.
        if "foreach" in group and any(hasattr(one, "placements") for one in group["params"]):
            group["foreach"] = False
    return optimizer
