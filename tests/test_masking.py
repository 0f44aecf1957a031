"""Mask policies: counts, the reference's statistics, uniformity, errors."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.reference import masks as slow
from videomaskfeat.block_masks import MultiBlock
from videomaskfeat.config import load_config
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import EXACT, MASKS, Mask, build_policy, hidden_count
from videomaskfeat.recipe import PretrainRecipe
from videomaskfeat.schemas.pretrain import PretrainConfig

GRID = TokenGrid(8, 7, 7)
DRAWS = 4000
CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "pretrain").glob("*.yaml"))
WITH_RATIO = [name for name in MASKS if name != "multi_block"]


def draw(policy: str, draws: int, grid: TokenGrid = GRID, ratio: float = 0.4, seed: int = 0) -> Mask:
    """[draws, t, h, w]."""
    rng, draw_mask = np.random.default_rng(seed), build_policy(policy, {})
    return np.stack([draw_mask(grid, ratio, rng) for _ in range(draws)])


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
    assert counts.max() <= (grid.size - 1 if policy == "multi_block" else grid.size // 2)


@pytest.mark.parametrize("policy", MASKS)
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.5, 0.9, 0.97])
@pytest.mark.parametrize(
    "grid", [TokenGrid(8, 7, 7), TokenGrid(8, 1, 8), TokenGrid(16, 2, 3), TokenGrid(1, 9, 4)]
)
def test_policies_never_fail_on_a_legal_ratio(policy: str, ratio: float, grid: TokenGrid) -> None:
    drawn = {"frame": grid.t, "random": grid.size, "cube": grid.size, "cube_exact": grid.size}
    cells = drawn.get(policy, grid.h * grid.w)
    if policy != "multi_block" and round(ratio * cells) in (0, cells):  # refused when the config is read
        with pytest.raises(UserError, match=r"leaves no (hidden|visible) cells"):
            draw(policy, 1, grid, ratio)
        return
    counts = draw(policy, 400, grid, ratio, seed=1).sum((1, 2, 3))
    assert 0 < counts.min() <= counts.max() < grid.size


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_masks_of_shipped_configs_never_fail(path: Path) -> None:
    recipe = PretrainRecipe.of(load_config(PretrainConfig, path, []))
    policy, grid = recipe.mask_policy, recipe.mask_grid
    rng = np.random.default_rng(0)
    counts = [int(policy(grid, recipe.mask.ratio, rng).sum()) for _ in range(300)]
    assert 0 < min(counts) <= max(counts) < grid.size


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


def assert_same_distribution(masks: np.ndarray, slow_masks: np.ndarray) -> None:
    """The mean share agrees to 4 standard errors of the difference, and every cell's frequency to 5."""
    draws = len(masks), len(slow_masks)
    shares = masks.mean((1, 2)), slow_masks.mean((1, 2))
    error = np.sqrt(sum(share.var() / n for share, n in zip(shares, draws, strict=True)))
    assert abs(shares[0].mean() - shares[1].mean()) < 4 * error + 1e-12
    often = masks.mean(0), slow_masks.mean(0)
    variance = sum(mean * (1 - mean) / n for mean, n in zip(often, draws, strict=True))
    assert np.all(np.abs(often[0] - often[1]) <= 5 * np.sqrt(variance) + 1e-3)


@pytest.mark.parametrize(("count", "area"), [(8, 0.15), (2, 0.7), (1, 0.4)])
@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (7, 7), (4, 6)])
def test_multi_block_is_distributed_as_the_slow_version(
    count: int, area: float, rows: int, columns: int
) -> None:
    policy, rng, slow_rng = MultiBlock(((count, area),)), np.random.default_rng(3), random.Random(4)
    grid = TokenGrid(2, rows, columns)
    masks = np.stack([policy(grid, 0.5, rng) for _ in range(DRAWS)])
    assert np.array_equal(masks[:, 0], masks[:, 1])  # full time
    options = {"count": count, "area": area, "aspect": (0.75, 1.5)}
    slow_masks = [slow.multi_block(rows, columns, **options, draw=slow_rng) for _ in range(1500)]
    assert_same_distribution(masks[:, 0], np.array(slow_masks, dtype=float))


@pytest.mark.parametrize(
    ("blocks", "share", "spread", "corner", "center"),
    [((8, 0.15), 0.6273, 0.0769, 0.0866, 0.951), ((2, 0.7), 0.8122, 0.0724, 0.221, 1.0)],
)
def test_multi_block_has_the_statistics_of_the_published_code(
    blocks: tuple[int, float], share: float, spread: float, corner: float, center: float
) -> None:
    """Recorded from V-JEPA (51c59d5), 8,000 draws on 14x14; four standard errors of the difference."""
    rng, policy = np.random.default_rng(0), MultiBlock((blocks,))
    masks = np.stack([policy(TokenGrid(1, 14, 14), 0.5, rng)[0] for _ in range(DRAWS)])
    shares = masks.mean((1, 2))
    error = spread * np.sqrt(1 / DRAWS + 1 / 8000)
    assert shares.mean() == pytest.approx(share, abs=4 * error)
    assert shares.std() == pytest.approx(spread, rel=0.06)
    often = masks.mean(0)
    assert often[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(corner, abs=0.02)
    assert often[6:8, 6:8].mean() == pytest.approx(center, abs=0.01)


def test_multi_block_draws_both_kinds_alike() -> None:
    shares = draw("multi_block", DRAWS, TokenGrid(1, 14, 14)).mean((1, 2, 3))
    assert shares.mean() == pytest.approx((0.6273 + 0.8122) / 2, abs=0.008)  # 4 x 0.118 / sqrt(4000)


def test_multi_block_leaves_a_cell_visible_when_blocks_hide_everything() -> None:
    rng = np.random.default_rng(0)
    counts = {int(MultiBlock(((40, 0.9),))(TokenGrid(2, 2, 2), 0.5, rng).sum()) for _ in range(50)}
    assert counts == {6}  # 3 of 4 cells in 2 frames
    with pytest.raises(UserError, match="at least 2 cells per frame, and the grid is 4x1x1"):
        MultiBlock()(TokenGrid(4, 1, 1), 0.5, rng)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.75, 0.9])
def test_multi_block_exact_is_exact_and_made_of_blocks(ratio: float) -> None:
    masks = draw("multi_block_exact", 300, TokenGrid(2, 14, 14), ratio)
    assert set(masks[:, 0].sum((1, 2))) == {round(196 * ratio)}
    assert np.array_equal(masks[:, 0], masks[:, 1])
    scattered = draw("random_tube", 300, TokenGrid(2, 14, 14), ratio)
    assert (
        np.mean(masks[..., 1:] == masks[..., :-1]) > np.mean(scattered[..., 1:] == scattered[..., :-1]) + 0.03
    )


def test_block_beit_is_distributed_as_the_slow_version_and_the_published_code() -> None:
    """Recorded from BEiT (768a3c8), 20,000 draws of 75 of 14x14: four standard errors, 6 % of the spread."""
    masks = draw("block_beit", DRAWS, TokenGrid(1, 14, 14), 75 / 196)[:, 0]
    slow_rng = random.Random(1)
    slow_masks = [slow.block_beit(14, 14, target=75, smallest=16, draw=slow_rng) for _ in range(2000)]
    assert_same_distribution(masks, np.array(slow_masks, dtype=float))
    counts = masks.sum((1, 2))
    assert counts.max() == 75
    assert counts.mean() == pytest.approx(74.473, abs=0.07)
    assert np.mean(counts == 75) == pytest.approx(0.666, abs=0.033)
    often = masks.mean(0)
    assert often[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.042, abs=0.015)
    assert often[6:8, 6:8].mean() == pytest.approx(0.715, abs=0.025)


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("cube", {"aspect": [1, 2]}, "mask.kind 'cube' has no arguments; remove mask.arguments"),
        ("cubes", {}, "mask.kind 'cubes' is unknown; did you mean 'cube'"),
        ("multi_block", {"block": []}, "mask.arguments: key 'block' is unknown; did you mean 'blocks'"),
        ("multi_block", {"blocks": []}, r"mask.arguments.blocks \[\] must be pairs"),
        ("multi_block", {"blocks": [[0, 0.5]]}, r"mask.arguments.blocks \[\[0, 0.5\]\] must be pairs"),
        ("multi_block", {"blocks": [[2, 1.0]]}, "between 0 and 1"),
        ("multi_block", {"blocks": [[2]]}, "mask.arguments.blocks"),
        ("multi_block_exact", {"aspect": [1.5, 0.75]}, "two ascending numbers above 0"),
    ],
)
def test_wrong_arguments_are_refused(kind: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_policy(kind, arguments)


def test_arguments_change_the_policy() -> None:
    policy = build_policy("multi_block", {"blocks": [[1, 0.25]], "aspect": [1, 1]})
    assert policy == MultiBlock(((1, 0.25),), (1.0, 1.0))
    rng = np.random.default_rng(0)
    assert {int(policy(TokenGrid(2, 8, 8), 0.4, rng).sum()) for _ in range(20)} == {32}  # 4 x 4 x 2


@pytest.mark.parametrize("policy", MASKS)
def test_exact_policies_hide_equally_many_in_every_draw(policy: str) -> None:
    counts = set(draw(policy, 300).sum((1, 2, 3)))
    assert (len(counts) == 1) == (policy in EXACT)


@pytest.mark.parametrize("policy", WITH_RATIO)
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_ratios_outside_0_to_1_are_refused(policy: str, ratio: float) -> None:
    with pytest.raises(UserError, match=r"mask ratio .* is not between 0 and 1"):
        draw(policy, 1, ratio=ratio)


@pytest.mark.parametrize("policy", WITH_RATIO)
def test_ratios_that_hide_no_cell_or_all_cells_are_refused(policy: str) -> None:
    with pytest.raises(UserError, match=r"mask ratio 0\.001 leaves no hidden cells"):
        draw(policy, 1, ratio=0.001)
    with pytest.raises(UserError, match=r"mask ratio 0\.999 leaves no visible cells"):
        draw(policy, 1, ratio=0.999)


def test_a_ratio_below_every_block_hides_the_exact_number() -> None:
    assert set(draw("cube", 50, ratio=0.01).sum((1, 2, 3))) == {4}
    assert set(draw("block", 50, TokenGrid(8, 1, 8)).sum((2, 3)).ravel()) == {3}


def test_hidden_count_rounds_as_the_published_code() -> None:
    assert hidden_count(GRID, 0.4) == 157
    assert hidden_count(TokenGrid(1, 14, 14), 0.4) == 78
    assert draw("random", 1, TokenGrid(1, 7, 7), 0.6).sum() == 30  # SimMIM: ceil(29.4)
    assert draw("random", 1, TokenGrid(8, 14, 14), 0.9).sum() == 1412  # MAE: 1568 - int(1568 * 0.1)
    assert draw("random", 1, TokenGrid(1, 5, 6), 0.1).sum() == 3  # 30 * 0.1 is above 3 in floating point
    assert draw("random", 1, TokenGrid(2, 2, 2), 0.9).sum() == 7  # ceil(7.2), but one stays visible
    assert draw("random_tube", 1, TokenGrid(1, 14, 14), 0.75).sum() == 147
    assert draw("random_tube", 1, TokenGrid(1, 7, 7), 0.4).sum() == 19  # VideoMAE: int(19.6)
