"""Which cubes are hidden: mask policies on a token grid.

Every policy is ``(grid, ratio, rng) -> bool [t, h, w]``, True = hidden; it hides at least one cell and leaves
at least one visible (`varied` makes masks of changing ratios from any). Inside, a mask is one Python integer
with a bit a cell (the last axis fastest): a block is tried, counted and hidden in under a microsecond, where
slices of an array would take several.
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

_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))  # of a block, rows / columns
_CANDIDATES = 128  # blocks drawn at once; a mask of 8x7x7 needs about as many
_TRIES_CLIP = 100  # failed tries in a row that end a mask: PySlowFast's 3-d generator
_TRIES_FRAME = 10  # the same of BEiT's 2-d generator, which PySlowFast uses for its tubes


def cube(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """MaskFeat's spacetime blocks as PySlowFast draws them (``MaskingGenerator3D``).

    Blocks last 1..t, cover h*w//5..h*w cells a frame before rounding at a log-uniform aspect 0.3..3.33,
    are smaller than the grid in height and width, lie wholly inside it, and are taken if they hide at least
    one new cell and not more than are left to hide. 100 failed tries in a row end the mask, so it often falls
    short of ``round(ratio * cells)`` (on 8x7x7 at 0.4: 140 to 157 of 157), and hides the middle of the clip
    far more often than its ends and corners; see `cube_exact` for neither.

    Raises:
        UserError: the ratio is out of range, or so small that no block fits (see `hidden_count`).
    """
    target = hidden_count(grid, ratio)
    area = (grid.h * grid.w // 5, grid.h * grid.w)
    hidden = _fill(_blocks_inside(grid, area, rng), target, _TRIES_CLIP)
    return _as_array(_some(hidden, "cube", grid, ratio), grid)


def cube_exact(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Spacetime blocks that hide exactly ``round(ratio * cells)`` cells, every cell about equally often.

    Deviation from PySlowFast: blocks of the same sizes are placed so that every cell is covered by equally
    many places, hence may stick out of the grid, where they are cut off; the last block is cut down, from
    its first or last cell onwards, to the number still to hide.

    Raises:
        UserError: the ratio is out of range (see `hidden_count`).
    """
    left = hidden_count(grid, ratio)
    hidden = 0
    for candidate in _blocks_across(grid, (max(grid.h * grid.w // 5, 1), grid.h * grid.w), rng):
        new = candidate & ~hidden
        count = new.bit_count()
        if count >= left:
            return _as_array(hidden | _trim(new, left, from_start=bool(rng.integers(2))), grid)
        hidden |= new
        left -= count
    raise AssertionError("the stream of blocks has no end")


def tube(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """One frame's `block` mask, repeated over all frames (PySlowFast's ``MASK_TUBE``).

    Raises:
        UserError: the ratio is out of range for one frame (see `hidden_count`).
    """
    frame_grid = TokenGrid(1, grid.h, grid.w)
    return np.repeat(block(frame_grid, ratio, rng), grid.t, axis=0)


def frame(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Exactly ``round(ratio * t)`` whole frames, uniformly chosen (PySlowFast's ``MASK_FRAMES``).

    Raises:
        UserError: the ratio is out of range for the number of frames (see `hidden_count`).
    """
    count = hidden_count(TokenGrid(grid.t, 1, 1), ratio)
    mask = np.zeros(grid.shape, dtype=np.bool_)
    mask[rng.permutation(grid.t)[:count]] = True
    return mask


def random(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Exactly ``round(ratio * cells)`` single cells, uniformly chosen (MAE, SimMIM).

    Raises:
        UserError: the ratio is out of range (see `hidden_count`).
    """
    count = hidden_count(grid, ratio)
    mask = np.zeros(grid.size, dtype=np.bool_)
    mask[rng.permutation(grid.size)[:count]] = True
    return mask.reshape(grid.shape)


def random_tube(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Exactly ``round(ratio * h * w)`` single cells of a frame, the same in all (VideoMAE, arXiv 2203.12602).

    Raises:
        UserError: the ratio is out of range for one frame (see `hidden_count`).
    """
    one = random(TokenGrid(1, grid.h, grid.w), ratio, rng)
    return np.repeat(one, grid.t, axis=0)


def block(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """BEiT's block-wise masks, drawn for each frame by itself; on a grid of one frame, image MaskFeat's.

    A frame is to hide n = ``round(ratio * h * w)`` cells in rectangles of n//5..n cells (before rounding)
    with a log-uniform aspect of 0.3..3.33. One is taken if it hides at least one new cell and not more than
    are left; ten failed tries in a row end the frame, so it may fall short of n.

    Raises:
        UserError: the ratio is out of range for one frame (see `hidden_count`), or no rectangle fits.
    """
    frame_grid = TokenGrid(1, grid.h, grid.w)
    target = hidden_count(frame_grid, ratio)
    blocks = _blocks_inside(frame_grid, (target // 5, target), rng)
    hidden = 0
    for start in range(0, grid.size, frame_grid.size):
        hidden |= _fill(blocks, target, _TRIES_FRAME) << start
    return _as_array(_some(hidden, "block", grid, ratio), grid)


def varied(
    policy: MaskFunction,
    grid: TokenGrid,
    *,
    ratios: tuple[float, float],
    unmasked: float,
    rng: np.random.Generator,
) -> Mask:
    """A mask of a ratio drawn evenly, or, with a chance, none (iBOT, arXiv 2111.07832, section 4.1)."""
    if rng.random() < unmasked:
        return np.zeros(grid.shape, dtype=np.bool_)
    return policy(grid, float(rng.uniform(*ratios)), rng)


def hidden_count(grid: TokenGrid, ratio: float) -> int:
    """The number of cells to hide, ``round(ratio * cells)``.

    Raises:
        UserError: the ratio is not between 0 and 1, or would hide no cell or every cell of the grid.
    """
    if not 0 < ratio < 1:
        raise UserError(f"mask ratio {ratio} is not between 0 and 1 (exclusive); MaskFeat takes 0.4")
    count = round(grid.size * ratio)
    if count == 0 or count == grid.size:
        what = "nothing hidden" if count == 0 else "nothing visible"
        raise UserError(
            f"mask ratio {ratio} leaves {what} among the {grid.size} places of the grid {grid}; "
            "move it towards 0.5, take a finer grid, or another mask policy"
        )
    return count


def _blocks_inside(grid: TokenGrid, area: tuple[int, int], rng: np.random.Generator) -> Iterator[int]:
    """An endless stream of blocks that lie inside the grid; an empty one (0) where a draw was too big."""
    while True:
        sizes, places = _draw_sizes(grid, area, rng), rng.random((3, _CANDIDATES))
        too_big = (sizes[1] >= grid.h) | (sizes[2] >= grid.w)
        sizes[:, too_big] = 0
        room = np.array(grid.shape)[:, None] - sizes + 1
        yield from _bits(grid, sizes, (places * room).astype(np.int64))


def _blocks_across(grid: TokenGrid, area: tuple[int, int], rng: np.random.Generator) -> Iterator[int]:
    """An endless stream of blocks placed anywhere that touches the grid, cut off at its borders."""
    lengths = np.array(grid.shape)[:, None]
    while True:
        sizes, places = _draw_sizes(grid, area, rng), rng.random((3, _CANDIDATES))
        # A first cell uniform in 1 - size .. length - 1 puts each cell under the same number of places.
        first = (places * (lengths + sizes - 1)).astype(np.int64) - sizes + 1
        last = np.minimum(first + sizes, lengths)
        first = np.maximum(first, 0)
        yield from _bits(grid, last - first, first)


def _draw_sizes(grid: TokenGrid, area: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Sizes of the candidates, [3, candidates]: frames uniform in 1..t, rows and columns from the area."""
    draws = rng.random((3, _CANDIDATES))
    cells = area[0] + draws[1] * (area[1] - area[0])
    aspect = np.exp(_LOG_ASPECT[0] + draws[2] * (_LOG_ASPECT[1] - _LOG_ASPECT[0]))
    sizes = np.empty((3, _CANDIDATES), dtype=np.int64)
    sizes[0] = draws[0] * grid.t + 1
    sizes[1] = np.rint(np.sqrt(cells * aspect))
    sizes[2] = np.rint(np.sqrt(cells / aspect))
    return sizes


def _bits(grid: TokenGrid, sizes: NDArray[np.int64], first: NDArray[np.int64]) -> Iterator[int]:
    """The bits of each block, given sizes and first cells [3, candidates]."""
    # Multiplying a pattern by sum(1 << step * i for i < n) repeats it n times, ``step`` bits apart.
    rows = [_repeat(grid.w, n) for n in range(grid.h + 1)]
    frames = [_repeat(grid.h * grid.w, n) for n in range(grid.t + 1)]
    starts = (first[0] * grid.h + first[1]) * grid.w + first[2]
    for t, h, w, start in zip(*sizes.tolist(), starts.tolist(), strict=True):
        yield ((1 << w) - 1) * rows[h] * frames[t] << start


def _repeat(step: int, times: int) -> int:
    return ((1 << step * times) - 1) // ((1 << step) - 1)


def _fill(blocks: Iterator[int], target: int, tries: int) -> int:
    """Hide blocks that bring between 1 and the missing number of new cells, until ``tries`` fail in a row."""
    hidden, left, failed = 0, target, 0
    for candidate in blocks:
        new = candidate & ~hidden
        if 0 < (count := new.bit_count()) <= left:
            hidden |= new
            left -= count
            failed = 0
            if left == 0:
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


def _some(hidden: int, policy: str, grid: TokenGrid, ratio: float) -> int:
    """``hidden``, or an error if it is empty."""
    if not hidden:
        raise UserError(
            f"mask policy '{policy}' finds no block that fits at ratio {ratio} on the grid {grid}; "
            "raise the ratio, take a finer grid, or the policy 'random'"
        )
    return hidden


def _as_array(hidden: int, grid: TokenGrid) -> Mask:
    """The bits as bool [t, h, w]."""
    octets = np.frombuffer(hidden.to_bytes(-(-grid.size // 8), "little"), dtype=np.uint8)
    return np.unpackbits(octets, count=grid.size, bitorder="little").view(np.bool_).reshape(grid.shape)


EXACT = ("cube_exact", "frame", "random", "random_tube")
"""Policies that hide equally many cells in every draw."""

MASKS: dict[str, MaskFunction] = {
    "cube": cube,
    "cube_exact": cube_exact,
    "tube": tube,
    "frame": frame,
    "random": random,
    "random_tube": random_tube,
    "block": block,
}
