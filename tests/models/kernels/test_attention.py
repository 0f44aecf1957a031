"""Attention against its plain version and the formula, with and without relative positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.autograd import assert_same_gradients
from videomaskfeat.models.kernels import attention as kernel
from videomaskfeat.models.kernels.attention import Relative, attention, plain_attention


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def make_heads(
    queries: int = 37,
    keys: int = 11,
    width: int = 6,
    value_width: int = 4,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, queries, 3, width), (2, keys, 3, width), (2, keys, 3, value_width)]
    return [draw(*shape, dtype=dtype) for shape in shapes]


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bnmd,bkmd->bmnk", q, k)
    return torch.einsum("bmnk,bkmd->bnmd", scores.softmax(dim=-1), v)


@pytest.fixture(params=["blocks", "at once"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use both CPU implementations; inputs this small would always use the second."""
    if request.param == "blocks":
        monkeypatch.setattr(kernel, "_FEW_SCORES", 0)


pytestmark = pytest.mark.usefixtures("_both_ways")


@pytest.mark.parametrize("scores_per_block", [2**20, 64, 1])
def test_attention_equals_its_plain_version_for_any_block_size(
    scores_per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_SCORES_PER_BLOCK", scores_per_block)
    heads = make_heads()
    assert_same_gradients(plain_attention(*heads), formula(*heads), heads)
    assert_same_gradients(attention(*heads), formula(*heads), heads)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("axes", ["thw", "hw", "t", ""])
def test_relative_positions_equal_the_formula(heads: int, prefix: int, axes: str) -> None:
    torch.manual_seed(0)
    first, rest = draw(2, prefix, heads, 5), draw(2, 2, 3, 4, heads, 5)
    lengths = {"t": (2, 2), "h": (3, 6), "w": (4, 7)}  # queries, keys
    offsets = [draw(*lengths[axis], 5) if axis in axes else None for axis in "thw"]
    k, v = draw(2, 9, heads, 5), draw(2, 9, heads, 4)
    codes = torch.randn(9, sum(lengths[axis][1] for axis in axes), dtype=torch.float64)
    relative = Relative(first, offsets, codes)
    bias = [
        torch.einsum(f"bthwmd,{axis}kd->bthwmk", rest, offset)
        for axis, offset in zip("thw", offsets, strict=True)
        if offset is not None
    ]
    wide = torch.cat([rest, *bias], dim=-1).flatten(1, 3)
    zeros = first.new_zeros(*first.shape[:3], codes.shape[1])
    q = torch.cat([torch.cat([first, zeros], dim=-1), wide], dim=1)
    wide_k = torch.cat([k, codes[:, None].expand(2, -1, heads, -1)], dim=-1)
    expected = formula(q, wide_k, v)
    inputs = [first, rest, k, v, *(offset for offset in offsets if offset is not None)]
    for function in (attention, plain_attention):
        assert_same_gradients(function(rest, k, v, relative), expected, inputs, atol=1e-9)


def test_relative_positions_under_autocast_keep_float32_gradients_of_the_tables() -> None:
    torch.manual_seed(0)
    first, rest, offset = (
        draw(*shape).detach().float() for shape in ((2, 1, 2, 8), (2, 2, 3, 4, 2, 8), (3, 5, 8))
    )
    offset.requires_grad_()
    exact = kernel._widen_queries(first, rest, [None, offset, None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = kernel._widen_queries(first, rest, [None, offset, None])
    assert rounded.dtype == torch.bfloat16
    # bfloat16 has 8 bits; sums of eight values.
    assert_same_gradients(rounded.float(), exact, [offset], atol=5e-2, rtol=1e-2)


def test_gradients_are_the_derivatives() -> None:
    heads = make_heads(queries=5, keys=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(attention, heads, fast_mode=True)


def test_strided_inputs_are_supported() -> None:
    base = torch.randn(2, 9, 3, 18, generator=torch.Generator().manual_seed(0))
    q, k, v = base.split([7, 7, 4], dim=-1)
    torch.testing.assert_close(attention(q, k, v), formula(q, k, v), atol=1e-5, rtol=1e-5)


def test_autocast_in_bfloat16_is_close_to_float32() -> None:
    heads = make_heads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = attention(*heads)
    exact = formula(*heads)
    assert ours.dtype == torch.bfloat16
    # Scores up to 10 are rounded to 8 bits, as in unfused attention.
    torch.testing.assert_close(ours.float(), exact, atol=4e-2, rtol=0)
    actual, expected = (torch.autograd.grad(x.float().square().sum(), heads) for x in (ours, exact))
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_custom_operator_is_registered_soundly() -> None:
    torch.library.opcheck(torch.ops.videomaskfeat.attention.default, tuple(make_heads()))


@pytest.mark.cuda
def test_cuda_equals_the_cpu() -> None:
    heads = make_heads(width=30, value_width=24)
    cuda = attention(*(x.cuda() for x in heads)).cpu()
    assert_same_gradients(cuda, attention(*heads), heads, atol=1e-4, rtol=1e-4)


@pytest.mark.cuda
def test_cuda_is_fused_under_autocast() -> None:
    """In bfloat16, without a score matrix, which would have 2 x 3 x 4096 x 4096 values (200 MB)."""
    heads = make_heads(queries=4096, keys=4096, width=30, value_width=24)
    on_gpu = [x.detach().cuda() for x in heads]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        actual = attention(*on_gpu)
    assert torch.cuda.max_memory_allocated() - before < 50e6
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float().cpu(), attention(*heads).detach(), atol=3e-2, rtol=3e-2)
