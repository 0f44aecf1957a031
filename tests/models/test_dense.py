"""Linear layers and attention against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.models.kernels import dense
from videomaskfeat.models.kernels.dense import GeluLinear, Linear, attention


def make_heads(
    queries: int = 37,
    keys: int = 11,
    width: int = 6,
    value_width: int = 4,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, queries, 3, width), (2, keys, 3, width), (2, keys, 3, value_width)]
    heads = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [head.requires_grad_() for head in heads]


@pytest.fixture(params=["blocks", "at once"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of attention sees both ways; these sizes alone would always take the second."""
    if request.param == "blocks":
        monkeypatch.setattr(dense, "_FEW_SCORES", 0)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bnmd,bkmd->bmnk", q, k)
    return torch.einsum("bmnk,bkmd->bnmd", scores.softmax(dim=-1), v)


@pytest.mark.parametrize("scores_at_once", [2**20, 64, 1])
def test_attention_equals_the_formula_in_any_number_of_blocks(
    scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_SCORES_AT_ONCE", scores_at_once)
    heads = make_heads()
    ours, plain = attention(*heads), plain_attention(*heads)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    upstream = torch.linspace(-1, 1, plain.numel()).view(plain.shape)
    pairs = zip(
        torch.autograd.grad(ours, heads, upstream), torch.autograd.grad(plain, heads, upstream), strict=True
    )
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_attention_gradients_are_the_derivatives() -> None:
    assert torch.autograd.gradcheck(
        attention, make_heads(queries=5, keys=4, dtype=torch.float64), fast_mode=True
    )


def test_attention_reads_strided_heads() -> None:
    base = torch.randn(2, 9, 3, 18, generator=torch.Generator().manual_seed(0))
    q, k, v = base.split([7, 7, 4], dim=-1)
    torch.testing.assert_close(attention(q, k, v), plain_attention(q, k, v), atol=1e-5, rtol=1e-5)


def test_attention_under_autocast_is_in_bfloat16_and_near_float32() -> None:
    heads = make_heads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = attention(*heads)
    exact = plain_attention(*heads)
    assert ours.dtype == torch.bfloat16
    # The scores, of size up to 10 here, are rounded to 8 bits as in unfused attention.
    torch.testing.assert_close(ours.float(), exact, atol=4e-2, rtol=0)
    pairs = zip(
        torch.autograd.grad(ours.float().square().sum(), heads),
        torch.autograd.grad(exact.square().sum(), heads),
        strict=True,
    )
    for mine, theirs in pairs:
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 4, 5)])
def test_linear_equals_torchs(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, plain = Linear(5, 7, bias=bias), nn.Linear(5, 7, bias=bias)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(shape, requires_grad=True)
    results = [layer(x) for layer in (ours, plain)]
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)
    gradients = [
        torch.autograd.grad(result.square().sum(), [x, *layer.parameters()])
        for result, layer in zip(results, (ours, plain), strict=True)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_gelu_linear_equals_the_two_in_turn(bias: bool) -> None:
    torch.manual_seed(0)
    layer = GeluLinear(5, 7, bias=bias)
    x = torch.randn(2, 3, 5, requires_grad=True)
    ours, plain = layer(x), F.linear(F.gelu(x), layer.weight, layer.bias)
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)
    leaves = [x, *layer.parameters()]
    pairs = zip(
        torch.autograd.grad(ours.square().sum(), leaves),
        torch.autograd.grad(plain.square().sum(), leaves),
        strict=True,
    )
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_gelu_linear_stores_nothing_that_it_can_compute() -> None:
    layer = GeluLinear(64, 2)
    x = torch.randn(100, 64, requires_grad=True)
    stored: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t) or t, lambda t: t):
        layer(x)
    wide = {tensor.data_ptr() for tensor in stored if tensor.shape == x.shape}
    assert wide == {x.data_ptr()}


def test_gelu_linear_under_autocast_stores_no_copy_of_its_weights() -> None:
    layer = GeluLinear(64, 2)
    stored: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t) or t, lambda t: t)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(100, 64, requires_grad=True))
    weights = [tensor for tensor in stored if tensor.shape == layer.weight.shape]
    assert [tensor.data_ptr() for tensor in weights] == [layer.weight.data_ptr()]


def test_gelu_linear_follows_autocast() -> None:
    """Values and gradients are those of the two in turn on what autocast makes of weights and inputs."""
    layer = GeluLinear(16, 3)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = layer(x)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), layer(x), atol=2e-2, rtol=0)
    plain = F.linear(F.gelu(x.bfloat16()), layer.weight.bfloat16(), layer.bias.bfloat16())
    leaves = [x, *layer.parameters()]
    pairs = zip(
        torch.autograd.grad(narrow.float().square().sum(), leaves),
        torch.autograd.grad(plain.float().square().sum(), leaves),
        strict=True,
    )
    for mine, theirs in pairs:
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=2e-2, rtol=2e-2)  # three digits of bfloat16


def test_linear_with_parts_frozen_gives_the_other_gradients() -> None:
    layer = Linear(4, 3)
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 2.0))


def test_linear_follows_autocast() -> None:
    layer = Linear(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 4)).dtype == torch.bfloat16
    assert layer.double()(torch.randn(2, 4).double()).dtype == torch.float64


def test_linear_without_onednn_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(4, 3)
    x = torch.randn(2, 4)
    monkeypatch.setattr(dense, "_ONEDNN", False)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("operator", ["attention", "linear", "gelu_linear"])
def test_custom_operators_are_registered_soundly(operator: str) -> None:
    arguments = make_heads()
    if operator != "attention":
        arguments = [torch.randn(shape).requires_grad_() for shape in [(6, 5), (4, 5), (4,)]]
    torch.library.opcheck(getattr(torch.ops.videomaskfeat, operator).default, tuple(arguments))


def test_gelu_linear_with_weights_of_a_wider_type_is_registered_soundly() -> None:
    shapes = {(6, 5): torch.bfloat16, (4, 5): torch.float32, (4,): torch.bfloat16}
    arguments = [torch.randn(shape, dtype=kind).requires_grad_() for shape, kind in shapes.items()]
    torch.library.opcheck(torch.ops.videomaskfeat.gelu_linear.default, tuple(arguments))


@pytest.mark.cuda
def test_attention_on_cuda_equals_the_cpu() -> None:
    heads = make_heads(width=30, value_width=24)
    cpu, cuda = attention(*heads), attention(*(x.cuda() for x in heads)).cpu()
    torch.testing.assert_close(cuda, cpu, atol=1e-4, rtol=1e-4)
    upstream = torch.linspace(-1, 1, cpu.numel()).view(cpu.shape)
    for ours, expected in zip(*(torch.autograd.grad(x, heads, upstream) for x in (cuda, cpu)), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.cuda
def test_attention_on_cuda_is_fused_under_autocast() -> None:
    """In bfloat16, to its precision, and without a matrix of scores: 2 x 3 x 4096 x 4096 would be 200 MB."""
    heads = make_heads(queries=4096, keys=4096, width=30, value_width=24)
    on_gpu = [x.detach().cuda() for x in heads]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        found = attention(*on_gpu)
    assert torch.cuda.max_memory_allocated() - before < 50e6
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float().cpu(), attention(*heads).detach(), atol=3e-2, rtol=3e-2)
