"""Frame rate and duration of a video from the display times of its frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CLOCK_SECONDS = 0.002  # a clock of milliseconds, such as Matroska's, rounds both ends of a video


@dataclass(frozen=True)
class Timing:
    """Frame rate and duration of a video.

    Attributes:
        fps: average frames per second; 0 if unknown.
        duration_seconds: from the first frame to the end of the last.
        is_variable: whether the gaps between frames differ by more than the rounding of the clock.
    """

    fps: float
    duration_seconds: float
    is_variable: bool


def measure_timing(
    seconds: np.ndarray,
    *,
    stated_fps: float,
    tick: float = 0.0,
    last: float = 0.0,
    last_is_stored: bool = False,
) -> Timing:
    """The timing of frames with known times.

    The stated rate is returned if the last frame, which has no next one, then has a duration like the others:
    it is exact, 30000/1001 instead of 29.97. Otherwise the rate follows from the gaps.

    Args:
        seconds: display times, float64 [N], N >= 1, ascending.
        stated_fps: rate in the header; 0 if it has none.
        tick: seconds between two ticks of the container's clock.
        last: duration of the last frame in seconds, by its packet; 0 if unknown.
        last_is_stored: whether the container stores this duration, as GIF does; others derive it from the
            stated rate.
    """
    count, span = len(seconds), float(seconds[-1] - seconds[0])
    if span <= 0:
        agrees = last <= 0 or (stated_fps > 0 and abs(1 / stated_fps - last) <= _CLOCK_SECONDS)
        fps = stated_fps if agrees else count / last
        return Timing(fps, count / fps if fps > 0 else 0.0, False)
    gaps = np.diff(seconds)
    usual = float(np.median(gaps))
    is_variable = count > 2 and bool(np.abs(gaps - usual).max() > max(1.01 * tick, 0.1 * usual))
    if last_is_stored and last > 0:
        fps = count / (span + last)
        return Timing(stated_fps if abs(stated_fps - fps) < 1e-3 * fps else fps, span + last, is_variable)
    fps = average_rate(seconds, stated_fps=stated_fps)
    return Timing(fps, span + 1 / fps, is_variable)


def average_rate(seconds: np.ndarray, *, stated_fps: float) -> float:
    """The average frame rate as in ``measure_timing``, with the same arguments."""
    count, span = len(seconds), float(seconds[-1] - seconds[0])
    if span <= 0:
        return stated_fps
    last = count / stated_fps - span if stated_fps > 0 else 0.0  # duration of the last frame
    gaps = np.diff(seconds)
    if max(gaps.min() - _CLOCK_SECONDS, 0) < last <= gaps.max() + _CLOCK_SECONDS:
        return stated_fps
    return (count - 1) / span
