"""The page of an evaluation."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from tests.viz.pages import Page
from videomaskfeat.viz.evaluation import (
    ClassRow,
    ShownVideo,
    accuracy_cards,
    accuracy_lines,
    chance_advice,
    confidence_interval,
    interval_text,
    render_evaluation,
)

NAMES = ["push", "pull & turn", "fall"]
CONFUSION = np.array([[3, 1, 0], [0, 0, 0], [2, 2, 4]])
CLASSES = [
    ClassRow(0, "push", 4, 75.0, 100.0, "pull & turn", 1),
    ClassRow(1, "pull & turn", 0, float("nan"), float("nan"), "", 0),
    ClassRow(2, "fall", 8, 50.0, 100.0, "push", 2),
]
PROTOCOL = {
    "views": 5, "crops": 3, "sampling": "clip", "frames": 16, "stride": 4, "target_fps": 30.0, "crop": 224,
    "short_side": 224, "average": "softmax", "std": 0.225,
}  # fmt: skip
RESULT = {
    "title": "best on val.csv",
    "top1": 100 * 7 / 12,
    "top5": 100.0,
    "mean_class": 62.5,
    "videos": 12,
    "listed": 12,
    "classes": 3,
    "weights": "best.safetensors",
    "list": "val.csv",
    "protocol": PROTOCOL,
    "failures": [],
    "provenance": {"command": "videomaskfeat evaluate '<b>'", "date": "2026-01-02", "torch": "2.11"},
}


def page_of(*, classes: Any = CLASSES, confusion: Any = CONFUSION, **changes: Any) -> Page:
    matrix = CONFUSION if confusion is None else confusion
    html = render_evaluation(
        {**RESULT, **changes},
        classes=classes,
        confusion=confusion,
        predicted=matrix.sum(axis=0),
        class_names=NAMES if len(matrix) == 3 else [f"class {label}" for label in range(len(matrix))],
        worst=[ShownVideo("/videos/a.mp4", "fall", 0.1, "push", 0.8, b"jpeg")],
        best=[ShownVideo("/videos/b.mp4", "push", 0.9, "push", 0.9, None)],
    )
    return Page(html)


def test_page_has_every_part() -> None:
    page = page_of()
    for words in (
        "best on val.csv all videos scored Weights: best.safetensors List: val.csv",
        "Top-1 58.33 % chance level 33.3 %",
        "Mean class accuracy 62.50 %",
        "12 of 12",
        "5 x 3 temporal views x crops along the longer side",
        "frame stride 4 at 30 frames per second",
        "224 pixels",
        "Std: 0.225.",
        "fall 10 % predicted: push 80 %",
        "no picture",
        "All videos could be read.",
        "fall push 2 25 %",
        "Command videomaskfeat evaluate '<b>' Date 2026-01-02 Git commit not recorded Versions torch 2.11",
    ):
        assert words in page.text, words
    assert page.addresses == ["data:image/jpeg;base64," + base64.b64encode(b"jpeg").decode()]
    assert len(page.charts) == 1
    assert "nan" not in page.text.split()


def test_large_matrix_is_an_image() -> None:
    page = page_of(confusion=np.ones((60, 60), int))
    assert page.charts == []
    assert [address.split(";")[0] for address in page.addresses] == ["data:image/png", "data:image/jpeg"]


def test_accuracy_has_its_count_and_confidence_interval() -> None:
    assert (
        "Top-1 accuracy: 58.33 % of the 12 scored videos (12 listed). "
        "95 % confidence interval: 32 to 81 %. Protocol" in page_of().text
    )
    assert (
        "Top-1 accuracy: 58.33 % of the 12 scored videos (14 listed). "
        "95 % confidence interval: 32 to 81 %. 2 could not be read; "
        "counted as wrong, top-1 is 50.00 %."
    ) in page_of(listed=14).text
    assert interval_text({"top1": 50.0}) == interval_text({"videos": 3}) == ""


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 14, 1000])
def test_confidence_interval_solves_its_equation(share: float, count: int) -> None:
    """Wilson: the limits p with (share - p)^2 = 1.96^2 p (1 - p) / n."""
    for limit in confidence_interval(share, count):
        assert (share - limit) ** 2 == pytest.approx(1.96**2 * limit * (1 - limit) / count, abs=1e-12)
    low, high = confidence_interval(share, count)
    assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize(
    ("result", "good"),
    [
        ({"top1": 100 * 7 / 12, "videos": 12, "classes": 3}, False),  # 32 % is below chance
        ({"top1": 100 * 7 / 12, "videos": 120, "classes": 3}, True),
        ({"top1": 34.0, "classes": 3}, True),
        ({"top1": 33.0, "classes": 3}, False),
        ({"top1": 99.0, "videos": 120}, None),  # the chance level is unknown
    ],
)
def test_accuracy_is_green_only_above_chance(result: dict[str, Any], good: bool | None) -> None:
    assert len(accuracy_cards({"top1": 50.0, "top5": 100.0, "mean_class": 50.0, "classes": 5})) == 2
    top1, top5, _ = accuracy_cards(result)
    assert top1.get("good") == good
    assert top5["value"] is None


def test_bars_of_classes_are_green_only_above_chance() -> None:
    bars = [
        attributes["class"] for _, attributes in page_of().tags if "bar" in (attributes.get("class") or "")
    ]
    assert bars == ["bar"] * 3 + ["bar good"] * 2
    classes = [ClassRow(0, "push", 4, 25.0, 100.0, "fall", 3)]
    assert "bar good" not in [attributes.get("class") for _, attributes in page_of(classes=classes).tags]


def test_list_without_labels_has_predictions_alone() -> None:
    result = {key: value for key, value in RESULT.items() if key not in ("top1", "top5", "mean_class")}
    html = render_evaluation(
        {**result, "listed": 13},
        classes=[],
        confusion=None,
        predicted=CONFUSION[0] * 3,
        class_names=NAMES,
        worst=[],
        best=[],
    )
    text = Page(html).text
    assert "12 of 13 videos were scored. The list has no labels, so there is no accuracy." in text
    assert "Class Videos Share push 9 75.0 % pull & turn 3 25.0 % Unreadable" in text
    assert "Confusion" not in text


def test_protocol_of_segments_and_neighbors() -> None:
    protocol = {"views": 1, "crops": 1, "sampling": "segments", "frames": 8, "average": "votes", "k": 5}
    text = page_of(protocol={**protocol, "precision": "float32", "reader": "pyav"}).text
    for words in ("one from each of 8 equal segments", "; 5 nearest neighbors vote", "float32", "pyav"):
        assert words in text


@pytest.mark.parametrize(
    ("protocol", "sentence"),
    [
        ({"short_video": "clamp"}, "The last frame of a video that is shorter than a clip is repeated."),
        ({"short_video": "loop"}, "A video that is shorter than a clip starts again from its first frame."),
        ({"short_video": "error"}, "A video that is shorter than a clip counts as unreadable."),
        (
            {"mean": [0.4, 0.5], "std": 0.25},
            "Pixels are normalized with mean 0.4, 0.5 and standard deviation 0.25.",
        ),
        ({"temperature": 0.07}, "Temperature: 0.07."),
    ],
)
def test_protocol_is_described_in_sentences(protocol: dict[str, Any], sentence: str) -> None:
    text = page_of(protocol={"views": 1, "crops": 1, **protocol}).text
    assert f"{sentence} Confusion matrix" in text
    assert "short_video" not in text


def test_classes_come_by_accuracy_and_those_without_videos_last() -> None:
    assert (
        "2 fall 8 50.0 % 100.0 % push (2) 0 push 4 75.0 % 100.0 % pull & turn (1) 1 pull & turn 0"
        in page_of().text
    )


def test_many_classes_are_folded() -> None:
    rows = [ClassRow(label, f"class {label}", 1, 0.0, 0.0, "", 0) for label in range(31)]
    assert "All 31 classes, by ascending accuracy" in page_of(classes=rows).text
    assert "by ascending accuracy" not in page_of().text


def test_many_failures_are_cut_and_counted() -> None:
    failures = [{"row": row, "path": f"{row}.mp4", "cause": "no such file"} for row in range(202)]
    training = [{"row": 1, "path": "t.mp4", "cause": "empty"}]
    text = page_of(listed=215, failures=failures, train_failures=training).text
    assert "203 of 215 videos missing" in text
    assert "199.mp4" in text
    assert "200.mp4" not in text
    assert "3 more are in result.json." in text
    assert "t.mp4 empty (training list)" in page_of(train_failures=training).text


@pytest.mark.parametrize(("ends", "good"), [((18.0, 40.0), True), ((17.0, 40.0), False), (None, True)])
def test_card_of_a_mean_ap_is_green_above_chance_only(ends: tuple[float, float] | None, good: bool) -> None:
    (card,) = accuracy_cards({"map": 30.0, "map_chance": 17.5, "map_interval": ends})
    assert card["good"] is good
    assert ("95 % interval" in card["note"]) == (ends is not None)


def test_advice_is_given_unless_the_interval_is_above_chance() -> None:
    assert chance_advice({}, 25.0, 25.1) == []
    (scratch,) = chance_advice({}, 25.0, 25.0)
    assert "includes chance: start from pre-trained weights" in scratch
    (tuned,) = chance_advice({"initial_weights": {}}, 0.08, 0.07)
    assert "includes chance: train longer" in tuned


def test_top5_is_shown_with_more_than_five_classes() -> None:
    lines = accuracy_lines(50.0, 90.0, 40.0, videos=8, classes=5)
    assert [line.split()[0] for line in lines] == ["top-1", "mean"]
    lines = accuracy_lines(50.0, 90.0, 40.0, videos=8, classes=6)
    assert lines[1].startswith("top-5       90.00 % (chance 83.3 %, 95 % interval ")
