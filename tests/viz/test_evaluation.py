"""The pictures and sentences of an evaluation's report."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from tests.viz.pages import Page
from videomaskfeat.viz.evaluation import (
    ClassRow,
    EvaluationFacts,
    ShownVideo,
    confusion_pixels,
    evaluation_data,
    frequent_confusions,
    render_evaluation,
)

NAMES = ("push", "pull & turn", "fall")
CONFUSION = np.array([[3, 1, 0], [0, 0, 0], [2, 2, 4]])

FACTS = EvaluationFacts(
    title="best on val.csv",
    videos=12,
    listed=12,
    top1=100 * 7 / 12,
    top5=100.0,
    mean_class=62.5,
    protocol={
        "views": 5,
        "crops": 3,
        "sampling": "clip",
        "frames": 16,
        "stride": 4,
        "target_fps": 30.0,
        "crop": 224,
        "short_side": 224,
        "average": "softmax",
        "std": 0.225,
    },
    summary={"weights": "best.safetensors", "list": "val.csv"},
    classes=[
        ClassRow(0, "push", 4, 75.0, 100.0, "pull & turn", 1),
        ClassRow(1, "pull & turn", 0, float("nan"), float("nan"), "", 0),
        ClassRow(2, "fall", 8, 50.0, 100.0, "push", 2),
    ],
    confusion=CONFUSION,
    said=CONFUSION.sum(axis=0),
    class_texts=NAMES,
    worst=[ShownVideo("/videos/a.mp4", "fall", 0.1, "push", 0.8, b"jpeg")],
    best=[ShownVideo("/videos/b.mp4", "push", 0.9, "push", 0.9, None)],
    failures=[],
)


def page_of(**changes: Any) -> Page:
    return Page(render_evaluation(replace(FACTS, **changes)))


def test_large_matrix_has_a_pixel_per_cell() -> None:
    """The root of a cell's share of its row is its opacity, to a level of 255."""
    confusion = np.random.default_rng(0).integers(0, 5, size=(60, 60))
    confusion[7] = 0
    picture = cv2.imdecode(np.frombuffer(confusion_pixels(confusion), np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (60, 60, 4)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(picture[..., 3], 255 * np.sqrt(shares), atol=0.51)
    texts = [f"class {number}" for number in range(60)]
    page = page_of(confusion=confusion, class_texts=texts, said=confusion.sum(axis=0))
    assert page.charts == []
    assert [address.split(";")[0] for address in page.addresses] == ["data:image/png", "data:image/jpeg"]


def test_frequent_confusions_are_the_largest_cells_off_the_diagonal() -> None:
    found = frequent_confusions(CONFUSION, NAMES, 10)
    assert found == [
        ("fall", "push", 2, 25.0),
        ("fall", "pull & turn", 2, 25.0),
        ("push", "pull & turn", 1, 25.0),
    ]
    assert frequent_confusions(CONFUSION, NAMES, 1) == found[:1]
    assert frequent_confusions(np.eye(3, dtype=int), NAMES, 10) == []


def test_verdict_says_of_how_many() -> None:
    """The spread is 1.96 * sqrt(p (1 - p) / n): 27.9 points of 12 videos."""
    assert (
        "Top-1 58.33 % of 12 of 12 videos. Another draw of so many videos would give a top-1 within 27.9 "
        "points, 19 times in 20. Protocol"
    ) in page_of().text
    assert (
        "Top-1 58.33 % of 12 of 14 videos. The other 2 could not be read; counted as wrong, top-1 is 50.00 %."
    ) in page_of(listed=14).text


@pytest.mark.parametrize("top1", [100.0, 0.0])
def test_certainty_has_no_spread(top1: float) -> None:
    assert f"Top-1 {top1:.2f} % of 12 of 12 videos. Protocol" in page_of(top1=top1).text


def test_list_without_labels_has_predictions_alone() -> None:
    text = page_of(top1=None, top5=None, mean_class=None, confusion=None, listed=13, said=CONFUSION[0]).text
    assert "12 of 13 videos were scored; the list has no labels, so there is no accuracy." in text
    assert "Class Videos Of all push 3 25.0 % pull & turn 1 8.3 % Videos that" in text
    assert "Confusions" not in text


def test_page_holds_every_part() -> None:
    page = page_of()
    for words in (
        "best on val.csv",
        "every video scored",
        "58.33 %",
        "12 of 12",
        "Weights: best.safetensors",
        "5 x 3 clips over time x crops, along the longer side",
        "at stride 4, counted at 30 a second",
        "224 pixels",
        "std 0.225",
        "said: push 80 %",
        "no picture",
        "None: every video could be read.",
        "pull & turn (1)",
        "fall push 2 25 %",
    ):
        assert words in page.text, words
    assert page.addresses == ["data:image/jpeg;base64," + base64.b64encode(b"jpeg").decode()]
    assert len(page.charts) == 1
    assert "nan" not in page.text


def test_segments_and_neighbors_are_said() -> None:
    protocol = {"views": 1, "crops": 1, "sampling": "segments", "frames": 8, "average": "votes", "k": 5}
    text = page_of(protocol={**protocol, "precision": "float32", "reader": "pyav"}).text
    for words in ("a frame of each of 8 equal parts", "; 5 nearest videos vote", "float32", "pyav"):
        assert words in text


def test_classes_come_the_worst_first_and_those_without_videos_last() -> None:
    classes = evaluation_data(FACTS)["classes"]
    assert classes["rows"] == [
        (2, "fall", 8, "50.0 %", {"share": 0.5}, "100.0 %", "push (2)"),
        (0, "push", 4, "75.0 %", {"share": 0.75}, "100.0 %", "pull & turn (1)"),
        (1, "pull & turn", 0, "", "", "", ""),
    ]


def test_many_classes_are_folded() -> None:
    rows = [ClassRow(number, f"class {number}", 1, 0.0, 0.0, "", 0) for number in range(31)]
    assert "All 31 classes, the worst first" in page_of(classes=rows).text
    assert "classes, the worst first" not in page_of().text


def test_many_failures_are_cut_and_counted() -> None:
    failures = [(f"{number}.mp4", "no such file") for number in range(203)]
    text = page_of(listed=215, failures=failures).text
    assert "203 of 215 videos missing" in text
    assert "199.mp4" in text
    assert "200.mp4" not in text
    assert "And 3 more in result.json." in text
