"""The pictures and sentences of an evaluation's report."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import cv2
import numpy as np

from tests.jobs.test_report import Page
from videomaskfeat.viz.evaluation import (
    ClassRow,
    EvaluationFacts,
    ShownVideo,
    draw_confusion,
    frequent_confusions,
    render_evaluation,
    verdict,
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


def test_small_matrix_has_a_number_a_cell() -> None:
    svg = draw_confusion(CONFUSION, NAMES)
    hints = re.findall(r"<title>(.*?)</title>", svg)
    assert len(hints) == 9
    assert "push, said to be pull &amp; turn: 1 (25 %)" in hints
    assert "fall, said to be fall: 4 (50 %)" in hints
    opacities = [float(value) for value in re.findall(r"fill-opacity:([\d.]+)", svg)]
    assert opacities == [0.75, 0.25, 0, 0, 0, 0, 0.25, 0.25, 0.5]
    counts = re.findall(r'class="count[^"]*"[^>]*>(\d+)<', svg)
    assert counts == ["3", "1", "2", "2", "4"]  # zeros are left out
    assert svg.count('class="cell own"') == 3
    assert "58.3 % of the videos on its diagonal" in svg


def test_large_matrix_has_a_pixel_a_cell() -> None:
    """The root of a cell's share of its row is its opacity, to a level of 255."""
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 5, size=(60, 60))
    confusion[7] = 0
    html = draw_confusion(confusion, [f"class {number}" for number in range(60)])
    content = re.search(r"base64,([^\"]+)", html)
    assert content is not None
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(content[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (60, 60, 4)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(picture[..., 3], 255 * np.sqrt(shares), atol=0.51)
    assert (picture[7, :, 3] == 0).all()


def test_long_names_are_shortened_in_the_picture_alone() -> None:
    long = "Pretending to put something behind something else"
    svg = draw_confusion(np.eye(2, dtype=int), [long, "b"])
    assert f">{long[:25]}…</text>" in svg
    assert f"<title>{long}, said to be {long}: 1 (100 %)</title>" in svg


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
    assert verdict(FACTS) == (
        "Top-1 58.33 % of 12 of 12 videos. Another draw of so many videos would give a top-1 within "
        "27.9 points, 19 times in 20."
    )
    assert verdict(replace(FACTS, listed=14)).startswith(
        "Top-1 58.33 % of 12 of 14 videos. The other 2 could not be read; counted as wrong, top-1 is 50.00 %."
    )
    assert verdict(replace(FACTS, top1=None, listed=13)) == (
        "12 of 13 videos were scored; the list has no labels, so there is no accuracy."
    )


def test_certainty_has_no_spread() -> None:
    assert verdict(replace(FACTS, top1=100.0)) == "Top-1 100.00 % of 12 of 12 videos."
    assert verdict(replace(FACTS, top1=0.0)) == "Top-1 0.00 % of 12 of 12 videos."


def test_page_holds_every_part_and_asks_for_nothing() -> None:
    html = render_evaluation(FACTS, version="9.9")
    page = Page(html)
    for words in (
        "best on val.csv",
        "every video scored",
        "58.33 %",
        "12 of 12",
        "Weights: best.safetensors",
        "5 x 3",
        "at stride 4, counted at 30 a second",
        "224 pixels",
        "std 0.225",
        "said: push 80 %",
        "no picture",
        "None: every video could be read.",
        "pull & turn (1)",
        "Written by videomaskfeat 9.9.",
    ):
        assert words in page.text, words
    assert page.addresses == ["data:image/jpeg;base64," + base64.b64encode(b"jpeg").decode()]
    assert "nan" not in page.text


def test_classes_come_the_worst_first_and_those_without_videos_last() -> None:
    html = render_evaluation(FACTS, version="1")
    table = html[html.index("<h2>Classes</h2>") :]
    places = [table.index(f"<td>{name}</td>") for name in ("fall", "push", "pull &amp; turn")]
    assert places == sorted(places)


def test_many_classes_are_folded() -> None:
    rows = [ClassRow(number, f"class {number}", 1, 0.0, 0.0, "", 0) for number in range(31)]
    html = render_evaluation(replace(FACTS, classes=rows), version="1")
    assert "<summary>All 31 classes, the worst first</summary>" in html
    assert "<summary>All" not in render_evaluation(FACTS, version="1")


def test_many_failures_are_cut_and_counted() -> None:
    failures = [(f"{number}.mp4", "no such file") for number in range(203)]
    page = Page(render_evaluation(replace(FACTS, listed=215, failures=failures), version="1"))
    assert "203 of 215 videos missing" in page.text
    assert "199.mp4" in page.text
    assert "200.mp4" not in page.text
    assert "And 3 more in result.json." in page.text
