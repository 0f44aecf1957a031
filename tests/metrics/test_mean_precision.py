"""Mean average precision of multi-label classifiers, against a slow version and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from videomaskfeat.errors import UserError
from videomaskfeat.metrics.accuracy import average_precision, chance_precision, multi_label_score

from ..reference.mean_precision import slow_average_precision


def test_closed_forms() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    assert average_precision(scores, np.array([1, 0, 1, 0], bool)) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, np.array([0, 0, 0, 1], bool)) == 1 / 4
    assert average_precision(np.zeros(4), np.array([1, 0, 0, 1], bool)) == 1 / 2  # equal scores: the share
    assert np.isnan(average_precision(scores, np.zeros(4, bool)))


@pytest.mark.parametrize("different", [1000, 5])  # few different ones: many equal scores
def test_slow_version_agrees(different: int) -> None:
    rng = np.random.default_rng(different)
    scores = rng.integers(0, different, (60, 7)) / different
    targets = rng.random((60, 7)) < 0.2
    targets[:, 3] = False
    result = multi_label_score(scores, targets)
    slow = np.array([slow_average_precision(s, t) for s, t in zip(scores.T, targets.T, strict=True)])
    np.testing.assert_allclose(result.ap / 100, slow, rtol=0, atol=1e-12)  # float64, sums of 60 terms
    assert result.mean_ap == pytest.approx(100 * np.nanmean(slow), abs=1e-9)
    assert np.isnan(result.ap[3])
    assert result.counts.tolist() == targets.sum(axis=0).tolist()


def test_chance_is_the_map_of_random_scores() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((2000, 5)) < np.array([0.05, 0.1, 0.2, 0.4, 0.5])
    random = multi_label_score(rng.random((2000, 5)), targets)
    assert random.mean_ap == pytest.approx(random.chance, abs=2)  # the standard error is about 0.5


def test_lists_without_labels_have_no_map() -> None:
    with pytest.raises(UserError, match="no scored video has a label"):
        multi_label_score(np.zeros((2, 3)), np.zeros((2, 3), bool))
    with pytest.raises(UserError, match="not a number"):
        multi_label_score(np.full((2, 3), np.nan), np.ones((2, 3), bool))


@pytest.mark.parametrize(("positives", "videos"), [(1, 1), (1, 2), (2, 5), (4, 6), (3, 3)])
def test_chance_is_the_mean_over_all_orders(positives: int, videos: int) -> None:
    orders = set(itertools.permutations([True] * positives + [False] * (videos - positives)))
    scores = -np.arange(videos, dtype=float)
    mean = np.mean([average_precision(scores, np.array(order)) for order in orders])
    assert chance_precision(positives, videos) == pytest.approx(mean, abs=1e-12)


def test_chance_of_a_list_is_the_mean_over_its_classes() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    expected = 100 * (chance_precision(2, 3) + chance_precision(1, 3)) / 2
    assert multi_label_score(np.zeros((3, 3)), targets).chance == pytest.approx(expected)
