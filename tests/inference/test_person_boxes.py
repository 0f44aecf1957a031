"""Person detectors as plug-ins: found by name, built with options, and their output is checked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomaskfeat.errors import UserError
from videomaskfeat.inference.person_boxes import find_boxes, load_box_detector

PLUG_INS = '''
import numpy as np

width = 4

def halves(frames):
    """The left half of each picture."""
    return [np.array([[0, 0, f.shape[1] / 2, f.shape[0], 0.9]]) for f in frames]

class Corner:
    def __init__(self, size=2, score=0.5):
        self.row = [0, 0, size, size, score]
    def __call__(self, frames):
        return [[self.row] for _ in frames]

def make(score):
    return Corner(score=score)

def make_nothing(score):
    return None
'''


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    name = f"plug_ins_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(PLUG_INS)
    (tmp_path / "broken_plug_in.py").write_text("1 / 0\n")
    (tmp_path / "needy_plug_in.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in ("broken_plug_in", "needy_plug_in"):
        sys.modules.pop(module, None)
    return name


def test_functions_classes_and_makers_are_found_in_the_current_folder(plug_ins: str) -> None:
    pictures = np.zeros((2, 8, 10, 3), np.uint8)
    before = list(sys.path)

    def rows(name: str, options: dict[str, Any] | None = None) -> list[list[float]]:
        detector = load_box_detector(f"{plug_ins}:{name}", options)
        boxes = find_boxes(detector, pictures, name=name, score_threshold=0.0)
        assert len(boxes) == 2
        assert boxes[0][0].dtype == np.float32
        return [[*box, score] for box, score in zip(*(part.tolist() for part in boxes[0]), strict=True)]

    assert rows("halves") == [[0, 0, 0.5, 1, pytest.approx(0.9)]]
    assert rows("Corner") == [pytest.approx([0, 0, 0.2, 0.25, 0.5])]
    assert rows("Corner", {"size": 5}) == [pytest.approx([0, 0, 0.5, 0.625, 0.5])]
    assert rows("make", {"score": 0.25}) == [pytest.approx([0, 0, 0.2, 0.25, 0.25])]
    assert sys.path in (before, [*before, os.getcwd()])  # installed packages come first


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("plain", {}, "detector 'plain' must have the form package.module:name, such as my_boxes:find"),
        (":name", {}, "must have the form package.module:name"),
        ("no_such_module_here:f", {}, "there is no module no_such_module_here, neither installed nor in /"),
        ("videomaskfeat.no_such_part:f", {}, "there is no module videomaskfeat.no_such_part, neither"),
        ("needy_plug_in:f", {}, "needy_plug_in needs the module a_module_that_is_not_there, which is not"),
        ("broken_plug_in:f", {}, "importing broken_plug_in failed: ZeroDivisionError: division by zero"),
        (
            "PLUG:halve",
            {},
            "PLUG has no halve; did you mean 'halves'.; a detector is called with frames uint8",
        ),
        ("PLUG:width", {}, "an int is not callable; a detector is called"),
        ("PLUG:Corner", {"sise": 3}, "wrong options .*'sise'.*; the valid options are: size, score"),
        ("PLUG:make", {"size": 3}, "wrong options .*; the valid options are: score"),
        ("PLUG:make_nothing", {"score": 1}, "None is not callable"),
    ],
)
def test_detector_that_cannot_be_loaded_is_named(
    plug_ins: str, name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words.replace("PLUG", plug_ins)):
        load_box_detector(name.replace("PLUG", plug_ins), options)


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        (lambda frames: None, "returned None for 1 frames; a detector is called with"),
        (lambda frames: [], "returned 0 results for 1 frames"),
        (lambda frames: [[], []], "returned 2 results for 1 frames"),
        (lambda frames: [np.zeros((3, 4))], r"returned an array \[3, 4\] for a frame"),
        (lambda frames: [np.zeros(5)], r"returned an array \[5\] for a frame"),
        (lambda frames: ["boxes"], "returned a str for a frame, which is not an array"),
        (lambda frames: [[[0, 0, 5, 5, np.nan]]], "returned a number that is not finite"),
        (lambda frames: [[[0, 0, 5, 5, 3.5]]], "returned the score 3.5; scores are between 0 and 1"),
        (lambda frames: [[[5, 5, 2, 9, 0.5]]], r"returned the box \[5.0, 5.0, 2.0, 9.0\], which ends before"),
        (
            lambda frames: [[[0.1, 0.2, 0.5, 1, 0.5]]],
            "returned boxes within 0..1 for frames of 10x8; boxes must be in pixels",
        ),
    ],
)
def test_wrong_output_is_named(returns: Callable[..., Any], words: str) -> None:
    with pytest.raises(UserError, match=f"detector 'my:own' {words}"):
        find_boxes(returns, np.zeros((1, 8, 10, 3), np.uint8), name="my:own", score_threshold=0.5)


def test_boxes_are_cut_to_the_picture_and_sorted() -> None:
    rows = [
        [-5, 2, 5, 20, 0.6],  # leaves the picture at two sides
        [0, 0, 10, 8, 0.9],
        [0, 0, 10, 8, 0.49],  # too unsure
        [12, 0, 15, 8, 0.9],  # outside
        [3, 3, 3, 5, 0.9],  # no area
    ]
    ((boxes, scores),) = find_boxes(
        lambda frames: [rows], np.zeros((1, 8, 10, 3), np.uint8), name="own", score_threshold=0.5
    )
    np.testing.assert_allclose(boxes, [[0, 0, 1, 1], [0, 0.25, 0.5, 1]], atol=1e-7)
    np.testing.assert_allclose(scores, [0.9, 0.6], atol=1e-7)
