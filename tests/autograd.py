"""What autograd holds on to, and gradients of two versions of one function compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_for_backward(function: Callable[[], object]) -> int:
    """How many tensors a call saves for a backward pass."""
    return len(tensors_saved(function))


def tensors_saved(function: Callable[[], object]) -> list[Tensor]:
    """The tensors that a call saves for a backward pass."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return saved


def assert_same_gradients(
    ours: Tensor, plain: Tensor, inputs: Iterable[Tensor], *, atol: float = 1e-5, rtol: float = 1e-5
) -> None:
    """Assert equal values, and equal gradients of a weighted sum with respect to every input.

    Gradients must have the dtype of their input. float32 sums in another order differ by 1e-5.
    """
    torch.testing.assert_close(ours, plain, atol=atol, rtol=rtol)
    upstream = torch.linspace(-1, 1, plain.numel(), dtype=plain.dtype, device=plain.device).view(plain.shape)
    inputs = list(inputs)
    gradients = torch.autograd.grad(ours, inputs, upstream.to(ours))
    expected = torch.autograd.grad(plain, inputs, upstream, retain_graph=True)
    for tensor, mine, theirs in zip(inputs, gradients, expected, strict=True):
        assert mine.dtype == tensor.dtype
        torch.testing.assert_close(mine, theirs, atol=atol, rtol=rtol)
