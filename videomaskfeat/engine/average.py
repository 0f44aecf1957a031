"""Moving averages of a network's weights: teachers, and the averaged weights of a training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.engine.distributed import local
from videomaskfeat.errors import UserError


class Teacher:
    """A copy of a network that follows it: ``weights = m * weights + (1 - m) * student``.

    It has no gradient and is in evaluation mode. Its owner switches modules that must compute as in training,
    such as batch normalization. Buffers are copied.

    Args:
        network: the student, or the part of it that has a teacher.
        momentum: completed share of the training, 0..1 -> m, 0..1.

    Raises:
        UserError: a momentum outside 0..1.
    """

    def __init__(self, network: nn.Module, *, momentum: Callable[[float], float]) -> None:
        for progress in (0.0, 1.0):
            if not 0 <= momentum(progress) <= 1:
                raise UserError(
                    f"the teacher's momentum {momentum(progress):g} must be between 0 and 1; it usually "
                    f"goes from 0.996 to 1"
                )
        self.module = copy.deepcopy(network).requires_grad_(False).eval()
        self.momentum = momentum

    @torch.no_grad()
    def follow(self, network: nn.Module, progress: float) -> None:
        """Move toward the student after an optimizer step.

        Args:
            network: the student, on the same device.
            progress: completed share of the training, 0..1.
        """
        # Element by element, so each rank moves its own part of weights that are sharded.
        own, theirs = ([local(one) for one in module.parameters()] for module in (self.module, network))
        torch._foreach_lerp_(own, theirs, 1.0 - self.momentum(progress))
        for buffer, other in zip(self.module.buffers(), network.buffers(), strict=True):
            buffer.copy_(other)

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher's weights."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)


class ExponentialMovingAverage(Teacher):
    """``average = decay * average + (1 - decay) * weights``, from the model's initial weights on.

    Args:
        model: the model without a wrapper.
        decay: in [0, 1); 0.9999 averages over about 10,000 steps.

    Raises:
        UserError: the decay is out of range.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError(f"ema decay={decay}: must be at least 0 and less than 1; 0.999 is a usual value")
        super().__init__(model, momentum=lambda progress: decay)

    def update(self, model: nn.Module) -> None:
        """Update the average after an optimizer step."""
        self.follow(model, progress=0.0)

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:
        """A context in which the model has the averaged weights."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state_dict())
        try:
            yield model
        finally:
            model.load_state_dict(own)


def check_weight_sets(choice: str, *, averaged: bool) -> None:
    """Refuse to evaluate averaged weights without an average.

    Args:
        choice: auto, trained, averaged or both.
        averaged: whether the run averages weights.

    Raises:
        UserError: the run does not average weights.
    """
    if not averaged and choice in ("averaged", "both"):
        raise UserError(
            f"evaluate.weights={choice} needs averaged weights, but there is no average; set optim.ema_decay"
        )


def weight_sets(
    choice: str, model: nn.Module, average: ExponentialMovingAverage | None
) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
    """Prefix of the names of the metrics, and the context in which the model has these weights."""
    if average is not None and choice in ("auto", "averaged", "both"):
        yield ("averaged_" if choice == "both" else ""), average.averaged(model)
    if average is None or choice in ("trained", "both"):
        yield "", nullcontext()
