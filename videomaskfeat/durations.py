"""Durations as text, and an estimate of the remaining time of a training."""

from __future__ import annotations

import math
from collections import deque

_WINDOW_SECONDS = 60.0  # time window of the recent steps
_FEWEST, _MOST = 20, 500  # bounds on the number of recent steps
_TRIMMED = 0.05  # share of the slowest recent steps, which do not count


def duration_text(seconds: float) -> str:
    """A duration in one or two units.

    >>> [duration_text(value) for value in (0.00353, 0.3241, 4.01, 16.2, 130, 7810, 270_000)]
    ['3.53 ms', '324 ms', '4.0 s', '16 s', '2 min 10 s', '2 h 10 min', '3 d 3 h']
    """
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 0:
        return f"-{duration_text(-seconds)}"
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{round(1e3 * seconds, 3):.3g} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    # Round before dividing: 59.7 s are 1 min, not 60 s.
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two_units(whole, 60, "min", "s")
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return _two_units(minutes, 60, "h", "min")
    return _two_units(round(seconds / 3600), 24, "d", "h")


def _two_units(value: int, factor: int, large: str, small: str) -> str:
    whole, rest = divmod(value, factor)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


class TimeLeft:
    """Estimates the duration of the remaining steps of a training.

    The time per step is the mean of the recent steps (last minute, at least 20) without the slowest 5 %. One
    slow step does not count, and a change of speed counts fully after about a minute. The time between steps
    (evaluations, checkpoints) is averaged over all steps of this process. The first step does not count,
    since it includes the start of workers and the compilation of kernels.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_MOST)
        self._steps = 0
        self._between = 0.0

    def add(self, step_seconds: float, *, between_seconds: float = 0.0) -> None:
        """Add one step.

        Args:
            step_seconds: duration of the step, including the wait for its data.
            between_seconds: time between the previous step and this one.
        """
        self._steps += 1
        self._between += max(between_seconds, 0.0)
        if self._steps == 1:
            return
        self._recent.append(max(step_seconds, 0.0))
        total = sum(self._recent)
        while len(self._recent) > _FEWEST and total - self._recent[0] >= _WINDOW_SECONDS:
            total -= self._recent.popleft()

    def seconds(self, remaining_steps: int) -> float | None:
        """Estimated seconds for a number of steps; None before the second step."""
        if not self._recent:
            return None
        quickest = sorted(self._recent)
        if len(quickest) > 2:
            quickest = quickest[: -max(int(_TRIMMED * len(quickest)), 1)]
        step = sum(quickest) / len(quickest) + self._between / self._steps
        return step * max(remaining_steps, 0)

    def text(self, remaining_steps: int) -> str:
        """The estimate as text."""
        seconds = self.seconds(remaining_steps)
        return "unknown" if seconds is None else duration_text(seconds)
