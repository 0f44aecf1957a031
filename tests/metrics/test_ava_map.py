"""AVA's frame mAP against the official script, a plain Python version, and closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference.ava_map import Row, frame_map, rows_map
from videomaskfeat.boxes import overlaps
from videomaskfeat.errors import UserError
from videomaskfeat.metrics.ava_map import (
    Detections,
    GroundTruth,
    average_precision,
    best_rows,
    by_persons,
    by_size,
    evaluate_files,
    match,
)

ACTIONS = [2, 3, 5, 9]


def golden_files(golden: Path) -> list[str]:
    names = ("groundtruth.csv", "detections.csv", "labels.pbtxt", "exclusions.csv")
    return [str(golden / "ava" / f"ava_{name}") for name in names]


def random_rows(seed: int, *, frames: int = 12, distinct_scores: int = 8) -> tuple[GroundTruth, Detections]:
    """Crowded key frames with corners on a coarse grid: many equal boxes, overlaps and scores."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corners = rng.integers(0, 5, size=(count, 2))
        return np.concatenate([corners, corners + rng.integers(2, 5, size=(count, 2))], axis=1) / 8

    truths, detected = 90, 400
    return (
        GroundTruth(rng.integers(frames, size=truths), boxes(truths), rng.choice([2, 3, 5, 7], truths)),
        Detections(
            rng.integers(frames + 2, size=detected),  # two key frames without ground truth
            boxes(detected),
            rng.choice([2, 3, 5, 7, 9], detected),
            rng.integers(distinct_scores, size=detected) / distinct_scores,
        ),
    )


def plain(groundtruth: GroundTruth, detections: Detections) -> tuple[list[Row], list[Row]]:
    """The same rows for the plain version; key frames are seconds of one video."""
    truth, detected = (
        [
            Row(("v", float(frame)), tuple(box), action, score)
            for frame, box, action, score in zip(
                rows.frames.tolist(), rows.boxes.tolist(), rows.actions.tolist(), scores.tolist(), strict=True
            )
        ]
        for rows, scores in ((groundtruth, np.ones(len(groundtruth.frames))), (detections, detections.scores))
    )
    return truth, detected


def test_equals_the_official_script(golden: Path) -> None:
    """Tolerance 1e-6; the largest difference seen is 2e-16."""
    expected = json.loads((golden / "ava" / "ava_expected.json").read_text())["metrics"]
    result = evaluate_files(*golden_files(golden))
    assert result.mean_ap == pytest.approx(expected["PascalBoxes_Precision/mAP@0.5IOU"], abs=1e-6)
    names = {action: f"PascalBoxes_PerformanceByCategory/AP@0.5IOU/action {action}" for action in result.ap}
    assert set(names) == {4, 7, 32, 33, 46, 60, 68, 80}
    assert result.ap == pytest.approx({action: expected[name] for action, name in names.items()}, abs=1e-6)


@pytest.mark.parametrize("keep", [None, 7])
def test_files_equal_the_plain_version(golden: Path, keep: int | None) -> None:
    """Tolerance 1e-12: float64 sums in another order."""
    files = golden_files(golden)
    mean, ap = frame_map(*files, keep=keep)
    result = evaluate_files(*files, rows_per_frame=keep)
    assert result.mean_ap == pytest.approx(mean, abs=1e-12)
    assert result.ap == pytest.approx(ap, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("keep", [None, 1, 9])
def test_ties_are_resolved_as_in_the_plain_version(seed: int, keep: int | None) -> None:
    groundtruth, detections = random_rows(seed)
    mean, ap = rows_map(*plain(groundtruth, detections), ACTIONS, keep=keep)
    result = average_precision(groundtruth, detections, actions=ACTIONS, rows_per_frame=keep)
    assert result.mean_ap == pytest.approx(mean, abs=1e-12)
    assert {action: value for action, value in result.ap.items() if not math.isnan(value)} == pytest.approx(
        ap, abs=1e-12
    )
    assert math.isnan(result.ap[9])


@pytest.mark.parametrize("threshold", [0.3, 0.75, 1.0])
def test_other_thresholds(threshold: float) -> None:
    groundtruth, detections = random_rows(11)
    mean, _ = rows_map(*plain(groundtruth, detections), ACTIONS, threshold=threshold)
    result = average_precision(groundtruth, detections, actions=ACTIONS, iou_threshold=threshold)
    assert result.mean_ap == pytest.approx(mean, abs=1e-12)


def test_chunk_size_does_not_change_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    groundtruth, detections = random_rows(3, frames=2)
    whole = match(groundtruth, detections, ACTIONS)
    monkeypatch.setattr("videomaskfeat.boxes._PAIRS", 7)
    result = match(groundtruth, detections, ACTIONS)
    np.testing.assert_array_equal(whole.truths, result.truths)
    np.testing.assert_array_equal(whole.hits, result.hits)


@pytest.mark.parametrize("keep", [None, 5])
def test_order_of_rows_does_not_change_the_result(keep: int | None) -> None:
    """For example the order in which several processes contribute rows; with equal scores."""
    groundtruth, detections = random_rows(4, distinct_scores=3)
    first = average_precision(groundtruth, detections, actions=ACTIONS, rows_per_frame=keep)
    rng = np.random.default_rng(0)
    for ranks in (1, 2, 3):
        by_rank = [np.arange(rank, len(detections.frames), ranks) for rank in range(ranks)]
        order = np.concatenate([rng.permutation(part) for part in by_rank])
        truth_order = rng.permutation(len(groundtruth.frames))
        other = average_precision(
            GroundTruth(*(values[truth_order] for values in vars(groundtruth).values())),
            Detections(*(values[order] for values in vars(detections).values())),
            actions=ACTIONS[::-1],
            rows_per_frame=keep,
        )
        assert repr(other.mean_ap) == repr(first.mean_ap)
        assert {action: repr(value) for action, value in other.ap.items()} == {
            action: repr(value) for action, value in first.ap.items()
        }


BOX, OTHER, FAR = [0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.52, 0.5], [0.6, 0.6, 0.9, 0.9]


def truth_of(boxes: list[list[float]], frames: list[int], actions: list[int] | None = None) -> GroundTruth:
    """Ground truth of these boxes; action 2 by default."""
    return GroundTruth(np.array(frames), np.array(boxes), np.array(actions or [2] * len(frames)))


def found_of(
    boxes: list[list[float]], scores: list[float], frames: list[int], actions: list[int] | None = None
) -> Detections:
    """Detections of these boxes; action 2 by default."""
    corners = np.array(boxes, dtype=float).reshape(-1, 4)
    return Detections(np.array(frames), corners, np.array(actions or [2] * len(frames)), np.array(scores))


ONE_BOX = truth_of([BOX], [0])
WHOLE = truth_of([[0.0, 0.0, 1.0, 1.0]], [0])


@pytest.mark.parametrize(
    ("truth", "detected", "expected"),
    [
        # Hit, false positive, hit of 4 boxes: precision 1 up to recall 1/4, 2/3 up to 1/2, then 0.
        (truth_of([BOX] * 4, [0, 1, 2, 3]), found_of([BOX, FAR, BOX], [0.9, 0.8, 0.7], [0, 0, 1]), 5 / 12),
        # False positive, hit, hit of 2 boxes: the precision of 2/3 at the last hit also counts for the first.
        (truth_of([BOX] * 2, [0, 1]), found_of([FAR, BOX, BOX], [0.9, 0.8, 0.7], [0, 0, 1]), 2 / 3),
        # An overlap of exactly the threshold is a hit.
        (WHOLE, found_of([[0, 0, 1, 0.5]], [1.0], [0]), 1.0),
        (WHOLE, found_of([[0, 0, 1, 0.499]], [1.0], [0]), 0.0),
        (ONE_BOX, found_of([], [], []), 0.0),
    ],
    ids=["curve", "interpolation", "threshold", "below the threshold", "no detections"],
)
def test_average_precision_in_closed_form(truth: GroundTruth, detected: Detections, expected: float) -> None:
    result = average_precision(truth, detected, actions=[2])
    assert result.mean_ap == pytest.approx(expected, abs=1e-15)
    assert result.ap == {2: result.mean_ap}


def test_detection_matches_only_the_box_of_largest_overlap() -> None:
    """Both detections overlap both persons enough, but both overlap the first most: one hit of two boxes."""
    assert overlaps(np.array([BOX]), np.array([OTHER]))[0] > 0.5
    truth, detected = truth_of([BOX, OTHER], [0, 0]), found_of([BOX, BOX], [0.9, 0.8], [0, 0])
    matches = match(truth, detected, [2])
    assert matches.hits.tolist() == [True, False]
    assert matches.truths.tolist() == [0, 0]
    assert average_precision(truth, detected, actions=[2]).mean_ap == 0.5


def test_other_frames_and_actions_do_not_match() -> None:
    detected = found_of([BOX] * 3, [0.9, 0.8, 0.7], [1, 0, 5], [2, 3, 2])
    truth = truth_of([BOX, BOX], [0, 5], [2, 3])
    assert average_precision(truth, detected, actions=[2, 3]).ap == {2: 0.0, 3: 0.0}


def test_actions_without_ground_truth_are_not_averaged() -> None:
    result = average_precision(ONE_BOX, found_of([BOX, BOX], [0.5, 0.9], [0, 0], [2, 3]), actions=[2, 3])
    assert result.mean_ap == 1.0
    assert math.isnan(result.ap[3])


def test_float32_detections_score_equally() -> None:
    """The coordinates and scores are eighths, which float32 represents exactly."""
    groundtruth, detections = random_rows(5)
    boxes, scores = (values.astype(np.float32) for values in (detections.boxes, detections.scores))
    single = Detections(detections.frames, boxes, detections.actions, scores)
    results = [average_precision(groundtruth, rows, actions=ACTIONS) for rows in (single, detections)]
    assert results[0].mean_ap == results[1].mean_ap


def test_rows_of_box_scores_go_box_by_box() -> None:
    scores = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)
    rows = Detections.of_box_scores(np.array([7, 8]), np.array([BOX, FAR]), scores, [5, 3, 9])
    assert rows.frames.tolist() == [7, 7, 7, 8, 8, 8]
    assert rows.actions.tolist() == [5, 3, 9] * 2
    assert rows.boxes[3:].tolist() == [FAR] * 3
    np.testing.assert_array_equal(rows.scores, scores.ravel())


def test_best_rows_per_key_frame_are_of_listed_actions() -> None:
    rows = found_of([BOX] * 5, [0.5, 0.5, 0.9, 0.1, 0.4], [0, 0, 0, 1, 0], [2, 3, 7, 2, 5])
    best = best_rows(rows, ACTIONS, 1)  # action 7 is not listed; of equal scores action 2 comes first
    assert best.frames.tolist() == [0, 1]
    assert best.actions.tolist() == [2, 2]


def test_scores_by_persons_equal_scores_of_their_key_frames() -> None:
    groundtruth, detections = random_rows(6, frames=20)
    frames = np.unique(groundtruth.frames)
    persons = np.random.default_rng(1).integers(1, 7, size=len(frames))
    matches = match(groundtruth, detections, ACTIONS)
    subsets = by_persons(groundtruth, detections, matches, ACTIONS, person_frames=frames, persons=persons)
    for part, (first, last) in zip(subsets, [(1, 1), (2, 2), (3, 4), (5, 99)], strict=True):
        part_frames = frames[(persons >= first) & (persons <= last)]
        truth, detected = (
            type(rows)(*(values[np.isin(rows.frames, part_frames)] for values in vars(rows).values()))
            for rows in (groundtruth, detections)
        )
        alone = average_precision(truth, detected, actions=ACTIONS)
        assert part.mean_ap == pytest.approx(alone.mean_ap, abs=1e-12), part.name
        assert part.truths == np.isin(truth.actions, ACTIONS).sum()
        assert part.detections == np.isin(detected.actions, ACTIONS).sum()


def test_scores_by_size_ignore_detections_of_other_sizes() -> None:
    """A large box found twice, once by a medium one; a missed small one; a medium false positive."""
    large, small = [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.1, 0.1]
    truth = truth_of([large, small], [0, 1])
    detected = found_of([[0, 0, 0.3, 0.3], [0, 0, 0.38, 0.5], large], [0.9, 0.8, 0.7], [5, 0, 0])
    subsets = by_size(truth, detected, match(truth, detected, [2]), [2])
    counts = [(part.truths, part.detections, part.actions) for part in subsets]
    assert counts == [(1, 0, 1), (0, 1, 0), (1, 2, 1)]
    assert (subsets[0].mean_ap, subsets[2].mean_ap) == (0.0, 1.0)
    assert math.isnan(subsets[1].mean_ap)


@pytest.mark.parametrize(
    ("scores", "options", "words"),
    [
        ([0.5, math.nan], {}, "1 of 2 detections have a score that is not a number; check the model"),
        *(
            ([0.5, 0.5], {"iou_threshold": threshold}, "iou_threshold=.* must be above 0 and at most 1")
            for threshold in (0.0, -1.0, 1.5, math.nan)
        ),
        ([0.5, 0.5], {"rows_per_frame": 0}, "rows_per_frame=0 must be at least 1"),
        ([0.5, 0.5], {"actions": [3, 5, 7, 9]}, "none of the 4 actions has ground truth; check the action"),
    ],
)
def test_invalid_arguments_are_refused(scores: list[float], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        average_precision(ONE_BOX, found_of([BOX, BOX], scores, [0, 0]), **{"actions": [2], **options})
