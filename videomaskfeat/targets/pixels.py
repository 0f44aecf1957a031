"""The pixel targets: what MAE and SimMIM predict at hidden positions."""

from __future__ import annotations

import torch
from torch import Tensor

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.targets.target import Target, Triple

_EPS = 1e-6  # added to the variance of a position (MAE's code)


class PixelTarget(Target):
    """The pixels of each output position, of its first frame or of all.

    K = frames * rows * columns * channels values, ordered frame, row, column, color (fastest), as in
    PySlowFast's MAE. They are normalized per position by mean and unbiased variance (MAE, arXiv 2111.06377,
    section 3), or have the run's normalization (SimMIM, arXiv 2111.09886, section 3.4, with ``loss="l1"``).

    Args:
        normalised: normalize the values of each position to mean 0 and variance 1.
        frames: "first" frame of each position (MAE for video), or "all".
        loss: "mse" or "l1".
        output_stride: frames, rows and columns per output position; 1 frame for images.
        channels: number of color channels.

    Raises:
        UserError: an unknown name, or a size below 1.
    """

    def __init__(
        self,
        *,
        normalised: bool = True,
        frames: str = "first",
        loss: str = "mse",
        output_stride: Triple = (2, 16, 16),
        channels: int = 3,
    ) -> None:
        check_name("pixel frames", frames, ("first", "all"))
        check_name("pixel loss", loss, ("mse", "l1"))
        if min(*output_stride, channels) < 1:
            raise UserError(
                f"pixel output_stride {tuple(output_stride)} and channels {channels} must be 1 or more"
            )
        frames_read = output_stride[0] if frames == "all" else 1
        values = frames_read * output_stride[1] * output_stride[2] * channels
        if normalised and values == 1:
            raise UserError("pixels: one value per position has no variance; set normalised: false")
        super().__init__(output_stride=output_stride, values_per_token=values, loss=loss)
        self.normalised, self.frames_read = normalised, frames_read

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> targets float32 [B, t, h, w, K]."""
        cubes = self._cubes(clips)
        if not self.normalised:
            return cubes
        centered = cubes - cubes.mean(dim=-1, keepdim=True)
        return centered.div_(_deviation(centered))

    def as_clips(self, values: Tensor, clips: Tensor) -> Tensor:
        """Convert values, such as predictions, to clips; normalized values get their position's mean and std
        back.

        Args:
            values: float [B, t, h, w, K].
            clips: float [B, C, T, H, W], the original clips in the run's normalization.

        Returns:
            float32 [B, C, t * u, H, W] in the run's normalization, for u frames per position.
        """
        values = values.float()
        if self.normalised:
            cubes = self._cubes(clips)
            mean = cubes.mean(dim=-1, keepdim=True)
            values = values * _deviation(cubes - mean) + mean
        batch, t, h, w, _ = values.shape
        _, rows, columns = self.output_stride
        cubes = values.reshape(batch, t, h, w, self.frames_read, rows, columns, -1)
        return cubes.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(
            batch, -1, t * self.frames_read, h * rows, w * columns
        )

    def _cubes(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W] -> the pixels of each position, float32 [B, t, h, w, K]."""
        batch, channels, frames, height, width = clips.shape
        step, rows, columns = self.output_stride
        grid = TokenGrid.from_clip(frames=frames, height=height, width=width, stride=self.output_stride)
        cubes = clips.float().reshape(batch, channels, grid.t, step, grid.h, rows, grid.w, columns)
        cubes = cubes[:, :, :, : self.frames_read]  # [B, C, t, u, h, rows, w, columns]
        return cubes.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)


def _deviation(centered: Tensor) -> Tensor:
    """Standard deviation of values with mean 0, [B, t, h, w, K] -> [B, t, h, w, 1].

    Computed from a norm: torch's variance takes twice as long on a CPU.
    """
    variance = torch.linalg.vector_norm(centered, dim=-1, keepdim=True).square() / (centered.shape[-1] - 1)
    return (variance + _EPS).sqrt()
