"""Mask policies: counts, the reference's statistics, uniformity, errors."""

from __future__ import annotations

import numpy as np
import pytest

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import EXACT, MASKS, Mask, hidden_count

GRID = TokenGrid(8, 7, 7)
DRAWS = 4000


def draw(policy: str, draws: int, grid: TokenGrid = GRID, ratio: float = 0.4, seed: int = 0) -> Mask:
    """[draws, t, h, w]."""
    rng = np.random.default_rng(seed)
    return np.stack([MASKS[policy](grid, ratio, rng) for _ in range(draws)])


@pytest.mark.parametrize("policy", MASKS)
def test_masks_are_boolean_grids_that_follow_the_seed(policy: str) -> None:
    first, again, other = draw(policy, 5), draw(policy, 5), draw(policy, 5, seed=1)
    assert first.dtype == np.bool_
    assert first.shape == (5, 8, 7, 7)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("policy", MASKS)
@pytest.mark.parametrize("grid", [TokenGrid(8, 14, 14), TokenGrid(2, 2, 2), TokenGrid(4, 4, 2)])
def test_something_is_hidden_and_something_visible_on_any_grid(policy: str, grid: TokenGrid) -> None:
    counts = draw(policy, 50, grid, ratio=0.5).sum((1, 2, 3))
    assert counts.min() > 0
    assert counts.max() <= grid.size // 2


def test_cube_has_the_statistics_of_the_reference_policy() -> None:
    """Recorded from PySlowFast, 20,000 draws; tolerances are four standard deviations of 4,000 draws."""
    masks = draw("cube", DRAWS)
    counts = masks.sum((1, 2, 3))
    assert counts.max() == 157
    assert counts.min() >= 138  # 140 in the recording; a rare extreme
    assert np.mean(counts == 157) == pytest.approx(0.36, abs=0.03)
    often = masks.mean(0)
    by_frame = often.mean((1, 2))
    assert by_frame[[0, -1]] == pytest.approx([0.24, 0.24], abs=0.015)
    assert by_frame[3:5] == pytest.approx([0.51, 0.51], abs=0.015)
    assert often[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.11, abs=0.015)
    assert often[:, 3, 3].mean() == pytest.approx(0.70, abs=0.025)


def test_cube_exact_hides_the_exact_number_everywhere_alike() -> None:
    masks = draw("cube_exact", DRAWS)
    assert set(masks.sum((1, 2, 3))) == {157}
    # Four standard deviations of one cell's share in 4,000 draws are 0.031.
    assert np.abs(masks.mean(0) - 0.4).max() < 0.035
    assert np.abs(masks.mean((0, 2, 3)) - 0.4).max() < 0.02


@pytest.mark.parametrize("ratio", [0.003, 0.1, 0.75, 0.95])
def test_cube_exact_is_exact_at_any_ratio(ratio: float) -> None:
    assert set(draw("cube_exact", 50, ratio=ratio).sum((1, 2, 3))) == {round(392 * ratio)}


def test_cube_exact_hides_blocks_rather_than_scattered_cells() -> None:
    def same_as_right_neighbor(masks: Mask) -> float:
        return float(np.mean(masks[..., 1:] == masks[..., :-1]))

    assert same_as_right_neighbor(draw("cube_exact", 200)) > 0.75
    assert same_as_right_neighbor(draw("random", 200)) < 0.55


def test_tube_repeats_one_frame() -> None:
    masks = draw("tube", 200)
    assert np.array_equal(masks, np.broadcast_to(masks[:, :1], masks.shape))
    assert masks[:, 0].sum((1, 2)).max() <= 20  # round(49 * 0.4)
    assert len(np.unique(masks.reshape(200, -1), axis=0)) > 150


def test_block_draws_each_frame_by_itself() -> None:
    masks = draw("block", 500)
    per_frame = masks.sum((2, 3))
    assert per_frame.max() == 20
    assert per_frame.mean() == pytest.approx(19.2, abs=0.5)  # ten failed tries leave some frames short
    assert np.mean(masks[:, 0] == masks[:, 1]) < 0.65


def test_frame_hides_whole_frames_uniformly() -> None:
    masks = draw("frame", DRAWS)
    assert np.array_equal(masks, np.broadcast_to(masks[..., :1, :1], masks.shape))
    assert set(masks[..., 0, 0].sum(1)) == {3}  # round(8 * 0.4)
    assert masks[..., 0, 0].mean(0) == pytest.approx(3 / 8, abs=0.031)


def test_random_hides_single_cells_uniformly() -> None:
    masks = draw("random", DRAWS, ratio=0.9)
    assert set(masks.sum((1, 2, 3))) == {353}
    assert np.abs(masks.mean(0) - 0.9).max() < 0.022  # more than four standard deviations


def test_random_tube_hides_the_same_cells_of_every_frame() -> None:
    masks = draw("random_tube", DRAWS, ratio=0.9)
    assert np.array_equal(masks, np.broadcast_to(masks[:, :1], masks.shape))
    assert set(masks[:, 0].sum((1, 2))) == {44}  # round(49 * 0.9)
    assert np.abs(masks[:, 0].mean(0) - 44 / 49).max() < 0.022  # more than four standard deviations


@pytest.mark.parametrize("policy", MASKS)
def test_exact_policies_hide_equally_many_in_every_draw(policy: str) -> None:
    counts = set(draw(policy, 300).sum((1, 2, 3)))
    assert (len(counts) == 1) == (policy in EXACT)


@pytest.mark.parametrize("policy", MASKS)
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_ratios_outside_0_to_1_are_refused(policy: str, ratio: float) -> None:
    with pytest.raises(UserError, match=r"mask ratio .* is not between 0 and 1"):
        draw(policy, 1, ratio=ratio)


@pytest.mark.parametrize("policy", MASKS)
def test_ratios_that_hide_no_cell_or_all_cells_are_refused(policy: str) -> None:
    with pytest.raises(UserError, match=r"mask ratio 0\.001 leaves no hidden cells"):
        draw(policy, 1, ratio=0.001)
    with pytest.raises(UserError, match=r"mask ratio 0\.999 leaves no visible cells"):
        draw(policy, 1, ratio=0.999)


def test_a_ratio_below_every_block_is_refused() -> None:
    with pytest.raises(UserError, match=r"'cube' finds no block that fits at ratio 0\.01 on the grid 8x7x7"):
        draw("cube", 1, ratio=0.01)
    with pytest.raises(UserError, match="'block' finds no block that fits"):
        draw("block", 1, TokenGrid(8, 1, 8))


def test_hidden_count_rounds_to_the_nearest() -> None:
    assert hidden_count(GRID, 0.4) == 157
    assert hidden_count(TokenGrid(1, 14, 14), 0.4) == 78
