"""The MViTv2 encoder and its attention: sizes, names, initial values, and the slow version."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.autograd import assert_same_gradients, tensors_saved
from tests.reference.attention import slow_attention
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models import create_model
from videomaskfeat.models.kernels import attention as kernel
from videomaskfeat.models.mvit import MViT, PooledAttention, max_pool

SMALL: dict[str, Any] = {
    "depth": 4,
    "width": 8,
    "widen_at": (1, 3),
    "q_pool_at": (1, 3),
    "clip_size": (4, 32, 32),
    "kv_stride": (1, 4, 4),
}


def small(**changes: Any) -> MViT:
    torch.manual_seed(0)
    return MViT(**{**SMALL, **changes})


@pytest.mark.parametrize("clip", [(4, 32, 32), (6, 32, 48), (10, 64, 40), (2, 16, 16)])
@pytest.mark.parametrize("absolute", ["none", "joint", "separable"])
def test_any_clip_size_goes_through(clip: tuple[int, int, int], absolute: str) -> None:
    model = small(absolute_positions=absolute)
    tokens = model(torch.randn(2, 3, *clip))
    grid = model.output_grid(clip)
    assert grid == TokenGrid(clip[0] // 2, -(-clip[1] // 16), -(-clip[2] // 16))
    assert tokens.shape == (2, 1 + grid.size, 32)
    assert tokens.isfinite().all()


def test_encoder_without_class_token_or_relative_positions_is_built() -> None:
    model = small(class_token=False, relative_space=False, relative_time=False, absolute_positions="joint")
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "rel_pos" in name or "cls" in name]
    assert model(torch.randn(1, 3, 4, 32, 32)).shape == (1, 8, 32)


def test_tables_of_positions_do_not_grow_the_model_at_another_size() -> None:
    model = small()
    before = set(model.state_dict())
    model(torch.randn(1, 3, 8, 64, 48))
    assert set(model.state_dict()) == before
    assert not list(model.buffers())


def test_inference_mode_first_does_not_spoil_training() -> None:
    model = small()
    with torch.inference_mode():
        model(torch.randn(1, 3, 4, 48, 80))  # a size that no other test has cached
    model(torch.randn(1, 3, 4, 48, 80)).sum().backward()


def test_output_stride_and_output_grid_agree() -> None:
    model = small()
    assert model.output_stride == (2, 16, 16)
    assert model.token_grid((2, 3, 4, 32, 48)) == TokenGrid(2, 8, 12)
    assert model.output_grid((2, 3, 4, 32, 48)) == TokenGrid(2, 2, 3)


def test_initial_values_follow_the_published_recipe() -> None:
    model = create_model("maskfeat_mvitv2_nano", linear_std=0.02)
    parameters = dict(model.named_parameters())
    for name, value in parameters.items():
        head = name.startswith("pred_head")
        if "norm" in name or "transforms" in name:
            expected = 1.0 if name.endswith("weight") else 0.0 if head else 0.02
            assert (value == expected).all(), name
        elif name.endswith("bias") and name != "patch_embed.proj.bias":
            assert (value == (0.0 if head else 0.02)).all(), name
        elif value.numel() > 2000:
            # A normal of 0.02 cut at 2 (100 standard deviations) is a plain normal.
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(value.mean().item()) < 2e-3, name


def test_parameters_have_pyslowfast_names() -> None:
    block = {
        *(f"norm{half}.{kind}" for half in (1, 2) for kind in ("weight", "bias")),
        *(f"mlp.fc{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")),
        *("proj.weight", "proj.bias"),
    }
    names = set(small(absolute_positions="separable").state_dict())
    first = {name.removeprefix("blocks.0.") for name in names if name.startswith("blocks.0.")}
    assert {name for name in first if not name.startswith("attn.")} == block
    assert {name for name in names if not name.startswith("blocks.")} == {
        *("cls_token", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"),
        *("patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"),
    }
    assert "pos_embed" in small(absolute_positions="joint").state_dict()


def test_clips_of_another_form_are_refused() -> None:
    with pytest.raises(UserError, match=r"clips of shape \(2, 4, 3, 32, 32\) are not \[B, 3, T, H, W\]"):
        small()(torch.randn(2, 4, 3, 32, 32))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "two heads, queries pooled": {"heads": 2, "q_stride": (1, 2, 2), "kv_stride": (1, 2, 2)},
    "keys pooled hard": {"kv_stride": (1, 4, 4)},
    "time pooled": {"q_stride": (2, 1, 1), "kv_stride": (1, 2, 2)},
    "no class token": {"class_token": False, "kv_stride": (1, 2, 2)},
    "space only": {"relative_time": False},
    "time only": {"relative_space": False},
    "no positions": {"relative_time": False, "relative_space": False},
    "no residual": {"residual_pooling": False, "heads": 2},
    "wider inside": {"width": 24, "heads": 2},
    "other kernel": {"pool_kernel": (1, 3, 3), "qkv_bias": False},
}


def make(grid: TokenGrid, *, width: int = 16, heads: int = 1, **options: Any) -> PooledAttention:
    torch.manual_seed(0)
    layer = PooledAttention(16, width, heads, grid=grid, **options)
    for parameter in layer.parameters():  # large values, so that positions and norms matter
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def gradients(layer: PooledAttention, tokens: torch.Tensor, result: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [name for name, _ in layer.named_parameters()]
    # Positive weights: with mixed signs the sums over all tokens would cancel down to their rounding.
    weight = torch.rand(result.shape, generator=torch.Generator().manual_seed(1))
    actual = torch.autograd.grad((result * weight).sum(), [tokens, *layer.parameters()])
    return dict(zip(["tokens", *names], actual, strict=True))


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("native", [TokenGrid(3, 6, 4), TokenGrid(2, 4, 4)], ids=["native", "interpolated"])
@pytest.mark.parametrize("few_scores", [0, 2**21], ids=["blocked", "at once"])
def test_fused_attention_equals_the_slow_one(
    options: dict[str, Any], native: TokenGrid, few_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_FEW_SCORES", few_scores)
    grid = TokenGrid(3, 6, 4)  # odd, and not square
    layer = make(native, **options)
    tokens = torch.randn(2, layer.prefix + grid.size, 16, requires_grad=True)
    fused, new_grid = layer(tokens, grid)
    slow = slow_attention(layer, tokens, grid)
    assert fused.shape == (2, layer.prefix + new_grid.size, layer.width)
    torch.testing.assert_close(fused, slow, atol=1e-5, rtol=1e-5)  # float32 rounding
    fused_gradients, slow_gradients = (gradients(layer, tokens, result) for result in (fused, slow))
    for name, gradient in fused_gradients.items():
        scale = slow_gradients[name].abs().max().clamp(min=1)
        torch.testing.assert_close(
            gradient / scale, slow_gradients[name] / scale, atol=1e-5, rtol=0, msg=name
        )


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("stride", [(1, 4, 4), (2, 3, 8)])
def test_keys_of_a_part_of_the_tokens_equal_those_of_all(
    stride: tuple[int, int, int], class_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, with a norm; tokens between the windows of keys do not reach their weights."""
    grid = TokenGrid(3, 9, 8)
    layer = make(grid, heads=2, kv_stride=stride, class_token=class_token)
    assert layer.reads_a_part
    norm = torch.nn.LayerNorm(16)
    tokens = torch.randn(2, layer.prefix + grid.size, 16, requires_grad=True)
    part, _ = layer(tokens, grid, norm)
    monkeypatch.setattr(layer, "reads_a_part", False)
    whole, _ = layer(tokens, grid, norm)
    # float32 sums over 200 tokens in another order, of values up to 100
    assert_same_gradients(part, whole, [tokens, *layer.parameters(), *norm.parameters()], atol=2e-4)


def test_backward_pass_stores_no_widened_queries() -> None:
    """Neither widened queries (8 values, and one per key position in time, row and column) nor scores."""
    grid = TokenGrid(4, 24, 24)
    layer = make(grid, heads=2, kv_stride=(1, 2, 2))
    tokens = torch.randn(1, 1 + grid.size, 16, requires_grad=True)
    shapes = [tensor.shape for tensor in tensors_saved(lambda: layer(tokens, grid))]
    assert torch.Size([1, 4, 24, 24, 2, 8]) in shapes  # the queries themselves
    assert not {8 + 4 + 12 + 12, 1 + 4 * 12 * 12} & {shape[-1] for shape in shapes}


def test_max_pooling_stores_only_its_indices() -> None:
    tokens = torch.randn(2, 4, 6, 6, 5, requires_grad=True)
    stored = tensors_saved(lambda: max_pool(tokens, (1, 2, 2)))
    assert [(tensor.dtype, tensor.numel()) for tensor in stored] == [(torch.int32, 2 * 4 * 3 * 3 * 5)]


def test_grid_that_the_stride_does_not_divide_rounds_up() -> None:
    grid = TokenGrid(2, 5, 3)
    layer = make(grid, q_stride=(1, 2, 2), kv_stride=(1, 4, 4))
    tokens = torch.randn(1, 1 + grid.size, 16)
    fused, new_grid = layer(tokens, grid)
    assert new_grid == TokenGrid(2, 3, 2)
    torch.testing.assert_close(fused, slow_attention(layer, tokens, grid), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("q_stride", [(1, 1, 1), (1, 2, 2)])
def test_bfloat16_autocast_stays_close_in_values_and_gradients(q_stride: tuple[int, int, int]) -> None:
    grid = TokenGrid(2, 8, 8)
    layer = make(grid, heads=2, q_stride=q_stride, kv_stride=(1, 2, 2))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.randn(2, 1 + grid.size, 16, requires_grad=True)
    exact = layer(tokens, grid)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(tokens, grid)[0]
    assert rounded.dtype == torch.bfloat16
    scale = exact.abs().max()
    torch.testing.assert_close(rounded.float() / scale, exact / scale, atol=1e-2, rtol=0)
    exact_gradients = gradients(layer, tokens, exact)
    for name, gradient in gradients(layer, tokens, rounded.float()).items():
        if name == "norm_k.bias":  # shifts all scores of a query alike: its gradient is only rounding
            continue
        error = (gradient - exact_gradients[name]).norm() / exact_gradients[name].norm()
        # Eight bits of mantissa, summed over a chain of seven layers.
        assert error < 3e-2, (name, float(error))


def test_blocked_attention_takes_the_widened_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_FEW_SCORES", 0)
    grid = TokenGrid(2, 4, 4)
    layer = make(grid, kv_stride=(1, 2, 2))
    with torch.profiler.profile() as profile:
        layer(torch.randn(1, 1 + grid.size, 16), grid)
    assert any(event.key == "videomaskfeat::attention" for event in profile.key_averages())


def test_parameters_of_attention_have_pyslowfast_names() -> None:
    names = {name for name, _ in make(TokenGrid(2, 4, 4)).named_parameters()}
    assert names == {
        *("rel_pos_t", "rel_pos_h", "rel_pos_w", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias"),
        *(f"pool_{part}.weight" for part in "qkv"),
        *(f"norm_{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")),
    }


def test_float64_stays_float64() -> None:
    """Against float32, whose rounding it does not have."""
    grid = TokenGrid(3, 6, 4)
    layer = make(grid, heads=2, kv_stride=(1, 2, 2))
    tokens = torch.randn(2, layer.prefix + grid.size, 16)
    single, _ = layer(tokens, grid)
    double, _ = layer.double()(tokens.double(), grid)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["plain", "two heads, queries pooled", "no class token"])
def test_cuda_equals_cpu(name: str) -> None:
    """In float64, so that TF32 plays no part."""
    grid = TokenGrid(3, 6, 4)
    layer = make(grid, **CASES[name]).double()
    tokens = torch.randn(2, layer.prefix + grid.size, 16, dtype=torch.float64, requires_grad=True)
    result, _ = layer(tokens, grid)
    expected = gradients(layer, tokens, result)
    layer.cuda()
    on_gpu = tokens.detach().cuda().requires_grad_()
    actual, _ = layer(on_gpu, grid)
    torch.testing.assert_close(actual.cpu(), result, atol=1e-9, rtol=1e-9)
    weight = torch.rand(result.shape, generator=torch.Generator().manual_seed(1)).cuda()
    ours = torch.autograd.grad((actual * weight).sum(), [on_gpu, *layer.parameters()])
    for value, (parameter, right) in zip(ours, expected.items(), strict=True):
        torch.testing.assert_close(value.cpu(), right, atol=1e-8, rtol=1e-8, msg=parameter)


@pytest.mark.parametrize("stride", [(1, 2, 2), (1, 1, 2), (2, 2, 2)])
def test_max_pooling_of_tokens_equals_that_of_volumes(stride: tuple[int, int, int]) -> None:
    """Bit for bit, and so are the gradients, also where several positions of a window are equal."""
    tokens = torch.randn(2, 4, 6, 6, 5, generator=torch.Generator().manual_seed(0)).round().requires_grad_()
    window = [step + 1 if step > 1 else 1 for step in stride]
    volume = tokens.permute(0, 4, 1, 2, 3)
    expected = F.max_pool3d(volume, window, stride, [size // 2 for size in window]).permute(0, 2, 3, 4, 1)
    actual = max_pool(tokens, stride)
    assert torch.equal(actual, expected)
    weight = torch.rand(actual.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((one * weight).sum(), tokens)[0] for one in (actual, expected)]
    assert torch.equal(*gradients)
