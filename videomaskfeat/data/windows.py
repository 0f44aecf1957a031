"""Windows of long videos: their times, one clip of each, and frames at a constant rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.sampling import key_frame_seconds
from videomaskfeat.data.timed_reader import CountedReader, TimedReader
from videomaskfeat.data.transforms import ClipGeometry, UniformCrop, resize_frame
from videomaskfeat.data.video import open_video
from videomaskfeat.data.workers import continue_reading
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_folder
from videomaskfeat.plugins import is_plugin

_STRETCH = 20.0  # seconds that are read together for a film: the reader stores their packets
_ROUNDING = 1e-6  # seconds; durations are sums of rounded frame times


def open_by_time(path: str, reader: str = "auto") -> TimedReader:
    """Open a video, or a folder of frames, for reading by time; files are not read from their start.

    Raises:
        VideoReadError: it cannot be read.
    """
    if is_folder(path) or is_plugin(reader):
        return CountedReader(open_video(path, reader))
    return open_timed(path)


def window_times(duration_seconds: float, *, window: float, every: float) -> np.ndarray:
    """Start and end of each window: float64 [n, 2], in seconds after the first frame.

    Windows start at 0, ``every``, 2 ``every``, ... until one reaches the end of the video; the last one is
    cut off there. A video shorter than a window has one window, the whole video.

    Args:
        duration_seconds: length of the video.
        window: length of a window [seconds].
        every: distance of two starts [seconds]; above ``window``, there are gaps.

    Raises:
        UserError: a length is not above 0.
    """
    if not (window > 0 and every > 0 and math.isfinite(window) and math.isfinite(every)):
        raise UserError(f"window={window:g}, every={every:g}: both must be seconds above 0")
    rest = max(duration_seconds - window - _ROUNDING, 0.0)
    starts = every * np.arange(1 + math.ceil(rest / every))
    starts = starts[(starts < duration_seconds - _ROUNDING) | (starts == 0)]
    return np.stack([starts, np.minimum(starts + window, max(duration_seconds, 0.0))], axis=1)


def clip_seconds(
    times: np.ndarray,
    fps: float,
    *,
    frames: int,
    stride: float,
    target_fps: float | None = 30.0,
    sampling: str = "clip",
) -> np.ndarray:
    """The times of the frames of one clip per window, float64 [n, T].

    With sampling ``clip`` they are those of `key_frame_seconds` around the middle of the window, which a long
    clip exceeds; with ``segments`` the middle of each of T equal segments of the window.

    Args:
        times: float [n, 2], start and end of each window [seconds].
        fps: frame rate of the video, used only if ``target_fps`` is None.
        frames, stride, target_fps: see ``clip_span``.
        sampling: "clip" or "segments".
    """
    if sampling == "segments":
        shares = (np.arange(frames) + 0.5) / frames
        return times[:, :1] + shares * (times[:, 1:] - times[:, :1])
    middle = times.mean(axis=1)
    return key_frame_seconds(fps, seconds=middle, frames=frames, stride=stride, target_fps=target_fps)


def read_clips(
    reader: TimedReader, seconds: np.ndarray, crops: Sequence[UniformCrop], *, duration_seconds: float
) -> np.ndarray:
    """Cut clips at given times; each frame is decoded and resized once.

    The frame nearest to each time is taken, also if frames are unevenly spaced; before the start and after
    the end, the first and the last frame are repeated.

    Args:
        reader: an open video.
        seconds: float [n, T], times of the frames.
        crops: S crops of each clip.
        duration_seconds: length of the video.

    Returns:
        uint8 [n * S, T, H, W, 3], the crops of a clip next to each other.

    Raises:
        VideoReadError: a frame cannot be decoded, or frames differ in size.
    """
    inside = np.clip(seconds, 0.0, duration_seconds)
    clips: np.ndarray | None = None
    geometries: list[ClipGeometry] = []  # of the crops; only their windows differ
    for places, frame in reader.iter_frames_at(inside.ravel()):
        continue_reading()
        height, width = frame.shape[:2]
        if clips is None:
            geometries = [crop.sample(height, width) for crop in crops]
            size = (geometries[0].window.height, geometries[0].window.width)
            clips = np.empty((len(seconds), len(crops), seconds.shape[1], *size, 3), np.uint8)
        source = geometries[0].source
        if (height, width) != (source.height, source.width):
            raise VideoReadError(
                reader.path, f"a frame is {width}x{height}, others are {source.width}x{source.height}"
            )
        if geometries[0].resized != (height, width):
            frame = resize_frame(frame, geometries[0].resized)
        for clip, position in zip(*np.unravel_index(places, seconds.shape), strict=True):
            for crop, geometry in enumerate(geometries):
                clips[clip, crop, position] = frame[geometry.window.slices]
    assert clips is not None  # the reader yields a frame, or raises
    return clips.reshape(-1, *clips.shape[2:])


def iter_at_rate(reader: TimedReader, fps: float, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """The frames nearest to 0, 1 / fps, ... seconds, in order, with their numbers."""
    stretch = max(math.floor(_STRETCH * fps), 1)
    for start in range(0, count, stretch):
        numbers = np.arange(start, min(start + stretch, count))
        pending: dict[int, np.ndarray] = {}  # the reader may go back, so frames can come out of order
        following = 0
        for places, picture in reader.iter_frames_at(numbers / fps):
            for place in sorted(places.tolist()):
                pending[place] = picture if place == following else picture.copy()
                while following in pending:
                    yield start + following, pending.pop(following)
                    following += 1
