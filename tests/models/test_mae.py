"""Masked autoencoders: visible tokens, predictions by hand, and invalid masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.encoder_base import CubeEmbed, cut_cubes
from videomaskfeat.models.mae import MAE

SMALL: dict[str, Any] = {
    "depth": 2,
    "width": 16,
    "heads": 2,
    "clip_size": (4, 16, 24),
    "cube_stride": (2, 8, 8),
    "values_per_token": 5,
    "decoder_depth": 1,
    "decoder_width": 16,
    "decoder_heads": 1,
}


def small(**changes: Any) -> MAE:
    torch.manual_seed(0)
    model = create_model("mae_vit_nano", **{**SMALL, **changes}).eval()
    assert isinstance(model, MAE)
    for parameter in model.parameters():  # large values, so that every path matters
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def masks(batch: int, *, hidden: int, grid: tuple[int, int, int] = (2, 2, 3)) -> Tensor:
    """Random masks that hide the same number of positions per sample."""
    mask = torch.zeros(batch, grid[0] * grid[1] * grid[2], dtype=torch.bool)
    for sample in mask:
        sample[torch.randperm(len(sample))[:hidden]] = True
    return mask.reshape(batch, *grid)


def pixels_of(mask: Tensor) -> Tensor:
    """[B, t, h, w] -> [B, 1, T, H, W]."""
    for axis, step in ((1, 2), (2, 8), (3, 8)):
        mask = mask.repeat_interleave(step, dim=axis)
    return mask[:, None]


@pytest.mark.parametrize("changes", [{}, {"class_token": False, "absolute_positions": "sincos"}])
def test_hidden_pixels_change_no_prediction(changes: dict[str, Any]) -> None:
    model, clips, mask = small(**changes), torch.randn(3, 3, 4, 16, 24), masks(3, hidden=9)
    spoiled = clips.masked_fill(pixels_of(mask), float("nan"))
    predictions = model(clips, mask)
    assert torch.equal(model(spoiled, mask), predictions)
    assert predictions.isfinite().all()
    changed = clips.clone()
    changed[~pixels_of(mask).expand_as(clips)] += 1
    assert (model(changed, mask) != predictions).all()


def test_blocks_see_visible_tokens_only() -> None:
    model, widths = small(), []
    for block in model.blocks:
        block.register_forward_hook(lambda _block, inputs, _output: widths.append(inputs[0].shape[1]))
    model(torch.randn(2, 3, 4, 16, 24), masks(2, hidden=9))
    assert widths == [4, 4]  # 12 - 9 and the class token


@pytest.mark.parametrize("decoder_positions", ["joint", "sincos"])
def test_predictions_equal_a_loop_over_tokens(decoder_positions: str) -> None:
    """Token by token, with only the blocks and norms of the model."""
    model = small(decoder_positions=decoder_positions)
    clips, mask = torch.randn(2, 3, 4, 16, 24), masks(2, hidden=8)
    predictions = model(clips, mask)
    for sample in range(2):
        stem = model.patch_embed.proj(clips[sample : sample + 1])[0]  # [D, t, h, w]
        tokens = [model.cls_token[0, 0] + model.pos_embed_class[0, 0]]
        places = [tuple(place) for place in (~mask[sample]).nonzero().tolist()]
        for t, h, w in places:
            position = model.pos_embed_spatial[0, h * 3 + w] + model.pos_embed_temporal[0, t]
            tokens.append(stem[:, t, h, w] + position)
        encoded = torch.stack(tokens)[None]
        for block in model.blocks:
            encoded, _ = block(encoded, model.native_grid)
        encoded = model.decoder_embed(model.norm(encoded))[0]
        table = model._decoder_positions(model.native_grid)[0]
        whole = [encoded[0] + table[0]]
        for index, place in enumerate((t, h, w) for t in range(2) for h in range(2) for w in range(3)):
            token = encoded[1 + places.index(place)] if place in places else model.mask_token[0, 0]
            whole.append(token + table[1 + index])
        block, norm = model.pred_head.transforms[0]
        decoded = norm(block(torch.stack(whole)[None], model.native_grid)[0])
        by_hand = model.pred_head.projections[0](decoded)[0, 1:].reshape(2, 2, 3, 5)
        torch.testing.assert_close(
            predictions[sample], by_hand, atol=1e-4, rtol=1e-4
        )  # float32, values of 10


def test_embedded_cubes_equal_the_stem() -> None:
    stem = CubeEmbed(3, 6, kernel=(2, 4, 8), stride=(2, 4, 8), padding=(0, 0, 0))
    clips = torch.randn(2, 3, 4, 8, 24)
    tokens, _ = stem(clips)
    actual = stem.embed_cubes(cut_cubes(clips, (2, 4, 8)))
    torch.testing.assert_close(actual, tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("clip", "mask_grid"), [((2, 16, 16), (1, 2, 1)), ((6, 24, 40), (3, 1, 1)), ((6, 24, 40), (3, 3, 5))]
)
def test_other_clip_sizes_and_coarser_masks(
    clip: tuple[int, int, int], mask_grid: tuple[int, int, int]
) -> None:
    predictions = small()(torch.randn(2, 3, *clip), masks(2, hidden=1, grid=mask_grid))
    assert predictions.shape == (2, clip[0] // 2, clip[1] // 8, clip[2] // 8, 5)
    assert predictions.isfinite().all()


def test_images_are_clips_of_one_frame() -> None:
    model = create_model("mae_vit_nano_image").eval()
    images, mask = torch.randn(2, 3, 64, 64), masks(2, hidden=48, grid=(1, 8, 8))
    predictions = model(images, mask[:, 0])
    assert predictions.shape == (2, 8, 8, 192)
    assert torch.equal(model(images[:, :, None], mask)[:, 0], predictions)


def test_masks_with_different_counts_are_refused() -> None:
    mask = masks(2, hidden=6)
    mask[1].view(-1)[:] = False
    mask[1, 0, 0, :2] = True
    with pytest.raises(UserError, match=r"masks of a batch hide 2 to 6 of 12 cubes.*mask.kind 'random'"):
        small()(torch.randn(2, 3, 4, 16, 24), mask)


@pytest.mark.parametrize(
    ("hidden", "problem"), [(0, "no cube is hidden"), (12, "no cube is visible to the encoder")]
)
def test_empty_and_full_masks_are_refused(hidden: int, problem: str) -> None:
    with pytest.raises(UserError, match=rf"{problem}, of 12 cubes; change mask.ratio"):
        small()(torch.randn(2, 3, 4, 16, 24), masks(2, hidden=hidden))


@pytest.mark.cuda
@pytest.mark.parametrize("positions", ["joint", "sincos"])
def test_cuda_equals_cpu(positions: str) -> None:
    """Predictions and gradients in float64, except the sine positions in float32."""
    model = small(decoder_positions=positions).double().train()
    clips, mask = torch.randn(3, 3, 4, 16, 24, dtype=torch.float64), masks(3, hidden=9)
    expected = model(clips, mask)
    expected_gradients = torch.autograd.grad(
        expected.square().mean(), list(model.parameters()), allow_unused=True
    )
    model.cuda()
    predictions = model(clips.cuda(), mask.cuda())
    torch.testing.assert_close(predictions.cpu(), expected, atol=1e-6, rtol=1e-6)
    actual = torch.autograd.grad(predictions.square().mean(), list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(actual, expected_gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours.cpu(), theirs, atol=1e-5, rtol=1e-5)
