"""What the training loop asks of a task's loader, batches and step function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor


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

StepFunction = Callable[[BatchT], tuple[Tensor, Mapping[str, Tensor]]]
"""Batch -> (mean loss, further 0-d tensors to be logged under their names, the same for every batch)."""


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
