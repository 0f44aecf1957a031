"""The page of a detection score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.viz.pages import Page
from videomaskfeat.viz.detection import ActionRow, format_percent, render_detection

NAN = float("nan")


def action(number: int, name: str, truths: int, ap: float) -> ActionRow:
    heights = np.full(10, ap if truths else 0.0)
    return ActionRow(
        number, name, truths, 7, ap, 0.5 if truths else NAN, heights, np.array([0.5]), np.array([1.0])
    )


def group(*values: Any) -> dict[str, Any]:
    return dict(zip(("name", "mean_ap", "actions", "truths", "detections"), values, strict=True))


def counts(*values: int) -> dict[str, int]:
    return dict(zip(("rows", "used", "excluded", "no_action", "not_listed"), values, strict=True))


ACTIONS = [action(12, "stand", 8, 0.5), action(17, "talk <to>", 4, 0.1), action(80, "watch", 0, NAN)]
RESULT = {
    "title": "detections.csv on truth.csv",
    "mean_ap": 0.3,
    "protocol": {"iou_threshold": 0.5, "rows_per_frame": None},
    "key_frames": 11,
    "groundtruth": counts(14, 12, 2, 0, 0),
    "detections": {**counts(30, 21, 0, 4, 5), "judged": 21},
    "by_persons": [group("1 person", 0.4, 2, 9, 12), group("2 persons", NAN, 0, 0, 3)],
    "by_size": [group("large", 0.25, 1, 3, 4), group("small", None, 0, 0, 0)],
    "files": {"detections": {"sha256": "cafe"}},
    "provenance": {"command": "videomaskfeat score-ava"},
}


def page_of(actions: list[ActionRow] = ACTIONS, *, tested: Any = (), **changes: Any) -> Page:
    notes = ["3 detections are of 1 videos that ..."]
    return Page(render_detection({**RESULT, **changes}, actions=actions, notes=notes, tested=tested))


def test_page_has_every_part() -> None:
    page = page_of()
    for words in (
        "mAP 30.00 % chance level 21.43 %: the same detections in random order",  # (8 + 4) / 2 * 0.5^2 / 7
        "Actions 2 of 3 have ground truth",
        "Ground truth 12 rows in 11 key frames",
        "Detections 21 rows",
        "Found 50.00 %",
        "3 detections are of 1 videos",
        "Ground truth 14 12 2 0 0 Detections 30 21 0 4 5",
        "1 person 40.00 % 2 9 12",
        "2 persons – 0 0 3",
        "large 25.00 % 1 3 4 small – 0 0 0",
        "files.detections.sha256 cafe",
        "stand: 50.00 % of 8 Numbers",
        "talk <to>: 10.00 % of 4",
        "Rows per key frame all",
        "Command videomaskfeat score-ava",
        # by ascending average precision
        "17 talk <to> 4 10.00 % 50.00 % 7 12 stand 8 50.00 % 50.00 % 7 80 watch 0 – – 7",
    ):
        assert words in page.text
    assert len(page.charts) == 3  # the mean, and each action with ground truth
    assert page.text.index("stand: 50") < page.text.index("talk <to>: 10")  # by ground truth
    fifty = page_of(protocol={"iou_threshold": 0.5, "rows_per_frame": 50})
    assert "Rows per key frame the 50 best" in fifty.text


@pytest.mark.parametrize(
    ("mean_ap", "interval", "good"),
    [(0.3, None, True), (0.21, None, False), (0.3, [0.22, 0.4], True), (0.3, [0.2, 0.4], False)],
)
def test_score_is_green_only_if_its_interval_is_above_chance(
    mean_ap: float, interval: Any, good: bool
) -> None:
    page = page_of(mean_ap=mean_ap, mean_ap_interval=interval)
    words = "in random order; 95 % interval 22.0 to 40.0 %: bootstrap over the videos"
    assert (words in page.text) == (interval == [0.22, 0.4])
    classes = [attributes.get("class") for _, attributes in page.tags]
    assert ("card good" in classes) == good
    assert classes.count("bar good") == 1  # of "stand", whose chance level is 29 %


def test_settings_are_in_the_heading_and_in_the_protocol() -> None:
    """Two reports of one weights file differ; a file of detections has no settings."""
    text = page_of(
        tested=[("Boxes", "detected <of> 0.8", "tested"), ("Short sides", "224, 256", "pixels")]
    ).text
    heading, protocol = text[: text.index("Score")], text[text.index("Protocol") : text.index("Rows")]
    assert "Boxes detected <of> 0.8 · Short sides 224, 256" in heading
    assert "Boxes detected <of> 0.8 tested Short sides 224, 256 pixels IoU of a hit" in protocol
    assert "Short side" not in page_of().text


def test_many_actions_are_folded() -> None:
    page = page_of([action(number, f"action {number}", 3, 0.2) for number in range(1, 41)])
    assert "All 40 actions, by ascending average precision" in page.text
    assert "28 more" in page.text
    assert len(page.charts) == 41


@pytest.mark.parametrize("mean_ap", [NAN, None])
def test_page_without_ground_truth_is_written(mean_ap: float | None) -> None:
    assert "mAP –" in page_of(ACTIONS[2:], mean_ap=mean_ap).text


def test_chance_is_the_precision_of_random_order_up_to_the_highest_recall() -> None:
    assert ACTIONS[0].chance == pytest.approx(0.5 * 8 / 7 * 0.5)
    assert ACTIONS[2].chance == 0
    assert ActionRow(1, "", 3, 0, 0.0, 0.0, *[np.zeros(0)] * 3).chance == 0


def test_format_percent() -> None:
    assert [format_percent(share) for share in (0.12345, 1.0, NAN)] == ["12.35 %", "100.00 %", "–"]
