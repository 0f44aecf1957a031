"""Protocols of the loader, the batches and the step function that a job passes to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from videomaskfeat.errors import UserError


class Batch(Protocol):
    """A micro-batch."""

    @property
    def index(self) -> Tensor:
        """Indices of the samples in the data set, int64 [B], for messages."""
        ...

    @property
    def failures(self) -> Sequence[Any]:
        """Inputs that could not be read and were replaced in this batch (picklable)."""
        ...

    def to(self, device: torch.device, /) -> Any:
        """The batch on a device."""
        ...

    def record_stream(self, stream: Any, /) -> None:
        """Keep the memory of all tensors on the device until a stream's present work ends, as torch's."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)
BatchT_co = TypeVar("BatchT_co", bound=Batch, covariant=True)


class StepResult(NamedTuple):
    """Result of a micro-batch.

    Attributes:
        loss: 0-d, mean over the batch.
        metrics: further 0-d tensors for the log; every batch has the same names.
        state: input of ``after_step``, without gradient.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    state: Any = None


StepFunction = Callable[[BatchT], StepResult]


class Loader(Protocol[BatchT_co]):
    """An iterable over micro-batches that can start at any position."""

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches per epoch on this rank, the same on every rank."""
        ...

    def epoch(self, epoch: int, first_batch: int, stop: Callable[[], bool], /) -> Iterator[BatchT_co]:
        """The batches of an epoch from ``first_batch`` on, a pure function of both numbers.

        The iterator ends soon after ``stop`` returns True.
        """
        ...


class Stateful(Protocol):
    """A component with a state of plain data and tensors that a resumed run needs."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""
        ...

    def load_state_dict(self, state: Any, /) -> None:
        """Restore :meth:`state_dict`."""
        ...


@dataclass(frozen=True)
class LoopOptions:
    """Options of the training loop; lengths are in optimizer steps unless the name has a unit.

    Raises:
        UserError: a value is out of range.
    """

    epochs: float
    """Passes over the data; may be a fraction."""
    accumulate: int = 1
    """Micro-batches whose gradients are averaged into one optimizer step."""
    clip_norm: float | None = None
    """Upper limit of the L2 norm of all gradients; None: no limit."""
    clip_norm_each: float | None = None
    """Upper limit of the L2 norm of each parameter's gradient, after ``clip_norm``; None: no limit."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the step function runs under autocast; weights and optimizer stay float32."""
    seed: int = 0
    """Seed of torch's generators (drop path, dropout); each rank adds its number."""
    save_minutes: float = 10.0
    """Minutes between checkpoints, besides milestones and the last step."""
    keep_last: int = 2
    """Number of the newest checkpoints that are kept."""
    milestone_every: int = 0
    """Steps between checkpoints that are never removed; 0: no such checkpoints."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: only at the end, where there is always one."""
    unit: str = "samples"
    """Name of the samples on the console."""
    evaluation_note: Callable[[Mapping[str, float]], str] | None = None
    """Text that the log adds to the metrics of an evaluation; None: none."""
    loggers: tuple[str, ...] = ("tensorboard",)
    """Loggers of metrics besides metrics.jsonl; see ``open_logger``."""
    check_lag: int = 0
    """Steps by which the host's reading of losses and metrics lags behind; 0: each step is checked before its
    optimizer step. 1, on a GPU: the host launches the next step first, so the GPU does not wait for it; at
    the end of an epoch the host reads all."""
    step_seconds: float = 0.0
    """Maximum time of a step, after which the process ends; 0: no limit."""
    seconds_between_lines: float = 5.0
    """Interval of the progress lines."""

    def __post_init__(self) -> None:
        for name in ("accumulate", "keep_last"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be 1 or more")
        for name in ("save_minutes", "milestone_every", "evaluate_every", "step_seconds"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must not be negative")
        if self.check_lag not in (0, 1):
            raise UserError(f"check_lag={self.check_lag}: must be 0 or 1")
        if not self.epochs > 0:
            raise UserError(f"epochs={self.epochs}: must be above 0")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"clip_norm={self.clip_norm}: must be above 0, or null for no limit")
        if self.clip_norm_each is not None and not self.clip_norm_each > 0:
            raise UserError(f"clip_norm_each={self.clip_norm_each}: must be above 0, or null for no limit")
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision={self.precision!r}: must be fp32 or bf16")
