"""Copies between the host and a GPU while the GPU computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from videomaskfeat.engine.contracts import Batch


class BatchCopies:
    """Copies batches to a GPU on a stream of their own, beside the steps launched before.

    The copy starts when it is called, not when the GPU has finished the earlier steps. Batches must be in
    page-locked memory; otherwise the host waits for the copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def __call__(self, batch: Batch) -> Any:
        """The batch on the GPU, for work that is launched from now on."""
        steps = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device)
        steps.wait_stream(self._stream)
        # Otherwise the allocator could reuse the memory for the next copy while a step still reads it.
        moved.record_stream(steps)
        return moved


def copy_numbers(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers of the host on a GPU, float32 [n]; the host does not wait for the GPU."""
    return torch.tensor(values, dtype=torch.float32, pin_memory=True).to(device, non_blocking=True)


class HostCopy:
    """Numbers on their way from a GPU to the host; the host waits only when it reads them.

    Args:
        values: 1-d tensor, complete when the work launched so far is.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._values.copy_(values, non_blocking=True)
        self._arrived = torch.cuda.Event()
        # Without an argument it would be the stream of the current device, which may be another GPU.
        self._arrived.record(torch.cuda.current_stream(values.device))

    def tolist(self) -> list[float]:
        """The numbers, after a wait for them."""
        self._arrived.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers
