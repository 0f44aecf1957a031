"""The interval of a mean average precision against explicit copies of videos."""

from __future__ import annotations

import numpy as np
import pytest

from videomaskfeat.metrics import bootstrap
from videomaskfeat.metrics.ava_map import average_precision_of
from videomaskfeat.metrics.bootstrap import mean_ap_interval


def random_rows(
    videos: int, rng: np.random.Generator, *, actions: tuple[int, ...] = (1, 5)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Only the first video has all actions, the others the first one; a third of the truth is not found."""
    truth_videos, truth_actions, detections = [], [], []
    for video in range(videos):
        for action in actions if video == 0 else actions[:1]:
            for _ in range(3):
                truth_videos.append(video)
                truth_actions.append(action)
                if rng.random() < 2 / 3:
                    detections.append((action, -rng.normal(0.7), video, True))
            detections += [(action, -rng.normal(), video, False) for _ in range(4)]
    rows = sorted(detections)
    columns = (np.array([row[index] for row in rows]) for index in (2, 0, 3))
    return np.array(truth_videos), np.array(truth_actions), *columns


def test_scores_of_resamples_are_those_of_copied_videos() -> None:
    rng = np.random.default_rng(3)
    truth_videos, truth_actions, detected_videos, detected_actions, hits = random_rows(7, rng)
    low, high = mean_ap_interval(
        truth_videos, truth_actions, detected_videos, detected_actions, hits, resamples=40, seed=9
    ) or (0, 0)
    scores = []
    for drawn in np.random.default_rng(9).multinomial(7, np.full(7, 1 / 7), size=40):
        values = []
        for action in (1, 5):
            truths = int(drawn[truth_videos[truth_actions == action]].sum())
            rows = detected_actions == action
            copied = np.repeat(hits[rows], drawn[detected_videos[rows]])
            values.append(average_precision_of(copied, truths))
        scores.append(np.nanmean(values))
    assert np.std(scores) > 0.01
    # The same numbers up to the order of float64 sums.
    assert (low, high) == pytest.approx(tuple(np.quantile(scores, [0.025, 0.975])), abs=1e-12)
    assert 0 < low < np.mean(scores) < high < 1


def test_rows_are_processed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(7, np.random.default_rng(3))
    whole = mean_ap_interval(*rows)
    monkeypatch.setattr(bootstrap, "_VALUES_AT_ONCE", 100)
    assert mean_ap_interval(*rows) == whole


def test_interval_shrinks_with_more_videos() -> None:
    rng = np.random.default_rng(0)
    few, many = (mean_ap_interval(*random_rows(count, rng, actions=(1,))) for count in (12, 400))
    assert few is not None
    assert many is not None
    assert many[1] - many[0] < 0.5 * (few[1] - few[0])


def test_one_video_has_no_interval_and_no_detection_scores_0() -> None:
    empty = np.zeros(0, np.int64)
    one = np.zeros(1, np.int64)
    assert mean_ap_interval(one, one, one, one, np.ones(1, bool)) is None
    two = np.arange(2)
    assert mean_ap_interval(two, np.ones(2, np.int64), empty, empty, np.zeros(0, bool)) == (0.0, 0.0)
