"""Depthwise pooling convolution on tokens, fast forward and backward on the CPU.

The plain layer (tokens to image layout, `torch.nn.Conv3d`, and back) spends ten times its forward in its
backward, several times more again in bfloat16: oneDNN has no quick kernel for the gradients of a depthwise
convolution in three dimensions. All three passes are rewritten here in terms of kernels that it does have:

- forward: the convolution on the channels-last *view* of the tokens, which needs no copy;
- gradient of the input: again a forward convolution, of the output's gradient (spread out by the stride with
  zeros between) with the kernel turned round;
- gradient of the weight: for each time tap, that of a depthwise convolution in *two* dimensions; where the
  windows do not overlap, products and sums over the touched positions alone.

Elsewhere (GPUs) it is `torch.nn.functional.conv3d` on the same view.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv3d(x: Tensor, weight: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Depthwise convolution over the token grid, padded by half the kernel, without bias.

    The same numbers as ``conv3d(x.permute(0, 4, 1, 2, 3), weight, None, stride, kernel // 2, 1, C)`` brought
    back to token layout. First derivatives only.

    Args:
        x: float [B, t, h, w, C], possibly a strided view; C contiguous is quickest.
        weight: [C, 1, kt, kh, kw], odd kernel sizes; cast to the type of ``x`` (so autocast's bfloat16
            tokens are convolved in bfloat16, with sums in float32).
        stride: steps in t, h, w.

    Returns:
        [B, t', h', w', C], each axis ``ceil(length / step)``.
    """
    weight = weight.to(x.dtype)
    if x.device.type == "cpu":
        return _depthwise_conv3d(x, weight, list(stride))
    with torch.autocast(x.device.type, enabled=False):
        return _convolve(x, weight, stride)


@torch.library.custom_op("videomaskfeat::depthwise_conv3d", mutates_args=(), device_types="cpu")
def _depthwise_conv3d(x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return _convolve(x, weight, stride).contiguous()


@torch.library.custom_op("videomaskfeat::depthwise_conv3d_backward", mutates_args=(), device_types="cpu")
def _depthwise_conv3d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; an empty tensor stands for one that is not needed."""
    none = x.new_empty(0)
    with torch.autocast("cpu", enabled=False):
        grad = grad.contiguous()
        grad_x = _input_gradient(grad, x.shape, weight, stride) if needs_input else none
        grad_weight = _weight_gradient(grad, x.contiguous(), weight, stride) if needs_weight else none
    return grad_x, grad_weight


@_depthwise_conv3d.register_fake
def _(x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    lengths = [(length - 1) // step + 1 for length, step in zip(x.shape[1:4], stride, strict=True)]
    return x.new_empty(x.shape[0], *lengths, x.shape[4])


@_depthwise_conv3d_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    grad_x = x.new_empty(x.shape if needs_input else (0,))
    return grad_x, weight.new_empty(weight.shape if needs_weight else (0,))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, list[int]], output: Tensor) -> None:
    x, weight, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    grad_x, grad_weight = _depthwise_conv3d_backward(grad, x, weight, ctx.stride, needs_input, needs_weight)
    return grad_x if needs_input else None, grad_weight if needs_weight else None, None


_depthwise_conv3d.register_autograd(_differentiate, setup_context=_save)


def _convolve(x: Tensor, weight: Tensor, stride: list[int] | tuple[int, ...]) -> Tensor:
    """`conv3d` on the channels-last view of tokens [B, t, h, w, C], which it reads and writes as it is."""
    padding = [size // 2 for size in weight.shape[2:]]
    image = x.permute(0, 4, 1, 2, 3)  # [B, C, t, h, w]
    image = F.conv3d(image, weight, stride=tuple(stride), padding=padding, groups=x.shape[4])
    return image.permute(0, 2, 3, 4, 1)  # [B, t', h', w', C]


def _input_gradient(grad: Tensor, shape: torch.Size, weight: Tensor, stride: list[int]) -> Tensor:
    """Gradient of x [B, t, h, w, C] from that of the output [B, t', h', w', C]."""
    if any(step > 1 for step in stride):
        spread = grad.new_zeros(shape)
        spread[:, :: stride[0], :: stride[1], :: stride[2]] = grad
        grad = spread
    return _convolve(grad, weight.flip(2, 3, 4), (1, 1, 1)).contiguous()


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    """Gradient of the weight [C, 1, kt, kh, kw], one time tap after the other."""
    kernel = weight.shape[2:]
    apart = stride[1] >= kernel[1] and stride[2] >= kernel[2]
    gradient_of_tap = _tap_gradient_apart if apart and max(stride[1:]) > 1 else _tap_gradient_overlapping
    total = weight.new_zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32))
    for tap in range(kernel[0]):
        # Output frame i reads frame i * step + offset: the first and last ones for which that frame exists.
        offset = tap - kernel[0] // 2
        first = max(-(offset // stride[0]), 0)
        last = min((x.shape[1] - 1 - offset) // stride[0], grad.shape[1] - 1)
        if last < first:
            continue
        read = slice(first * stride[0] + offset, last * stride[0] + offset + 1, stride[0])
        for sample, sample_grad in zip(x, grad, strict=True):
            total[:, :, tap] += gradient_of_tap(sample_grad[first : last + 1], sample[read], weight, stride)
    return total.to(weight.dtype)


def _tap_gradient_overlapping(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    """Weight gradient [C, 1, kh, kw] of a 2-d convolution of x [n, h, w, C], given grad [n, h', w', C]."""
    channels = x.shape[3]
    _, gradient, _ = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weight[:, :, 0],
        None,
        stride[1:],
        [size // 2 for size in weight.shape[3:]],
        (1, 1),
        False,
        (0, 0),
        channels,
        (False, True, False),
    )
    return gradient


def _tap_gradient_apart(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    """The same where a position of x is touched by one window at most."""
    gradient = weight.new_zeros(weight.shape[:2] + weight.shape[3:], dtype=torch.float32)
    for row in range(weight.shape[3]):
        rows, grad_rows = _touched(x.shape[1], grad.shape[1], row - weight.shape[3] // 2, stride[1])
        for column in range(weight.shape[4]):
            columns, grad_columns = _touched(
                x.shape[2], grad.shape[2], column - weight.shape[4] // 2, stride[2]
            )
            products = x[:, rows, columns] * grad[:, grad_rows, grad_columns]  # [n, h', w', C]
            gradient[:, 0, row, column] = products.sum((0, 1, 2), dtype=torch.float32)
    return gradient


def _touched(length: int, outputs: int, offset: int, step: int) -> tuple[slice, slice]:
    """Which positions a tap at ``offset`` reads, and the outputs that they go to."""
    first = max(-(offset // step), 0)
    last = min((length - 1 - offset) // step, outputs - 1)
    return slice(first * step + offset, last * step + offset + 1, step), slice(first, last + 1)
