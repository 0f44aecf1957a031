"""Interfaces of video readers: the facts of a video, frames by index or time, and one kind of error."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

OpenFileT = TypeVar("OpenFileT", bound="OpenFile")
NOT_REGULAR = "not a regular file (a folder, pipe, socket or device)"  # reading it may block forever
PICTURE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def is_picture(name: str) -> bool:
    """Whether a file name has the extension of a picture, and is not hidden (a leading dot)."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in PICTURE_SUFFIXES and not base.startswith(".")


@dataclass(frozen=True)
class VideoInfo:
    """The facts of a video's picture stream, without audio.

    Attributes:
        path: path of the file.
        frames: number of frames that can be decoded; indices are in display order.
        fps: average frames per second.
        duration_seconds: from the first frame to the end of the last.
        width: displayed pixels, after rotation.
        height: displayed pixels, after rotation.
        rotation_degrees: clockwise rotation from the stored to the displayed picture, 0..359; nearly always a
            multiple of 90. Decoded pictures are already rotated, as FFmpeg shows them.
        codec: FFmpeg's name, such as ``h264``.
        variable_frame_rate: whether the gaps between frames differ by more than the clock's rounding.
        mirrored: whether left and right are exchanged before the rotation. Decoded pictures are already
            mirrored.
    """

    path: str
    frames: int
    fps: float
    duration_seconds: float
    width: int
    height: int
    rotation_degrees: int
    codec: str
    variable_frame_rate: bool
    mirrored: bool = False


class VideoReadError(Exception):
    """A video file, or a frame of it, cannot be read.

    Attributes:
        path: path of the file.
        cause: a short phrase, such as ``empty file (0 bytes)``.
    """

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(path, cause)  # both as arguments, so that workers can pickle it
        self.path = path
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


class OpenFile(ABC):
    """An open file. Use it in a ``with`` statement, or call ``close``.

    Attributes:
        path: path of the local file or of the frames.
    """

    path: str

    @abstractmethod
    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""

    def __enter__(self: OpenFileT) -> OpenFileT:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class VideoReader(OpenFile):
    """An open video with frames by index.

    Attributes:
        decoder: library that decodes: ``decord``, ``pyav`` or, for pictures, ``opencv``.
        frames: as ``VideoInfo.frames``; free, unlike the first access to ``info``.
        fps: as ``VideoInfo.fps``; free, unlike the first access to ``info``.
    """

    decoder: str
    frames: int
    fps: float

    @property
    @abstractmethod
    def info(self) -> VideoInfo:
        """All facts; the first access may decode one frame."""

    @abstractmethod
    def _read(self, indices: np.ndarray) -> np.ndarray:
        """``read`` for checked indices, int64 [T] with T >= 1."""

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode the frames at ``indices`` in 0..frames-1, at least one, in any order, with repeats.

        Returns:
            uint8 [T, H, W, 3], RGB as displayed (after the file's rotation), in its own memory.

        Raises:
            IndexError: an index is out of range, or there is no index.
            VideoReadError: a frame cannot be decoded.
        """
        checked = self._check_indices(indices)
        try:
            return self._read(checked)
        except MemoryError as error:
            raise VideoReadError(self.path, f"{len(checked)} frames do not fit in memory") from error

    def iter_frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Decode frames in one pass over the video, with one frame in memory at a time.

        Yields:
            Index and frame, uint8 [H, W, 3] as in ``read``; each frame once, in the order of decoding
            (ascending, unless a reader has to go back). A frame is valid until the next one, and read-only.

        Raises:
            IndexError, VideoReadError: as in ``read``, possibly after some frames.
        """
        return self._iter_frames(np.unique(self._check_indices(indices)))

    def _iter_frames(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """``iter_frames`` for checked indices, int64 [T], ascending and unique."""
        for index in indices:
            yield int(index), self._read(index[None])[0]

    def _check_indices(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The indices as int64 [T]; IndexError unless all are inside the video."""
        checked = np.asarray(indices, dtype=np.int64)
        if checked.ndim != 1 or not checked.size:
            raise IndexError(f"{self.path}: frame indices must be a list of at least one, not {indices!r}")
        if checked.min() < 0 or checked.max() >= self.frames:
            outside = checked[(checked < 0) | (checked >= self.frames)][0]
            raise IndexError(f"{self.path}: frame {outside} is outside 0..{self.frames - 1}")
        return checked

    def _picture_info(self, picture: np.ndarray, codec: str) -> VideoInfo:
        """The facts of upright pictures, uint8 [H, W, 3], at a constant rate."""
        return VideoInfo(
            path=self.path,
            frames=self.frames,
            fps=self.fps,
            duration_seconds=self.frames / self.fps,
            width=picture.shape[1],
            height=picture.shape[0],
            rotation_degrees=0,
            codec=codec,
            variable_frame_rate=False,
        )
