"""Token grids and masks between grids."""

from __future__ import annotations

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid, resize_mask


def test_grid_of_a_clip_counts_its_cubes() -> None:
    grid = TokenGrid.from_clip(frames=16, height=224, width=192, stride=(2, 4, 4))
    assert grid == TokenGrid(8, 56, 48)
    assert grid.shape == (8, 56, 48)
    assert grid.size == 8 * 56 * 48
    assert str(grid) == "8x56x48"


def test_pooled_grids_round_up_as_padded_convolutions_do() -> None:
    grid = TokenGrid(8, 56, 7)
    for stride in [(1, 1, 1), (1, 2, 2), (1, 8, 8), (2, 4, 4)]:
        pooled = torch.nn.functional.conv3d(
            torch.zeros(1, 1, *grid.shape), torch.zeros(1, 1, 3, 3, 3), stride=stride, padding=1
        )
        assert grid.pooled(stride).shape == tuple(pooled.shape[2:])


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ({"frames": 15, "height": 224, "width": 224}, "clip frames 15 .* cube stride 2; use 14 or 16"),
        ({"frames": 16, "height": 225, "width": 224}, "clip height 225 .* cube stride 4; use 224 or 228"),
        ({"frames": 16, "height": 224, "width": 3}, "clip width 3 .* cube stride 4; use 4$"),
        ({"frames": 0, "height": 224, "width": 224}, "clip frames 0 is not a positive multiple"),
        ({"frames": 1, "height": 224, "width": 224}, "of the cube stride 2; use 2$"),
    ],
)
def test_clips_that_are_no_multiple_of_the_cube_are_refused(size: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TokenGrid.from_clip(**size)


def test_finer_masks_repeat_each_cell_over_what_it_covers() -> None:
    mask = torch.rand(3, 2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    fine = resize_mask(mask, TokenGrid(4, 9, 4))
    assert fine.dtype == torch.bool
    for t in range(4):
        for h in range(9):
            assert torch.equal(fine[:, t, h], mask[:, t // 2, h // 3])


def test_a_mask_on_the_same_grid_is_returned_as_it_is() -> None:
    mask = torch.ones(1, 2, 3, 4, dtype=torch.bool)
    assert resize_mask(mask, TokenGrid(2, 3, 4)) is mask


def test_a_mask_grid_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="mask on the grid 8x7x7 does not divide the token grid 8x16x16"):
        resize_mask(torch.zeros(1, 8, 7, 7, dtype=torch.bool), TokenGrid(8, 16, 16))
