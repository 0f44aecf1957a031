"""Mask policies that hide blocks: MaskFeat's, BEiT's and V-JEPA's; for the rules see `masking`.

Internally a mask is a Python integer with one bit per cell (the last axis is the fastest), which is faster
than slices of an array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import Mask, hidden_count

_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))  # rows / columns of a block
_CANDIDATES = 128  # blocks sampled at once; a mask of 8x7x7 needs about this number
_TRIES_CLIP = 100  # failed tries in succession that end a mask, as in PySlowFast's 3D generator
_TRIES_FRAME = 10  # the same in BEiT's 2D generator, which PySlowFast uses for tubes
_REDRAWS = 100  # unions of blocks that hide everything, before one cell is uncovered instead


def cube(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """MaskFeat's spacetime blocks, as in PySlowFast (``MaskingGenerator3D``).

    A block has 1..t frames, h*w//5..h*w cells per frame before rounding, and a log-uniform aspect in
    0.3..3.33. It is smaller than the grid in height and width, and lies inside it. It is used if it hides at
    least one new cell and not more than are missing. 100 failed tries in succession end the mask, so it often
    hides less than ``round(ratio * cells)`` cells (140 to 157 of 157 on 8x7x7 at 0.4), and hides the middle
    of a clip more often than its ends and corners. `cube_exact` has neither property. If no block fits, as at
    very small ratios, the mask is one of `cube_exact`.
    """
    target = hidden_count(grid, ratio)
    area = (grid.h * grid.w // 5, grid.h * grid.w)
    hidden = _fill(_blocks_inside(grid, area, rng), target, _TRIES_CLIP)
    return _to_array(hidden or _fill_exactly(grid, target, rng), grid)


def cube_exact(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Spacetime blocks that hide exactly ``round(ratio * cells)`` cells, all about equally often.

    Deviation from PySlowFast: blocks of the same sizes are placed so that each cell is covered by the same
    number of positions. Blocks are cut at the borders of the grid, and the last block is cut from its first
    or last cell to the missing number of cells.
    """
    return _to_array(_fill_exactly(grid, hidden_count(grid, ratio), rng), grid)


def tube(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """`block` mask of one frame, repeated over all frames (PySlowFast's ``MASK_TUBE``).

    For ratios up to about 0.5: at 0.9 on 7x7 it hides 0.87 on average, and sometimes only 0.16. Use
    `random_tube` or `multi_block_exact` for more.
    """
    return np.repeat(block(TokenGrid(1, grid.h, grid.w), ratio, rng), grid.t, axis=0)


def block(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """PySlowFast's block-wise mask of image MaskFeat, independent for each frame.

    A frame hides up to n = ``round(ratio * h * w)`` cells in rectangles of n//5..n cells (before rounding)
    with a log-uniform aspect in 0.3..3.33. A rectangle is used if it hides at least one new cell and not more
    than are missing; ten failed tries in succession end the frame. A frame in which no rectangle fits hides
    exactly n cells instead, as `cube_exact`.
    """
    frame_grid = TokenGrid(1, grid.h, grid.w)
    target = hidden_count(frame_grid, ratio)
    blocks = _blocks_inside(frame_grid, (target // 5, target), rng)
    hidden = 0
    for start in range(0, grid.size, frame_grid.size):
        filled = _fill(blocks, target, _TRIES_FRAME) or _fill_exactly(frame_grid, target, rng)
        hidden |= filled << start
    return _to_array(hidden, grid)


def block_beit(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """The block-wise mask of BEiT (arXiv 2106.08254, algorithm 1) and iBOT, independent for each frame.

    As `block`, but the area of a rectangle is uniform between ``(min(h, w) // 3) ** 2`` cells (16 of 14x14)
    and the missing number of cells, so a frame more often hides all n cells.
    """
    frame_grid = TokenGrid(1, grid.h, grid.w)
    target = hidden_count(frame_grid, ratio)
    hidden = 0
    for start in range(0, grid.size, frame_grid.size):
        filled = _fill_shrinking(frame_grid, target, rng) or _fill_exactly(frame_grid, target, rng)
        hidden |= filled << start
    return _to_array(hidden, grid)


@dataclass(frozen=True)
class MultiBlock:
    """Union of equal rectangles through all frames (V-JEPA, arXiv 2404.08471, section 3.2).

    ``mask.ratio`` has no effect. The published blocks hide 63 % (8 short-range blocks) or 81 % (2 long-range
    blocks) of 14x14 cells on average. A union that hides everything is drawn again.

    Deviation from the published code: each mask draws one kind of blocks and their aspect; there, each clip
    has a mask of each kind, and the clips of a batch share the aspect.

    Attributes:
        blocks: kinds of blocks, equally likely: number of blocks, and area as a share of a frame.
        aspect: range of the uniform aspect, rows / columns.

    Raises:
        UserError: there is no kind, a number is not in 1..1000, an area is not in 0..1, or the aspects are
            not two ascending numbers above 0.
    """

    blocks: tuple[tuple[int, float], ...] = ((8, 0.15), (2, 0.7))
    aspect: tuple[float, float] = (0.75, 1.5)

    def __post_init__(self) -> None:
        if not self.blocks or not all(1 <= count <= 1000 and 0 < area < 1 for count, area in self.blocks):
            raise UserError(
                f"mask.arguments.blocks {_as_list(self.blocks)} must be pairs of a number, 1..1000, "
                "and an area between 0 and 1 (exclusive), such as [[8, 0.15], [2, 0.7]]"
            )
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise UserError(
                f"mask.arguments.aspect {_as_list(self.aspect)} must be two ascending numbers above 0, such "
                "as [0.75, 1.5]"
            )

    def __str__(self) -> str:
        return " or ".join(f"{count} x {area:g} of a frame" for count, area in self.blocks)

    def __call__(self, grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
        """One mask; see :data:`MaskFunction`."""
        one = TokenGrid(1, grid.h, grid.w)
        if one.size == 1:
            raise UserError(f"a mask of blocks needs at least 2 cells per frame, and the grid is {grid}")
        count, size = self._sample_kind(one, rng)
        everything = (1 << one.size) - 1
        for _ in range(_REDRAWS):
            hidden = 0
            for block_bits in _equal_blocks(one, size, count, rng):
                hidden |= block_bits
            if hidden != everything:
                break
        else:
            hidden = everything ^ 1 << int(rng.integers(one.size))
        return np.repeat(_to_array(hidden, one), grid.t, axis=0)

    def _sample_kind(self, one: TokenGrid, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """Number of blocks, and their rows and columns."""
        count, share = self.blocks[rng.integers(len(self.blocks))]
        area = max(int(share * one.size), 1)
        aspect = rng.uniform(*self.aspect)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        return count, (min(max(rows, 1), one.h), min(max(columns, 1), one.w))


class MultiBlockExact(MultiBlock):
    """As `MultiBlock`, with exactly ``round(ratio * h * w)`` hidden cells per frame.

    Rectangles are added until this number is reached, and the last one is cut from its first or last cell.
    The number of blocks has no effect. For models that compute only visible cells: the published code cuts
    the visible cells of all clips to the smallest number in the batch.
    """

    def __str__(self) -> str:
        return " or ".join(f"blocks of {area:g} of a frame" for _, area in self.blocks)

    def __call__(self, grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
        one = TokenGrid(1, grid.h, grid.w)
        target = hidden_count(one, ratio)
        _, size = self._sample_kind(one, rng)
        hidden = _cover_exactly(_endless_blocks(one, size, rng), target, rng)
        return np.repeat(_to_array(hidden, one), grid.t, axis=0)


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


def _endless_blocks(one: TokenGrid, size: tuple[int, int], rng: np.random.Generator) -> Iterator[int]:
    """Yield blocks of one size without end."""
    while True:
        yield from _equal_blocks(one, size, 8, rng)


def _equal_blocks(
    one: TokenGrid, size: tuple[int, int], count: int, rng: np.random.Generator
) -> Iterator[int]:
    """Yield ``count`` blocks of ``size`` (rows, columns), uniform inside a grid of one frame."""
    sizes = np.repeat(np.array([[1], [size[0]], [size[1]]]), count, axis=1)
    first = rng.integers(0, np.array(one.shape)[:, None] - sizes + 1)
    yield from _bits(one, sizes, first)


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


def _fill_shrinking(one: TokenGrid, target: int, rng: np.random.Generator) -> int:
    """As `_fill` for one frame, with areas between a minimum and the missing number of cells."""
    smallest = (min(one.h, one.w) // 3) ** 2
    hidden, missing, failed = 0, target, 0
    while missing and failed < _TRIES_FRAME:
        size, shape, top, left = rng.random(4).tolist()
        area = smallest + size * (missing - smallest)
        aspect = math.exp(_LOG_ASPECT[0] + shape * (_LOG_ASPECT[1] - _LOG_ASPECT[0]))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        failed += 1
        if rows < one.h and columns < one.w:
            first = int(top * (one.h - rows + 1)) * one.w + int(left * (one.w - columns + 1))
            new = ((1 << columns) - 1) * _repeat(one.w, rows) << first & ~hidden
            if 0 < (count := new.bit_count()) <= missing:
                hidden, missing, failed = hidden | new, missing - count, 0
    return hidden


def _fill_exactly(grid: TokenGrid, target: int, rng: np.random.Generator) -> int:
    """Hide exactly ``target`` cells in blocks that may be cut at the borders."""
    blocks = _blocks_across(grid, (max(grid.h * grid.w // 5, 1), grid.h * grid.w), rng)
    return _cover_exactly(blocks, target, rng)


def _cover_exactly(blocks: Iterator[int], target: int, rng: np.random.Generator) -> int:
    """Hide blocks until ``target`` cells are hidden; the last one is cut to the missing number of cells."""
    hidden, missing = 0, target
    for candidate in blocks:
        new = candidate & ~hidden
        count = new.bit_count()
        if count >= missing:
            return hidden | _trim(new, missing, from_start=bool(rng.integers(2)))
        hidden |= new
        missing -= count
    raise AssertionError("the iterator of blocks is infinite")


def _trim(bits: int, count: int, *, from_start: bool) -> int:
    """The first or the last ``count`` of the set bits."""
    excess = bits.bit_count() - count
    for _ in range(excess):
        bits ^= 1 << bits.bit_length() - 1 if from_start else bits & -bits
    return bits


def _as_list(value: Any) -> Any:
    """Tuples as the lists of a config, for messages."""
    return [_as_list(one) for one in value] if isinstance(value, tuple) else value


def _to_array(hidden: int, grid: TokenGrid) -> Mask:
    octets = np.frombuffer(hidden.to_bytes(-(-grid.size // 8), "little"), dtype=np.uint8)
    return np.unpackbits(octets, count=grid.size, bitorder="little").view(np.bool_).reshape(grid.shape)
