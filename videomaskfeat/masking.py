"""Mask policies on a token grid.

A policy is ``(grid, ratio, rng) -> bool [t, h, w]``, True = hidden, with at least one hidden and one visible
cell. Internally a mask is a Python integer with one bit per cell (the last axis is the fastest), which is
several times as fast as slices of an array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid

Mask = NDArray[np.bool_]
MaskFunction = Callable[[TokenGrid, float, np.random.Generator], Mask]

_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))  # rows / columns of a block
_CANDIDATES = 128  # blocks sampled at once; a mask of 8x7x7 needs about this number
_TRIES_CLIP = 100  # failed tries in succession that end a mask, as in PySlowFast's 3D generator
_TRIES_FRAME = 10  # the same in BEiT's 2D generator, which PySlowFast uses for tubes


def cube(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """MaskFeat's spacetime blocks, as in PySlowFast (``MaskingGenerator3D``).

    A block has 1..t frames, h*w//5..h*w cells per frame before rounding, and a log-uniform aspect in
    0.3..3.33. It is smaller than the grid in height and width, and lies inside it. It is used if it hides at
    least one new cell and not more than are missing. 100 failed tries in succession end the mask, so it often
    hides less than ``round(ratio * cells)`` cells (140 to 157 of 157 on 8x7x7 at 0.4), and hides the middle
    of a clip more often than its ends and corners. `cube_exact` has neither property.

    Raises:
        UserError: the ratio is out of range (see `hidden_count`), or so small that no block fits.
    """
    target = hidden_count(grid, ratio)
    area = (grid.h * grid.w // 5, grid.h * grid.w)
    hidden = _fill(_blocks_inside(grid, area, rng), target, _TRIES_CLIP)
    return _to_array(_check_hidden(hidden, "cube", grid, ratio), grid)


def cube_exact(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Spacetime blocks that hide exactly ``round(ratio * cells)`` cells, all about equally often.

    Deviation from PySlowFast: blocks of the same sizes are placed so that each cell is covered by the same
    number of positions. Blocks are cut at the borders of the grid, and the last block is cut from its first
    or last cell to the missing number of cells.

    Raises:
        UserError: the ratio is out of range (see `hidden_count`).
    """
    missing = hidden_count(grid, ratio)
    hidden = 0
    for candidate in _blocks_across(grid, (max(grid.h * grid.w // 5, 1), grid.h * grid.w), rng):
        new = candidate & ~hidden
        count = new.bit_count()
        if count >= missing:
            return _to_array(hidden | _trim(new, missing, from_start=bool(rng.integers(2))), grid)
        hidden |= new
        missing -= count
    raise AssertionError("the iterator of blocks is infinite")


def tube(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """`block` mask of one frame, repeated over all frames (PySlowFast's ``MASK_TUBE``)."""
    return np.repeat(block(TokenGrid(1, grid.h, grid.w), ratio, rng), grid.t, axis=0)


def frame(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Exactly ``round(ratio * t)`` random whole frames (PySlowFast's ``MASK_FRAMES``)."""
    cells = random(TokenGrid(grid.t, 1, 1), ratio, rng)
    return np.broadcast_to(cells, grid.shape).copy()


def random(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Exactly ``round(ratio * cells)`` random cells (MAE, SimMIM)."""
    count = hidden_count(grid, ratio)
    mask = np.zeros(grid.size, dtype=np.bool_)
    mask[rng.permutation(grid.size)[:count]] = True
    return mask.reshape(grid.shape)


def random_tube(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """`random` mask of one frame, repeated over all frames (VideoMAE, arXiv 2203.12602)."""
    return np.repeat(random(TokenGrid(1, grid.h, grid.w), ratio, rng), grid.t, axis=0)


def block(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """BEiT's block-wise mask, independent for each frame; that of image MaskFeat if there is one frame.

    A frame hides up to n = ``round(ratio * h * w)`` cells in rectangles of n//5..n cells (before rounding)
    with a log-uniform aspect in 0.3..3.33. A rectangle is used if it hides at least one new cell and not more
    than are missing; ten failed tries in succession end the frame.

    Raises:
        UserError: the ratio is out of range for one frame (see `hidden_count`), or no rectangle fits.
    """
    frame_grid = TokenGrid(1, grid.h, grid.w)
    target = hidden_count(frame_grid, ratio)
    blocks = _blocks_inside(frame_grid, (target // 5, target), rng)
    hidden = 0
    for start in range(0, grid.size, frame_grid.size):
        hidden |= _fill(blocks, target, _TRIES_FRAME) << start
    return _to_array(_check_hidden(hidden, "block", grid, ratio), grid)


def varied(
    policy: MaskFunction,
    grid: TokenGrid,
    *,
    ratios: tuple[float, float],
    unmasked: float,
    rng: np.random.Generator,
) -> Mask:
    """Mask with a uniform random ratio; without hidden cells with the probability ``unmasked``.

    See iBOT (arXiv 2111.07832), section 4.1.
    """
    if rng.random() < unmasked:
        return np.zeros(grid.shape, dtype=np.bool_)
    return policy(grid, float(rng.uniform(*ratios)), rng)


def hidden_count(grid: TokenGrid, ratio: float) -> int:
    """The number of cells to hide, ``round(ratio * cells)``.

    Raises:
        UserError: the ratio is not between 0 and 1, or hides no cell or all cells of the grid.
    """
    if not 0 < ratio < 1:
        raise UserError(f"mask ratio {ratio} is not between 0 and 1 (exclusive); MaskFeat uses 0.4")
    count = round(grid.size * ratio)
    if count == 0 or count == grid.size:
        what = "hidden" if count == 0 else "visible"
        raise UserError(
            f"mask ratio {ratio} leaves no {what} cells among the {grid.size} of the grid {grid}; use a "
            "ratio nearer to 0.5, a finer grid, or another mask policy"
        )
    return count


def _blocks_inside(grid: TokenGrid, area: tuple[int, int], rng: np.random.Generator) -> Iterator[int]:
    """Yield blocks inside the grid without end; 0 for a block that is too large."""
    while True:
        sizes, draws = _sample_sizes(grid, area, rng), rng.random((3, _CANDIDATES))
        too_large = (sizes[1] >= grid.h) | (sizes[2] >= grid.w)
        sizes[:, too_large] = 0
        positions = np.array(grid.shape)[:, None] - sizes + 1
        yield from _bits(grid, sizes, (draws * positions).astype(np.int64))


def _blocks_across(grid: TokenGrid, area: tuple[int, int], rng: np.random.Generator) -> Iterator[int]:
    """Yield blocks that overlap the grid without end, cut at its borders."""
    lengths = np.array(grid.shape)[:, None]
    while True:
        sizes, draws = _sample_sizes(grid, area, rng), rng.random((3, _CANDIDATES))
        # If the first cell is uniform in 1 - size .. length - 1, all cells are covered equally often.
        first = (draws * (lengths + sizes - 1)).astype(np.int64) - sizes + 1
        last = np.minimum(first + sizes, lengths)
        first = np.maximum(first, 0)
        yield from _bits(grid, last - first, first)


def _sample_sizes(grid: TokenGrid, area: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Frames, rows and columns of the candidates, [3, candidates]."""
    draws = rng.random((3, _CANDIDATES))
    cells = area[0] + draws[1] * (area[1] - area[0])
    aspect = np.exp(_LOG_ASPECT[0] + draws[2] * (_LOG_ASPECT[1] - _LOG_ASPECT[0]))
    sizes = np.empty((3, _CANDIDATES), dtype=np.int64)
    sizes[0] = draws[0] * grid.t + 1
    sizes[1] = np.rint(np.sqrt(cells * aspect))
    sizes[2] = np.rint(np.sqrt(cells / aspect))
    return sizes


def _bits(grid: TokenGrid, sizes: NDArray[np.int64], first: NDArray[np.int64]) -> Iterator[int]:
    """Yield the bits of each block from sizes and first cells, [3, candidates]."""
    # Multiplying a pattern by sum(1 << step * i for i < n) repeats it n times at a distance of ``step`` bits.
    rows = [_repeat(grid.w, n) for n in range(grid.h + 1)]
    frames = [_repeat(grid.h * grid.w, n) for n in range(grid.t + 1)]
    starts = (first[0] * grid.h + first[1]) * grid.w + first[2]
    for t, h, w, start in zip(*sizes.tolist(), starts.tolist(), strict=True):
        yield ((1 << w) - 1) * rows[h] * frames[t] << start


def _repeat(step: int, times: int) -> int:
    return ((1 << step * times) - 1) // ((1 << step) - 1)


def _fill(blocks: Iterator[int], target: int, tries: int) -> int:
    """Hide blocks with 1 to the missing number of new cells, until ``tries`` fail in succession."""
    hidden, missing, failed = 0, target, 0
    for candidate in blocks:
        new = candidate & ~hidden
        if 0 < (count := new.bit_count()) <= missing:
            hidden |= new
            missing -= count
            failed = 0
            if missing == 0:
                break
        else:
            failed += 1
            if failed == tries:
                break
    return hidden


def _trim(bits: int, count: int, *, from_start: bool) -> int:
    """The first or the last ``count`` of the set bits."""
    excess = bits.bit_count() - count
    for _ in range(excess):
        bits ^= 1 << bits.bit_length() - 1 if from_start else bits & -bits
    return bits


def _check_hidden(hidden: int, policy: str, grid: TokenGrid, ratio: float) -> int:
    if not hidden:
        raise UserError(
            f"mask policy '{policy}' finds no block that fits at ratio {ratio} on the grid {grid}; use a "
            "larger ratio, a finer grid, or the policy 'random'"
        )
    return hidden


def _to_array(hidden: int, grid: TokenGrid) -> Mask:
    octets = np.frombuffer(hidden.to_bytes(-(-grid.size // 8), "little"), dtype=np.uint8)
    return np.unpackbits(octets, count=grid.size, bitorder="little").view(np.bool_).reshape(grid.shape)


EXACT = ("cube_exact", "frame", "random", "random_tube")
"""Policies that always hide the same number of cells."""

MASKS: dict[str, MaskFunction] = {
    "cube": cube,
    "cube_exact": cube_exact,
    "tube": tube,
    "frame": frame,
    "random": random,
    "random_tube": random_tube,
    "block": block,
}
