"""Masked encoders, outputs of their last blocks, and predictors, for MViT and ViT."""

from __future__ import annotations

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models import create_model
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.maskfeat import ClipEncoder, MaskedEncoder, check_last_blocks, last_blocks
from videomaskfeat.models.projection import MlpPredictor, TransformerPredictor

SIZE = (4, 32, 32)
VIT = ("vit_encoder", {"depth": 3, "width": 16, "heads": 2, "cube_stride": (2, 8, 8), "linear_std": 0.1})
MVIT = (
    "mvitv2_encoder",
    {
        "depth": 3,
        "width": 8,
        "widen_at": (1,),
        "q_pool_at": (1,),
        "kv_stride": (1, 2, 2),
        "linear_std": 0.1,
    },
)
IMAGE = ("vit_encoder", {**VIT[1], "cube_stride": (1, 8, 8)})


def encoder_of_kind(kind: tuple[str, dict[str, object]], **arguments: object) -> Encoder:
    name, own = kind
    encoder = create_model(name, **{"clip_size": SIZE, **own, **arguments}).eval()
    assert isinstance(encoder, Encoder)
    return encoder


def clips(frames: int = 4, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, frames, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [VIT, MVIT])
def test_features_equal_the_encoders(kind: tuple[str, dict[str, object]]) -> None:
    encoder = encoder_of_kind(kind)
    clip, cells = ClipEncoder(encoder, summary="mean")(clips())
    torch.testing.assert_close(clip, encoder.features(clips()))
    torch.testing.assert_close(cells, encoder.features(clips(), pooled=False))
    token, _ = ClipEncoder(encoder, summary="token")(clips())
    torch.testing.assert_close(token, encoder(clips())[:, 0])


@pytest.mark.parametrize("kind", [VIT, MVIT])
def test_hidden_tokens_are_the_mask_token(kind: tuple[str, dict[str, object]]) -> None:
    """With all cells hidden, pixels have no effect; with none hidden, the mask token has no effect."""
    masked, grid = MaskedEncoder(encoder_of_kind(kind), summary="mean"), (2, 2, 1, 2)
    everything, nothing = torch.ones(grid, dtype=torch.bool), torch.zeros(grid, dtype=torch.bool)
    torch.testing.assert_close(
        masked(clips(), everything).cells, masked(torch.zeros(2, 3, *SIZE), everything).cells
    )
    whole = masked(clips(), nothing)
    torch.testing.assert_close(whole.cells, masked(clips()).cells)
    with torch.no_grad():
        masked.mask_token.add_(1.0)
    torch.testing.assert_close(masked(clips(), nothing).cells, whole.cells)
    half = nothing.clone()
    half[:, 0] = True
    assert not torch.allclose(masked(clips(), half).cells, whole.cells, atol=1e-3)


def test_images_are_clips_of_one_frame() -> None:
    masked = MaskedEncoder(encoder_of_kind(IMAGE, clip_size=(1, 32, 32)), summary="token")
    mask = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    mask[:, 0, 0] = True
    clip, cells = masked(clips(frames=1), mask)
    assert clip.shape == (2, 16)
    assert cells.shape == (2, 1, 4, 4, 16)


def test_unknown_summary_is_refused() -> None:
    with pytest.raises(UserError, match="summary 'tokens' is unknown; did you mean 'token'"):
        ClipEncoder(encoder_of_kind(VIT), summary="tokens")
    with pytest.raises(UserError, match="summary 'token' needs an encoder with class_token true"):
        ClipEncoder(encoder_of_kind(VIT, class_token=False), summary="token")


@pytest.mark.parametrize(("kind", "count"), [(VIT, 3), (MVIT, 2)])
def test_last_blocks_equal_features_at_their_depths(kind: tuple[str, dict[str, object]], count: int) -> None:
    encoder = encoder_of_kind(kind)
    check_last_blocks(encoder, count, SIZE)
    outputs = last_blocks(encoder, clips(), count)
    assert len(outputs) == count
    for depth, output in zip(range(3 - count + 1, 4), outputs, strict=True):
        torch.testing.assert_close(output, encoder.features(clips(), depth=depth, pooled=False))


def test_blocks_of_another_size_are_refused() -> None:
    with pytest.raises(
        UserError,
        match="blocks 3: the last block outputs 2x4x4 cells of 16 values, the block 3 from the end 2x8x8 "
        "cells of 16 values; use at most 2",
    ):
        check_last_blocks(encoder_of_kind(MVIT), 3, SIZE)
    with pytest.raises(UserError, match="blocks 4 must be between 1 and 3"):
        check_last_blocks(encoder_of_kind(VIT), 4, SIZE)


def test_predictors_keep_the_grid_and_the_transformer_sees_other_cells() -> None:
    cells = torch.randn(2, 2, 4, 4, 16)
    changed = cells.clone()
    changed[:, 0, 0, 0] += 1.0
    other_frame = (slice(None), 1)
    mlp = MlpPredictor(16, hidden_width=8)
    assert mlp(cells).shape == cells.shape
    assert torch.equal(mlp(cells)[other_frame], mlp(changed)[other_frame])
    transformer = TransformerPredictor(16, hidden_width=8, depth=2, heads=2, grid=TokenGrid(2, 4, 4))
    assert transformer(cells).shape == cells.shape
    assert not torch.equal(transformer(cells)[other_frame], transformer(changed)[other_frame])
    assert transformer(cells[:, :, :2, :2]).shape == (2, 2, 2, 2, 16)


def test_invalid_predictors_are_refused() -> None:
    with pytest.raises(
        UserError, match="predictor_depth 1, predictor_width 8, predictor_heads 3: all must be positive, and"
    ):
        TransformerPredictor(16, hidden_width=8, depth=1, heads=3, grid=TokenGrid(1, 1, 1))
    with pytest.raises(UserError, match="hidden_width 0 must be positive"):
        MlpPredictor(16, hidden_width=0)
