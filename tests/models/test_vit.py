"""The vision transformer: sizes, names, numbers, positions, and its heads, for clips and for images."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference.positions import relative_rows
from tests.reference.rotary import rotated
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models import create_model
from videomaskfeat.models.loading import load_into
from videomaskfeat.models.vit import Block, ViT, resize_bias, rotary_table, rotate

SMALL: dict[str, Any] = {
    "depth": 2,
    "width": 16,
    "heads": 2,
    "clip_size": (4, 16, 16),
    "cube_stride": (2, 8, 8),
    "linear_std": 0.1,
}


CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # float32


def small(**changes: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(**{**SMALL, **changes})


@pytest.mark.parametrize(("size", "width"), [("s", 384), ("b", 768), ("l", 1024), ("h", 1280)])
def test_video_model_has_deeper_cubes_and_separable_positions(size: str, width: int) -> None:
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in create_model(name, classes=400).parameters())
            for name in (f"vit_{size}", f"vit_{size}_image")
        ]
    # One more frame of 16x16 pixels in the kernel; 8 positions in time; one of the class token either way.
    assert counts[0] - counts[1] == width * (3 * 16 * 16 + 8)


def test_block_equals_torchs_layer() -> None:
    block, layer = Block(16, 4), nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", 1e-6, True, True)
    pairs = {
        "norm1": block.norm1,
        "norm2": block.norm2,
        "linear1": block.mlp.fc1,
        "linear2": block.mlp.fc2,
        "self_attn.out_proj": block.attn.proj,
    }
    state = {
        f"{name}.{kind}": getattr(own, kind) for name, own in pairs.items() for kind in ("weight", "bias")
    }
    qkv = block.attn.qkv
    layer.load_state_dict(
        {**state, "self_attn.in_proj_weight": qkv.weight, "self_attn.in_proj_bias": qkv.bias}
    )
    tokens = torch.randn(2, 9, 16)
    actual, _ = block(tokens, TokenGrid(1, 3, 3))
    torch.testing.assert_close(actual, layer(tokens), atol=1e-5, rtol=1e-5)  # float32


@pytest.mark.parametrize("absolute", ["none", "joint", "separable", "sincos"])
@pytest.mark.parametrize("clip", [(4, 16, 16), (6, 32, 24), (2, 8, 8)])
def test_any_clip_size_goes_through(clip: tuple[int, int, int], absolute: str) -> None:
    model = small(absolute_positions=absolute)
    tokens = model(torch.randn(2, 3, *clip))
    grid = model.output_grid(clip)
    assert grid == TokenGrid(clip[0] // 2, clip[1] // 8, clip[2] // 8)
    assert tokens.shape == (2, 1 + grid.size, 16)
    assert tokens.isfinite().all()


def test_parameters_have_pyslowfast_names() -> None:
    names = set(small(depth=1).state_dict())
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert names == {
        *("cls_token", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"),
        *(f"{name}.{kind}" for name in ("patch_embed.proj", "norm") for kind in ("weight", "bias")),
        *(f"blocks.0.{name}.{kind}" for name in block for kind in ("weight", "bias")),
    }
    assert {"blocks.1.gamma_1", "blocks.1.gamma_2"} <= set(small(layer_scale=0.1).state_dict())
    assert not [name for name in small(absolute_positions="sincos").state_dict() if "pos" in name]


def test_initial_values_follow_the_published_recipe() -> None:
    for name, value in small(width=64, linear_std=0.02).named_parameters():
        if "norm" in name:
            assert (value == (1.0 if name.endswith("weight") else 0.02)).all(), name
        elif name.endswith("bias") and name != "patch_embed.proj.bias":
            assert (value == 0.02).all(), name
        elif value.numel() > 2000:
            # A normal of 0.02 cut at 2 (100 standard deviations) is a plain normal.
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name


def test_image_is_a_clip_of_one_frame() -> None:
    model = create_model("vit_nano_image", **{**SMALL, "clip_size": (1, 16, 16), "cube_stride": (1, 8, 8)})
    model.eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), model(images[:, :, None]))
    assert torch.equal(model.features(images), model.features(images[:, :, None]))


def test_layer_scale_of_zero_does_not_change_tokens() -> None:
    model = small(layer_scale=0.0)
    tokens, grid = model.patch_embed(torch.randn(1, 3, 4, 16, 16))
    assert torch.equal(model.through_blocks(tokens, grid)[0], model.placed(tokens, grid))


def test_detector_on_a_vision_transformer() -> None:
    model = create_model("vit_nano_detector", **SMALL, classes=4).eval()
    boxes = torch.tensor([[0.0, 0, 0, 8, 8], [1.0, 4, 4, 16, 16]])
    clips = torch.randn(2, 3, 4, 16, 16)
    logits = model(clips, boxes)
    assert logits.shape == (2, 4)
    torch.testing.assert_close(model(clips[1:], boxes[1:] - torch.tensor([1.0, 0, 0, 0, 0]))[0], logits[1])


def test_weights_of_another_size_are_refused() -> None:
    with torch.device("meta"):
        model, other = create_model("vit_s"), create_model("mae_vit_b")
    with pytest.raises(UserError, match=r"has 12 blocks and stem width 768, .* probably maskfeat_vit_b or"):
        load_into(model, other.state_dict(), allow_missing=["head.*"], allow_unused=["*"])


def test_clip_of_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"clips of shape \(2, 4, 3, 16, 16\) are not \[B, 3, T, H, W\]"):
        small()(torch.randn(2, 4, 3, 16, 16))


def with_bias(**changes: Any) -> ViT:
    model = small(clip_size=(1, 16, 24), cube_stride=(1, 8, 8), relative_bias=True, **changes)
    torch.nn.init.normal_(model.rel_pos_bias.table)
    return model


def test_relative_bias_equals_attention_with_every_score_by_hand() -> None:
    model = with_bias(depth=1)
    tokens = torch.randn(2, 7, 16)
    attention = model.blocks[0].attn
    q, k, v = (x.squeeze(2) for x in attention.qkv(tokens).unflatten(-1, (3, 2, 8)).split(1, dim=2))
    rows = relative_rows(2, 3)
    expected = torch.zeros(2, 7, 2, 8)
    for sample, query, head in itertools.product(range(2), range(7), range(2)):
        scores = torch.stack(
            [
                q[sample, query, head] @ k[sample, key, head] / 8**0.5
                + model.rel_pos_bias.table[rows[query][key], head]
                for key in range(7)
            ]
        )
        expected[sample, query, head] = scores.softmax(0) @ v[sample, :, head]
    bias = model.rel_pos_bias(TokenGrid(1, 2, 3))
    torch.testing.assert_close(attention(tokens, bias), attention.proj(expected.flatten(2)), **CLOSE)


def test_relative_bias_is_shared_and_starts_at_zero() -> None:
    torch.manual_seed(0)
    clips = torch.randn(2, 3, 4, 16, 16)
    plain, biased = small(), small(relative_bias=True)
    names = set(biased.state_dict()) - set(plain.state_dict())
    assert names == {"rel_pos_bias.table"}
    assert biased.rel_pos_bias.table.shape == (3 * 3 * 3 + 3, 2)
    assert not biased.rel_pos_bias.table.any()
    biased.load_state_dict({**plain.state_dict(), "rel_pos_bias.table": biased.rel_pos_bias.table})
    torch.testing.assert_close(biased(clips), plain(clips), **CLOSE)
    biased(clips).square().mean().backward()
    assert biased.rel_pos_bias.table.grad.abs().sum(dim=1).min() > 0  # every offset occurs
    copied = copy.deepcopy(biased)
    with torch.no_grad():
        copied.rel_pos_bias.table.normal_()
    assert not torch.allclose(copied(clips), plain(clips), atol=1e-3)  # its blocks use its own table
    torch.testing.assert_close(biased(clips), plain(clips), **CLOSE)


def test_relative_bias_is_interpolated_for_other_grids() -> None:
    model = with_bias(depth=1)
    assert model(torch.randn(1, 3, 1, 32, 32)).isfinite().all()
    flat = torch.cat([torch.full((15, 2), 0.5), torch.tensor([[1.0, 1], [2, 2], [3, 3]])])
    resized = resize_bias(flat, (1, 3, 5), (3, 7, 7))
    assert torch.equal(resized[:-3], torch.full((147, 2), 0.5))
    assert torch.equal(resized[-3:], flat[-3:])


def test_relative_bias_of_square_pictures_loads_at_another_size() -> None:
    size = {"depth": 1, "width": 16, "heads": 2, "cube_stride": (1, 8, 8), "relative_bias": True}
    small_one = create_model("vit_nano_image", **size, clip_size=(1, 16, 16))
    slope = torch.arange(3.0).repeat(3)[:, None].expand(9, 2)  # linear in the column
    with torch.no_grad():
        small_one.rel_pos_bias.table[:9] = slope
    large = create_model("vit_nano_image", **size, clip_size=(1, 32, 32))
    report = load_into(large, small_one.state_dict())
    assert "rel_pos_bias.table" in report.resized
    resized = large.rel_pos_bias.table[:-3, 0].reshape(7, 7)
    torch.testing.assert_close(resized, torch.linspace(0, 2, 7).expand(7, 7), atol=1e-6, rtol=0)


def test_mae_refuses_a_relative_bias() -> None:
    with pytest.raises(UserError, match="relative_bias cannot be set on an MAE model"):
        create_model("mae_vit_nano", relative_bias=True)


GRID = TokenGrid(2, 3, 4)
PLACES = list(itertools.product(range(2), range(3), range(4)))


def test_rotary_positions_by_definition() -> None:
    """Heads of 14: 4 values per axis and 2 that are not rotated; float32, 1e-6."""
    vectors = torch.randn(2, 1 + GRID.size, 3, 14)
    table = rotary_table(GRID, 14, prefix=1, device=torch.device("cpu"))
    actual = rotate(vectors, table)
    assert torch.equal(actual[:, 0], vectors[:, 0])  # the class token
    for sample, number, head in itertools.product(range(2), range(GRID.size), range(3)):
        expected = torch.tensor(rotated(vectors[sample, 1 + number, head].tolist(), PLACES[number]))
        torch.testing.assert_close(actual[sample, 1 + number, head], expected, atol=1e-6, rtol=1e-6)


def test_rotary_scores_depend_on_offsets_only() -> None:
    """The same query and key at all pairs of places; float32, 1e-5 for scores of about 4."""
    query, key = torch.randn(2, 1, 1, 1, 16).expand(2, 1, GRID.size, 1, 16)
    table = rotary_table(GRID, 16, prefix=0, device=torch.device("cpu"))
    scores = rotate(query, table)[0, :, 0] @ rotate(key, table)[0, :, 0].T  # [N, N]
    by_offset: dict[tuple[int, ...], list[float]] = {}
    for (i, first), (j, second) in itertools.product(enumerate(PLACES), repeat=2):
        offset = tuple(a - b for a, b in zip(first, second, strict=True))
        by_offset.setdefault(offset, []).append(scores[i, j].item())
    assert max(max(values) - min(values) for values in by_offset.values()) < 1e-5
    assert len({round(values[0], 3) for values in by_offset.values()}) > 50  # of 3 * 5 * 7 offsets


def test_rotary_attention_equals_every_score_by_hand() -> None:
    model = small(depth=1, rotary=True, absolute_positions="none")
    tokens, block = torch.randn(1, 9, 16), model.blocks[0]  # a class token and 2x2x2 cubes
    q, k, v = block.attn.qkv(tokens)[0].unflatten(-1, (3, 2, 8)).unbind(1)  # [9, 2, 8] each
    places = [None, *itertools.product(range(2), repeat=3)]

    def turned(vector: Tensor, place: Any) -> Tensor:
        return vector if place is None else torch.tensor(rotated(vector.tolist(), place))

    expected = torch.zeros(9, 2, 8)
    for number, head in itertools.product(range(9), range(2)):
        query = turned(q[number, head], places[number])
        scores = [query @ turned(k[key, head], places[key]) / 8**0.5 for key in range(9)]
        expected[number, head] = torch.stack(scores).softmax(0) @ v[:, head]
    table = block._rotary_table(tokens, TokenGrid(2, 2, 2), None)
    actual = block.attn(tokens, None, table)
    torch.testing.assert_close(actual[0], block.attn.proj(expected.flatten(1)), **CLOSE)


def test_visible_tokens_keep_their_rotary_positions() -> None:
    """All cubes, in another order per clip, give the same tokens in that order; a part is not the start."""
    model = small(rotary=True, absolute_positions="none").eval()
    clips = torch.randn(2, 3, 4, 16, 16)
    whole = model(clips)
    order = torch.stack([torch.randperm(8), torch.randperm(8)])
    seen = model.encode_visible(clips, order)
    torch.testing.assert_close(seen[:, 0], whole[:, 0], **CLOSE)
    for sample in range(2):
        torch.testing.assert_close(seen[sample, 1:], whole[sample, 1:][order[sample]], **CLOSE)
    # Without a class token, which is at no place, only the offset of two cubes counts.
    model = small(rotary=True, absolute_positions="none", class_token=False).eval()
    rows = clips[:1, :, :2, :8].repeat(1, 1, 2, 2, 1)  # all rows of cubes are equal
    encoded = [model.encode_visible(rows, torch.tensor([part])) for part in ([0, 1], [6, 7], [0, 7])]
    torch.testing.assert_close(encoded[0], encoded[1], **CLOSE)
    assert not torch.allclose(encoded[0], encoded[2], atol=1e-4)


def test_repeated_angles_of_vjepa2_by_definition() -> None:
    """Heads of 14; float32, 1e-6."""
    vectors = torch.randn(1, GRID.size, 1, 14)
    table = rotary_table(GRID, 14, prefix=0, device=torch.device("cpu"), repeated=True)
    actual = rotate(vectors, table)
    for number in range(GRID.size):
        expected = torch.tensor(rotated(vectors[0, number, 0].tolist(), PLACES[number], repeated=True))
        torch.testing.assert_close(actual[0, number, 0], expected, atol=1e-6, rtol=1e-6)
    plain, repeated = (
        small(rotary=True, rotary_repeated=one, absolute_positions="none").eval()(torch.ones(1, 3, 4, 16, 16))
        for one in (False, True)
    )
    assert torch.equal(plain, repeated)  # heads of 8 have one pair per axis
    wide, clips = {"width": 32, "rotary": True, "absolute_positions": "none"}, torch.randn(1, 3, 4, 16, 16)
    plain, repeated = (small(**wide, rotary_repeated=one).eval()(clips) for one in (False, True))
    assert not torch.allclose(plain, repeated, atol=1e-4)


def test_norm_eps_is_that_of_all_norms() -> None:
    for model in (small(norm_eps=1e-3), create_model("mae_vit_pico", norm_eps=1e-3)):
        norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
        assert len(norms) > 4
        assert {norm.eps for norm in norms} == {1e-3}


def test_narrow_heads_have_no_rotary_positions() -> None:
    with pytest.raises(UserError, match=r"width 8 with heads 2 leaves 4 values per head, but .* at least 6"):
        small(width=8, rotary=True)
