"""The linear function against its plain version, and the layers on it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.autograd import assert_same_gradients, tensors_saved
from videomaskfeat.models.kernels import dense
from videomaskfeat.models.kernels.dense import linear, plain_linear
from videomaskfeat.models.layers import GeluLinear, Linear


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 4, 5)])
def test_linear_equals_its_plain_version(shape: tuple[int, ...], bias: bool, gelu: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(5, 7, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    ours, plain = (function(x, layer.weight, layer.bias, gelu=gelu) for function in (linear, plain_linear))
    expected = torch.nn.functional.linear(F.gelu(x) if gelu else x, layer.weight, layer.bias)
    assert torch.equal(plain, expected)
    assert_same_gradients(ours, plain, [x, *layer.parameters()])


@pytest.mark.parametrize("rows", [0, 1, 7, 9])
def test_gelu_linear_in_several_blocks_of_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_ROWS_PER_BLOCK", 3)
    torch.manual_seed(0)
    layer = GeluLinear(5, 7)
    x = torch.randn(rows, 5, requires_grad=True)
    expected = F.linear(F.gelu(x), layer.weight, layer.bias)
    assert_same_gradients(layer(x), expected, [x, *layer.parameters()])


def test_gelu_linear_stores_no_activations() -> None:
    layer = GeluLinear(64, 2)
    x = torch.randn(100, 64, requires_grad=True)
    wide = {tensor.data_ptr() for tensor in tensors_saved(lambda: layer(x)) if tensor.shape == x.shape}
    assert wide == {x.data_ptr()}
    with torch.autocast("cpu", dtype=torch.bfloat16):  # without a copy of the weights
        stored = tensors_saved(lambda: layer(x))
    weights = [tensor for tensor in stored if tensor.shape == layer.weight.shape]
    assert [tensor.data_ptr() for tensor in weights] == [layer.weight.data_ptr()]


def test_gelu_linear_follows_autocast() -> None:
    """Values and gradients equal GELU and linear on inputs and weights cast by autocast."""
    layer = GeluLinear(16, 3)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = layer(x)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), layer(x), atol=2e-2, rtol=0)
    plain = F.linear(F.gelu(x.bfloat16()), layer.weight.bfloat16(), layer.bias.bfloat16())
    # bfloat16 has three digits.
    assert_same_gradients(narrow.float(), plain.float(), [x, *layer.parameters()], atol=2e-2, rtol=2e-2)


def test_linear_with_frozen_inputs_has_the_other_gradients() -> None:
    layer = Linear(4, 3)
    layer.weight.requires_grad_(False)
    layer(torch.randn(2, 4)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 2.0))


def test_linear_follows_autocast() -> None:
    layer = Linear(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 4)).dtype == torch.bfloat16
    assert layer.double()(torch.randn(2, 4).double()).dtype == torch.float64


def test_linear_without_onednn_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(4, 3)
    x = torch.randn(2, 4)
    monkeypatch.setattr(dense, "_ONEDNN", False)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [("linear", torch.float32), ("gelu_linear", torch.float32), ("gelu_linear", torch.bfloat16)],
)
def test_custom_operators_are_registered_soundly(operator: str, dtype: torch.dtype) -> None:
    """With x and bias in ``dtype``, and weights of a wider type."""
    shapes = {(6, 5): dtype, (4, 5): torch.float32, (4,): dtype}
    arguments = [torch.randn(shape, dtype=kind).requires_grad_() for shape, kind in shapes.items()]
    torch.library.opcheck(getattr(torch.ops.videomaskfeat, operator).default, tuple(arguments))
