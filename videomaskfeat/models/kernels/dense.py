"""Fast linear layers on the CPU.

On x86 CPUs, torch uses MKL for float32 products, which is slow on some processors of other makers. oneDNN,
also part of torch, is up to twice as fast there, but on others MKL is faster for gradients of weights. So
`choice.py` holds the library of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting

from videomaskfeat.models.kernels.choice import current_kernels

_ROWS_PER_BLOCK = 8192
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """A linear layer, optionally after a GELU. First derivatives only on the CPU.

    With ``gelu``, the CPU recomputes the activation in the backward pass instead of storing it: these are the
    largest tensors of a perceptron. Under autocast, the low-precision copy of the weights is also not
    stored.

    Args:
        x: float [..., D].
        weight: [D', D].
        bias: [D'] or None.
        gelu: apply GELU to ``x`` first.

    Returns:
        [..., D'], in autocast's type if it is enabled.
    """
    if x.device.type != "cpu" or is_exporting():
        return plain_linear(x, weight, bias, gelu=gelu)
    shape = (*x.shape[:-1], weight.shape[0])
    if gelu:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast("cpu", enabled=False):
            return _gelu_linear(x.to(dtype).reshape(-1, x.shape[-1]), weight, bias).view(shape)
    single = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    kernels = current_kernels()
    if not _ONEDNN or not single or kernels.products == kernels.gradients == "mkl":
        return plain_linear(x, weight, bias)
    return _linear(x.reshape(-1, x.shape[-1]), weight, bias).view(shape)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """:func:`linear` in torch's own operators."""
    return F.linear(F.gelu(x) if gelu else x, weight, bias)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [m, c], b [n, c] -> a b^T + bias [m, n]. For bfloat16, torch itself uses oneDNN."""
    return _product(a, b, bias, library=current_kernels().products)


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None, *, library: str) -> Tensor:
    # oneDNN refuses empty tensors.
    if _ONEDNN and library == "onednn" and a.dtype == torch.float32 and a.numel():
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def outer_sum(a: Tensor, b: Tensor) -> Tensor:
    """a [n, p], b [n, q] -> a^T b [p, q], possibly a transposed view.

    oneDNN copies its first factor to transpose it, so the narrower one goes first: twice as fast if tall.
    """
    library = current_kernels().gradients
    if a.dtype != torch.float32 or library == "mkl" or a.shape[1] <= b.shape[1]:
        return _product(a.t(), b.t(), library=library)
    return _product(b.t(), a.t(), library=library).t()


@torch.library.custom_op("videomaskfeat::linear", mutates_args=(), device_types="cpu")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [n, D], weight [D', D]."""
    return product(x, weight, bias)


@torch.library.custom_op("videomaskfeat::linear_backward", mutates_args=(), device_types="cpu")
def _linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; an empty tensor for one that is not needed."""
    grad_x = product(grad, weight.t()) if needs_input else x.new_empty(0)
    grad_weight = outer_sum(grad, x).contiguous() if needs_weight else x.new_empty(0)
    return grad_x, grad_weight


@torch.library.custom_op("videomaskfeat::gelu_linear", mutates_args=(), device_types="cpu")
def _gelu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [n, D] before the activation; weight [D', D] may have a wider type than x and bias."""
    weight = weight.to(x.dtype)
    return in_row_blocks(lambda rows: product(F.gelu(rows), weight, bias), x)


@torch.library.custom_op("videomaskfeat::gelu_linear_backward", mutates_args=(), device_types="cpu")
def _gelu_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`_linear_backward`."""
    grad_x = x.new_empty(x.shape if needs_input else 0)
    grad_weights = []
    narrow = weight.to(x.dtype)
    for rows in split_rows(x):
        if needs_input:
            grad_h = product(grad[rows], narrow.t())
            torch.ops.aten.gelu_backward.grad_input(grad_h, x[rows], grad_input=grad_x[rows])
        if needs_weight:
            grad_weights.append(outer_sum(grad[rows], F.gelu(x[rows])))
    return grad_x, sum_gradients(grad_weights, weight)


def split_rows(x: Tensor) -> list[slice]:
    """Blocks of the rows of x [n, D] that bound the memory for intermediate values."""
    return [slice(start, start + _ROWS_PER_BLOCK) for start in range(0, max(x.shape[0], 1), _ROWS_PER_BLOCK)]


def sum_gradients(gradients: list[Tensor], like: Tensor) -> Tensor:
    """The sum, formed in float32 at least, in the type of ``like``; an empty tensor for an empty list."""
    if not gradients:
        return like.new_empty(0)
    total = gradients[0].to(torch.promote_types(like.dtype, torch.float32)).contiguous()
    for gradient in gradients[1:]:
        total += gradient
    return total.to(like.dtype)


def in_row_blocks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)`` of a function that treats each row alone, one block of rows at a time."""
    first, *others = split_rows(x)
    result = function(x[first])
    if not others:
        return result
    whole = result.new_empty(len(x), result.shape[1])
    whole[first] = result
    for rows in others:
        whole[rows] = function(x[rows])
    return whole


@_gelu_linear.register_fake
@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@_gelu_linear_backward.register_fake
@_linear_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if needs_input else 0), weight.new_empty(weight.shape if needs_weight else 0)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate_by(backward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """The gradient function of a linear operator with the given backward operator."""

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x, grad_weight = backward(grad, x, weight, needs_input, needs_weight)
        return (
            grad_x if needs_input else None,
            grad_weight if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )

    return differentiate


_linear.register_autograd(_differentiate_by(_linear_backward), setup_context=_save_inputs)
_gelu_linear.register_autograd(_differentiate_by(_gelu_linear_backward), setup_context=_save_inputs)
