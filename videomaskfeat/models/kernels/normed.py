"""A linear layer after a layer norm, which stores only its input on the CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

from videomaskfeat.models.kernels.dense import (
    in_row_blocks,
    linear,
    outer_sum,
    product,
    split_rows,
    sum_gradients,
)


def normed_linear(x: Tensor, norm: nn.LayerNorm | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer after a layer norm over the last axis. First derivatives only on the CPU.

    The CPU recomputes the normalized values in the backward pass instead of storing them, and sums the
    gradients of the norm in float32, as :class:`~videomaskfeat.models.norms.LayerNorm`. Hooks of the norm do
    not run there.

    Args:
        x: float [..., D].
        norm: a layer norm of width D, with weight and bias; None for no norm.
        weight: [D', D].
        bias: [D'] or None.

    Returns:
        [..., D'], in autocast's type if it is enabled.
    """
    if norm is None or norm.bias is None:
        return linear(x if norm is None else norm(x), weight, bias)
    if x.device.type != "cpu" or is_exporting():
        return F.linear(norm(x), weight, bias)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    rows = x.reshape(-1, x.shape[-1])
    bias = None if bias is None else bias.to(dtype)
    with torch.autocast("cpu", enabled=False):
        result = _normed_linear(rows, norm.weight, norm.bias, norm.eps, weight, bias, dtype)
    return result.view(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("videomaskfeat::normed_linear", mutates_args=(), device_types="cpu")
def _normed_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """x [n, D], weight [D', D] -> [n, D'] in ``dtype``."""
    shape, weight = norm_weight.shape, weight.to(dtype)

    def multiply(rows: Tensor) -> Tensor:
        return product(F.layer_norm(rows, shape, norm_weight, norm_bias, eps).to(dtype), weight, bias)

    return in_row_blocks(multiply, x)


@torch.library.custom_op("videomaskfeat::normed_linear_backward", mutates_args=(), device_types="cpu")
def _normed_linear_backward(
    grad: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of x, the norm's weight and bias, and weight; an empty tensor for one that is not needed."""
    grad_x, grad_weights = x.new_empty(x.shape if needs[0] else 0), []
    norm_gradients: list[list[Tensor]] = [[], []]  # of weight and bias
    shape, narrow = norm_weight.shape, weight.to(grad.dtype)
    wide = torch.promote_types(torch.promote_types(x.dtype, norm_weight.dtype), torch.float32)
    parameters = norm_weight.to(wide), norm_bias.to(wide)
    for rows in split_rows(x):
        block = x[rows].to(wide)
        normed, mean, deviation = torch.native_layer_norm(block, shape, *parameters, eps)
        if any(needs[:3]):
            grad_normed = product(grad[rows], narrow.t()).to(wide)
            arguments = (block, shape, mean, deviation, *parameters, needs[:3])
            grad_rows, *sums = torch.ops.aten.native_layer_norm_backward(grad_normed, *arguments)
            if needs[0]:
                grad_x[rows] = grad_rows
            for gradients, gradient, need in zip(norm_gradients, sums, needs[1:3], strict=True):
                gradients += [gradient] if need else []
        if needs[3]:
            grad_weights.append(outer_sum(grad[rows], normed.to(grad.dtype)))
    of_blocks = zip((*norm_gradients, grad_weights), (norm_weight, norm_bias, weight), strict=True)
    return [grad_x, *(sum_gradients(gradients, like) for gradients, like in of_blocks)]


@_normed_linear.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    *_, weight, _, dtype = others
    return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)


@_normed_linear_backward.register_fake
def _(grad: Tensor, *others: Any) -> list[Tensor]:
    x, norm_weight, norm_bias, _, weight, needs = others
    tensors = (x, norm_weight, norm_bias, weight)
    return [one.new_empty(one.shape if need else 0) for one, need in zip(tensors, needs, strict=True)]


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, norm_weight, norm_bias, ctx.eps, weight, *_ = inputs
    ctx.save_for_backward(x, norm_weight, norm_bias, weight)


def _differentiate_normed(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *saved, weight = ctx.saved_tensors
    needs = [ctx.needs_input_grad[index] for index in (0, 1, 2, 4)]
    gradients = _normed_linear_backward(grad, *saved, ctx.eps, weight, needs)
    *first, grad_weight = (one if need else None for one, need in zip(gradients, needs, strict=True))
    grad_bias = grad.sum(0) if ctx.needs_input_grad[5] else None
    return *first, None, grad_weight, grad_bias, None


_normed_linear.register_autograd(_differentiate_normed, setup_context=_save_norm)
