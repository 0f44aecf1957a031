"""MaskFeat: visible pixels, masks, and shapes of predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.maskfeat import MaskFeat

SMALL: dict[str, Any] = {
    "depth": 3,
    "width": 8,
    "widen_at": (1, 2),
    "q_pool_at": (1,),
    "clip_size": (8, 64, 64),
    "values_per_token": 27,
    # The published cubes of 4x4 pixels, not the nano's own.
    "cube_kernel": (3, 7, 7),
    "cube_stride": (2, 4, 4),
    "cube_padding": (1, 3, 3),
    "kv_stride": (1, 4, 4),
}


def small(**changes: Any) -> MaskFeat:
    torch.manual_seed(0)
    model = create_model("maskfeat_mvitv2_nano", **{**SMALL, **changes})
    assert isinstance(model, MaskFeat)
    for parameter in model.parameters():  # large values, so that every path matters
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def one_cell(t: int, h: int, w: int) -> torch.Tensor:
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[0, t, h, w] = True
    return mask


def seen_pixels(model: MaskFeat, mask: torch.Tensor) -> torch.Tensor:
    """Pixels that affect a prediction, bool [T, H, W]."""
    clips = torch.randn(1, 3, 8, 64, 64, requires_grad=True)
    predictions = model(clips, mask)
    (gradient,) = torch.autograd.grad((predictions * torch.randn_like(predictions)).sum(), clips)
    return (gradient != 0).any(dim=1)[0]


def test_pixels_deep_inside_a_hidden_block_change_no_prediction() -> None:
    seen = seen_pixels(small(), one_cell(0, 0, 0))
    # The cell hides frames 0..3 and pixels 0..31. The kernel (3x7x7, centered) of the next visible token, at
    # frame 4 and pixel 32, starts at frame 3 and pixel 29.
    assert not seen[:3, :29, :29].any()
    assert seen[:3, :29, 29:].all()
    assert seen[3:].all()


def test_blanked_hidden_pixels_change_no_prediction_up_to_the_border() -> None:
    seen = seen_pixels(small(blank_hidden=True), one_cell(1, 0, 1))
    hidden = torch.zeros(8, 64, 64, dtype=torch.bool)
    hidden[4:, :32, 32:] = True
    assert torch.equal(seen, ~hidden)


def test_fully_hidden_clips_have_equal_predictions() -> None:
    model = small()
    everything = torch.ones(2, 1, 1, 1, dtype=torch.bool)
    predictions = model(torch.randn(2, 3, 8, 64, 64), everything)
    torch.testing.assert_close(predictions[0], predictions[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1, 1), (4, 2, 2), (2, 8, 4), (4, 16, 16)])
def test_mask_may_have_any_grid_that_divides_the_tokens(grid: tuple[int, int, int]) -> None:
    model = small()
    mask = torch.rand(1, *grid) < 0.5
    fine = mask
    for axis, size in enumerate((4, 16, 16), start=1):
        fine = fine.repeat_interleave(size // mask.shape[axis], dim=axis)
    clips = torch.randn(1, 3, 8, 64, 64)
    assert torch.equal(model(clips, mask), model(clips, fine))


def test_mask_grid_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="mask on the grid 4x3x3 does not divide the token grid 4x16x16"):
        small()(torch.randn(1, 3, 8, 64, 64), torch.zeros(1, 4, 3, 3, dtype=torch.bool))


@pytest.mark.parametrize("clip", [(8, 64, 64), (6, 32, 64), (10, 96, 32)])
def test_predictions_are_on_the_output_grid(clip: tuple[int, int, int]) -> None:
    model = small()
    predictions = model(torch.randn(2, 3, *clip), torch.rand(2, 1, 2, 2) < 0.5)
    assert predictions.shape == (2, *model.output_grid(clip).shape, 27)
    assert model.output_grid(clip).shape == (clip[0] // 2, clip[1] // 8, clip[2] // 8)


def test_published_grids_of_the_named_model() -> None:
    with torch.device("meta"):
        model = create_model("maskfeat_mvitv2_s")
    clip = (2, 3, 16, 224, 224)
    assert model.token_grid(clip).shape == (8, 56, 56)
    assert model.output_grid(clip).shape == (8, 14, 14)
    assert (model.values_per_token, model.output_stride) == (108, (2, 16, 16))
