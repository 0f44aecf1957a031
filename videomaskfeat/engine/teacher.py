"""A teacher: the moving average of a network that is learning, as a network of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError


class Teacher:
    """A copy of a network whose weights follow it: ``w = m * w + (1 - m) * student``.

    It gets no gradient, and no dropout or drop path, since it is in evaluation mode; parts that must compute
    as in training (batch normalisation) are switched by their owner. Buffers are copied, not averaged.

    Args:
        network: the student, or the part of it that has a teacher; its weights are the teacher's first ones.
        momentum: share m of its weights that a teacher keeps in a step, by the share of the training that is
            done, 0..1; values in 0..1.

    Raises:
        UserError: a momentum outside 0..1.
    """

    def __init__(self, network: nn.Module, *, momentum: Callable[[float], float]) -> None:
        for progress in (0.0, 1.0):
            if not 0 <= momentum(progress) <= 1:
                raise UserError(
                    f"a teacher's momentum of {momentum(progress):g} is not between 0 and 1; 0.996 is a "
                    "usual start, 1 its end"
                )
        self.module = copy.deepcopy(network).requires_grad_(False).eval()
        self.momentum = momentum

    @torch.no_grad()
    def follow(self, network: nn.Module, progress: float) -> None:
        """Take in the student's weights after an optimiser step.

        Args:
            network: the student, built alike, on the same device.
            progress: share of the training that is done, 0..1.
        """
        torch._foreach_lerp_(
            list(self.module.parameters()), list(network.parameters()), 1.0 - self.momentum(progress)
        )
        for own, theirs in zip(self.module.buffers(), network.buffers(), strict=True):
            own.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher's weights by name."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with saved weights."""
        self.module.load_state_dict(state)
