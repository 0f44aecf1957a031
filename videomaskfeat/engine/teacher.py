"""Momentum of teachers, centers of their outputs, and the stop of collapsed runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videomaskfeat.engine import distributed
from videomaskfeat.errors import RunFailed, UserError

START_LIMIT = 0.01
"""Maximum share of a teacher's random start in its final weights."""
_CHOSEN_SHARE = 1e-4  # far below the limit, since the teacher also has to follow the student closely


def start_share(momentum: Callable[[float], float], steps: int) -> float:
    """The share of a teacher's initial weights in its final ones: the product of the momenta of a run.

    Args:
        momentum: completed share of the training, 0..1 -> m, 0..1.
        steps: optimizer steps of the run.
    """
    return math.prod(momentum(step / steps) for step in range(steps))


def fit_momentum(schedule: Callable[[float], Callable[[float], float]], start: float, steps: int) -> float:
    """The highest initial momentum, in thousandths, that leaves at most 0.0001 of the random start.

    Args:
        schedule: initial momentum -> momentum over the training.
        start: the maximum: the initial momentum of the published recipe, which long runs keep.
        steps: optimizer steps of the run.
    """
    if start_share(schedule(start), steps) <= _CHOSEN_SHARE:
        return start
    low, high = 0.0, start  # 0 leaves nothing after the first step
    while high - low > 1e-4:
        middle = (low + high) / 2
        if start_share(schedule(middle), steps) <= _CHOSEN_SHARE:
            low = middle
        else:
            high = middle
    return math.floor(1e3 * low) / 1e3


def sum_of_rows(rows: Tensor) -> Tensor:
    """Rows float [n, K] -> their sum and then their number, float32 [K + 1], without gradient."""
    rows = rows.detach().float()
    return torch.cat([rows.sum(dim=0), rows.new_full((1,), rows.shape[0])])


def mean_of_rows(sums: Sequence[Tensor]) -> Tensor:
    """The mean over all rows of a step, float32 [K], the same on every rank; all ranks must call it.

    Args:
        sums: :func:`sum_of_rows` of each micro-batch of this rank.
    """
    total = distributed.mean_over_ranks(functools.reduce(torch.add, sums))
    return total[:-1] / total[-1].clamp(min=1)


class RunningCenter:
    """The moving average of a teacher's outputs, which is subtracted so that no prototype always wins.

    Centering of DINO (arXiv 2104.14294, equation 4): ``c = m * c + (1 - m) * mean of the step's outputs``
    over all ranks, from c = 0.

    Args:
        size: values per output, K.
        momentum: m, 0..1.

    Raises:
        UserError: a momentum outside 0..1.
    """

    def __init__(self, size: int, *, momentum: float = 0.9) -> None:
        if not 0 <= momentum <= 1:
            raise UserError(
                f"the momentum of the centers, {momentum:g}, must be between 0 and 1; 0.9 is usual"
            )
        self.value = torch.zeros(size)
        """float32 [K]."""
        self.momentum = momentum

    def to(self, device: torch.device | str) -> None:
        """Move to a device, before the first step."""
        self.value = self.value.to(device)

    def update(self, mean: Tensor) -> None:
        """Move toward the mean [K] of the step's outputs before centering."""
        self.value = torch.lerp(self.value, mean, 1.0 - self.momentum)

    def state_dict(self) -> dict[str, Any]:
        """The center."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value.copy_(state["value"])


@dataclass(frozen=True)
class Monitor:
    """A metric that falls to 0 if features collapse.

    Attributes:
        name: its name in the log.
        limit: the run stops below it; 0 never stops.
        meaning: meaning of such a low value, in a few words.
    """

    name: str
    limit: float
    meaning: str

    def __post_init__(self) -> None:
        if not self.limit >= 0:
            raise UserError(
                f"the limit {self.limit} of {self.name} must not be negative; 0 never stops a run"
            )


class CollapseStop:
    """Ends a run if the moving average of a metric falls below its limit.

    An untrained network has nearly the same features for all clips, so the first part of the training does
    not count.

    Args:
        monitors: the metrics with their limits.
        grace: share of the training that does not count, 0..1.
        remedy: end of the error message.
        smoothing: momentum of the moving averages, 0..1.

    Raises:
        UserError: the grace is outside 0..1.
    """

    def __init__(
        self, monitors: tuple[Monitor, ...], *, grace: float, remedy: str, smoothing: float = 0.9
    ) -> None:
        if not 0 <= grace <= 1:
            raise UserError(
                f"grace={grace:g} must be a fraction of the training, between 0 and 1; 0.1 is the default"
            )
        self._monitors, self._grace, self._remedy = monitors, grace, remedy
        self._smoothing = smoothing
        self._means: dict[str, float] = {}
        self._steps = 0

    def watch(self, values: Mapping[str, float], progress: float) -> None:
        """Check the metrics of a step, the same on every rank.

        Args:
            values: metrics by name.
            progress: completed share of the training, 0..1.

        Raises:
            RunFailed: the moving average of a metric is below its limit.
        """
        self._steps += 1
        if progress < self._grace:
            return
        for monitor in self._monitors:
            value = values[monitor.name]
            mean = value + self._smoothing * (self._means.get(monitor.name, value) - value)
            self._means[monitor.name] = mean
            if monitor.limit > 0 and mean < monitor.limit:  # rounding may bring 0 below 0
                raise RunFailed(
                    f"step {self._steps}: the features have collapsed: {monitor.name} is {mean:.3g}, below "
                    f"its limit of {monitor.limit:g} ({monitor.meaning}); {self._remedy}"
                )

    def state_dict(self) -> dict[str, Any]:
        """The moving averages and the number of steps."""
        return {"means": dict(self._means), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means, self._steps = dict(state["means"]), int(state["steps"])
