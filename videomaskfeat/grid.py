"""Token grids of clips and encoder outputs, and masks on them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from videomaskfeat.errors import UserError

_AXES = ("frames", "height", "width")


@dataclass(frozen=True)
class TokenGrid:
    """A grid of ``t`` x ``h`` x ``w`` tokens or mask cells."""

    t: int
    h: int
    w: int

    @classmethod
    def from_clip(
        cls, *, frames: int, height: int, width: int, stride: tuple[int, int, int] = (2, 4, 4)
    ) -> TokenGrid:
        """The grid of a clip divided into cubes of ``stride`` (frames, rows, columns).

        Raises:
            UserError: an axis of the clip is not a positive multiple of its stride.
        """
        for axis, length, step in zip(_AXES, (frames, height, width), stride, strict=True):
            if length <= 0 or length % step:
                below, above = length // step * step, (max(length, 0) // step + 1) * step
                fits = f"{below} or {above}" if below > 0 else f"{above}"
                raise UserError(
                    f"clip {axis} {length} is not a positive multiple of the cube stride {step}; use {fits}"
                )
        return cls(frames // stride[0], height // stride[1], width // stride[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(t, h, w)."""
        return (self.t, self.h, self.w)

    @property
    def size(self) -> int:
        """The number of tokens, N = t*h*w."""
        return self.t * self.h * self.w

    def pooled(self, stride: tuple[int, int, int]) -> TokenGrid:
        """The grid after a pooling of this stride with kernel 1 or 3 and padding kernel//2 (rounds up)."""
        return TokenGrid(*(-(-length // step) for length, step in zip(self.shape, stride, strict=True)))

    def divides(self, other: TokenGrid) -> bool:
        """Whether every cell of this grid covers a whole number of cells of ``other``."""
        return all(fine % coarse == 0 for coarse, fine in zip(self.shape, other.shape, strict=True))

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"


def resize_mask(mask: Tensor, grid: TokenGrid) -> Tensor:
    """Resize a mask to a finer grid by repeating its cells.

    Args:
        mask: bool [B, t', h', w'], True = hidden.
        grid: grid of the result, a multiple of the grid of the mask along each axis.

    Returns:
        bool [B, t, h, w].

    Raises:
        UserError: the grid of the mask does not divide ``grid``.
    """
    coarse = TokenGrid(*mask.shape[1:])
    if not coarse.divides(grid):
        raise UserError(
            f"a mask on the grid {coarse} does not divide the token grid {grid}: the token grid must be a "
            "multiple of the mask grid along each axis; change the mask grid or the crop size"
        )
    if coarse == grid:
        return mask
    t, h, w = (fine // rough for fine, rough in zip(grid.shape, coarse.shape, strict=True))
    cells = mask[:, :, None, :, None, :, None]  # [B, t', 1, h', 1, w', 1]
    cells = cells.expand(-1, -1, t, -1, h, -1, w)
    return cells.reshape(mask.shape[0], *grid.shape)
