"""The pixel targets: what MAE and SimMIM predict at hidden positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.layers import per_channel as channel_values
from videomaskfeat.targets.target import Target, Triple

_EPS = 1e-6  # added to the variance of a position (MAE's code), or to the deviation of a channel (VideoMAE's)


class PixelTarget(Target):
    """The pixels of each output position, of its first frame or of all.

    K = frames * rows * columns * channels values, ordered frame, row, column, color (fastest), as in
    PySlowFast's MAE. They are normalized per position by mean and unbiased variance (MAE, arXiv 2111.06377,
    section 3), or per position and color channel (VideoMAE, arXiv 2203.12602: with ``frames="all"``), or have
    the run's normalization (SimMIM, arXiv 2111.09886, section 3.4, with ``loss="l1"``).

    Args:
        normalized: normalize the values of each position to mean 0 and variance 1.
        per_channel: normalize each color channel by itself, on pixels in 0..1, dividing by the standard
            deviation plus 1e-6, as in VideoMAE's published code; needs ``normalized``.
        clip_std: standard deviation of the run's normalization, a number or one per channel; sets the
            scale of the 1e-6 of ``per_channel``.
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
        normalized: bool = True,
        per_channel: bool = False,
        frames: str = "first",
        loss: str = "mse",
        output_stride: Triple = (2, 16, 16),
        channels: int = 3,
        clip_std: float | Sequence[float] = 0.225,
    ) -> None:
        check_name("pixel frames", frames, ("first", "all"))
        check_name("pixel loss", loss, ("mse", "l1"))
        if min(*output_stride, channels) < 1:
            raise UserError(
                f"pixel output_stride {tuple(output_stride)} and channels {channels} must be 1 or more"
            )
        frames_read = output_stride[0] if frames == "all" else 1
        values = frames_read * output_stride[1] * output_stride[2] * channels
        if normalized and values == 1:
            raise UserError("pixels: one value per position has no variance; set normalized: false")
        super().__init__(output_stride=output_stride, values_per_token=values, loss=loss)
        if per_channel and (not normalized or values == channels):
            raise UserError(
                "pixels: per_channel true needs normalized values and more than one pixel per position; set "
                "per_channel: false"
            )
        self.normalized, self.frames_read = normalized, frames_read
        self._normalize = partial(_per_channel, channels=channels) if per_channel else _per_position
        # The published 1e-6 belongs to pixels in 0..1.
        self._smallest: Tensor
        self.register_buffer("_smallest", _EPS / channel_values(clip_std, 0), persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> targets float32 [B, t, h, w, K]."""
        cubes = self._cubes(clips)
        if not self.normalized:
            return cubes
        centered, _, deviation = self._normalize(cubes, self._smallest)
        return centered.div_(deviation)

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
        if self.normalized:
            _, mean, deviation = self._normalize(self._cubes(clips), self._smallest)
            values = values * deviation + mean
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


def _per_position(cubes: Tensor, smallest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [B, t, h, w, K] less their mean, the mean and the standard deviation [B, t, h, w, 1]."""
    mean = cubes.mean(dim=-1, keepdim=True)
    centered = cubes - mean
    return centered, mean, _deviation(centered)


def _per_channel(cubes: Tensor, smallest: Tensor, *, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [B, t, h, w, K] less the mean of their channel, that mean, and the channel's standard deviation
    plus ``smallest``, float [1 or C], all [B, t, h, w, K]."""
    colors = cubes.unflatten(-1, (-1, channels))  # [B, t, h, w, K / C, C]
    mean = colors.mean(dim=-2, keepdim=True)
    deviation = colors.std(dim=-2, keepdim=True) + smallest
    centered = (colors - mean).flatten(-2)
    return centered, mean.expand_as(colors).flatten(-2), deviation.expand_as(colors).flatten(-2)


def _deviation(centered: Tensor) -> Tensor:
    """Standard deviation of values with mean 0, [B, t, h, w, K] -> [B, t, h, w, 1].

    Computed from a norm: torch's variance takes twice as long on a CPU.
    """
    variance = torch.linalg.vector_norm(centered, dim=-1, keepdim=True).square() / (centered.shape[-1] - 1)
    return (variance + _EPS).sqrt()
