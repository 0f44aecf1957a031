"""Mask policies on a token grid.

A policy is ``(grid, ratio, rng) -> bool [t, h, w]``, True = hidden, with at least one hidden and one visible
cell. It raises only for a ratio that leaves no hidden or no visible cell on the grid (see `hidden_count`).
It then raises in every draw, so such a config is refused before the first step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videomaskfeat import import_object
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.plugins import import_plugin, is_plugin
from videomaskfeat.values import build_dataclass

Mask = NDArray[np.bool_]
MaskFunction = Callable[[TokenGrid, float, np.random.Generator], Mask]


def frame(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Exactly ``round(ratio * t)`` random whole frames (PySlowFast's ``MASK_FRAMES``)."""
    time = TokenGrid(grid.t, 1, 1)
    return np.broadcast_to(_random_cells(time, hidden_count(time, ratio), rng), grid.shape).copy()


def random(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Exactly ``ceil(ratio * cells)`` random cells, as in the code of MAE and SimMIM."""
    return _random_cells(grid, hidden_count(grid, ratio, rounding=_ceil), rng)


def random_tube(grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
    """Exactly ``floor(ratio * h * w)`` random cells, the same in all frames (VideoMAE, arXiv 2203.12602)."""
    one = TokenGrid(1, grid.h, grid.w)
    return np.repeat(_random_cells(one, hidden_count(one, ratio, rounding=_floor), rng), grid.t, axis=0)


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


def hidden_count(grid: TokenGrid, ratio: float, *, rounding: Callable[[float], int] = round) -> int:
    """The number of cells to hide: ``rounding(ratio * cells)``, but at least 1 and at most all except 1.

    Raises:
        UserError: the ratio is not between 0 and 1, or rounds to no cell or all cells of the grid.
    """
    if not 0 < ratio < 1:
        raise UserError(f"mask ratio {ratio} is not between 0 and 1 (exclusive); MaskFeat uses 0.4")
    nearest = round(grid.size * ratio)
    if nearest == 0 or nearest == grid.size:
        what = "hidden" if nearest == 0 else "visible"
        raise UserError(
            f"mask ratio {ratio} leaves no {what} cells among the {grid.size} of the grid {grid}; use a "
            "ratio nearer to 0.5, a finer grid, or another mask policy"
        )
    return min(max(rounding(grid.size * ratio), 1), grid.size - 1)


def build_policy(kind: str, arguments: Mapping[str, Any]) -> MaskFunction:
    """The policy of ``mask.kind`` with ``mask.arguments``.

    A plug-in ``package.module:name`` is a :data:`MaskFunction`, or a dataclass whose instances are such
    functions; its fields are the arguments.

    Raises:
        UserError: the kind or an argument is unknown, an argument is wrong, or a plug-in cannot be imported.
    """
    if not is_plugin(kind):
        check_name("mask.kind", kind, MASKS)
    policy = import_plugin("mask.kind", kind) if is_plugin(kind) else import_object(MASKS[kind])
    if dataclasses.is_dataclass(policy) and isinstance(policy, type):
        policy, arguments = build_dataclass(policy, arguments, name="mask.arguments"), {}
    if is_plugin(kind):
        policy = _checked(kind, policy)
    if arguments:
        raise UserError(f"mask.kind {kind!r} has no arguments; remove mask.arguments {dict(arguments)}")
    return policy


def is_exact(kind: str) -> bool:
    """Whether all masks of a kind hide the same number of cells; a plug-in has an attribute ``exact``."""
    return (
        bool(getattr(import_plugin("mask.kind", kind), "exact", False)) if is_plugin(kind) else kind in EXACT
    )


@dataclass(frozen=True)
class _Checked:
    """A mask function of the user, whose results are checked."""

    kind: str
    policy: Any

    def __call__(self, grid: TokenGrid, ratio: float, rng: np.random.Generator) -> Mask:
        mask = self.policy(grid, ratio, rng)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != grid.shape:
            result = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise UserError(f"mask.kind {self.kind!r} returned {result}; it must return bool {grid.shape}")
        return mask


def _checked(kind: str, policy: Any) -> MaskFunction:
    if isinstance(policy, type) or not callable(policy):
        raise UserError(
            f"mask.kind {kind!r} is of type {type(policy).__name__}; it must be a function (grid, ratio, "
            "rng) -> mask, or a dataclass of such functions"
        )
    return _Checked(kind, policy)


def _ceil(cells: float) -> int:
    return math.ceil(cells - 1e-9)  # 30 * 0.1 is slightly more than 3


def _floor(cells: float) -> int:
    return math.floor(cells + 1e-9)


def _random_cells(grid: TokenGrid, count: int, rng: np.random.Generator) -> Mask:
    mask = np.zeros(grid.size, dtype=np.bool_)
    mask[rng.permutation(grid.size)[:count]] = True
    return mask.reshape(grid.shape)


EXACT = ("cube_exact", "frame", "random", "random_tube", "multi_block_exact")
"""Policies that always hide the same number of cells."""

MASKS: dict[str, str] = {
    "cube": "videomaskfeat.block_masks:cube",
    "cube_exact": "videomaskfeat.block_masks:cube_exact",
    "tube": "videomaskfeat.block_masks:tube",
    "frame": "videomaskfeat.masking:frame",
    "random": "videomaskfeat.masking:random",
    "random_tube": "videomaskfeat.masking:random_tube",
    "block": "videomaskfeat.block_masks:block",
    "block_beit": "videomaskfeat.block_masks:block_beit",
    "multi_block": "videomaskfeat.block_masks:MultiBlock",
    "multi_block_exact": "videomaskfeat.block_masks:MultiBlockExact",
}
"""Policies by ``mask.kind``: "module:name" of a function, or of a dataclass of such functions."""
