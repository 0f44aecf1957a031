"""Depthwise pooling against torch's own convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.reference.pooling import plain_depthwise_conv3d
from videomaskfeat.models.kernels.pooling import depthwise_conv3d

# (grid, kernel, stride): every kind that MViT uses, and odd ones (windows that overlap or not, in time too).
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
    ((2, 4, 4), (1, 1, 1), (1, 1, 1)),
    ((2, 4, 4), (1, 1, 1), (1, 2, 2)),
]


def make_inputs(
    grid: tuple[int, ...], kernel: tuple[int, ...], channels: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *grid, channels, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(channels, 1, *kernel, generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), weight.requires_grad_()


def gradients(output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    upstream = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return torch.autograd.grad(output, (x, weight), upstream)


@pytest.mark.parametrize(("grid", "kernel", "stride"), CASES)
def test_outputs_and_gradients_equal_the_plain_convolution(grid, kernel, stride) -> None:
    x, weight = make_inputs(grid, kernel, channels=20)
    ours, plain = depthwise_conv3d(x, weight, stride), plain_depthwise_conv3d(x, weight, stride)
    # float32 sums of up to a few hundred products of order 1, in another order.
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(gradients(ours, x, weight), gradients(plain, x, weight), strict=True):
        torch.testing.assert_close(mine, theirs, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(("grid", "kernel", "stride"), CASES)
def test_gradients_are_the_derivatives(grid, kernel, stride) -> None:
    x, weight = make_inputs(grid, kernel, channels=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: depthwise_conv3d(a, b, stride), (x, weight), fast_mode=True)


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 4, 4)])
def test_bfloat16_stays_near_float32(stride) -> None:
    x, weight = make_inputs((4, 8, 8), (3, 3, 3), channels=32, dtype=torch.bfloat16)
    ours = depthwise_conv3d(x, weight, stride)
    wide_x, wide_weight = (value.detach().float().requires_grad_() for value in (x, weight))
    exact = plain_depthwise_conv3d(wide_x, wide_weight, stride)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, atol=1e-2, rtol=1e-2)  # 8 bits: 1 / 256 of the value
    pairs = zip(gradients(ours, x, weight), gradients(exact, wide_x, wide_weight), strict=True)
    for mine, theirs in pairs:
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine.float() / scale, theirs / scale, atol=1e-2, rtol=1e-2)


def test_strided_views_give_the_same_as_copies() -> None:
    base, weight = make_inputs((4, 6, 6), (3, 3, 3), channels=24)
    weight = weight[:8]
    view = base[..., 8:16]
    ours, copied = (
        depthwise_conv3d(view, weight, (1, 2, 2)),
        depthwise_conv3d(view.clone(), weight, (1, 2, 2)),
    )
    assert torch.equal(ours, copied)
    assert all(
        torch.equal(a, b)
        for a, b in zip(gradients(ours, base, weight), gradients(copied, base, weight), strict=True)
    )


def test_autocast_keeps_the_type_of_the_tokens() -> None:
    x, weight = make_inputs((2, 4, 4), (3, 3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide, narrow = (
            depthwise_conv3d(x, weight, (1, 1, 1)),
            depthwise_conv3d(x.bfloat16(), weight, (1, 1, 1)),
        )
    assert torch.equal(wide, depthwise_conv3d(x, weight, (1, 1, 1)))
    assert narrow.dtype == torch.bfloat16
    narrow.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_only_the_needed_gradients_are_made() -> None:
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
def test_compiles_whole_with_gradients() -> None:
    x, weight = make_inputs((4, 6, 6), (3, 3, 3), channels=8)
    compiled = torch.compile(lambda a, b: depthwise_conv3d(a, b, (1, 2, 2)) * 2, fullgraph=True)
    ours, eager = compiled(x, weight), depthwise_conv3d(x, weight, (1, 2, 2)) * 2
    torch.testing.assert_close(ours, eager, atol=1e-6, rtol=1e-6)
    for mine, theirs in zip(gradients(ours, x, weight), gradients(eager, x, weight), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 4, 4)])
def test_cuda_equals_cpu(stride: tuple[int, int, int]) -> None:
    x, weight = make_inputs((4, 8, 8), (3, 3, 3), channels=16, dtype=torch.float64)
    cpu = depthwise_conv3d(x, weight, stride)
    cuda = depthwise_conv3d(x.cuda(), weight.cuda(), stride).cpu()
    torch.testing.assert_close(cuda, cpu)
    for ours, expected in zip(gradients(cuda, x, weight), gradients(cpu, x, weight), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.cuda
def test_cuda_convolves_in_the_type_of_the_tokens_under_autocast() -> None:
    """Sums of 27 products in float32 of bfloat16 values: 1e-2."""
    x, weight = make_inputs((4, 8, 8), (3, 3, 3), channels=16)
    low = x.detach().cuda().bfloat16()
    with torch.autocast("cuda", torch.bfloat16):
        found = depthwise_conv3d(low, weight.detach().cuda(), (1, 2, 2))
    assert found.dtype == torch.bfloat16
    expected = depthwise_conv3d(low.float().cpu(), weight.detach().bfloat16().float(), (1, 2, 2))
    torch.testing.assert_close(found.float().cpu(), expected, atol=1e-2, rtol=1e-2)
