"""The pictures and tables of a detection score's report."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.jobs.test_report import Page
from videomaskfeat.metrics.ava_map import average_precision_of, precision_by_recall
from videomaskfeat.viz.detection import (
    ActionRow,
    DetectionFacts,
    PartRow,
    mean_heights,
    percent,
    recall_chart,
    render_detection,
)


def drawn_area(svg: str) -> float:
    """The area under the thick line, in shares of the square from 0 to 1 that the grid draws."""
    marks = re.findall(r'class="grid" d="M([\d.]+) ([\d.]+)H([\d.]+)M([\d.]+) ([\d.]+)V([\d.]+)"', svg)
    left, right, bottom, top = float(marks[0][3]), float(marks[2][3]), float(marks[0][1]), float(marks[2][1])
    path = re.search(r'class="line c0" d="M([\d.]+) ([\d.]+)([^"]*)"', svg)
    assert path is not None
    x, y, area = float(path[1]), float(path[2]), 0.0
    for kind, value in re.findall(r"([HV])([\d.]+)", path[3]):
        if kind == "H":
            area += (float(value) - x) * (bottom - y)
            x = float(value)
        else:
            y = float(value)
    assert x == right  # the curve goes to recall 1
    return area / ((right - left) * (bottom - top))


@pytest.mark.parametrize("truths", [3, 40, 700])
def test_area_of_the_picture_is_the_average_precision(truths: int) -> None:
    """To 2e-3: places are drawn to a tenth of a pixel, of some 180."""
    hits = np.random.default_rng(truths).random(2 * truths) < np.linspace(0.9, 0.0, 2 * truths)
    hits[np.cumsum(hits) > truths] = False
    ap = average_precision_of(hits, truths)
    heights = precision_by_recall(hits, truths, 200)
    assert heights.mean() == pytest.approx(ap, abs=1e-12)
    assert (np.diff(heights) <= 1e-12).all()
    assert drawn_area(recall_chart(heights, title="talk")) == pytest.approx(ap, abs=2e-3)


def test_steps_of_recall_hold_the_curve_where_it_is() -> None:
    """Hits at places 1 and 4 of four boxes: 1 to recall 1/4, 1/2 to 1/2, then nothing."""
    heights = precision_by_recall(np.array([True, False, False, True]), 4, 8)
    assert heights.tolist() == pytest.approx([1, 1, 0.5, 0.5, 0, 0, 0, 0], abs=1e-12)
    assert precision_by_recall(np.zeros(3, bool), 4, 8).tolist() == [0.0] * 8
    assert precision_by_recall(np.zeros(0, bool), 4, 8).tolist() == [0.0] * 8


def test_measured_points_are_few_and_lie_on_the_axes() -> None:
    recall, precision = np.linspace(0.001, 1, 1000), np.linspace(1, 0.5, 1000)
    svg = recall_chart(np.full(10, 0.5), title="talk", measured=(recall, precision))
    measured = re.search(r'class="measured" d="M([^"]*)"', svg)
    assert measured is not None
    points = np.array([point.split() for point in measured[1].split("L")], dtype=float)
    assert len(points) == 200
    grid = re.findall(r'class="grid" d="M[\d.]+ ([\d.]+)H[\d.]+M([\d.]+)', svg)
    assert points[-1].tolist() == [float(grid[2][1]), float(grid[1][0])]  # recall 1, precision 1/2
    assert "measured" not in recall_chart(np.zeros(10), title="talk", measured=(np.empty(0), np.empty(0)))


def test_chart_tells_its_numbers_to_a_screen_reader() -> None:
    svg = recall_chart(np.array([1.0] * 6 + [0.0] * 4), title='a"<b')
    assert 'aria-label="a&quot;&lt;b. Area 0.600; precision 1.00 at recall 0.1, 1.00 at recall 0.5, ' in svg
    assert "0.00 at recall 0.9." in svg


def action(number: int, name: str, truths: int, ap: float) -> ActionRow:
    heights = np.full(10, 0.0 if truths == 0 else ap)
    found = float("nan") if truths == 0 else 0.5
    return ActionRow(number, name, truths, 7, ap, found, heights, np.array([0.5]), np.array([1.0]))


FACTS = DetectionFacts(
    title="detections.csv on truth.csv",
    mean_ap=0.3,
    iou_threshold=0.5,
    rows_per_frame=None,
    key_frames=11,
    actions=[
        action(12, "stand", 8, 0.5),
        action(17, "talk <to>", 4, 0.1),
        action(80, "watch", 0, float("nan")),
    ],
    sides=[("Ground truth", "14", "12", "2", "0", "0"), ("Detections", "30", "21", "0", "4", "5")],
    notes=["3 detections are of 1 videos that ..."],
    persons=[PartRow("1 person", 0.4, 2, 9, 12), PartRow("2 persons", float("nan"), 0, 0, 3)],
    sizes=[PartRow("large", 0.25, 1, 3, 4)],
    summary={"files": {"detections": {"sha256": "cafe"}}},
)


def test_page_says_everything_and_asks_for_nothing() -> None:
    html = render_detection(FACTS, version="1.2.3")
    page = Page(html)
    assert page.addresses == []
    for words in (
        "mAP 30.00 %",
        "Actions 2 of 3 with ground truth",
        "Ground truth 12 rows in 11 key frames",
        "Detections 21 rows",
        "Found 50.00 %",
        "3 detections are of 1 videos",
        "Detections 30 21 0 4 5",
        "1 person 40.00 % 2 9 12",
        "2 persons – 0 0 3",
        "large 25.00 % 1 3 4",
        "files.detections.sha256 cafe",
        "talk <to>: 10.00 % of 4",
        "Rows of a key frame all",
    ):
        assert words in page.text
    assert html.count("<svg") == 3  # the mean, and each action with ground truth
    limited = Page(render_detection(replace(FACTS, rows_per_frame=50), version="1.2.3"))
    assert "Rows of a key frame the 50 best" in limited.text


def test_how_it_was_tested_stands_under_the_heading_and_in_the_protocol() -> None:
    """Two reports of one file of weights can be told apart; a mere file of detections says nothing of it."""
    tested = [("Boxes", "detected <of> 0.8", "tested"), ("Short sides", "224, 256", "pixels")]
    text = Page(render_detection(replace(FACTS, tested=tested), version="1.2.3")).text
    heading, rest = text[: text.index("Score")], text[text.index("Protocol") : text.index("Rows")]
    assert "Boxes detected <of> 0.8 · Short sides 224, 256" in heading
    assert "Boxes detected <of> 0.8 tested Short sides 224, 256 pixels IoU of a hit" in rest
    plain = render_detection(FACTS, version="1.2.3")
    assert "Short side" not in plain
    assert "</div></header>" in plain


def test_actions_stand_the_worst_first_and_curves_the_most_frequent_first() -> None:
    text = Page(render_detection(FACTS, version="1.2.3")).text
    table = text[text.index("Id Action Ground truth AP") : text.index("Precision over recall")]
    assert table.index("talk") < table.index("stand") < table.index("watch")
    curves = text[text.index("The most frequent actions first") :]
    assert curves.index("stand: 50.00 % of 8") < curves.index("talk <to>: 10.00 % of 4")


def test_many_actions_are_folded() -> None:
    many = [action(number, f"action {number}", 3, 0.2) for number in range(1, 41)]
    html = render_detection(replace(FACTS, actions=many), version="1.2.3")
    assert "<summary>All 40 actions, the worst first</summary>" in html
    assert "<summary>28 more</summary>" in html
    assert html.count("<svg") == 41


def test_mean_curve_has_the_mean_area() -> None:
    curves = [np.linspace(1, 0, 50), np.full(50, 0.25)]
    assert mean_heights(curves).mean() == pytest.approx((0.5 + 0.25) / 2)


def test_percent() -> None:
    assert (percent(0.12345), percent(1.0), percent(float("nan"))) == ("12.35 %", "100.00 %", "–")
