"""The encoder: sizes, names, initial values, positions, and behaviour at any clip size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models import create_model
from videomaskfeat.models.mvit import MViT
from videomaskfeat.models.positions import joint_positions, separable_positions

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


@pytest.mark.parametrize(
    ("name", "arguments", "millions"),
    [
        ("maskfeat_mvitv2_s", {}, 36.253),
        ("maskfeat_mvitv2_l", {}, 217.248),
        ("mvitv2_s", {}, 34.538),
        ("mvitv2_b", {}, 51.230),
        ("maskfeat_mvitv2_s_classifier", {}, 36.475),
        ("maskfeat_mvitv2_l_classifier", {}, 217.578),
    ],
)
def test_parameter_counts_are_the_published_ones(
    name: str, arguments: dict[str, Any], millions: float
) -> None:
    with torch.device("meta"):
        model = create_model(name, **arguments)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 3) == millions


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


@pytest.mark.parametrize("widen_in", ["mlp", "attention"])
def test_checkpointing_blocks_changes_nothing(widen_in: str) -> None:
    clips = torch.randn(2, 3, 4, 32, 32)
    results = []
    for checkpoint_blocks in (False, True):
        model = small(widen_in=widen_in, checkpoint_blocks=checkpoint_blocks, drop_path=0.3)
        torch.manual_seed(1)
        tokens = model(clips)
        tokens.square().mean().backward()
        results.append([tokens, *(parameter.grad for parameter in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_drop_path_drops_whole_samples_in_training_only() -> None:
    model = small(drop_path=0.9)
    clips = torch.randn(1, 3, 4, 32, 32)
    assert not torch.equal(model(clips), model(clips))
    model.eval()
    assert torch.equal(model(clips), model(clips))


def test_permuting_the_batch_permutes_the_tokens() -> None:
    model, clips, order = small(), torch.randn(3, 3, 4, 32, 32), [2, 0, 1]
    # Kernels may group samples differently: equal to rounding.
    torch.testing.assert_close(model(clips[order]), model(clips)[order], atol=1e-5, rtol=1e-5)


def test_initial_values_follow_the_published_recipe() -> None:
    model = create_model("maskfeat_mvitv2_nano", linear_std=0.02)
    parameters = dict(model.named_parameters())
    for name, value in parameters.items():
        head = name.startswith("pred_head")
        if "norm" in name or "transforms" in name:
            wanted = 1.0 if name.endswith("weight") else 0.0 if head else 0.02
            assert (value == wanted).all(), name
        elif name.endswith("bias") and name != "patch_embed.proj.bias":
            assert (value == (0.0 if head else 0.02)).all(), name
        elif value.numel() > 2000:
            # A normal of 0.02 cut at 2 (100 standard deviations) is a plain normal.
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(value.mean().item()) < 2e-3, name


def test_seed_of_the_caller_decides_the_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(create_model("mvitv2_nano", depth=2, widen_at=[1], q_pool_at=[1]).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["cls_token"], states[2]["cls_token"])


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


def test_separable_positions_are_the_sum_of_space_and_time() -> None:
    space, time = torch.randn(1, 6, 5), torch.randn(1, 2, 5)
    grid = TokenGrid(2, 2, 3)
    table = separable_positions(space, time, grid, grid).unflatten(1, grid.shape)
    for t, h, w in ((0, 0, 0), (1, 1, 2), (0, 1, 0)):
        torch.testing.assert_close(table[0, t, h, w], space[0, h * 3 + w] + time[0, t])
    doubled = joint_positions(table.flatten(1, 3), grid, TokenGrid(4, 4, 6))
    torch.testing.assert_close(doubled.mean(1), table.flatten(1, 3).mean(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widen_in": "mpl"}, "widen_in 'mpl' is unknown; did you mean 'mlp'"),
        ({"absolute_positions": "sincos"}, "absolute_positions 'sincos' is unknown; there are none, joint"),
        ({"widen_at": (9,)}, r"widen_at \(9,\): a model of depth 4 has no block 9"),
        ({"q_pool_at": (4,)}, r"q_pool_at \(4,\): a model of depth 4 has no block 4"),
        ({"heads": 3}, "heads 3: all must be positive, heads a divisor of width"),
        ({"clip_size": (4, 30, 32)}, "clip height 30 is not a positive multiple of the cube stride 4"),
        ({"cube_kernel": (3, 12, 12)}, r"cube_kernel \(3, 12, 12\).*one token per cube"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        small(**arguments)


def test_clips_of_another_form_are_refused() -> None:
    with pytest.raises(UserError, match=r"clips of shape \(2, 4, 3, 32, 32\) are not \[B, 3, T, H, W\]"):
        small()(torch.randn(2, 4, 3, 32, 32))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="model 'mvitv_s' is unknown; did you mean 'mvitv2_s'"):
        create_model("mvitv_s")
    with pytest.raises(UserError, match="argument 'drop_paths' is unknown; did you mean 'drop_path'"):
        create_model("maskfeat_mvitv2_s", drop_paths=0.1)
    with pytest.raises(UserError, match="final_norm cannot be set"):
        create_model("maskfeat_mvitv2_s", final_norm=True)
