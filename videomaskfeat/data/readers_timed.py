"""Pictures by their time: what clips around a key frame are read with.

A second means the same in a film of 24 frames a second, in its frames extracted at 30, and in a recording
whose frames come at uneven times; a frame's number does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np

from videomaskfeat.data.reader import VideoReader, VideoReadError

_LATER = 0.48  # from which part of the way between two pictures on the later one is taken: see nearest
MISSING_END = 1.0  # seconds beyond the end of the last picture at which it is still taken


class TimedReader(ABC):
    """An open video whose pictures are asked for by time. Use it in a ``with`` statement, or call ``close``.

    Attributes:
        path: of the local file, or of the frames.
    """

    path: str

    @property
    @abstractmethod
    def fps(self) -> float:
        """Average frames per second; 0 if unknown. The first look may read the whole file."""

    @property
    @abstractmethod
    def duration_seconds(self) -> float:
        """From the first picture to the end of the last. The first look may read the end of the file.

        Raises:
            VideoReadError: the file is damaged there.
        """

    @abstractmethod
    def _each_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """``each_at`` for float64 [n], ascending, n >= 1."""

    @abstractmethod
    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""

    def each_at(self, seconds: Sequence[float] | np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode the pictures nearest to some times, each of them once, holding one of them at a time.

        Of two pictures that are equally near it is the later one; before the first and after the last picture
        it is that one.

        Args:
            seconds: [n] after the first picture, n >= 1, in any order.

        Yields:
            int64 [m], the places in ``seconds`` that a picture is nearest to, and the picture, uint8
            [H, W, 3], RGB as displayed: to be copied or done with before the next one is asked for, and not
            to be changed.

        Raises:
            VideoReadError: a picture cannot be decoded; those that can may have come before.
        """
        wanted = np.asarray(seconds, np.float64)
        order = np.argsort(wanted, kind="stable")
        for places, picture in self._each_at(wanted[order]):
            yield order[places], picture

    def read_at(self, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
        """The pictures nearest to some times, uint8 [n, H, W, 3], memory of its own.

        Args:
            seconds: as in ``each_at``.

        Raises:
            VideoReadError: a picture cannot be decoded, or they differ in size.
        """
        clip: np.ndarray | None = None
        for places, picture in self.each_at(seconds):
            if clip is None:
                clip = np.empty((len(seconds), *picture.shape), np.uint8)
            check_size(self.path, picture, clip.shape[1:3])
            clip[places] = picture
        assert clip is not None  # each_at raises where it has nothing to give
        return clip

    def __enter__(self) -> TimedReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class CountedReader(TimedReader):
    """Frames that come at a steady rate, the first one at 0 s: frame i stands for the time i / fps."""

    def __init__(self, video: VideoReader) -> None:
        """Take over an open video, of which the frame rate is known.

        Args:
            video: is closed with this one.

        Raises:
            VideoReadError: it has no frame rate.
        """
        if not (np.isfinite(video.fps) and video.fps > 0):
            video.close()
            raise VideoReadError(video.path, "has neither times nor a frame rate, so no second can be found")
        self._video = video
        self.path = video.path

    @property
    def fps(self) -> float:
        """Of the video."""
        return self._video.fps

    @property
    def duration_seconds(self) -> float:
        """Of all frames."""
        return self._video.frames / self._video.fps

    def close(self) -> None:
        """Close the video."""
        self._video.close()

    def _each_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        # Halves go up, as in key_frame_indices.
        indices = np.clip(np.floor(seconds * self.fps + 0.5), 0, self._video.frames - 1).astype(np.int64)
        for index, picture in self._video.each(np.unique(indices)):
            yield np.flatnonzero(indices == index), picture


class IndexedReader(TimedReader):
    """Frames of which each one's time is known."""

    def __init__(self, video: VideoReader, seconds: np.ndarray, *, end_seconds: float) -> None:
        """Take over an open video.

        Args:
            video: is closed with this one; its rate is known.
            seconds: float64 [N], when its frames are shown, ascending.
            end_seconds: until when the last one is shown.
        """
        self._video, self._seconds, self._end = video, seconds, end_seconds
        self.path = video.path

    @property
    def fps(self) -> float:
        """Of the video."""
        return self._video.fps

    @property
    def duration_seconds(self) -> float:
        """From 0 to the end of the last frame."""
        return self._end

    def close(self) -> None:
        """Close the video."""
        self._video.close()

    def _each_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        check_inside(self.path, seconds[0], last=float(self._seconds[-1]), end=self._end)
        indices = nearest_places(self._seconds, seconds)
        for index, picture in self._video.each(np.unique(indices)):
            yield np.flatnonzero(indices == index), picture


def nearest_places(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Indices of the ascending times that are nearest to other times, int64 [n].

    Of two that are equally near it is the later one, as in ``key_frame_indices``; a little before the middle
    too, because containers round times to their clock (Matroska's is a millisecond).
    """
    later = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    earlier = np.maximum(later - 1, 0)
    middle = times[earlier] + _LATER * (times[later] - times[earlier])
    return np.where(wanted >= middle, later, earlier)


def check_inside(path: str, second: float, *, last: float, end: float) -> None:
    """A time lies at most a little beyond the pictures.

    Args:
        path: for the message.
        second: the time.
        last: when the last picture begins.
        end: when it ends.

    Raises:
        VideoReadError: it lies further beyond them.
    """
    if second - end > MISSING_END:
        raise VideoReadError(path, f"the pictures end at {last:.2f} s, before {second:.2f} s")


def check_size(path: str, picture: np.ndarray, size: Sequence[int]) -> None:
    """A picture uint8 [H, W, 3] is as large as the others, (height, width).

    Raises:
        VideoReadError: it is not.
    """
    if picture.shape[:2] != tuple(size):
        height, width = picture.shape[:2]
        raise VideoReadError(path, f"has pictures of {width}x{height} and of {size[1]}x{size[0]}")
