"""AVA's score against the official script's figures, a version in plain Python, and closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

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


def random_rows(seed: int, *, frames: int = 12, levels: int = 8) -> tuple[GroundTruth, Detections]:
    """Crowded key frames on a coarse grid of corners: equal boxes, equal overlaps and equal scores abound."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corners = rng.integers(0, 5, size=(count, 2))
        return np.concatenate([corners, corners + rng.integers(2, 5, size=(count, 2))], axis=1) / 8

    truths, found = 90, 400
    return (
        GroundTruth(rng.integers(frames, size=truths), boxes(truths), rng.choice([2, 3, 5, 7], truths)),
        Detections(
            rng.integers(frames + 2, size=found),  # two key frames without ground truth
            boxes(found),
            rng.choice([2, 3, 5, 7, 9], found),
            rng.integers(levels, size=found) / levels,
        ),
    )


def plain(groundtruth: GroundTruth, detections: Detections) -> tuple[list[Row], list[Row]]:
    """The same rows for the plain version; key frames by number, as the seconds of one video."""
    truth, found = (
        [
            Row(("v", float(frame)), tuple(box), action, score)
            for frame, box, action, score in zip(
                rows.frames.tolist(), rows.boxes.tolist(), rows.actions.tolist(), scores.tolist(), strict=True
            )
        ]
        for rows, scores in ((groundtruth, np.ones(len(groundtruth.frames))), (detections, detections.scores))
    )
    return truth, found


def test_equals_the_official_script(golden: Path) -> None:
    """To 1e-6 as promised; seen: 2e-16, since the sums are the same up to their order."""
    expected = json.loads((golden / "ava" / "ava_expected.json").read_text())["metrics"]
    result = evaluate_files(*golden_files(golden))
    assert result.mean_ap == pytest.approx(expected["PascalBoxes_Precision/mAP@0.5IOU"], abs=1e-6)
    names = {action: f"PascalBoxes_PerformanceByCategory/AP@0.5IOU/action {action}" for action in result.ap}
    assert set(names) == {4, 7, 32, 33, 46, 60, 68, 80}
    assert result.ap == pytest.approx({action: expected[name] for action, name in names.items()}, abs=1e-6)


@pytest.mark.parametrize("keep", [None, 7])
def test_files_equal_the_plain_version(golden: Path, keep: int | None) -> None:
    """1e-12: float64 sums in another order."""
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
    parts = match(groundtruth, detections, ACTIONS)
    np.testing.assert_array_equal(whole.truths, parts.truths)
    np.testing.assert_array_equal(whole.hits, parts.hits)


@pytest.mark.parametrize("keep", [None, 5])
def test_order_of_rows_does_not_change_the_result(keep: int | None) -> None:
    """As parts of several processes come together; equal scores included."""
    groundtruth, detections = random_rows(4, levels=3)
    first = average_precision(groundtruth, detections, actions=ACTIONS, rows_per_frame=keep)
    rng = np.random.default_rng(0)
    for ranks in (1, 2, 3):
        parts = [np.arange(rank, len(detections.frames), ranks) for rank in range(ranks)]
        order = np.concatenate([rng.permutation(part) for part in parts])
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


def one_action(boxes: list[list[float]], scores: list[float], frames: list[int]) -> Detections:
    return Detections(
        np.array(frames),
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.full(len(frames), 2),
        np.array(scores),
    )


BOX, OTHER, FAR = [0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.52, 0.5], [0.6, 0.6, 0.9, 0.9]


def test_curve_by_hand() -> None:
    """Right, wrong, right of 4: precision 1, then 2/3 at recall 1/2, and nothing beyond: (1 + 2/3) / 4."""
    truth = GroundTruth(np.array([0, 1, 2, 3]), np.array([BOX] * 4), np.full(4, 2))
    found = one_action([BOX, FAR, BOX], [0.9, 0.8, 0.7], [0, 0, 1])
    assert average_precision(truth, found, actions=[2]).mean_ap == pytest.approx((1 + 2 / 3) / 4, abs=1e-15)


def test_later_precision_lifts_earlier_points() -> None:
    """Wrong, right, right of 2: the point of the first hit takes the 2/3 of the second."""
    truth = GroundTruth(np.array([0, 1]), np.array([BOX] * 2), np.full(2, 2))
    found = one_action([FAR, BOX, BOX], [0.9, 0.8, 0.7], [0, 0, 1])
    assert average_precision(truth, found, actions=[2]).mean_ap == pytest.approx(2 / 3, abs=1e-15)


def test_detection_matches_only_the_box_of_largest_overlap() -> None:
    """Both detections overlap both persons enough, yet the second one's best is taken: one hit of two."""
    assert overlaps(np.array([BOX]), np.array([OTHER]))[0] > 0.5
    truth = GroundTruth(np.array([0, 0]), np.array([BOX, OTHER]), np.full(2, 2))
    found = one_action([BOX, BOX], [0.9, 0.8], [0, 0])
    matches = match(truth, found, [2])
    assert matches.hits.tolist() == [True, False]
    assert matches.truths.tolist() == [0, 0]
    assert average_precision(truth, found, actions=[2]).mean_ap == 0.5


def test_overlap_equal_to_the_threshold_is_a_hit() -> None:
    truth = GroundTruth(np.array([0]), np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([2]))
    assert average_precision(truth, one_action([[0, 0, 1, 0.5]], [1.0], [0]), actions=[2]).mean_ap == 1.0
    assert average_precision(truth, one_action([[0, 0, 1, 0.499]], [1.0], [0]), actions=[2]).mean_ap == 0.0


def test_other_frames_and_actions_do_not_match() -> None:
    truth = GroundTruth(np.array([0, 5]), np.array([BOX, BOX]), np.array([2, 3]))
    found = Detections(
        np.array([1, 0, 5]), np.array([BOX] * 3), np.array([2, 3, 2]), np.array([0.9, 0.8, 0.7])
    )
    assert average_precision(truth, found, actions=[2, 3]).ap == {2: 0.0, 3: 0.0}


def test_actions_without_ground_truth_are_not_averaged() -> None:
    truth = GroundTruth(np.array([0]), np.array([BOX]), np.array([2]))
    found = Detections(np.array([0, 0]), np.array([BOX, BOX]), np.array([2, 3]), np.array([0.5, 0.9]))
    result = average_precision(truth, found, actions=[2, 3])
    assert result.mean_ap == 1.0
    assert math.isnan(result.ap[3])


def test_no_detections_score_zero() -> None:
    truth = GroundTruth(np.array([0]), np.array([BOX]), np.array([2]))
    result = average_precision(truth, one_action([], [], []), actions=[2])
    assert (result.mean_ap, result.ap) == (0.0, {2: 0.0})


def test_float32_detections_score_equally() -> None:
    groundtruth, detections = random_rows(5)
    small = Detections(
        detections.frames,
        detections.boxes.astype(np.float32),
        detections.actions,
        detections.scores.astype(np.float32),
    )
    # Eighths are exact in float32, so not a bit may differ.
    assert (
        average_precision(groundtruth, small, actions=ACTIONS).mean_ap
        == average_precision(groundtruth, detections, actions=ACTIONS).mean_ap
    )


def test_rows_of_box_scores_go_box_by_box() -> None:
    scores = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)
    rows = Detections.of_box_scores(np.array([7, 8]), np.array([BOX, FAR]), scores, [5, 3, 9])
    assert rows.frames.tolist() == [7, 7, 7, 8, 8, 8]
    assert rows.actions.tolist() == [5, 3, 9] * 2
    assert rows.boxes[3:].tolist() == [FAR] * 3
    np.testing.assert_array_equal(rows.scores, scores.ravel())


def test_best_rows_per_key_frame_are_of_listed_actions() -> None:
    rows = Detections(
        np.array([0, 0, 0, 1, 0]),
        np.array([BOX] * 5),
        np.array([2, 3, 7, 2, 5]),
        np.array([0.5, 0.5, 0.9, 0.1, 0.4]),
    )
    kept = best_rows(rows, ACTIONS, 1)  # action 7 is not listed; of the equal scores action 2 comes first
    assert kept.frames.tolist() == [0, 1]
    assert kept.actions.tolist() == [2, 2]


def test_scores_by_persons_equal_scores_of_their_key_frames() -> None:
    """Each part equals the score of its own key frames alone."""
    groundtruth, detections = random_rows(6, frames=20)
    frames = np.unique(groundtruth.frames)
    persons = np.random.default_rng(1).integers(1, 7, size=len(frames))
    parts = by_persons(
        groundtruth,
        detections,
        match(groundtruth, detections, ACTIONS),
        ACTIONS,
        person_frames=frames,
        persons=persons,
    )
    for part, (least, most) in zip(parts, [(1, 1), (2, 2), (3, 4), (5, 99)], strict=True):
        own = frames[(persons >= least) & (persons <= most)]
        truth, found = (
            type(rows)(*(values[np.isin(rows.frames, own)] for values in vars(rows).values()))
            for rows in (groundtruth, detections)
        )
        alone = average_precision(truth, found, actions=ACTIONS)
        assert part.mean_ap == pytest.approx(alone.mean_ap, abs=1e-12), part.name
        assert part.truths == np.isin(truth.actions, ACTIONS).sum()
        assert part.detections == np.isin(found.actions, ACTIONS).sum()


def test_scores_by_size_ignore_detections_of_other_sizes() -> None:
    """A large box found twice, once by a medium one; a small one missed; a false positive of medium size."""
    large, small = [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.1, 0.1]
    truth = GroundTruth(np.array([0, 1]), np.array([large, small]), np.array([2, 2]))
    found = one_action([[0, 0, 0.3, 0.3], [0, 0, 0.38, 0.5], large], [0.9, 0.8, 0.7], [5, 0, 0])
    parts = by_size(truth, found, match(truth, found, [2]), [2])
    assert [(part.truths, part.detections, part.actions) for part in parts] == [
        (1, 0, 1),
        (0, 1, 0),
        (1, 2, 1),
    ]
    assert parts[0].mean_ap == 0.0
    assert math.isnan(parts[1].mean_ap)
    assert parts[2].mean_ap == 1.0


def test_nan_score_is_refused() -> None:
    truth = GroundTruth(np.array([0]), np.array([BOX]), np.array([2]))
    with pytest.raises(
        UserError, match="1 of 2 detections have a score that is not a number; check the model"
    ):
        average_precision(truth, one_action([BOX, BOX], [0.5, math.nan], [0, 0]), actions=[2])


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, math.nan])
def test_threshold_out_of_range_is_refused(threshold: float) -> None:
    truth = GroundTruth(np.array([0]), np.array([BOX]), np.array([2]))
    with pytest.raises(UserError, match=r"iou_threshold=.* must be above 0 and at most 1"):
        average_precision(truth, one_action([BOX], [0.5], [0]), actions=[2], iou_threshold=threshold)


def test_rows_per_frame_out_of_range_is_refused() -> None:
    truth = GroundTruth(np.array([0]), np.array([BOX]), np.array([2]))
    with pytest.raises(UserError, match="rows_per_frame=0 must be at least 1"):
        average_precision(truth, one_action([BOX], [0.5], [0]), actions=[2], rows_per_frame=0)


def test_actions_without_ground_truth_are_refused() -> None:
    truth = GroundTruth(np.array([0]), np.array([BOX]), np.array([7]))
    with pytest.raises(UserError, match="none of the 4 actions has ground truth; check the action ids"):
        average_precision(truth, one_action([BOX], [0.5], [0]), actions=ACTIONS)
