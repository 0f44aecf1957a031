"""What compiled code assumes of the package's operators: shapes, types and memory layout of their results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.kernels import attention, dense, normed, pooling
from videomaskfeat.models.mvit import MultiScaleBlock

EVERY = [True, True, True, True]
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "attention": (attention._blocked_attention, ((2, 50, 3, 8), (2, 20, 3, 8), (2, 20, 3, 4))),
    "attention_backward": (
        attention._blocked_attention_backward,
        ((2, 50, 3, 4), (2, 50, 3, 8), (2, 20, 3, 8), (2, 20, 3, 4)),
    ),
    "linear": (dense._linear, ((6, 5), (4, 5), (4,))),
    "linear_backward": (dense._linear_backward, ((6, 4), (6, 5), (4, 5), True, True)),
    "gelu_linear": (dense._gelu_linear, ((6, 5), (4, 5), (4,))),
    "gelu_linear_backward": (dense._gelu_linear_backward, ((6, 4), (6, 5), (4, 5), True, True)),
    "normed_linear": (normed._normed_linear, ((6, 5), (5,), (5,), 1e-6, (4, 5), (4,), torch.float32)),
    "normed_linear_backward": (
        normed._normed_linear_backward,
        ((6, 4), (6, 5), (5,), (5,), 1e-6, (4, 5), EVERY),
    ),
    "depthwise_conv3d": (pooling._depthwise_conv3d, ((2, 4, 6, 6, 5), (5, 1, 3, 3, 3), [1, 2, 2])),
    "depthwise_conv3d_backward": (
        pooling._depthwise_conv3d_backward,
        ((2, 4, 3, 3, 5), (2, 4, 6, 6, 5), (5, 1, 3, 3, 3), [1, 2, 2], True, True),
    ),
}


def draw(argument: Any) -> Any:
    return torch.randn(argument) if isinstance(argument, tuple) else argument


@pytest.mark.parametrize("rows_per_block", [2, 8192])
@pytest.mark.parametrize("name", CASES)
def test_fake_results_are_like_the_real_ones(
    name: str, rows_per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_ROWS_PER_BLOCK", rows_per_block)
    operator, arguments = CASES[name]
    real = [draw(one) for one in arguments]
    mode = FakeTensorMode()
    fake = [mode.from_tensor(one) if isinstance(one, Tensor) else one for one in real]
    with mode:
        expected = operator(*fake)
    actual = operator(*real)
    for one, other in zip(*(as_list(results) for results in (actual, expected)), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def as_list(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def test_compiled_block_with_blocked_attention_has_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_FEW_SCORES", 0)
    torch.manual_seed(0)
    grid = TokenGrid(2, 9, 8)
    block = MultiScaleBlock(16, 32, 2, grid=grid, q_stride=(1, 2, 2), kv_stride=(1, 4, 4))
    tokens = torch.randn(2, 1 + grid.size, 16, requires_grad=True)
    inputs = [tokens, *block.parameters()]
    plain = torch.autograd.grad(block(tokens, grid)[0].square().mean(), inputs)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True)
    actual = torch.autograd.grad(compiled(tokens, grid)[0].square().mean(), inputs)
    for mine, theirs in zip(actual, plain, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)  # float32 sums in another order
