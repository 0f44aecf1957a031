"""The linear layer after a layer norm against torch's own operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.autograd import assert_same_gradients, tensors_saved
from videomaskfeat.models.kernels import dense
from videomaskfeat.models.kernels.normed import normed_linear


def make(width: int, out: int, *, bias: bool = True) -> tuple[nn.LayerNorm, nn.Linear]:
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(width, eps=1e-3), nn.Linear(width, out, bias=bias)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm, layer


@pytest.mark.parametrize("rows_per_block", [3, 8192])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 4, 5), (0, 5)])
def test_values_and_gradients_equal_norm_and_layer(
    shape: tuple[int, ...], bias: bool, rows_per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_ROWS_PER_BLOCK", rows_per_block)
    norm, layer = make(5, 7, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    ours, expected = normed_linear(x, norm, layer.weight, layer.bias), layer(norm(x))
    assert_same_gradients(ours, expected, [x, *norm.parameters(), *layer.parameters()])


def test_each_gradient_can_be_left_out() -> None:
    for chosen in range(5):
        norm, layer = make(5, 7)
        x = torch.randn(4, 5, requires_grad=True)
        tensors = [x, *norm.parameters(), *layer.parameters()]
        for number, tensor in enumerate(tensors):
            tensor.requires_grad_(number == chosen)
        ours, expected = normed_linear(x, norm, layer.weight, layer.bias), layer(norm(x))
        assert_same_gradients(ours, expected, [tensors[chosen]])


def test_gradients_are_the_derivatives() -> None:
    norm, layer = make(5, 3)
    norm, layer = norm.double(), layer.double()

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return normed_linear(x, norm, layer.weight, layer.bias)

    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *norm.parameters(), *layer.parameters()))


def test_only_the_input_is_stored() -> None:
    norm, layer = make(64, 32)
    x = torch.randn(100, 64, requires_grad=True)
    stored = tensors_saved(lambda: normed_linear(x, norm, layer.weight, layer.bias))
    assert {tensor.data_ptr() for tensor in stored if len(tensor) == len(x)} == {x.data_ptr()}
    with torch.autocast("cpu", dtype=torch.bfloat16):  # without copies of input and weights
        stored = tensors_saved(lambda: normed_linear(x, norm, layer.weight, layer.bias))
    assert {tensor.dtype for tensor in stored} == {torch.float32}
    assert {tensor.data_ptr() for tensor in stored if len(tensor) == len(x)} == {x.data_ptr()}


def test_it_follows_autocast() -> None:
    """Values and gradients equal norm and layer on values that autocast rounds."""
    norm, layer = make(16, 3)
    x = torch.randn(8, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = normed_linear(x, norm, layer.weight, layer.bias)
    assert narrow.dtype == torch.bfloat16
    plain = F.linear(norm(x).bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())
    # bfloat16 has three digits.
    inputs = [x, *norm.parameters(), *layer.parameters()]
    assert_same_gradients(narrow.float(), plain.float(), inputs, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_gradients_of_the_norm_are_summed_in_float32(weights: torch.dtype) -> None:
    """Over 25,000 tokens in bfloat16, where sums in bfloat16 are wrong by 15 to 40 %."""
    norm, layer = make(64, 64)
    norm.to(weights)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(64))
    x = torch.randn(25_000, 64).bfloat16()
    upstream = (0.01 * torch.randn(25_000, 64) + 0.0005).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = normed_linear(x, norm, layer.weight, layer.bias)
    actual = torch.autograd.grad(result, list(norm.parameters()), upstream)
    wide = x.double()
    normalized = (wide - wide.mean(1, keepdim=True)) * (
        wide.var(1, correction=0, keepdim=True) + 1e-3
    ).rsqrt()
    expected = (upstream.double() * normalized).sum(0), upstream.double().sum(0)
    for mine, exact in zip(actual, expected, strict=True):
        # float32 sums; a gradient in bfloat16 has 8 bits.
        assert (mine - exact).norm() < (1e-4 if weights == torch.float32 else 4e-3) * exact.norm()


def test_a_norm_without_bias_is_supported() -> None:
    norm, layer = nn.LayerNorm(5, bias=False), nn.Linear(5, 7)
    x = torch.randn(4, 5, requires_grad=True)
    ours = normed_linear(x, norm, layer.weight, layer.bias)
    assert_same_gradients(ours, layer(norm(x)), [x, *norm.parameters(), *layer.parameters()])


def test_without_a_norm_it_is_the_layer() -> None:
    _, layer = make(5, 7)
    x = torch.randn(4, 5, requires_grad=True)
    ours = normed_linear(x, None, layer.weight, layer.bias)
    assert_same_gradients(ours, layer(x), [x, *layer.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_custom_operator_is_registered_soundly(dtype: torch.dtype) -> None:
    norm, layer = make(5, 7)
    x = torch.randn(6, 5, requires_grad=True)
    bias = layer.bias.detach().to(dtype).requires_grad_()
    arguments = (x, norm.weight, norm.bias, norm.eps, layer.weight, bias, dtype)
    torch.library.opcheck(torch.ops.videomaskfeat.normed_linear.default, arguments)
