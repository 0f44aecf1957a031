"""Re-encode one video for training: a small picture, short groups of pictures, a constant rate, no sound."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from videomaskfeat import io
from videomaskfeat.data.check import files_of
from videomaskfeat.data.frames import EXTRACTED_FPS
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_pyav import PyAvReader
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.timed_reader import CountedReader, TimedReader
from videomaskfeat.data.video import open_video
from videomaskfeat.data.workers import continue_reading
from videomaskfeat.mp4 import write_mp4

COMPARED_FRAMES = 8  # per video, evenly spaced
_CLIP_FRAMES = 16  # of a clip in the middle, whose reading is timed
_LOSSLESS_DB = 100.0  # PSNR of equal frames, which have no finite one
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Encoding:
    """How videos are encoded.

    Attributes:
        short_side: maximum short side of a frame [pixels]; None: as in the source. Odd sizes become even.
        fps: frames per second; None: the average rate of the source.
        keyframe_interval: maximum number of frames between key frames: to read a clip, a decoder starts at
            the key frame before it.
        crf: quality of x264, 0 (lossless) to 51.
        preset: speed preset of x264.
    """

    short_side: int | None = 256
    fps: float | None = None
    keyframe_interval: int = 12
    crf: int = 20
    preset: str = "veryfast"


@dataclass(frozen=True)
class PreparedVideo:
    """A verified file.

    Attributes:
        frames: number of frames; each was decoded.
        fps: frames per second.
        size: width and height [pixels].
        bytes: size of the source and of the new file.
        clip_seconds: time to open the source and the new file and read a clip of 16 frames.
        psnr: mean peak signal-to-noise ratio of compared frames against the resized frames of the source
            [dB]; 100 if they are equal.
    """

    frames: int
    fps: float
    size: tuple[int, int]
    bytes: tuple[int, int]
    clip_seconds: tuple[float, float]
    psnr: float


@dataclass
class _Source:
    """The frames to encode; keeps copies of those that are compared."""

    reader: TimedReader
    encoding: Encoding
    compared: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = self.reader.fps if np.isfinite(self.reader.fps) and self.reader.fps > 0 else EXTRACTED_FPS
        self.fps = self.encoding.fps or own
        self.count = max(1, round(self.reader.duration_seconds * self.fps))
        places = np.linspace(0, self.count - 1, COMPARED_FRAMES)
        self._compared_places = set(np.unique(np.round(places).astype(int)).tolist())

    def frames(self) -> Iterator[np.ndarray]:
        """Frame k is the one that the source shows at k / fps, uint8 [H, W, 3]."""
        done = 0
        for places, picture in self.reader.iter_frames_at(np.arange(self.count) / self.fps):
            if places[0] != done:
                raise VideoReadError(
                    self.reader.path, f"its frames are not in order at {done / self.fps:.2f} s"
                )
            done += len(places)
            frame = fit_picture(picture, self.encoding.short_side)
            for place in places.tolist():
                continue_reading()
                if place in self._compared_places:
                    self.compared[place] = frame.copy()
                yield frame


def fit_picture(picture: np.ndarray, short_side: int | None) -> np.ndarray:
    """Shrink a picture, uint8 [H, W, 3], to a short side, and give it an even height and width.

    A picture that is small enough loses its last row or column if their number is odd.
    """
    height, width = picture.shape[:2]
    scale = 1.0 if short_side is None else min(1.0, short_side / min(height, width))
    if scale == 1 and min(height, width) > 1:
        return picture[: height // 2 * 2, : width // 2 * 2]
    even = tuple(max(2, 2 * round(scale * side / 2)) for side in (width, height))
    return cv2.resize(picture, even, interpolation=cv2.INTER_AREA)


def prepare_video(path: str, target: str, encoding: Encoding) -> PreparedVideo:
    """Encode a video, or a folder of frames, as H.264 mp4.

    The new file is decoded and compared with its source before it is renamed to ``target``. Rotations of the
    source become pixels.

    Raises:
        VideoReadError: the source cannot be decoded.
        RunFailed: the new file cannot be written, or differs from its source.
    """
    local = io.local_path(path)
    with closing(_open_source(local)) as reader, io.whole_path(target) as temporary:
        source = _Source(reader, encoding)
        try:
            write_mp4(
                temporary,
                source.frames(),
                fps=source.fps,
                crf=encoding.crf,
                preset=encoding.preset,
                keyframe_interval=encoding.keyframe_interval,
            )
        except OSError as error:
            if error.errno in _FULL_DISK:
                raise io.write_failed(target, error) from error
            raise VideoReadError(path, f"cannot be encoded ({error})") from error
        psnr, size = _compare(temporary, source)
        sizes = sum(os.path.getsize(file) for file in files_of(local)), temporary.stat().st_size
        seconds = _clip_seconds(local), _clip_seconds(temporary)
    return PreparedVideo(source.count, source.fps, size, sizes, seconds, psnr)


def _open_source(path: str) -> TimedReader:
    return CountedReader(open_video(path)) if os.path.isdir(path) else open_timed(path)


def _compare(path: Path, source: _Source) -> tuple[float, tuple[int, int]]:
    """PSNR and size of a written file; VideoReadError unless all its frames can be decoded."""
    ratios, frames = [], 0
    with PyAvReader(os.fspath(path)) as video:
        if video.frames != source.count:
            raise VideoReadError(
                source.reader.path, f"its new file has {video.frames} instead of {source.count} frames"
            )
        for place, picture in video.iter_frames(np.arange(video.frames)):
            continue_reading()
            frames += 1
            height, width = picture.shape[:2]
            if place in source.compared:
                ratios.append(peak_signal_to_noise(picture, source.compared[place]))
    if frames != source.count:
        raise VideoReadError(source.reader.path, f"only {frames} of {source.count} new frames can be decoded")
    return float(np.mean(ratios)), (width, height)


def peak_signal_to_noise(picture: np.ndarray, reference: np.ndarray) -> float:
    """10 log10(255^2 / mean squared difference) of uint8 pictures of equal shape [dB], at most 100."""
    squares = np.square(picture.astype(np.float64) - reference).mean()
    return min(10 * np.log10(255**2 / squares), _LOSSLESS_DB) if squares else _LOSSLESS_DB


def _clip_seconds(path: str | Path) -> float:
    """Time to open a video and to read a clip in its middle."""
    started = time.perf_counter()
    with open_video(path) as video:
        first = max(0, (video.frames - _CLIP_FRAMES) // 2)
        video.read(np.arange(first, min(first + _CLIP_FRAMES, video.frames)))
    return time.perf_counter() - started
