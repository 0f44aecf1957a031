"""Frame indices of clips, without reading files.

A clip spans ``frames * stride * fps / target_fps`` source frames (a real number), so that a stride is the
same time in videos of any frame rate. Everything follows PySlowFast (``datasets/decoder.py`` and
``datasets/ssv2.py`` at 287ec00), including rounding.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from videomaskfeat.errors import UserError, check_name

ShortVideo = Literal["clamp", "loop", "error"]
SHORT_VIDEO_POLICIES: tuple[ShortVideo, ...] = ("clamp", "loop", "error")


class ShortVideoError(Exception):
    """A video is shorter than the clip, and the policy for short videos is ``error``."""


def check_clip(frames: int, stride: float) -> None:
    """Raise UserError if a clip is empty."""
    if frames < 1 or stride <= 0:
        raise UserError(f"a clip of {frames} frames at stride {stride} is empty; both must be positive")


def clip_span(fps: float, *, frames: int, stride: float, target_fps: float | None = 30.0) -> float:
    """The number of source frames that a clip spans, a real number.

    Args:
        fps: frame rate of the video.
        frames: frames per clip, T.
        stride: frame stride, in frames at ``target_fps``.
        target_fps: frame rate for ``stride``; None: the video's own.
    """
    check_clip(frames, stride)
    if target_fps is None:
        return float(frames * stride)
    # A video without a valid frame rate (0, nan) is treated as recorded at the target rate.
    source_fps = fps if np.isfinite(fps) and fps > 0 else target_fps
    return frames * stride * source_fps / target_fps


def clip_indices_random(
    num_frames: int,
    fps: float,
    *,
    frames: int,
    stride: float,
    rng: np.random.Generator,
    target_fps: float | None = 30.0,
    short: ShortVideo = "clamp",
) -> np.ndarray:
    """Indices of a clip with a uniform random start, for training.

    Args:
        num_frames: number of frames of the video, at least 1.
        fps, frames, stride, target_fps: see ``clip_span``.
        rng: random generator of the sample.
        short: policy for videos shorter than the clip: ``clamp`` repeats the last frame (as the reference),
            ``loop`` continues with the first one, ``error`` raises. No video is too short for one frame.

    Returns:
        int64 [T], in 0..num_frames-1, ascending unless ``loop`` wraps.

    Raises:
        ShortVideoError: the video is too short and ``short`` is ``error``.
        UserError: an argument is out of range.
    """
    span = clip_span(fps, frames=frames, stride=stride, target_fps=target_fps)
    start = rng.uniform(0.0, max(num_frames - span, 0.0))
    return _spaced_indices(start, span, num_frames, frames, short)


def clip_indices_view(
    num_frames: int,
    fps: float,
    *,
    frames: int,
    stride: float,
    view: int,
    views: int,
    target_fps: float | None = 30.0,
    short: ShortVideo = "clamp",
) -> np.ndarray:
    """Indices of clip ``view`` of ``views`` evenly spaced clips, for testing, int64 [T].

    The first clip is at the start of the video and the last one at the end, rounded to whole steps; a single
    clip is in the middle (PySlowFast's ``DATA.USE_OFFSET_SAMPLING``). For the other arguments and errors see
    ``clip_indices_random``.
    """
    if not 0 <= view < views:
        raise UserError(f"view {view} of {views}: the view must be in 0..{max(views - 1, 0)}")
    span = clip_span(fps, frames=frames, stride=stride, target_fps=target_fps)
    rest = max(num_frames - span, 0.0)
    start = np.floor(rest / 2) if views == 1 else view * np.floor(rest / (views - 1))
    return _spaced_indices(float(start), span, num_frames, frames, short)


def clip_indices_middle(num_frames: int, fps: float, *, rng: np.random.Generator, **clip: Any) -> np.ndarray:
    """The clip in the middle, with the signature of ``clip_indices_random``; ``rng`` is not used."""
    return clip_indices_view(num_frames, fps, view=0, views=1, **clip)


def _spaced_indices(start: float, span: float, num_frames: int, frames: int, short: ShortVideo) -> np.ndarray:
    """``frames`` indices from ``start`` to ``start + span - 1``, both inclusive, truncated to integers."""
    if num_frames < 1:
        raise UserError(f"a video of {num_frames} frames has no clip; leave it out of the list")
    check_name("short-video policy", short, SHORT_VIDEO_POLICIES)
    if short == "error" and frames > 1 and num_frames < span:
        raise ShortVideoError(f"too short: {num_frames} frames, and the clip spans {span:.4g}")
    # The ends are inclusive, so the step is slightly above the stride: (span - 1) / (frames - 1).
    # As in the reference (torch.linspace), values are float32 and computed from the nearer end: this rounding
    # decides how values that should be whole are truncated.
    first, last = np.float32(start), np.float32(start + span - 1)
    if frames == 1:
        positions = np.array([first])
    else:
        step = (last - first) / np.float32(frames - 1)
        count = np.arange(frames, dtype=np.float32)
        positions = np.where(count < frames // 2, first + step * count, last - step * count[::-1])
    if short == "loop":
        return np.floor(positions).astype(np.int64) % num_frames
    return np.clip(positions, 0, num_frames - 1).astype(np.int64)


def segment_edges(num_frames: int, *, frames: int) -> np.ndarray:
    """The edges of ``frames`` equal segments of a video: int64 [frames + 1], 0 to num_frames - 1.

    Halves are rounded to even, as in the reference.
    """
    if num_frames < 1 or frames < 1:
        raise UserError(f"cannot cut {num_frames} frames into {frames} segments; both must be positive")
    length = (num_frames - 1) / frames
    return np.round(length * np.arange(frames + 1)).astype(np.int64)


def segment_indices(num_frames: int, *, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame of each of ``frames`` equal segments, as for Something-Something-v2: int64 [T].

    With a generator the frame is uniform between the edges of its segment, both inclusive (training); None:
    the floor of their mean (testing). A video of fewer than ``frames`` frames repeats some.
    """
    edges = segment_edges(num_frames, frames=frames)
    if rng is None:
        return (edges[:-1] + edges[1:]) // 2
    return rng.integers(edges[:-1], edges[1:], endpoint=True)


def key_frame_seconds(
    fps: float, *, seconds: np.ndarray, frames: int, stride: float, target_fps: float | None = 30.0
) -> np.ndarray:
    """The times of clips around key frames, as for AVA.

    At 30 fps the nearest frames are those of PySlowFast (``datasets/utils.py``, ``get_sequence``): every
    ``stride``-th frame from k - frames * stride // 2 on, where k is the key frame. (If frames and stride are
    odd, the reference's clip can lack its last frame.)

    Args:
        fps: frame rate of the video, used only if ``target_fps`` is None.
        seconds: float [n], times of the key frames after the first frame of the video: AVA's second 902 is 2
            in videos that begin at second 900.
        frames: frames per clip, T; the key frame has index T / 2.
        stride, target_fps: see ``clip_span``.

    Returns:
        float64 [n, T], ascending; the first may be before the video and the last after its end.

    Raises:
        UserError: the clip is empty.
    """
    check_clip(frames, stride)
    rate = fps if target_fps is None and np.isfinite(fps) and fps > 0 else target_fps or 30.0
    return seconds[:, None] + (np.arange(frames) * stride - frames * stride // 2) / rate
