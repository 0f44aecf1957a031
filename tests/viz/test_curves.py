"""Curves: values land where the axes say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from videomaskfeat.viz.page import Curve, line_chart, short_number, smoothed, ticks


def points(svg: str, kind: str, number: int) -> np.ndarray:
    """float [n, 2] of a curve's path."""
    found = re.search(rf'class="{kind} c{number}" d="M([^"Z]*)', svg)
    assert found is not None
    return np.array([point.split() for point in found[1].split("L")], dtype=float)


def grid_places(svg: str) -> list[float]:
    """Heights of the horizontal grid lines, bottom to top."""
    return [float(y) for y in re.findall(r'class="grid" d="M\d+ ([\d.]+)H', svg)]


def test_line_passes_the_grid_where_the_values_are() -> None:
    svg = line_chart(
        [Curve("loss", np.array([0.0, 1, 2]), np.array([0.0, 2, 4]))], title="Loss", from_zero=True
    )
    heights = grid_places(svg)  # at 0, 1, 2, 3, 4
    np.testing.assert_allclose(points(svg, "line", 0)[:, 1], [heights[0], heights[2], heights[4]], atol=0.11)


def test_log_axis_puts_powers_of_ten_at_equal_distances() -> None:
    curve = Curve("norm", np.arange(4.0), np.array([0.01, 0.1, 1.0, 0.0]))  # 0 cannot be shown
    svg = line_chart([curve], title="Norm", log=True)
    np.testing.assert_allclose(points(svg, "line", 0)[:, 1], grid_places(svg), atol=0.11)


def test_many_steps_become_few_points_that_keep_the_peaks() -> None:
    y = np.zeros(100_000)
    y[54_321] = 10.0
    svg = line_chart([Curve("loss", np.arange(100_000.0), y)], title="Loss", from_zero=True)
    spread = points(svg, "spread", 0)
    assert len(points(svg, "line", 0)) == 400
    assert spread[:, 1].min() == pytest.approx(grid_places(svg)[-1], abs=0.11)  # the peak reaches 10
    assert len(svg) < 30_000


def test_values_that_are_not_finite_are_left_out() -> None:
    curve = Curve("loss", np.arange(5.0), np.array([1.0, np.nan, 2.0, np.inf, 3.0]))
    svg = line_chart([curve], title="Loss")
    assert len(points(svg, "line", 0)) == 3
    assert "nan" not in svg
    assert "inf" not in svg
    assert line_chart([Curve("loss", np.arange(2.0), np.full(2, np.nan))], title="Loss") == ""


def test_one_step_is_a_dot() -> None:
    assert "<circle" in line_chart([Curve("loss", np.array([7.0]), np.array([0.5]))], title="Loss")


def test_chart_tells_its_numbers_to_a_screen_reader() -> None:
    svg = line_chart([Curve('a"<b', np.array([1.0, 9.0]), np.array([0.5, 0.25]))], title="Loss")
    assert 'aria-label="Loss. a&quot;&lt;b: 0.5 at step 1, 0.25 at step 9, least 0.25, most 0.5."' in svg


def test_level_is_drawn_at_its_value_with_its_name() -> None:
    curve = Curve("loss", np.array([0.0, 1]), np.array([0.0, 4.0]))
    svg = line_chart([curve], title="Loss", from_zero=True, levels={"constant <1>": 2.0})
    level = re.search(r'class="level" d="M\d+ ([\d.]+)H', svg)
    assert level is not None
    assert float(level[1]) == pytest.approx(grid_places(svg)[2], abs=0.11)
    assert "constant &lt;1&gt; 2" in svg


def test_smoothing_is_a_moving_mean_that_shortens_at_the_ends() -> None:
    values = np.random.default_rng(0).normal(size=20)
    slow = [values[max(i - 2, 0) : i + 3].mean() for i in range(20)]
    np.testing.assert_allclose(smoothed(values, 5), slow, atol=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.03, 0.11, [0.04, 0.06, 0.08, 0.1]),
        (1, 2400, [500, 1000, 1500, 2000]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (2e-4, "2e-4"),
        (1.2e-6, "1.2e-6"),
        (2000, "2000"),
        (12500, "12.5k"),
        (3e6, "3M"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text
