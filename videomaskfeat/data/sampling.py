"""Which frames make a clip: pure arithmetic, no file is touched.

Clips span ``frames * stride * fps / target_fps`` source frames (a real number), so that a stride means the
same time in a 25 fps and in a 30 fps video. Everything follows PySlowFast (``datasets/decoder.py`` and
``datasets/ssv2.py`` at 287ec00), rounding included.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from videomaskfeat.errors import UserError, check_name

ShortVideo = Literal["clamp", "loop", "error"]
SHORT_VIDEO_POLICIES: tuple[ShortVideo, ...] = ("clamp", "loop", "error")


class ShortVideoError(Exception):
    """A video has fewer frames than the clip spans, and the policy for short videos is ``error``."""


def clip_span(fps: float, *, frames: int, stride: float, target_fps: float | None = 30.0) -> float:
    """The source frames that a clip covers, a real number.

    ``stride`` is from one frame of the clip to the next, in frames at ``target_fps``; None counts it in the
    video's own frames.
    """
    if frames < 1 or stride <= 0:
        raise UserError(f"a clip of {frames} frames at stride {stride} is empty; both must be positive")
    if target_fps is None:
        return float(frames * stride)
    # A file without a usable frame rate (0, nan) counts as recorded at the target rate.
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
    """The frames of a clip whose start is uniform over the video, for training.

    Args:
        num_frames: of the video, at least 1.
        fps: of the video.
        frames: in the clip, T.
        stride, target_fps: as in ``clip_span``.
        rng: this sample's own generator.
        short: what a video shorter than the span becomes: ``clamp`` repeats its last frame (the reference's
            way), ``loop`` starts again from its first, ``error`` raises. No video is too short for one frame.

    Returns:
        int64 [T], in 0..num_frames-1, ascending except where ``loop`` wraps.

    Raises:
        ShortVideoError: the video is too short and ``short`` is ``error``.
        UserError: an argument is impossible.
    """
    span = clip_span(fps, frames=frames, stride=stride, target_fps=target_fps)
    start = rng.uniform(0.0, max(num_frames - span, 0.0))
    return _spread(start, span, num_frames, frames, short)


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
    """The frames of clip ``view`` of ``views`` spread evenly over the video, for testing, int64 [T].

    The first clip is at the start and the last at the end, in whole steps, and a single clip in the middle
    (PySlowFast's ``DATA.USE_OFFSET_SAMPLING``). For the other arguments and errors see
    ``clip_indices_random``.
    """
    if not 0 <= view < views:
        raise UserError(f"view {view} of {views}: a view counts from 0 to {max(views - 1, 0)}")
    span = clip_span(fps, frames=frames, stride=stride, target_fps=target_fps)
    rest = max(num_frames - span, 0.0)
    start = np.floor(rest / 2) if views == 1 else view * np.floor(rest / (views - 1))
    return _spread(float(start), span, num_frames, frames, short)


def clip_indices_middle(num_frames: int, fps: float, *, rng: np.random.Generator, **clip: Any) -> np.ndarray:
    """The one clip in the middle, with the signature of ``clip_indices_random``; ``rng`` is not used."""
    return clip_indices_view(num_frames, fps, view=0, views=1, **clip)


def _spread(start: float, span: float, num_frames: int, frames: int, short: ShortVideo) -> np.ndarray:
    """``frames`` indices from ``start`` to ``start + span - 1``, both ends included, cut to whole frames."""
    if num_frames < 1:
        raise UserError(f"a video of {num_frames} frames has no clip; leave it out of the list")
    check_name("short-video policy", short, SHORT_VIDEO_POLICIES)
    if short == "error" and frames > 1 and num_frames < span:
        raise ShortVideoError(f"too short: {num_frames} frames, and the clip spans {span:.4g}")
    # The ends are inclusive, so the step is a little above the stride: (span - 1) / (frames - 1).
    # float32 and counting from the nearer end are the reference's (torch.linspace): where a value should be
    # whole, these roundings decide on which side of it the cut to an integer falls.
    first, last = np.float32(start), np.float32(start + span - 1)
    if frames == 1:
        places = np.array([first])
    else:
        step = (last - first) / np.float32(frames - 1)
        count = np.arange(frames, dtype=np.float32)
        places = np.where(count < frames // 2, first + step * count, last - step * count[::-1])
    if short == "loop":
        return np.floor(places).astype(np.int64) % num_frames
    return np.clip(places, 0, num_frames - 1).astype(np.int64)


def segment_edges(num_frames: int, *, frames: int) -> np.ndarray:
    """The edges that cut a video into ``frames`` equal segments: int64 [frames + 1], 0 to num_frames - 1.

    Halves round to even, as in the reference.
    """
    if num_frames < 1 or frames < 1:
        raise UserError(f"cannot cut {num_frames} frames into {frames} segments; both must be positive")
    length = (num_frames - 1) / frames
    return np.round(length * np.arange(frames + 1)).astype(np.int64)


def segment_indices(num_frames: int, *, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame from each of ``frames`` equal segments, as Something-Something-v2 is read: int64 [T].

    Never descending; a video of fewer than ``frames`` repeats some. The generator draws any frame between a
    segment's two edges, both included (training); None takes the floor of their middle (testing).
    """
    edges = segment_edges(num_frames, frames=frames)
    if rng is None:
        return (edges[:-1] + edges[1:]) // 2
    return rng.integers(edges[:-1], edges[1:], endpoint=True)


def key_frame_seconds(
    fps: float, *, seconds: np.ndarray, frames: int, stride: float, target_fps: float | None = 30.0
) -> np.ndarray:
    """The times of clips around key frames, as AVA's are read.

    At 30 fps the frames nearest to them are PySlowFast's (``datasets/utils.py``, ``get_sequence``): with the
    key frame k every ``stride``-th from k - frames * stride // 2 on, so that k is number frames / 2 of the
    clip. (Where frames and stride are odd the reference's clip can lack its last frame; here it does not.)

    Args:
        fps: of the video; of consequence only where ``target_fps`` is None.
        seconds: float [n], times of the key frames after the video's first frame: AVA's second 902 is 2 in
            frames and cuts that begin at second 900.
        frames: in the clip, T; the key frame is number T / 2.
        stride, target_fps: as in ``clip_indices_random``.

    Returns:
        float64 [n, T], each ascending; the first may lie before the video and the last beyond its end.

    Raises:
        UserError: the clip is empty.
    """
    clip_span(fps, frames=frames, stride=stride, target_fps=target_fps)  # refuses an empty clip
    rate = fps if target_fps is None and np.isfinite(fps) and fps > 0 else target_fps or 30.0
    return seconds[:, None] + (np.arange(frames) * stride - frames * stride // 2) / rate
