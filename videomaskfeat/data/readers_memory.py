"""Frames that somebody else has decoded, read like a video."""

from __future__ import annotations

import numpy as np

from videomaskfeat.data.reader import VideoInfo, VideoReader
from videomaskfeat.errors import UserError


class MemoryReader(VideoReader):
    """Decoded frames as a video. They are not copied, so change them only after the last read."""

    path = "frames in memory"
    decoder = "none"

    def __init__(self, frames: np.ndarray, *, fps: float) -> None:
        """Keep the frames.

        Args:
            frames: uint8 [T, H, W, 3], RGB, every frame of the video and not a choice of them.
            fps: frames a second.

        Raises:
            UserError: not of that type and shape, or no frame rate.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
            shape = "x".join(map(str, frames.shape))
            raise UserError(
                f"frames of {frames.dtype} {shape or 'without shape'}: must be uint8 [T, H, W, 3], RGB in "
                "0..255, with at least one frame"
            )
        if not (np.isfinite(fps) and fps > 0):
            raise UserError(f"fps={fps}: must be the frames a second of the video, a positive number")
        self._pictures = frames
        self.frames, self.fps = len(frames), float(fps)

    @property
    def info(self) -> VideoInfo:
        """All facts."""
        return VideoInfo(
            path=self.path,
            frames=self.frames,
            fps=self.fps,
            duration_seconds=self.frames / self.fps,
            width=self._pictures.shape[2],
            height=self._pictures.shape[1],
            rotation_degrees=0,
            codec="none",
            variable_frame_rate=False,
        )

    def close(self) -> None:
        """Nothing is kept open."""

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._pictures[indices]  # [T, H, W, 3], a copy
