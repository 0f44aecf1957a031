"""Frame indices of a clip around a key frame; the reference for clips by time."""

from __future__ import annotations

import numpy as np


def key_frame_indices(
    num_frames: int,
    fps: float,
    *,
    seconds: float,
    frames: int,
    stride: float,
    target_fps: float | None = 30.0,
) -> np.ndarray:
    """Every ``stride``-th frame from frames * stride // 2 before the key frame on, int64 [T].

    At another rate than ``target_fps`` each is the frame nearest to the same time, the later of two; beyond
    the ends the first or last repeats.
    """
    step = stride * fps / (target_fps or fps)  # in source frames
    before = (frames * stride // 2) * (step / stride)  # a whole number of frames at the target rate
    places = seconds * fps - before + step * np.arange(frames)
    return np.clip(np.floor(places + 0.5), 0, num_frames - 1).astype(np.int64)
