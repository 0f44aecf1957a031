"""Moving averages: of weights, as a teacher network, of its outputs; and the stop of collapsed runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from videomaskfeat.engine import distributed
from videomaskfeat.errors import RunFailed, UserError


class ExponentialMovingAverage:
    """Keeps ``average = decay * average + (1 - decay) * weights`` beside a model.

    Parameters are averaged; buffers are copied, since averaging counters or tables means nothing. The first
    average is the model's own weights at construction.

    Args:
        model: the plain module (not wrapped by DDP).
        decay: share kept at each update, in [0, 1); 0.9999 averages over about 10,000 steps.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError(f"ema decay={decay}: must be at least 0 and less than 1; 0.999 is a usual value")
        self.decay = decay
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._parameters = [name for name, _ in model.named_parameters()]
        self._blend = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        weights = model.state_dict()
        self._blend(
            [self._average[name] for name in self._parameters],
            [weights[name] for name in self._parameters],
            None,
        )
        for name in weights.keys() - set(self._parameters):
            self._average[name].copy_(weights[name])

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the context the model holds the averaged weights; afterwards its own again."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self._average)
        try:
            yield model
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's own names: what the model's ``load_state_dict`` takes."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved average (names and shapes as the model's)."""
        for name, value in self._average.items():
            value.copy_(state[name])


def check_weight_sets(choice: str, *, averaged: bool) -> None:
    """Refuse to evaluate an average that is not kept.

    Args:
        choice: auto, trained, averaged or both.
        averaged: whether an average is kept.

    Raises:
        UserError: there is none.
    """
    if not averaged and choice in ("averaged", "both"):
        raise UserError(f"evaluate.weights is {choice}, and no average is kept; set optim.ema_decay")


def weight_sets(
    choice: str, model: nn.Module, average: ExponentialMovingAverage | None
) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
    """Prefix of the metrics' names, and the context in which the model holds these weights."""
    if average is not None and choice in ("auto", "averaged", "both"):
        yield ("averaged_" if choice == "both" else ""), average.averaged(model)
    if average is None or choice in ("trained", "both"):
        yield "", nullcontext()


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
        """Take in the student's weights after an optimizer step.

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


def sum_of_rows(rows: Tensor) -> Tensor:
    """Rows [n, K] of any float type -> their sum and, last, their number, float32 [K + 1]; no gradient."""
    rows = rows.detach().float()
    return torch.cat([rows.sum(dim=0), rows.new_full((1,), rows.shape[0])])


def mean_of_rows(sums: Sequence[Tensor]) -> Tensor:
    """The mean over all rows of a step, float32 [K], the same on every rank; all ranks must call it.

    How a step is cut into ranks and micro-batches changes the rounding alone.

    Args:
        sums: :func:`sum_of_rows` of each micro-batch of this rank.
    """
    total = distributed.mean_over_ranks(functools.reduce(torch.add, sums))
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

    def to(self, device: torch.device | str) -> None:
        """Move to a device, before the first step."""
        self.value = self.value.to(device)

    def update(self, mean: Tensor) -> None:
        """Move towards the mean [K] of a step's outputs, taken before they are centred."""
        self.value = torch.lerp(self.value, mean, 1.0 - self.momentum)

    def state_dict(self) -> dict[str, Any]:
        """The centre."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved centre."""
        self.value.copy_(state["value"])


@dataclass(frozen=True)
class Monitor:
    """A number that falls to 0 where features collapse.

    Attributes:
        name: as the log calls it.
        limit: the run stops below it; 0 never stops.
        meaning: what it says when it is that low, in a few words.
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
    """Watches some numbers of every step, and ends the run where one of them stays below its limit.

    A network that has learnt nothing yet gives nearly the same features to everything too, so the first part
    of the training is not judged; and a number is judged by its moving average, not by single batches.

    Args:
        monitors: what is watched.
        grace: share of the training that is not judged, 0..1.
        remedy: what the user may change, as the end of the message.
        smoothing: share of itself that a moving average keeps in a step, 0..1.

    Raises:
        UserError: a share outside 0..1.
    """

    def __init__(
        self, monitors: tuple[Monitor, ...], *, grace: float, remedy: str, smoothing: float = 0.9
    ) -> None:
        if not 0 <= grace <= 1:
            raise UserError(
                f"a grace of {grace:g} of the training is not between 0 and 1; 0.1 is the default"
            )
        self._monitors, self._grace, self._remedy = monitors, grace, remedy
        self._smoothing = smoothing
        self._means: dict[str, float] = {}
        self._steps = 0

    def watch(self, values: Mapping[str, float], progress: float) -> None:
        """Take in the numbers of a step, the same on every rank.

        Args:
            values: by name; at least those that are watched.
            progress: share of the training that is done, 0..1.

        Raises:
            RunFailed: one has collapsed.
        """
        self._steps += 1
        if progress < self._grace:
            return
        for monitor in self._monitors:
            value = values[monitor.name]
            mean = value + self._smoothing * (self._means.get(monitor.name, value) - value)
            self._means[monitor.name] = mean
            if monitor.limit > 0 and mean < monitor.limit:  # what is 0 in truth may come out below it
                raise RunFailed(
                    f"step {self._steps}: the features have collapsed: {monitor.name} is {mean:.3g}, below "
                    f"its limit of {monitor.limit:g} ({monitor.meaning}); {self._remedy}"
                )

    def state_dict(self) -> dict[str, Any]:
        """The moving averages and the number of steps."""
        return {"means": dict(self._means), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._means, self._steps = dict(state["means"]), int(state["steps"])
