"""Depthwise pooling against its plain version."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.autograd import assert_same_gradients
from videomaskfeat.models.kernels.pooling import (
    Pool,
    depthwise_conv3d,
    find_read_positions,
    leaves_gaps,
    plain_pool_tokens,
    pool_tokens,
)

Triple = tuple[int, int, int]
# (grid, kernel, stride): all kinds in MViT, and others with and without overlapping windows.
CASES = [
    ((4, 6, 6), (3, 3, 3), (1, 1, 1)),
    ((4, 6, 6), (3, 3, 3), (1, 2, 2)),
    ((4, 8, 8), (3, 3, 3), (1, 4, 4)),
    ((4, 16, 8), (3, 3, 3), (1, 8, 8)),
    ((4, 8, 8), (3, 3, 3), (2, 8, 4)),
    ((5, 7, 9), (3, 3, 3), (2, 2, 3)),
    ((3, 7, 5), (3, 5, 3), (1, 4, 3)),
    ((1, 7, 7), (1, 3, 3), (1, 2, 2)),
    ((1, 5, 5), (3, 3, 3), (1, 1, 1)),
    ((2, 4, 4), (3, 3, 3), (1, 1, 1)),  # the pico model
    ((2, 4, 4), (3, 3, 3), (1, 2, 2)),
    ((3, 2, 5), (3, 1, 5), (2, 1, 2)),
    ((2, 4, 4), (1, 1, 1), (1, 1, 1)),
    ((2, 4, 4), (1, 1, 1), (1, 2, 2)),
]


def make_inputs(
    grid: Triple, kernel: Triple, channels: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *grid, channels, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(channels, 1, *kernel, generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), weight.requires_grad_()


def plain(x: Tensor, weight: Tensor, stride: Triple) -> Tensor:
    """``depthwise_conv3d`` by the plain version."""
    grid = (x.shape[1], x.shape[2], x.shape[3])
    return plain_pool_tokens(x.flatten(1, 3), 0, grid, [Pool(weight, len(weight), stride)])[1]


@pytest.mark.parametrize(("grid", "kernel", "stride"), CASES)
def test_outputs_and_gradients_equal_the_plain_convolution(
    grid: Triple, kernel: Triple, stride: Triple
) -> None:
    x, weight = make_inputs(grid, kernel, channels=20)
    # float32 sums of up to a few hundred products of order 1, in another order.
    assert_same_gradients(
        depthwise_conv3d(x, weight, stride), plain(x, weight, stride), [x, weight], atol=5e-5
    )
    padding = [size // 2 for size in kernel]
    image = x.detach().permute(0, 4, 1, 2, 3).contiguous()
    expected = torch.nn.functional.conv3d(image, weight, None, stride, padding, 1, 20)
    torch.testing.assert_close(
        plain(x, weight, stride), expected.permute(0, 2, 3, 4, 1), atol=1e-5, rtol=1e-5
    )
    x, weight = make_inputs(grid, kernel, channels=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: depthwise_conv3d(a, b, stride), (x, weight), fast_mode=True)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("widths", [(2, 4), (6,), (1, 2, 3)])
def test_each_channel_has_its_own_weight(prefix: int, widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    grid = (2, 4, 4)
    tokens = torch.randn(2, prefix + 32, sum(widths), requires_grad=True)
    weights = [torch.randn(width, 1, 3, 3, 3, requires_grad=True) for width in widths]
    strides: list[Triple] = [(1, 2, 2), (1, 4, 4), (1, 1, 1)][: len(widths)]
    pools = [Pool(*each) for each in zip(weights, widths, strides, strict=True)]
    results, expected = (
        torch.cat([part.flatten() for part in function(tokens, prefix, grid, pools)])
        for function in (pool_tokens, plain_pool_tokens)
    )
    assert_same_gradients(results, expected, [tokens, *weights])
    start = widths[0]
    alone = depthwise_conv3d(tokens[:, prefix:, :start].unflatten(1, grid), weights[0], strides[0])
    first, pooled, *_ = pool_tokens(tokens, prefix, grid, pools)
    assert torch.equal(first, tokens[:, :prefix])
    assert torch.equal(pooled, alone)


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 4, 4)])
@pytest.mark.parametrize("grid", [(4, 8, 8), (2, 4, 4)])
def test_bfloat16_stays_near_float32(grid: Triple, stride: Triple) -> None:
    x, weight = make_inputs(grid, (3, 3, 3), channels=32, dtype=torch.bfloat16)
    ours = depthwise_conv3d(x, weight, stride)
    wide_x, wide_weight = (value.detach().float().requires_grad_() for value in (x, weight))
    exact = plain(wide_x, wide_weight, stride)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, atol=1e-2, rtol=1e-2)  # 8 bits: relative error 1 / 256
    upstream = torch.linspace(-1, 1, exact.numel()).view(exact.shape)
    actual = torch.autograd.grad(ours, (x, weight), upstream.bfloat16())
    expected = torch.autograd.grad(exact, (wide_x, wide_weight), upstream)
    for mine, theirs in zip(actual, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine.float() / scale, theirs / scale, atol=1e-2, rtol=1e-2)


def test_strided_views_equal_copies() -> None:
    base, weight = make_inputs((4, 6, 6), (3, 3, 3), channels=24)
    weight = weight[:8]
    view = base[..., 8:16]
    ours, copied = (depthwise_conv3d(x, weight, (1, 2, 2)) for x in (view, view.clone()))
    assert_same_gradients(ours, copied, [base, weight], atol=0, rtol=0)


def test_autocast_keeps_the_type_of_the_tokens() -> None:
    x, weight = make_inputs((2, 4, 4), (3, 3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide, narrow = (depthwise_conv3d(tokens, weight, (1, 1, 1)) for tokens in (x, x.bfloat16()))
    assert torch.equal(wide, depthwise_conv3d(x, weight, (1, 1, 1)))
    assert narrow.dtype == torch.bfloat16
    narrow.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_only_needed_gradients_are_computed() -> None:
    x, weight = make_inputs((2, 4, 4), (3, 3, 3))
    depthwise_conv3d(x.detach(), weight, (1, 1, 1)).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    alone = weight.grad.clone()
    depthwise_conv3d(x, weight.detach(), (1, 1, 1)).sum().backward()
    assert x.grad is not None
    assert torch.equal(weight.grad, alone)


def test_custom_operator_is_registered_soundly() -> None:
    x, weight = make_inputs((3, 5, 6), (3, 3, 3))
    torch.library.opcheck(torch.ops.videomaskfeat.depthwise_conv3d.default, (x, weight, [1, 2, 2]))


@pytest.mark.slow
def test_compiles_with_gradients_in_one_graph() -> None:
    x, weight = make_inputs((4, 6, 6), (3, 3, 3), channels=8)
    compiled = torch.compile(lambda a, b: depthwise_conv3d(a, b, (1, 2, 2)) * 2, fullgraph=True)
    eager = depthwise_conv3d(x, weight, (1, 2, 2)) * 2
    assert_same_gradients(compiled(x, weight), eager, [x, weight], atol=1e-6, rtol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 4, 4)])
def test_cuda_equals_cpu(stride: Triple) -> None:
    x, weight = make_inputs((4, 8, 8), (3, 3, 3), channels=16, dtype=torch.float64)
    cuda = depthwise_conv3d(x.cuda(), weight.cuda(), stride).cpu()
    assert_same_gradients(cuda, depthwise_conv3d(x, weight, stride), [x, weight], atol=1e-7, rtol=1e-7)


@pytest.mark.cuda
def test_cuda_convolves_in_the_type_of_the_tokens_under_autocast() -> None:
    """float32 sums of 27 products of bfloat16 values: tolerance 1e-2."""
    x, weight = make_inputs((4, 8, 8), (3, 3, 3), channels=16)
    low = x.detach().cuda().bfloat16()
    with torch.autocast("cuda", torch.bfloat16):
        actual = depthwise_conv3d(low, weight.detach().cuda(), (1, 2, 2))
    assert actual.dtype == torch.bfloat16
    expected = depthwise_conv3d(low.float().cpu(), weight.detach().bfloat16().float(), (1, 2, 2))
    torch.testing.assert_close(actual.float().cpu(), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 10, 56])
@pytest.mark.parametrize(("size", "step"), [(3, 4), (3, 8), (1, 2), (5, 8), (3, 3)])
def test_positions_read_are_those_of_the_windows(length: int, size: int, step: int) -> None:
    """Listed by hand; and a convolution with step ``size`` over them equals one over all positions."""
    windows = [range(center - size // 2, center + size // 2 + 1) for center in range(0, length, step)]
    expected = [place for window in windows for place in window if 0 <= place < length]
    positions = find_read_positions(length, size, step, device=torch.device("cpu"))
    assert positions.tolist() == expected
    x, weight = torch.randn(1, 1, length), torch.randn(1, 1, size)
    whole = torch.nn.functional.conv1d(x, weight, stride=step, padding=size // 2)
    packed = torch.nn.functional.conv1d(x[..., positions], weight, stride=size, padding=size // 2)
    torch.testing.assert_close(packed, whole, atol=1e-6, rtol=1e-6)  # sums of five float32 values


@pytest.mark.parametrize(
    ("stride", "expected"),
    [((1, 4, 4), True), ((1, 3, 4), True), ((1, 3, 3), False), ((1, 2, 8), False), ((8, 1, 1), False)],
)
def test_gaps_are_those_between_windows_of_three(stride: Triple, expected: bool) -> None:
    assert leaves_gaps((3, 3, 3), stride) == expected
