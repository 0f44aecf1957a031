"""The layer norm of the models against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.autograd import assert_same_gradients, tensors_saved
from videomaskfeat.models import create_model
from videomaskfeat.models.norms import LayerNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_over_25000_tokens_are_exact(dtype: torch.dtype) -> None:
    """In bfloat16, torch's own are wrong by 15 to 40 %."""
    torch.manual_seed(0)
    norm = LayerNorm(64, eps=1e-6)
    nn.init.normal_(norm.weight)
    x = torch.randn(25_000, 64).to(dtype)
    upstream = (0.01 * torch.randn(25_000, 64) + 0.0005).to(dtype)
    actual = torch.autograd.grad(norm(x), list(norm.parameters()), upstream)
    wide = x.double()
    variance = wide.var(1, correction=0, keepdim=True)
    normalized = (wide - wide.mean(1, keepdim=True)) * (variance + 1e-6).rsqrt()
    for mine, terms in zip(actual, (upstream.double() * normalized, upstream.double()), strict=True):
        exact = terms.sum(0)
        assert (mine - exact).norm() < 1e-4 * exact.norm()  # float32 sums
    torch.testing.assert_close(
        norm(x), (normalized * norm.weight + norm.bias).to(dtype), atol=1e-4, rtol=1e-2
    )


@pytest.mark.parametrize("chosen", range(3))
def test_bfloat16_stores_its_input_and_has_the_gradients_of_float32(chosen: int) -> None:
    torch.manual_seed(0)
    norm = LayerNorm(16, eps=1e-3)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 7, 16).bfloat16().requires_grad_()
    tensors = [x, *norm.parameters()]
    for number, tensor in enumerate(tensors):
        tensor.requires_grad_(number == chosen)
    assert {tensor.data_ptr() for tensor in tensors_saved(lambda: norm(x))} == {
        tensor.data_ptr() for tensor in tensors
    }
    exact = nn.functional.layer_norm(x.float(), (16,), norm.weight, norm.bias, 1e-3)
    # bfloat16 has three digits.
    assert_same_gradients(norm(x).float(), exact, [tensors[chosen]], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["vit_pico", "hiera_pico"])
def test_models_in_bfloat16_run_on_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    clips = torch.randn(1, 3, 4, 32, 32)
    exact = model(clips)
    actual = model.bfloat16()(clips.bfloat16())
    assert actual.dtype == torch.bfloat16
    assert (actual - exact).norm() < 0.05 * exact.norm()  # twelve layers of values with 8 bits


@pytest.mark.parametrize("name", ["maskfeat_mvitv2_nano", "mae_vit_pico", "mae_hiera_pico", "mvitv2_nano"])
def test_every_norm_of_a_model_has_exact_gradients(name: str) -> None:
    norms = [module for module in create_model(name).modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    assert {type(norm) for norm in norms} == {LayerNorm}
