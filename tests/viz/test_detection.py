"""The page of a detection score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.viz.pages import Page
from videomaskfeat.viz.detection import (
    ActionRow,
    DetectionFacts,
    detection_data,
    percent,
    render_detection,
)


def action(number: int, name: str, truths: int, ap: float) -> ActionRow:
    heights = np.full(10, 0.0 if truths == 0 else ap)
    found = float("nan") if truths == 0 else 0.5
    return ActionRow(number, name, truths, 7, ap, found, heights, np.array([0.5]), np.array([1.0]))


def part(*values: Any) -> dict[str, Any]:
    return dict(zip(("name", "mean_ap", "actions", "truths", "detections"), values, strict=True))


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
    persons=[part("1 person", 0.4, 2, 9, 12), part("2 persons", float("nan"), 0, 0, 3)],
    sizes=[part("large", 0.25, 1, 3, 4)],
    summary={"files": {"detections": {"sha256": "cafe"}}},
)


def page_of(facts: DetectionFacts) -> Page:
    return Page(render_detection(facts))


def test_page_says_everything() -> None:
    page = page_of(FACTS)
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
    assert len(page.charts) == 3  # the mean, and each action with ground truth
    assert "Rows of a key frame the 50 best" in page_of(replace(FACTS, rows_per_frame=50)).text


def test_how_it_was_tested_stands_under_the_heading_and_in_the_protocol() -> None:
    """Two reports of one file of weights can be told apart; a mere file of detections says nothing of it."""
    tested = [("Boxes", "detected <of> 0.8", "tested"), ("Short sides", "224, 256", "pixels")]
    text = page_of(replace(FACTS, tested=tested)).text
    heading, rest = text[: text.index("Score")], text[text.index("Protocol") : text.index("Rows")]
    assert "Boxes detected <of> 0.8 · Short sides 224, 256" in heading
    assert "Boxes detected <of> 0.8 tested Short sides 224, 256 pixels IoU of a hit" in rest
    assert "Short side" not in page_of(FACTS).text


def test_actions_stand_the_worst_first_and_curves_the_most_frequent_first() -> None:
    data = detection_data(FACTS)
    assert [row[1] for row in data["actions"]["rows"]] == ["talk <to>", "stand", "watch"]
    assert data["actions"]["rows"][0][3:6] == ("10.00 %", {"share": 0.1}, "50.00 %")
    assert data["actions"]["rows"][2][3:6] == ("–", "", "–")
    assert [curve["title"] for curve in data["curves"]] == ["stand: 50.00 % of 8", "talk <to>: 10.00 % of 4"]
    assert data["mean"]["label"].startswith("Mean of the actions: the area is the mAP. Area 0.300;")


def test_many_actions_are_folded() -> None:
    many = [action(number, f"action {number}", 3, 0.2) for number in range(1, 41)]
    page = page_of(replace(FACTS, actions=many))
    assert "All 40 actions, the worst first" in page.text
    assert "28 more" in page.text
    assert len(page.charts) == 41


def test_page_without_ground_truth_is_written() -> None:
    page = page_of(replace(FACTS, actions=FACTS.actions[2:], mean_ap=float("nan")))
    assert "mAP –" in page.text


def test_percent() -> None:
    assert (percent(0.12345), percent(1.0), percent(float("nan"))) == ("12.35 %", "100.00 %", "–")
