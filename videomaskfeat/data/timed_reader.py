"""Interface of video readers with frames by time, and its forms over readers by index."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from videomaskfeat.data.reader import OpenFile, VideoReader, VideoReadError

_LATER = 0.48  # part of the way between two frames from which on the later one is nearest
MISSING_END = 1.0  # seconds beyond the end of the last frame for which it is still the nearest


class TimedReader(OpenFile):
    """An open video with frames by time.

    Attributes:
        decoder: as ``VideoReader.decoder``.
    """

    decoder: str = "pyav"

    @property
    @abstractmethod
    def fps(self) -> float:
        """Average frames per second; 0 if unknown. The first access may read the whole file."""

    @property
    @abstractmethod
    def duration_seconds(self) -> float:
        """From the first frame to the end of the last. The first access may read the end of the file.

        Raises:
            VideoReadError: the file is damaged there.
        """

    @abstractmethod
    def _iter_frames_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """``iter_frames_at`` for float64 [n], ascending, n >= 1."""

    def iter_frames_at(
        self, seconds: Sequence[float] | np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode the frames nearest to times [n], each once, with one frame in memory at a time.

        Times are in seconds after the first frame, in any order. If two frames are equally near, the later
        one is chosen; for times before the first or after the last frame, that frame.

        Yields:
            int64 [m], the places in ``seconds`` for which a frame is the nearest, and the frame, uint8 [H, W,
            3], RGB as displayed. A frame is valid until the next one, and read-only.

        Raises:
            VideoReadError: a frame cannot be decoded; other frames may have been yielded before.
        """
        times = np.asarray(seconds, np.float64)
        order = np.argsort(times, kind="stable")
        for places, picture in self._iter_frames_at(times[order]):
            yield order[places], picture

    def read_at(self, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
        """The frames of ``iter_frames_at`` as one array, uint8 [n, H, W, 3].

        Raises:
            VideoReadError: a frame cannot be decoded, or frames differ in size.
        """
        clip: np.ndarray | None = None
        for places, picture in self.iter_frames_at(seconds):
            if clip is None:
                clip = np.empty((len(seconds), *picture.shape), np.uint8)
            check_size(self.path, picture, clip.shape[1:3])
            clip[places] = picture
        assert clip is not None  # iter_frames_at yields at least one frame, or raises
        return clip


class _VideoByTime(TimedReader):
    """Frames by time of a video with frames by index, which is closed with this reader."""

    def __init__(self, video: VideoReader) -> None:
        self.path, self.decoder, self._video = video.path, video.decoder, video

    @property
    def fps(self) -> float:
        return self._video.fps

    def close(self) -> None:
        self._video.close()

    @abstractmethod
    def _indices(self, seconds: np.ndarray) -> np.ndarray:
        """The frames nearest to ascending times, int64 [n]."""

    def _iter_frames_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        indices = self._indices(seconds)
        for index, picture in self._video.iter_frames(np.unique(indices)):
            yield np.flatnonzero(indices == index), picture


class CountedReader(_VideoByTime):
    """Frames at a constant rate: the time of frame i is i / fps.

    Raises:
        VideoReadError: the video has no frame rate.
    """

    def __init__(self, video: VideoReader) -> None:
        if not (np.isfinite(video.fps) and video.fps > 0):
            video.close()
            raise VideoReadError(
                video.path, "has neither frame times nor a frame rate, so frames cannot be found by time"
            )
        super().__init__(video)

    @property
    def duration_seconds(self) -> float:
        return self._video.frames / self._video.fps

    def _indices(self, seconds: np.ndarray) -> np.ndarray:
        places = np.floor(seconds * self.fps + 0.5)  # halves are rounded up: the later of two frames
        return np.clip(places, 0, self._video.frames - 1).astype(np.int64)


class IndexedReader(_VideoByTime):
    """Frames with known times.

    Args:
        video: an open video with a known rate.
        seconds: display times of its frames, float64 [N], ascending.
        end_seconds: end of the last frame.
    """

    def __init__(self, video: VideoReader, seconds: np.ndarray, *, end_seconds: float) -> None:
        super().__init__(video)
        self._seconds, self._end = seconds, end_seconds

    @property
    def duration_seconds(self) -> float:
        return self._end

    def _indices(self, seconds: np.ndarray) -> np.ndarray:
        check_inside(self.path, seconds[0], last=float(self._seconds[-1]), end=self._end)
        return nearest_places(self._seconds, seconds)


def nearest_places(times: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """For each target, the index of the nearest of ascending times, int64 [n].

    If two are equally near, the later one is chosen; also a little before the middle, because containers
    round times to their clock (Matroska's has milliseconds).
    """
    later = np.searchsorted(times, targets).clip(0, len(times) - 1)
    earlier = np.maximum(later - 1, 0)
    middle = times[earlier] + _LATER * (times[later] - times[earlier])
    return np.where(targets >= middle, later, earlier)


def check_inside(path: str, second: float, *, last: float, end: float) -> None:
    """Raise VideoReadError if a time is more than `MISSING_END` after the end of the last frame."""
    if second - end > MISSING_END:
        raise VideoReadError(path, f"the last frame is at {last:.2f} s, before {second:.2f} s")


def check_size(path: str, picture: np.ndarray, size: Sequence[int]) -> None:
    """Raise VideoReadError unless the size of a frame, uint8 [H, W, 3], is (height, width)."""
    if picture.shape[:2] != tuple(size):
        height, width = picture.shape[:2]
        raise VideoReadError(path, f"has frames of {width}x{height} and of {size[1]}x{size[0]}")
