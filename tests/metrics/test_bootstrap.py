"""The interval of a mean average precision against explicit copies of videos."""

from __future__ import annotations

import numpy as np
import pytest

from videomaskfeat.metrics import bootstrap
from videomaskfeat.metrics.accuracy import multi_label_score
from videomaskfeat.metrics.ava_map import average_precision_of
from videomaskfeat.metrics.bootstrap import mean_ap_interval, multi_label_interval


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


def random_scores(rng: np.random.Generator, videos: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and targets of four classes: one has a single video, one none."""
    targets = rng.random((videos, 4)) < 0.5
    targets[:, 2] = np.arange(videos) == 3
    targets[:, 3] = False
    return np.round(rng.normal(0.5 * targets, size=(videos, 4))), targets


def test_multi_label_resamples_are_those_of_repeated_videos() -> None:
    """Against `multi_label_score` of explicitly repeated rows, which is tested against a slow version."""
    scores, targets = random_scores(np.random.default_rng(4))
    means = []
    for drawn in np.random.default_rng(9).multinomial(9, np.full(9, 1 / 9), size=60):
        rows = np.repeat(np.arange(9), drawn)
        means.append(multi_label_score(scores[rows], targets[rows]).mean_ap)
    expected = tuple(np.quantile(means, [0.025, 0.975]))
    # The same numbers up to the order of float64 sums.
    assert multi_label_interval(scores, targets, resamples=60, seed=9) == pytest.approx(expected, abs=1e-10)
    assert expected[1] - expected[0] > 10


def test_multi_label_interval_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = random_scores(np.random.default_rng(4))
    whole = multi_label_interval(scores, targets)
    monkeypatch.setattr(bootstrap, "_VALUES_AT_ONCE", 100)
    assert multi_label_interval(scores, targets) == whole


def test_multi_label_interval_of_special_lists() -> None:
    one = np.ones((1, 2), bool)
    assert multi_label_interval(one.astype(float), one) is None
    assert multi_label_interval(np.zeros((3, 2)), np.zeros((3, 2), bool)) is None
    labels = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool)
    # Right scores have a mAP of 100 % in each resample.
    assert multi_label_interval(labels.astype(float), labels) == (100.0, 100.0)


def test_interval_of_scores_contains_the_chance_level_at_the_stated_rate() -> None:
    """Random scores of 200 videos: of 60 lists, few intervals miss the expected mAP (5 % if exact)."""
    rng = np.random.default_rng(2)
    targets = rng.random((200, 3)) < 0.3
    chance = multi_label_score(np.zeros((200, 3)), targets).chance
    intervals = [multi_label_interval(rng.random((200, 3)), targets, resamples=200) for _ in range(60)]
    inside = [low <= chance <= high for low, high in filter(None, intervals)]
    assert len(inside) == 60
    assert sum(inside) >= 50
