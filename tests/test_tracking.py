"""Tracks of boxes: closed cases, and equal to trying every assignment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.reference import tracking as reference
from videomaskfeat.boxes import best_pairs, link_boxes, pairwise_overlaps, smooth_scores
from videomaskfeat.errors import UserError


def person(x: float, *, y: float = 0.0, height: float = 20.0) -> list[float]:
    """A box 10 wide."""
    return [x, y, x + 10, y + height]


def linked(*steps: list[list[float]], **options: float) -> list[list[int]]:
    boxes = [np.array(step).reshape(-1, 4) for step in steps]
    return [numbers.tolist() for numbers in link_boxes(boxes, np.arange(len(steps)) * 1.0, **options)]


def test_persons_who_cross_keep_their_numbers() -> None:
    """A grown-up walks right past a child who walks left: their heights tell them apart."""
    steps = [[person(4 * t, height=40), person(40 - 4 * t, y=25, height=15)] for t in range(11)]
    assert linked(*steps) == [[0, 1]] * 11
    swapped = [step[:: 1 if t % 2 else -1] for t, step in enumerate(steps)]  # the order of boxes is no hint
    assert linked(*swapped) == [[0, 1] if t % 2 == 0 else [1, 0] for t in range(11)]


def test_persons_of_one_size_who_change_places_are_taken_for_each_other() -> None:
    assert linked([person(0), person(4)], [person(4), person(0)]) == [[0, 1], [1, 0]]


def test_all_tracks_choose_together() -> None:
    """The nearest pair first would leave the other two unlinked: 0.82 alone, against 0.43 + 0.43."""
    boxes = [[person(0), person(5)], [person(4), person(9)]]
    iou = pairwise_overlaps(*map(np.array, boxes))
    np.testing.assert_allclose(iou, [[6 / 14, 1 / 19], [9 / 11, 6 / 14]], atol=1e-15)
    assert linked(*boxes) == [[0, 1], [0, 1]]
    assert linked(*boxes, min_iou=0.5) == [[0, 1], [1, 2]]


def test_a_gap_is_bridged_as_long_as_it_may_be() -> None:
    steps = [[person(0)], [], [person(2)], [], [], [person(3)]]
    assert linked(*steps) == [[0], [], [0], [], [], [1]]
    assert linked(*steps, max_gap_seconds=3) == [[0], [], [0], [], [], [0]]
    assert linked(*steps, max_gap_seconds=1) == [[0], [], [1], [], [], [2]]
    tenths = np.array([0.1, 0.3])  # 0.3 - 0.1 is a little less or more than 0.2
    box = [np.array([person(0)])] * 2
    assert [t.tolist() for t in link_boxes(box, tenths, max_gap_seconds=0.2)] == [[0], [0]]


def test_new_persons_get_new_numbers() -> None:
    steps = [[], [person(50)], [person(0), person(50), person(100)], [person(100)], []]
    assert linked(*steps) == [[], [0], [1, 0, 2], [2], []]
    assert linked() == []
    assert linked([], []) == [[], []]


def test_the_least_overlap_is_enough() -> None:
    third = [[person(0)], [person(5)]]  # 5 of 15
    assert linked(*third, min_iou=1 / 3) == [[0], [0]]
    assert linked(*third, min_iou=0.34) == [[0], [1]]


@pytest.mark.parametrize("seed", range(4))
def test_tracks_equal_trying_every_assignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = []
    for _ in range(12):
        corner = rng.uniform(0, 30, (rng.integers(0, 5), 2))
        boxes.append(np.concatenate([corner, corner + rng.uniform(8, 20, corner.shape)], axis=1))
    seconds = np.cumsum(rng.uniform(0.2, 1.5, 12))
    actual = link_boxes(boxes, seconds, min_iou=0.2, max_gap_seconds=2.0)
    steps = [[tuple(box) for box in step.tolist()] for step in boxes]
    assert [numbers.tolist() for numbers in actual] == reference.link(steps, seconds.tolist(), 0.2, 2.0)
    assert max(numbers.max(initial=0) for numbers in actual) < sum(map(len, boxes)) - 3  # many were linked


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 6), (6, 4), (5, 6), (0, 3), (4, 0)])
def test_pairs_have_the_largest_sum(shape: tuple[int, int]) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        gains = rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.6)
        if seed % 2:
            gains = np.round(gains, 1)  # with ties
        pairs = best_pairs(gains)
        rows, columns = [row for row, _ in pairs], [column for _, column in pairs]
        assert len(set(rows)) == len(set(columns)) == len(pairs)
        assert rows == sorted(rows)
        assert all(gains[pair] > 0 for pair in pairs)
        # Sums of at most six numbers below 1, in another order.
        assert sum(gains[pair] for pair in pairs) == pytest.approx(
            reference.best_sum(gains.tolist()) if gains.size else 0.0, abs=1e-12
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_iou": 0.0}, "min_iou=0 must be above 0 and at most 1"),
        ({"min_iou": 1.1}, "min_iou=1.1 must be above 0"),
        ({"max_gap_seconds": -1.0}, "max_gap_seconds=-1 must be at least 0"),
        ({"max_gap_seconds": float("nan")}, "max_gap_seconds=nan must be at least 0"),
        (
            {"seconds": np.array([1.0, 1.0])},
            "2 key frames need 2 times in ascending order",
        ),
        ({"seconds": np.array([1.0])}, "2 key frames need 2 times in ascending order"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    keywords = {"seconds": np.array([0.0, 1.0]), **arguments}
    with pytest.raises(UserError, match=words):
        link_boxes([np.array([person(0)])] * 2, **keywords)


def test_smoothing_is_a_gaussian_average_over_the_track() -> None:
    """Two tracks, one of them with a gap; weights exp(-1/2 (dt / sigma)^2) by hand."""
    tracks = [np.array([0, 1]), np.array([1]), np.array([1, 0])]
    scores = [np.array([[1.0, 0], [0.2, 0.8]]), np.array([[0.5, 0.5]]), np.array([[0.8, 0.2], [0, 1.0]])]
    actual = smooth_scores(scores, tracks, np.array([0.0, 1.0, 2.0]), sigma_seconds=1.0)
    one, two = np.exp(-0.5), np.exp(-2.0)
    first = 1 / (1 + two)  # track 0: at 0 s and at 2 s
    np.testing.assert_allclose(actual[0][0], [first, 1 - first], atol=1e-12)
    np.testing.assert_allclose(actual[2][1], [1 - first, first], atol=1e-12)
    edge = (0.2 + 0.5 * one + 0.8 * two) / (1 + one + two)
    np.testing.assert_allclose(actual[0][1], [edge, 1 - edge], atol=1e-12)
    np.testing.assert_allclose(actual[1][0], [0.5, 0.5], atol=1e-12)  # the same on both sides
    np.testing.assert_allclose(actual[2][0], [1 - edge, edge], atol=1e-12)


def test_smoothing_leaves_single_key_frames_and_its_input_alone() -> None:
    scores = [np.array([[0.1, 0.9]], np.float32), np.empty((0, 2), np.float32)]
    tracks = [np.array([0]), np.array([], np.int64)]
    for sigma in (0.0, 2.0):
        actual = smooth_scores(scores, tracks, np.array([0.0, 1.0]), sigma_seconds=sigma)
        np.testing.assert_allclose(actual[0], scores[0], atol=1e-7)
        assert actual[0] is not scores[0]
        assert actual[0].dtype == np.float32
        assert actual[1].shape == (0, 2)
    with pytest.raises(UserError, match="the smoothing of -1 seconds must be at least 0"):
        smooth_scores(scores, tracks, np.array([0.0, 1.0]), sigma_seconds=-1.0)
