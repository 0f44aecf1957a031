"""What autograd holds on to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def saved_for_backward(function: Callable[[], object]) -> int:
    """How many tensors a call saves for a backward pass."""
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        function()
    return saved
