"""What a reader of video files promises: the facts of a video, frames by index, and one kind of error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

OpenedT = TypeVar("OpenedT", bound="Opened")
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


class Opened(ABC):
    """An open file. Use it in a ``with`` statement, or call ``close``.

    Attributes:
        path: of the local file, or of the frames.
    """

    path: str

    @abstractmethod
    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""

    def __enter__(self: OpenedT) -> OpenedT:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class VideoReader(Opened):
    """An open video whose frames are read by index.

    Attributes:
        decoder: which library decodes: ``decord``, ``pyav`` or, for pictures, ``opencv``.
        frames: as ``VideoInfo.frames``; free, unlike the first look at ``info``.
        fps: as ``VideoInfo.fps``; free, unlike the first look at ``info``.
    """

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

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode the frames at ``indices`` in 0..frames-1, at least one, in any order, with repeats.

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

        Yields:
            The index and uint8 [H, W, 3] as in ``read``, each frame once in the order of decoding (ascending,
            except where a reader has to go back): to be used before the next one is asked for, and not to be
            changed.

        Raises:
            IndexError, VideoReadError: as in ``read``; frames that can be decoded may have come before.
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

    def _picture_info(self, picture: np.ndarray, codec: str) -> VideoInfo:
        """The facts of pictures uint8 [H, W, 3] at a steady rate; a turn has been made and is not told."""
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


_LATER = 0.48  # from which part of the way between two pictures on the later one is taken: see nearest
MISSING_END = 1.0  # seconds beyond the end of the last picture at which it is still taken


class TimedReader(Opened):
    """An open video whose pictures are read by time."""

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

    def each_at(self, seconds: Sequence[float] | np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode the pictures nearest to times [n] after the first picture, each once, holding one at a time.

        Of two pictures that are equally near it is the later one; before the first and after the last picture
        it is that one. Times may be in any order.

        Yields:
            int64 [m], the places in ``seconds`` that a picture is nearest to, and the picture, uint8 [H, W,
            3], RGB as
            displayed: to be used before the next one is asked for, and not to be changed.

        Raises:
            VideoReadError: a picture cannot be decoded; those that can may have come before.
        """
        wanted = np.asarray(seconds, np.float64)
        order = np.argsort(wanted, kind="stable")
        for places, picture in self._each_at(wanted[order]):
            yield order[places], picture

    def read_at(self, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
        """The pictures nearest to times as in ``each_at``, uint8 [n, H, W, 3], memory of its own.

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


class _VideoByTime(TimedReader):
    """A video with frames by index, which is closed with this reader."""

    def __init__(self, video: VideoReader) -> None:
        self.path, self._video = video.path, video

    @property
    def fps(self) -> float:
        return self._video.fps

    def close(self) -> None:
        self._video.close()

    @abstractmethod
    def _indices(self, seconds: np.ndarray) -> np.ndarray:
        """The frames nearest to ascending times, int64 [n]."""

    def _each_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        indices = self._indices(seconds)
        for index, picture in self._video.each(np.unique(indices)):
            yield np.flatnonzero(indices == index), picture


class CountedReader(_VideoByTime):
    """Frames that come at a steady rate, the first one at 0 s: frame i stands for the time i / fps.

    Args:
        video: open; is closed with this one.

    Raises:
        VideoReadError: it has no frame rate.
    """

    def __init__(self, video: VideoReader) -> None:
        if not (np.isfinite(video.fps) and video.fps > 0):
            video.close()
            raise VideoReadError(video.path, "has neither times nor a frame rate, so no second can be found")
        super().__init__(video)

    @property
    def duration_seconds(self) -> float:
        return self._video.frames / self._video.fps

    def _indices(self, seconds: np.ndarray) -> np.ndarray:
        places = np.floor(seconds * self.fps + 0.5)  # halves go up: the later of two equally near ones
        return np.clip(places, 0, self._video.frames - 1).astype(np.int64)


class IndexedReader(_VideoByTime):
    """Frames of which each one's time is known.

    Args:
        video: open; its rate is known, and it is closed with this one.
        seconds: float64 [N], when its frames are shown, ascending.
        end_seconds: until when the last one is shown.
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


def nearest_places(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Indices of the ascending times that are nearest to other times, int64 [n].

    Of two that are equally near it is the later one; a little before the middle too, because containers round
    times to their clock (Matroska's is a millisecond).
    """
    later = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    earlier = np.maximum(later - 1, 0)
    middle = times[earlier] + _LATER * (times[later] - times[earlier])
    return np.where(wanted >= middle, later, earlier)


def check_inside(path: str, second: float, *, last: float, end: float) -> None:
    """VideoReadError if a time lies further than `MISSING_END` beyond the end of the last picture."""
    if second - end > MISSING_END:
        raise VideoReadError(path, f"the pictures end at {last:.2f} s, before {second:.2f} s")


def check_size(path: str, picture: np.ndarray, size: Sequence[int]) -> None:
    """VideoReadError unless a picture uint8 [H, W, 3] is as large as the others, (height, width)."""
    if picture.shape[:2] != tuple(size):
        height, width = picture.shape[:2]
        raise VideoReadError(path, f"has pictures of {width}x{height} and of {size[1]}x{size[0]}")
