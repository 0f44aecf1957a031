"""The HOG target: what MaskFeat predicts at hidden positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.targets.target import Target, Triple

# If a horizontal gradient is exactly zero, rounding noise (about 1e-6 on normalized frames) would choose
# between the first and the last bin. The smallest real gradient of an 8-bit frame is about 0.017.
_GRADIENT_NOISE = 5e-6
_MAX_BINS = 360
_PIXELS_AT_ONCE = 2**16


def hog_features(frames: Tensor, bins: int = 9, cell: int = 8) -> Tensor:
    """Histograms of oriented gradients per color channel, L2-normalized per cell.

    Each pixel's Sobel gradient (reflected at borders) adds its magnitude to the bin of its unsigned
    orientation, ``floor(atan2(gx, gy) / pi * bins) mod bins``, without interpolation between bins, Gaussian
    window, or normalization over neighboring cells (MaskFeat, section 3.2; equal to PySlowFast's
    ``HOGLayerC``). Computed in float32 under autocast too, without gradient.

    Deviation from PySlowFast: ``|gx| <= 5e-6`` counts as 0. There, rounding noise chooses between bins 0 and
    ``bins - 1`` for 4 to 13 % of the pixels of 8-bit frames, so its values depend on the device.

    Args:
        frames: float [B, C, H, W], normalized; H and W are multiples of ``cell``.
        bins: number of orientations in 180 degrees.
        cell: side of a cell in pixels.

    Returns:
        float32 [B, C, bins, H/cell, W/cell], in 0..1.

    Raises:
        UserError: ``frames`` is not four-dimensional, or its height or width is not a multiple of ``cell``.
    """
    if frames.ndim != 4:
        raise UserError(f"frames of shape {tuple(frames.shape)} are not [B, C, H, W]; flatten the time axis")
    height, width = frames.shape[2:]
    for axis, length in (("height", height), ("width", width)):
        if length < cell or length % cell:
            raise UserError(f"frame {axis} {length} is not a positive multiple of the HOG cell {cell} pixels")
    # On the CPU, a frame of 224x224 or several smaller ones fit in a core's cache, which is several times
    # faster than one pass over the batch. A GPU and the compiler are faster in one pass.
    one_pass = frames.is_cuda or torch.compiler.is_compiling()
    chunk = max(frames.shape[0] if one_pass else _PIXELS_AT_ONCE // (height * width), 1)
    with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
        sums = [_cell_histograms(frame.float().contiguous(), bins, cell) for frame in frames.split(chunk)]
        histograms = F.normalize(torch.cat(sums), dim=-1, eps=1e-12)
    return histograms.permute(0, 1, 4, 2, 3)  # [B, C, bins, H/cell, W/cell]


def _cell_histograms(frames: Tensor, bins: int, cell: int) -> Tensor:
    """Sums of gradient magnitudes, float32 [B, C, H, W] -> [B, C, H/cell, W/cell, bins].

    Each row of cells is one row of ``scatter_add_``. An angle in -pi..pi belongs to one of 2 * bins + 1
    slots, which are folded to ``bins`` afterwards.
    """
    batch, channels, height, width = frames.shape
    rows, columns, slots = height // cell, width // cell, 2 * bins + 1

    gx, gy = _sobel(frames)  # [B, C, H, W] each
    gx = F.hardshrink(gx, _GRADIENT_NOISE)
    first_slot = torch.arange(width, device=frames.device).div(cell, rounding_mode="floor") * slots + bins
    slot = torch.atan2(gx, gy).mul_(bins / math.pi).floor_().add_(first_slot).long()
    magnitude = gx.mul_(gx).addcmul_(gy, gy).sqrt_()

    histograms = frames.new_zeros(batch * channels * rows, columns * slots)
    histograms.scatter_add_(1, slot.view(-1, cell * width), magnitude.view(-1, cell * width))
    histograms = histograms.view(batch, channels, rows, columns, slots)
    folded = histograms[..., bins : 2 * bins] + histograms[..., :bins]
    folded[..., 0] += histograms[..., 2 * bins]  # an angle of exactly pi equals 0
    return folded


def _sobel(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical Sobel gradients, [B, C, H, W] each, from sums of shifted views."""
    padded = F.pad(frames, (1, 1, 1, 1), mode="reflect")
    difference = padded[..., :-2] - padded[..., 2:]  # [B, C, H+2, W]
    gx = (difference[..., :-2, :] + difference[..., 2:, :]).add_(difference[..., 1:-1, :], alpha=2)
    smooth = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    gy = smooth[..., :-2, :] - smooth[..., 2:, :]
    return gx, gy


class HogTarget(Target):
    """HOG of the first frame of each cube, on the encoder's output grid.

    An output position collects its cells (2 x 2 for stride 16 and cell 8) of each color channel:
    K = channels * bins * cells values, ordered channel, bin, cell row, cell column (fastest).

    Args:
        bins: number of orientations in 180 degrees.
        cell: side of a cell in pixels.
        cube_stride: frames, rows and columns of a cube; every ``cube_stride[0]``-th frame is used.
        output_stride: frames, rows and columns per output position.
        channels: number of color channels.

    Raises:
        UserError: the output stride is not a multiple of the cell in space, or differs from the cube in time.
    """

    def __init__(
        self,
        bins: int = 9,
        cell: int = 8,
        cube_stride: Triple = (2, 4, 4),
        output_stride: Triple = (2, 16, 16),
        channels: int = 3,
    ) -> None:
        for name, value in (("bins", bins), ("cell", cell), ("channels", channels)):
            if value < 1:
                raise UserError(f"HOG {name} {value} must be 1 or more")
        if bins > _MAX_BINS:
            raise UserError(f"HOG bins {bins} must be at most {_MAX_BINS} (half a degree each); 9 is usual")
        for axis, step in zip(("rows", "columns"), output_stride[1:], strict=True):
            if step < cell or step % cell:
                raise UserError(
                    f"output_stride {tuple(output_stride)}: its {axis} must be a multiple of the HOG cell of "
                    f"{cell} pixels; choose a cell that divides {step}"
                )
        if output_stride[0] != cube_stride[0]:
            raise UserError(
                f"output_stride {tuple(output_stride)} and cube_stride {tuple(cube_stride)} differ in time; "
                "HOG uses one frame per cube, so the encoder must not pool over time"
            )
        cells = (output_stride[1] // cell) * (output_stride[2] // cell)
        super().__init__(output_stride=output_stride, values_per_token=channels * bins * cells)
        self.bins, self.cell = bins, cell

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> targets float32 [B, t, h, w, K]."""
        batch, channels, frames, height, width = clips.shape
        grid = TokenGrid.from_clip(frames=frames, height=height, width=width, stride=self.output_stride)
        first_frames = clips[:, :, :: self.output_stride[0]].transpose(1, 2)  # [B, t, C, H, W]
        hog = hog_features(first_frames.flatten(0, 1), self.bins, self.cell)  # [B*t, C, bins, H/cell, W/cell]
        cells = hog.reshape(
            batch, grid.t, channels, self.bins, grid.h, height // self.cell // grid.h, grid.w, -1
        )  # [B, t, C, bins, h, cell rows, w, cell columns]
        return cells.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4)
