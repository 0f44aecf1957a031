"""Charts: their data are finite and few, and can be read without the picture."""

from __future__ import annotations

import json
import re
from typing import Any

import cv2
import numpy as np
import pytest
import vl_convert

from tests.viz.pages import drawn_height
from videomaskfeat.metrics.ava_map import average_precision_of, precision_by_recall
from videomaskfeat.viz.charts import (
    Curve,
    confusion_chart,
    confusion_section,
    encode_confusion,
    format_number,
    frequent_confusions,
    line_chart,
    moving_mean,
    recall_chart,
)
from videomaskfeat.viz.page import chart_spec


def curve(*y: float, name: str = "loss") -> Curve:
    return Curve(name, np.arange(float(len(y))), np.array(y, dtype=float))


def drawn_texts(chart: dict[str, Any]) -> list[str]:
    """What Vega-Lite writes into the picture."""
    return re.findall(r">([^<>]+)</text>", vl_convert.vegalite_to_svg(chart_spec(chart["data"])))


def test_charts_are_drawn_with_their_axes_and_names() -> None:
    two = line_chart(
        "Loss", [curve(0, 2, name="a\"'<"), curve(1, 1, name="b")], reference_lines={"constant": 1.5}
    )
    texts = drawn_texts(two)
    assert texts[-2:] == ["a\"'&lt;", "b"]
    assert two["data"]["levels"][0]["name"] == "constant 1.5"
    assert drawn_texts(line_chart("Norm", [curve(2, 30)], log=True))[-3:] == ["10", "20", "100"]
    assert "precision" in drawn_texts(recall_chart("talk", np.array([1, 0.5])))
    matrix = confusion_chart("Classes", np.array([[3, 1], [0, 2]]), ["same", "same"])
    assert sorted(drawn_texts(matrix)) == ["1", "2", "3", "label", "prediction", *["same"] * 4]


@pytest.mark.parametrize(
    "chart",
    [
        *(line_chart("Loss", [curve(1, 2, name=f"run {n}") for n in range(count)]) for count in (1, 2, 5)),
        recall_chart("talk", np.array([1, 0.5])),
        *(confusion_chart("", np.eye(2, dtype=int), names) for names in (["a", "b"], ["walk" * 20, "b"])),
    ],
)
def test_reserved_height_is_that_of_the_drawn_chart(chart: dict[str, Any]) -> None:
    """Within 2 pixels, since fonts differ: pages do not jump when a chart is drawn, and have no gap below."""
    assert drawn_height(chart) == pytest.approx(chart["data"]["height"], abs=2)


def test_values_that_are_not_finite_are_left_out() -> None:
    chart = line_chart("Loss", [curve(1, np.nan, 2, np.inf, 3), curve(np.nan, name="none")], smooth=False)
    (drawn,) = chart["data"]["curves"]
    assert (drawn["step"], drawn["value"]) == ([0, 2, 4], [1, 2, 3])
    assert chart["data"]["domain"] == pytest.approx((0.9, 3.1))
    assert line_chart("Loss", [curve(np.nan, np.nan)]) == {"title": "Loss", "data": None}


def test_axes_have_a_margin_around_the_values() -> None:
    assert line_chart("Loss", [curve(2, 4)], from_zero=True)["data"]["domain"] == pytest.approx((0, 4.2))
    assert line_chart("Loss", [curve(0, 0)], from_zero=True)["data"]["domain"] == (0, 1)
    assert line_chart("Loss", [curve(2, 4)], reference_lines={"far": 9})["data"]["domain"] == pytest.approx(
        (1.65, 9.35)
    )
    norm = line_chart("Norm", [curve(0.01, 0.1, 1.0, 0.0)], log=True)["data"]  # 0 cannot be shown
    assert norm["curves"][0]["low"] == [0.01, 0.1, 1.0]
    assert norm["domain"] == pytest.approx((0.01, 1.0))
    assert line_chart("Norm", [curve(2, 3)], log=True)["data"]["domain"] == pytest.approx((1, 10))


def test_many_steps_become_few_points_that_keep_the_peaks() -> None:
    y = np.zeros(100_000)
    y[54_321] = 10.0
    chart = line_chart("Loss", [Curve("loss", np.arange(100_000.0), y)], from_zero=True)
    drawn = chart["data"]["curves"][0]
    assert len(drawn["value"]) == len(drawn["step"]) == 400
    assert max(drawn["high"]) == 10
    assert 0 < max(drawn["value"]) < 1
    assert len(json.dumps(chart)) < 30_000
    assert len(chart["table"]["rows"]) == 25


def test_curves_have_names_colors_and_levels() -> None:
    own = Curve("b", np.arange(2.0), np.arange(2.0), color=13)
    data = line_chart(
        "Loss", [curve(1, 2, name="a\udce9"), own], reference_lines={"constant": 1.5, "no": 1e200}
    )["data"]
    assert [(one["curve"], one["color"]) for one in data["curves"]] == [("a\\xe9", 0), ("b", 1)]
    assert data["levels"] == [{"name": "constant 1.5", "level": 1.5}]


def test_table_and_label_have_the_numbers_of_the_picture() -> None:
    """Many steps are reduced to those of the curve with the fewest values, and the ends."""
    chart = line_chart("Loss", [Curve("a", np.array([1.0, 9.0]), np.array([0.5, 0.25]))])
    assert chart["label"] == "Loss. a: 0.5 at step 1, 0.25 at step 9, minimum 0.25, maximum 0.5."
    assert chart["table"]["header"] == ("Step", "a")
    assert chart["table"]["rows"] == [("1", "0.5"), ("9", "0.25")]
    held_out = Curve("held out", np.array([30.0, 60.0]), np.array([7.0, 8.0]))
    rows = line_chart("Loss", [curve(*range(100)), held_out])["table"]["rows"]
    assert rows == [("0", "0", ""), ("30", "30", "7"), ("60", "60", "8"), ("99", "99", "")]


def test_smoothing_is_a_moving_mean_that_shortens_at_the_ends() -> None:
    values = np.random.default_rng(0).normal(size=20)
    slow = [values[max(i - 2, 0) : i + 3].mean() for i in range(20)]
    np.testing.assert_allclose(moving_mean(values, 5), slow, atol=1e-12)


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
    assert format_number(value) == text


@pytest.mark.parametrize("truths", [3, 40, 700])
def test_area_of_the_picture_is_the_average_precision(truths: int) -> None:
    hits = np.random.default_rng(truths).random(2 * truths) < np.linspace(0.9, 0.0, 2 * truths)
    hits[np.cumsum(hits) > truths] = False
    ap = average_precision_of(hits, truths)
    heights = precision_by_recall(hits, truths, 200)
    assert heights.mean() == pytest.approx(ap, abs=1e-12)
    assert (np.diff(heights) <= 1e-12).all()
    drawn = recall_chart("talk", heights)["data"]["curve"]
    assert (drawn["recall"][0], drawn["recall"][-1]) == (0, 1)
    recall, precision = np.array(drawn["recall"]), np.array(drawn["precision"])
    area = (np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum()
    assert area == pytest.approx(ap, abs=1e-5)  # rounded to 6 digits


def test_recall_chart_follows_the_steps_of_the_curve() -> None:
    """Hits at ranks 1 and 4 of four boxes: precision 1 to recall 1/4, 1/2 to recall 1/2, then 0."""
    heights = precision_by_recall(np.array([True, False, False, True]), 4, 8)
    assert heights.tolist() == pytest.approx([1, 1, 0.5, 0.5, 0, 0, 0, 0], abs=1e-12)
    assert precision_by_recall(np.zeros(3, bool), 4, 8).tolist() == [0.0] * 8
    assert precision_by_recall(np.zeros(0, bool), 4, 8).tolist() == [0.0] * 8
    drawn = recall_chart("talk", heights)["data"]["curve"]
    assert drawn == {"recall": [0, 0.25, 0.25, 0.5, 0.5, 1], "precision": [1, 1, 0.5, 0.5, 0, 0]}


def test_measured_points_are_few() -> None:
    recall, precision = np.linspace(0.001, 1, 1000), np.linspace(1, 0.5, 1000)
    measured = recall_chart("talk", np.full(10, 0.5), measured=(recall, precision))["data"]["measured"]
    assert len(measured["recall"]) == len(measured["precision"]) == 200
    assert (measured["recall"][-1], measured["precision"][-1]) == (1, 0.5)
    none = recall_chart("talk", np.zeros(10), measured=(np.empty(0), np.empty(0)))["data"]["measured"]
    assert none == {"recall": [], "precision": []}


def test_recall_chart_has_its_numbers_in_the_label() -> None:
    label = recall_chart('a"<b', np.array([1.0] * 6 + [0.0] * 4))["label"]
    assert label.startswith('a"<b. Area 0.600; precision 1.00 at recall 0.1,')
    assert label.endswith(" 0.00 at recall 0.9.")


def test_matrix_has_every_cell_under_full_names() -> None:
    names = ("Pretending to put something behind something else", "b")
    chart = confusion_chart("Classes", np.array([[3, 1], [0, 0]]), names)
    assert chart["data"]["names"] == list(names)
    cells = [tuple(cell.values()) for cell in chart["data"]["cells"]]
    assert cells == [(0, 0, 3, 0.75), (0, 1, 1, 0.25), (1, 0, 0, 0), (1, 1, 0, 0)]
    assert chart["label"] == "Confusion matrix of 2 classes; 75.0 % of the videos on the diagonal."
    assert chart["table"]["rows"] == [(names[0], 3, 1), ("b", 0, 0)]


def test_image_of_a_large_matrix_has_one_pixel_per_cell() -> None:
    """The opacity is the root of the share of the row, to a level of 255."""
    confusion = np.random.default_rng(0).integers(0, 5, size=(60, 60))
    confusion[7] = 0
    image = cv2.imdecode(np.frombuffer(encode_confusion(confusion), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.shape == (60, 60, 4)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(image[..., 3], 255 * np.sqrt(shares), atol=0.51)
    section = confusion_section(confusion, [str(label) for label in range(60)])
    assert section["chart"] is None
    assert section["image"].startswith("data:image/png;base64,")
    assert section["classes"] == 60


def test_frequent_confusions_are_the_largest_cells_off_the_diagonal() -> None:
    confusion, names = np.array([[3, 1, 0], [0, 0, 0], [2, 2, 4]]), ("push", "pull", "fall")
    expected = [("fall", "push", 2, 25.0), ("fall", "pull", 2, 25.0), ("push", "pull", 1, 25.0)]
    assert frequent_confusions(confusion, names, 10) == expected
    assert frequent_confusions(confusion, names, 1) == expected[:1]
    assert frequent_confusions(np.eye(3, dtype=int), names, 10) == []
