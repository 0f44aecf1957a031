"""What a reader of video files promises: the facts of a video, frames by index, and one kind of error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

NOT_REGULAR = "not a regular file (a folder, pipe, socket or device)"  # reading it may block forever


@dataclass(frozen=True)
class VideoInfo:
    """The facts of a video's picture stream; audio plays no part.

    Attributes:
        path: of the file.
        frames: pictures that can be decoded, N, numbered 0..N-1 in the order in which they are shown.
        fps: average frames a second.
        duration_seconds: from the first picture to the end of the last.
        width: pixels as displayed, after rotation.
        height: pixels as displayed, after rotation.
        rotation_degrees: clockwise turn from the stored to the displayed picture, 0..359; nearly always a
            multiple of 90. Decoded pictures are already turned, as FFmpeg shows them.
        codec: FFmpeg's name, such as ``h264``.
        variable_frame_rate: whether the gaps between pictures differ by more than the clock's rounding.
        mirrored: whether left and right are exchanged between the stored and the displayed picture, before
            the turn. Decoded pictures are already mirrored.
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
        path: of the file.
        cause: a short phrase for people, such as ``empty file (0 bytes)``.
    """

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(path, cause)  # both as arguments, so that workers can pickle it
        self.path = path
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


class VideoReader(ABC):
    """An open video. Use it in a ``with`` statement, or call ``close``.

    Attributes:
        path: of the local file.
        decoder: which library decodes: ``decord``, ``pyav`` or, for pictures, ``opencv``.
        frames: as ``VideoInfo.frames``; free, unlike the first look at ``info``.
        fps: as ``VideoInfo.fps``; free, unlike the first look at ``info``.
    """

    path: str
    decoder: str
    frames: int
    fps: float

    @property
    @abstractmethod
    def info(self) -> VideoInfo:
        """All facts; the first look may decode one frame."""

    @abstractmethod
    def _read(self, indices: np.ndarray) -> np.ndarray:
        """``read`` for checked indices, int64 [T] with T >= 1."""

    @abstractmethod
    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode the frames at ``indices``: any order, repeats allowed.

        Args:
            indices: integers [T] in 0..frames-1, T >= 1.

        Returns:
            uint8 [T, H, W, 3], RGB as displayed (turned by the file's rotation), memory of its own.

        Raises:
            IndexError: an index is outside, or there is none.
            VideoReadError: a frame cannot be decoded.
        """
        wanted = self._checked(indices)
        try:
            return self._read(wanted)
        except MemoryError as error:
            raise VideoReadError(self.path, f"{len(wanted)} frames need more memory than there is") from error

    def each(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Decode frames one after the other in one pass over the video, holding one of them at a time.

        Args:
            indices: as in ``read``; each frame comes once, in the order of decoding (ascending, but where a
                reader has to go back).

        Yields:
            The index, and uint8 [H, W, 3] as in ``read``: to be copied or done with before the next one is
            asked for, and not to be changed.

        Raises:
            IndexError: an index is outside, or there is none.
            VideoReadError: a frame cannot be decoded; those that can may have come before.
        """
        return self._each(np.unique(self._checked(indices)))

    def _each(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """``each`` for checked indices, int64 [T], ascending and each once."""
        for index in wanted:
            yield int(index), self._read(index[None])[0]

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The indices as int64 [T], all inside the video."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or not wanted.size:
            raise IndexError(f"{self.path}: frame indices must be a list of at least one, not {indices!r}")
        if wanted.min() < 0 or wanted.max() >= self.frames:
            outside = wanted[(wanted < 0) | (wanted >= self.frames)][0]
            raise IndexError(f"{self.path}: frame {outside} is outside 0..{self.frames - 1}")
        return wanted

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
