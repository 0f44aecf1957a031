"""Durations as text, and the estimate of the remaining time against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest

from videomaskfeat.durations import TimeLeft, duration_text

TEXTS = {
    0.0: "0 s",
    0.00353: "3.53 ms",
    0.3241: "324 ms",
    0.9994: "999 ms",
    0.99951: "1.0 s",  # not 1e+03 ms
    4.01: "4.0 s",
    9.96: "10 s",
    16.2: "16 s",
    59.7: "1 min",  # not 60 s
    130.0: "2 min 10 s",
    3599.7: "1 h",
    7810.0: "2 h 10 min",
    172_700.0: "47 h 58 min",
    270_000.0: "3 d 3 h",
    -4.01: "-4.0 s",
    math.inf: "unknown",
    math.nan: "unknown",
}


@pytest.mark.parametrize(("seconds", "text"), TEXTS.items(), ids=str)
def test_durations_have_one_or_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def after(*runs: tuple[int, float], between: float = 0.0) -> TimeLeft:
    """The estimate after a slow first step and ``runs``: a number of equal steps, and their seconds."""
    left = TimeLeft()
    left.add(30.0)
    for count, seconds in runs:
        for _ in range(count):
            left.add(seconds, between_seconds=between)
    return left


def test_estimate_of_equal_steps_is_their_number_times_one() -> None:
    for count in (1, 2, 5, 1000):
        assert after((count, 0.5)).seconds(100) == pytest.approx(50.0)


def test_estimate_is_unknown_before_the_second_step() -> None:
    left = TimeLeft()
    assert (left.seconds(10), left.text(10)) == (None, "unknown")
    left.add(30.0)
    assert (left.seconds(10), left.text(10)) == (None, "unknown")
    left.add(0.5)
    assert left.seconds(10) == pytest.approx(5.0)


@pytest.mark.parametrize("count", [3, 30, 900])
def test_one_outlier_changes_nothing(count: int) -> None:
    left = after((count // 2, 0.066), (1, 16.0), (count - count // 2, 0.066))
    assert left.seconds(1000) == pytest.approx(66.0)


def test_slowdown_counts_in_full_after_a_minute() -> None:
    """Steps of 0.1 s become steps of 1 s: the estimate rises from 50 s to 500 s."""
    left, estimates = after((500, 0.1)), []
    for _ in range(80):
        left.add(1.0)
        estimates.append(left.seconds(500))
    assert estimates[0] == pytest.approx(50.0)
    assert all(later > sooner - 1e-6 for sooner, later in itertools.pairwise(estimates))
    assert max(estimates) < 500.0 + 1e-6
    assert estimates[61:] == pytest.approx([500.0] * 19)
    for _ in range(600):  # and back
        left.add(0.1)
    assert left.seconds(500) == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("runs", "remaining", "expected"),
    [
        ([(100, 10.0), (20, 100.0)], 3, 300.0),
        # The last 20 steps count, even if they are slow. The slowest one of them is trimmed.
        ([(100, 1.0), *[(1, 50.0), (1, 100.0)] * 10], 19, 10 * 50.0 + 9 * 100.0),
        # Four workers deliver four batches at once: three steps of 0.1 s, then one of 1.7 s. The last minute
        # is 120 steps, 30 of them slow; the 6 slowest are trimmed.
        ([(3, 0.1), (1, 1.7)] * 60, 100, 100 * (90 * 0.1 + 24 * 1.7) / 114),
    ],
)
def test_recent_steps_are_averaged(runs: list[tuple[int, float]], remaining: int, expected: float) -> None:
    assert after(*runs).seconds(remaining) == pytest.approx(expected)


def test_evaluations_and_checkpoints_are_counted() -> None:
    """One in ten steps is followed by 5 s of evaluation: half a second per step."""
    left = TimeLeft()
    for step in range(100):
        left.add(0.2, between_seconds=5.0 if step % 10 == 9 else 0.0)
    assert left.seconds(200) == pytest.approx(200 * (0.2 + 0.5))


def test_time_left_is_never_negative() -> None:
    left = after((5, 0.0), between=-1.0)  # clocks of different kinds may differ by a little
    assert left.seconds(0) == 0
    assert left.seconds(-3) == 0
    assert left.seconds(10) >= 0
