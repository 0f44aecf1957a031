"""What the training loop asks of a task's loader, batches and step function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from videomaskfeat.errors import UserError


class Batch(Protocol):
    """What the loop asks of a batch."""

    @property
    def index(self) -> Tensor:
        """int64 [B]: which samples of the data set these are, for messages."""
        ...

    @property
    def failures(self) -> Sequence[Any]:
        """What failed to be read and was replaced while making this batch (picklable)."""
        ...

    def to(self, device: torch.device, /) -> Any:
        """The batch on a device."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)
BatchT_co = TypeVar("BatchT_co", bound=Batch, covariant=True)


class StepResult(NamedTuple):
    """What a micro-batch gives.

    Attributes:
        loss: 0-d, mean over the batch.
        metrics: further 0-d tensors, logged by name; the same names for every batch.
        state: what ``after_step`` needs of this micro-batch, without gradient.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    state: Any = None


StepFunction = Callable[[BatchT], StepResult]


class Loader(Protocol[BatchT_co]):
    """What the loop asks of a loader."""

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches that this rank gets in an epoch, the same on every rank."""
        ...

    def epoch(self, epoch: int, first_batch: int, stop: Callable[[], bool], /) -> Iterator[BatchT_co]:
        """The batches of an epoch from ``first_batch`` on, a pure function of both numbers.

        A wait for a batch ends soon after ``stop`` has become true; then there are no more batches.
        """
        ...


class Stateful(Protocol):
    """A part of a task with a state of its own (plain data and tensors) that a resumed run needs."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data."""
        ...

    def load_state_dict(self, state: Any, /) -> None:
        """Take back what :meth:`state_dict` gave."""
        ...


@dataclass(frozen=True)
class LoopOptions:
    """How to train; all lengths in optimizer steps unless the name says otherwise.

    Raises:
        UserError: a value out of its range.
    """

    epochs: float
    """Passes over the data; may be a fraction."""
    accumulate: int = 1
    """Micro-batches whose gradients are averaged into one optimizer step."""
    clip_norm: float | None = None
    """Upper limit of the L2 norm over all gradients; None = no limit."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the step function runs under autocast; weights and optimizer stay float32."""
    seed: int = 0
    """Seeds torch's generators (drop path, dropout), differently on each rank."""
    save_minutes: float = 10.0
    """A checkpoint every so many minutes, besides milestones and the last step."""
    keep_last: int = 2
    """How many of the newest checkpoints are kept."""
    milestone_every: int = 0
    """A checkpoint at every multiple of so many steps that is kept for good; 0 = none."""
    evaluate_every: int = 0
    """Evaluate every so many steps, and always at the end; 0 = at the end only."""
    unit: str = "samples"
    """What a sample is called on the console."""
    tensorboard: bool = True
    """Write TensorBoard curves too."""
    seconds_between_lines: float = 5.0
    """How often a progress line is written."""

    def __post_init__(self) -> None:
        for name in ("accumulate", "keep_last"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be 1 or more")
        for name in ("save_minutes", "milestone_every", "evaluate_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must not be negative")
        if not self.epochs > 0:
            raise UserError(f"epochs={self.epochs}: must be above 0")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"clip_norm={self.clip_norm}: must be above 0, or null for no limit")
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision={self.precision!r}: must be fp32 or bf16")
