"""Means over everything that one optimiser step has seen: all micro-batches, on all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError


class StepMean:
    """The mean of rows that micro-batches bring one after the other.

    The cut of a step into ranks and micro-batches does not change it, but for rounding.

    Args:
        size: values a row, K.
        device: where it is kept.
    """

    def __init__(self, size: int, *, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(size + 1, device=device)  # float32; the number of rows stands last

    def add(self, rows: Tensor) -> None:
        """Take in rows [n, K] of any float type, without their gradient."""
        rows = rows.detach().float()
        self._sum[:-1] += rows.sum(dim=0)
        self._sum[-1] += rows.shape[0]

    def take(self) -> Tensor:
        """The mean, float32 [K], the same on every rank, and start anew; all ranks must call it."""
        total = distributed.mean_over_ranks(self._sum)
        self._sum = torch.zeros_like(self._sum)
        return total[:-1] / total[-1].clamp(min=1)


class RunningCentre:
    """The moving average of a teacher's outputs, which it subtracts so that no prototype wins everywhere.

    Centring of DINO (arXiv 2104.14294, equation 4): ``c = m * c + (1 - m) * mean of the step's outputs``,
    over all ranks, from c = 0.

    Args:
        size: values an output, K.
        momentum: share m of itself that it keeps in a step, 0..1.

    Raises:
        UserError: a momentum outside 0..1.
    """

    def __init__(self, size: int, *, momentum: float = 0.9) -> None:
        if not 0 <= momentum <= 1:
            raise UserError(f"a centre's momentum of {momentum:g} is not between 0 and 1; 0.9 is usual")
        self.value = torch.zeros(size)
        """float32 [K]."""
        self.momentum = momentum
        self._outputs = StepMean(size)

    def to(self, device: torch.device | str) -> None:
        """Move to a device, before the first step."""
        self.value = self.value.to(device)
        self._outputs = StepMean(len(self.value), device=device)

    def add(self, outputs: Tensor) -> None:
        """Take in outputs [n, K] of this step, before they are centred."""
        self._outputs.add(outputs)

    def update(self) -> None:
        """Move towards the mean of the step's outputs; all ranks must call it."""
        self.value = torch.lerp(self.value, self._outputs.take(), 1.0 - self.momentum)

    def state_dict(self) -> dict[str, Any]:
        """The centre; nothing else is left between two steps."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved centre."""
        self.value.copy_(state["value"])
