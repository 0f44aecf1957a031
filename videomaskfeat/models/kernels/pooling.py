"""Depthwise pooling convolution on tokens, with fast forward and backward passes on the CPU.

In the plain layer (tokens to image layout, `torch.nn.Conv3d`, and back) the backward pass takes ten times as
long as the forward pass, and several times more in bfloat16: oneDNN has no fast kernel for the gradients of
a three-dimensional depthwise convolution. The passes here use kernels that it has:

- forward: the convolution on the channels-last *view* of the tokens, without a copy;
- input gradient: a forward convolution of the output's gradient (with zeros inserted for the stride) with
  the flipped kernel;
- weight gradient: for each time tap, that of a *two*-dimensional depthwise convolution.

If windows do not overlap in space (a 3x3 window every 4 or 8 positions, in keys and values of the first
blocks), all three are products over the positions that are read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting

from videomaskfeat.models.positions import constant_table

Stride = tuple[int, int, int]

_SMALL_GRID = 32
"""Positions of a grid up to which a product over the batch is faster than a call per sample and time tap."""


class Pool(NamedTuple):
    """A depthwise convolution of consecutive channels of tokens, padded by half the kernel.

    weight: [width, 1, kt, kh, kw], odd kernel sizes; cast to the tokens' type (bfloat16 under autocast, with
        float32 sums).
    width: number of channels; an integer also while tracing, where shapes are not.
    stride: steps in t, h, w.
    """

    weight: Tensor
    width: int
    stride: Stride


def pool_tokens(tokens: Tensor, prefix: int, grid: Stride, pools: Sequence[Pool]) -> tuple[Tensor, ...]:
    """Depthwise convolutions of channel groups over the token grid; the class token is not pooled.

    First derivatives only.

    Args:
        tokens: float [B, P + t*h*w, C], class token first.
        prefix: number of class tokens, P.
        grid: (t, h, w).
        pools: convolutions of all channels, in order.

    Returns:
        The class token [B, P, C], and per pool [B, t', h', w', width], each axis ``ceil(length / step)``.
    """
    if is_exporting():
        return plain_pool_tokens(tokens, prefix, grid, pools)
    first, *slices = _SplitTokens.apply(tokens, prefix, *(pool.width for pool in pools))
    pooled = (
        depthwise_conv3d(part.unflatten(1, grid), pool.weight, pool.stride)
        for part, pool in zip(slices, pools, strict=True)
    )
    return first, *pooled


def plain_pool_tokens(tokens: Tensor, prefix: int, grid: Stride, pools: Sequence[Pool]) -> tuple[Tensor, ...]:
    """:func:`pool_tokens` in torch's own operators."""
    first, *slices = _slices(tokens, prefix, [pool.width for pool in pools])
    pooled = (
        _convolve(part.unflatten(1, grid), pool.weight.to(part.dtype), pool.stride)
        for part, pool in zip(slices, pools, strict=True)
    )
    return first, *pooled


def _slices(tokens: Tensor, prefix: int, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """Views of the class token, and of consecutive channels of the other tokens."""
    ends = list(itertools.accumulate(widths))
    starts = [0, *ends[:-1]]
    slices = (tokens[:, prefix:, start:end] for start, end in zip(starts, ends, strict=True))
    return tokens[:, :prefix], *slices


class _SplitTokens(torch.autograd.Function):
    """:func:`_slices` with gradients joined in one pass."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, prefix: int, *widths: int) -> tuple[Tensor, ...]:
        ctx.prefix, ctx.widths = prefix, widths
        return _slices(tokens, prefix, widths)

    @staticmethod
    def backward(ctx: Any, first: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        joined = first.new_empty(first.shape[0], ctx.prefix + grads[0].shape[1], first.shape[2])
        for part, grad in zip(_slices(joined, ctx.prefix, ctx.widths), (first, *grads), strict=True):
            part.copy_(grad)
        return joined, None, *(None for _ in ctx.widths)


def depthwise_conv3d(x: Tensor, weight: Tensor, stride: Stride) -> Tensor:
    """One convolution of :func:`pool_tokens`.

    Args:
        x: float [B, t, h, w, C], possibly a strided view; contiguous C is fastest.
        weight: [C, 1, kt, kh, kw].
        stride: steps in t, h, w.

    Returns:
        [B, t', h', w', C].
    """
    weight = weight.to(x.dtype)
    if x.device.type == "cpu":
        return _depthwise_conv3d(x, weight, list(stride))
    with torch.autocast(x.device.type, enabled=False):
        return _convolve(x, weight, stride)


@torch.library.custom_op("videomaskfeat::depthwise_conv3d", mutates_args=(), device_types="cpu")
def _depthwise_conv3d(x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        if _windows_lie_apart(weight, stride):
            return _convolve_apart(x, weight, stride)
        return _convolve(x, weight, stride).contiguous()


@torch.library.custom_op("videomaskfeat::depthwise_conv3d_backward", mutates_args=(), device_types="cpu")
def _depthwise_conv3d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; an empty tensor for one that is not needed."""
    none = x.new_empty(0)
    with torch.autocast("cpu", enabled=False):
        apart = _windows_lie_apart(weight, stride)
        input_gradient = _input_gradient_apart if apart else _input_gradient
        weight_gradient = _weight_gradient_apart if apart else _weight_gradient
        grad = grad.contiguous()
        grad_x = input_gradient(grad, x.shape, weight, stride) if needs_input else none
        grad_weight = weight_gradient(grad, x, weight, stride) if needs_weight else none
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
    """`conv3d` on the channels-last view of tokens [B, t, h, w, C], without a copy."""
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
    """Gradient of the weight [C, 1, kt, kh, kw], one time tap at a time."""
    if math.prod(x.shape[1:4]) <= _SMALL_GRID:
        return _weight_gradient_small(grad, x, weight, stride)
    x = x.contiguous()
    total = weight.new_zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32))
    for tap in range(weight.shape[2]):
        frames, grad_frames = _touched(x, grad, weight, stride, axis=0, tap=tap)
        if grad_frames.stop <= grad_frames.start:
            continue
        for sample, sample_grad in zip(x, grad, strict=True):
            _, gradient, _ = torch.ops.aten.convolution_backward(
                sample_grad[grad_frames].permute(0, 3, 1, 2),
                sample[frames].permute(0, 3, 1, 2),
                weight[:, :, 0],
                None,
                stride[1:],
                [size // 2 for size in weight.shape[3:]],
                (1, 1),
                False,
                (0, 0),
                x.shape[4],
                (False, True, False),
            )
            total[:, :, tap] += gradient  # [C, 1, kh, kw]
    return total.to(weight.dtype)


def _weight_gradient_small(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    """:func:`_weight_gradient` of a small grid, in two matrix products per channel for the whole batch."""
    wide = torch.promote_types(x.dtype, torch.float32)
    taps = constant_table(
        _tap_pairs, tuple(x.shape[1:4]), tuple(weight.shape[2:]), tuple(stride), device=x.device
    )
    # torch would copy each of many strided matrices separately
    columns = x.flatten(1, 3).permute(2, 1, 0).to(wide).contiguous()  # [C, N, B]
    rows = grad.flatten(1, 3).permute(2, 0, 1).to(wide).contiguous()  # [C, B, N']
    pairs = torch.bmm(columns, rows).flatten(1)  # [C, N * N'], sums over the batch
    return (pairs @ taps.to(wide)).view(weight.shape).to(weight.dtype)


def _tap_pairs(grid: Stride, kernel: Stride, stride: Stride, *, device: torch.device) -> Tensor:
    """1 where a tap of the kernel connects a position and an output position, float [N * N', taps]."""
    result = torch.ones(1, 1, 1, device=device)
    for length, size, step in zip(grid, kernel, stride, strict=True):
        places = torch.arange(length, device=device)[:, None, None]
        centers = torch.arange(0, length, step, device=device)[None, :, None]
        offsets = torch.arange(size, device=device) - size // 2
        axis = (places == centers + offsets).float()  # [length, length', size]
        result = torch.einsum("abc,xyz->axbycz", result, axis).flatten(4).flatten(2, 3).flatten(0, 1)
    return result.flatten(0, 1)


def leaves_gaps(kernel: Stride, stride: Stride) -> bool:
    """Whether windows do not overlap in space and leave rows or columns unread."""
    return all(step >= size for step, size in zip(stride[1:], kernel[1:], strict=True)) and (
        tuple(stride[1:]) != tuple(kernel[1:])
    )


def find_read_positions(length: int, size: int, step: int, *, device: torch.device) -> Tensor:
    """Positions of an axis in windows of ``size`` around every ``step``-th position, int64; size <= step.

    A convolution with step ``size`` over these positions alone equals one with ``step`` over all.
    """
    centers = torch.arange(0, length, step, device=device)
    windows = (centers[:, None] + torch.arange(size, device=device) - size // 2).flatten()
    beyond = (length - 1) // step * step + size // 2 - (length - 1)
    return windows[size // 2 : len(windows) - max(beyond, 0)]


def _windows_lie_apart(weight: Tensor, stride: list[int]) -> bool:
    """Whether windows do not overlap in space and leave positions unread."""
    (_, step_h, step_w), (height, width) = stride, weight.shape[3:]
    return step_h >= height and step_w >= width and step_h * step_w > 1


def _convolve_apart(x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    """:func:`_convolve` as float32 sums over the positions that are read."""
    lengths = [(length - 1) // step + 1 for length, step in zip(x.shape[1:4], stride, strict=True)]
    wide = torch.promote_types(x.dtype, torch.float32)
    result = x.new_zeros(x.shape[0], *lengths, x.shape[4], dtype=wide)
    for (row, column), places, grad_places in _touched_places(x, result, weight, stride):
        values = x[places].to(wide)  # [B, t, h', w', C]
        for tap in range(weight.shape[2]):
            frames, grad_frames = _touched(x, result, weight, stride, axis=0, tap=tap)
            part = result[:, grad_frames][grad_places]
            part.addcmul_(values[:, frames], weight[:, 0, tap, row, column].to(wide))
    return result.to(x.dtype)


def _input_gradient_apart(grad: Tensor, shape: torch.Size, weight: Tensor, stride: list[int]) -> Tensor:
    """:func:`_input_gradient`; each position that is read is written once."""
    grad_x = grad.new_zeros(shape)
    wide = torch.promote_types(grad.dtype, torch.float32)
    wide_grad = grad.to(wide)
    for (row, column), places, grad_places in _touched_places(grad_x, grad, weight, stride):
        part = torch.zeros_like(grad_x[places], dtype=wide)  # [B, t, h', w', C]
        for tap in range(weight.shape[2]):
            frames, grad_frames = _touched(grad_x, grad, weight, stride, axis=0, tap=tap)
            tap_weight = weight[:, 0, tap, row, column].to(wide)
            part[:, frames].addcmul_(wide_grad[:, grad_frames][grad_places], tap_weight)
        grad_x[places] = part
    return grad_x


def _weight_gradient_apart(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    total = weight.new_zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32))
    wide_grad = grad.to(total.dtype)
    for (row, column), places, grad_places in _touched_places(x, grad, weight, stride):
        values = x[places].to(total.dtype)  # [B, t, h', w', C]
        for tap in range(weight.shape[2]):
            frames, grad_frames = _touched(x, grad, weight, stride, axis=0, tap=tap)
            products = values[:, frames] * wide_grad[:, grad_frames][grad_places]
            total[:, 0, tap, row, column] = products.sum((0, 1, 2, 3))
    return total.to(weight.dtype)


def _touched_places(
    x: Tensor, result: Tensor, weight: Tensor, stride: list[int]
) -> Iterator[tuple[tuple[int, int], tuple[slice, ...], tuple[slice, ...]]]:
    """For each spatial tap: the part of x that it reads, and the part of the result it contributes to."""
    every = slice(None)
    for row, column in itertools.product(range(weight.shape[3]), range(weight.shape[4])):
        rows, result_rows = _touched(x, result, weight, stride, axis=1, tap=row)
        columns, result_columns = _touched(x, result, weight, stride, axis=2, tap=column)
        yield (row, column), (every, every, rows, columns), (every, every, result_rows, result_columns)


def _touched(
    x: Tensor, result: Tensor, weight: Tensor, stride: list[int], *, axis: int, tap: int
) -> tuple[slice, slice]:
    """Positions of x [B, t, h, w, C] that a tap reads on an axis, and those of the result they go to."""
    offset, step = tap - weight.shape[2 + axis] // 2, stride[axis]
    first = max(-(offset // step), 0)
    last = min((x.shape[1 + axis] - 1 - offset) // step, result.shape[1 + axis] - 1)
    last = max(last, first - 1)  # a tap that lies entirely in the padding reads nothing
    start = first * step + offset
    return slice(start, start + (last + 1 - first) * step, step), slice(first, last + 1)
