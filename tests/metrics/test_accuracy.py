"""Accuracies, codebook use and spread of features, against closed forms and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.reference import self_distillation as reference
from tests.reference.accuracy import mean_class, sorted_classes, top_k
from videomaskfeat.errors import UserError
from videomaskfeat.metrics.accuracy import (
    Accuracy,
    accuracy,
    class_accuracies,
    confusion_matrix,
    direction_std,
    directions,
    entropy,
    label_ranks,
    perplexity,
    predictions,
)


def test_accuracies_of_three_videos() -> None:
    scores = np.array(
        [
            [0.1, 0.2, 0.3, 0.9, 0.0, 0.0, 0.5],  # class 3 first
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1],  # class 4 is fifth
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1],  # class 5 is sixth
        ]
    )
    labels = np.array([3, 4, 5])
    assert label_ranks(scores, labels).tolist() == [0, 4, 5]
    assert accuracy(scores, labels) == Accuracy(
        top1=pytest.approx(100 / 3), top5=pytest.approx(200 / 3), mean_class=pytest.approx(100 / 3), videos=3
    )


@pytest.mark.parametrize("classes", [2, 5, 7, 40])
@pytest.mark.parametrize("distinct_scores", [4, 100_000])  # few values: many equal scores
def test_accuracies_equal_plain_python(classes: int, distinct_scores: int) -> None:
    rng = np.random.default_rng(classes * distinct_scores)
    scores = (rng.integers(distinct_scores, size=(120, classes)) / distinct_scores).astype(np.float32)
    labels = rng.integers(classes, size=120) // 2 * 2 % classes  # some classes have no video
    result = accuracy(scores, labels)
    rows, numbers = scores.tolist(), labels.tolist()
    assert result.top1 == pytest.approx(top_k(rows, numbers, 1), abs=1e-12)
    assert result.top5 == pytest.approx(top_k(rows, numbers, 5), abs=1e-12)
    assert result.mean_class == pytest.approx(mean_class(rows, numbers), abs=1e-12)
    assert result.videos == 120
    assert predictions(scores).tolist() == [sorted_classes(row)[0] for row in rows]
    places = [sorted_classes(row).index(label) for row, label in zip(rows, numbers, strict=True)]
    assert label_ranks(scores, labels).tolist() == places


def test_mean_class_is_over_classes_not_videos() -> None:
    """Nine correct videos of class 0, one wrong video of class 2, none of class 1."""
    scores = np.tile([1.0, 0.0, 0.5], (10, 1))
    labels = np.array([0] * 9 + [2])
    result = accuracy(scores, labels)
    assert (result.top1, result.mean_class, result.top5) == (90.0, 50.0, 100.0)
    own = class_accuracies(confusion_matrix(scores, labels))
    assert own[[0, 2]].tolist() == [100.0, 0.0]
    assert np.isnan(own[1])


def test_equal_scores_rank_the_lower_class_first() -> None:
    """Constant scores are correct for class 0 only; the last class ranks last."""
    scores = np.zeros((8, 8), np.float32)
    assert label_ranks(scores, np.arange(8)).tolist() == list(range(8))
    result = accuracy(scores, np.arange(8))
    assert (result.top1, result.top5) == (12.5, 62.5)


def test_confusion_counts_every_video_once() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(300, 6)), rng.integers(6, size=300)
    confusion = confusion_matrix(scores, labels)
    for label in range(6):
        for prediction in range(6):
            count = np.sum((labels == label) & (scores.argmax(1) == prediction))
            assert confusion[label, prediction] == count
    assert confusion.sum() == 300
    assert 100 * confusion.trace() / 300 == pytest.approx(accuracy(scores, labels).top1)


def test_top5_of_four_classes_is_everything() -> None:
    scores = np.array([[0.4, 0.3, 0.2, 0.1]] * 3)
    assert accuracy(scores, np.array([3, 2, 1])) == Accuracy(0.0, 100.0, 0.0, 3)


@pytest.mark.parametrize("label", [-1, 3, 99])
def test_label_outside_the_classes(label: int) -> None:
    with pytest.raises(UserError, match=rf"label {label} is outside the 3 scored classes \(0\.\.2\)"):
        accuracy(np.zeros((2, 3)), np.array([0, label]))


def test_empty_list_is_refused() -> None:
    with pytest.raises(UserError, match="there are no scored videos"):
        accuracy(np.zeros((0, 3)), np.zeros(0, np.int64))


def test_nan_scores_are_refused() -> None:
    scores = np.array([[0.5, np.nan], [0.1, 0.9]])
    with pytest.raises(UserError, match="1 of 2 videos have a score that is not a number"):
        accuracy(scores, np.array([0, 1]))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([7, 0, 0, 0], 1.0),  # one code
        ([5, 5, 5, 5], 4.0),  # equal use
        ([3, 0, 3, 0], 2.0),
        ([2, 1, 1, 0], 2**1.5),  # shares 1/2, 1/4, 1/4: an entropy of 1.5 bits
    ],
)
def test_perplexity_of_known_usage(counts: list[int], expected: float) -> None:
    """Closed form in float64, tolerance 1e-12."""
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected, rel=1e-12)


def test_perplexity_of_a_geometric_usage() -> None:
    """Shares 2^-1, 2^-2, ..., the last twice: entropy sum k*2^-k + n*2^-n bits."""
    counts = [64, 32, 16, 8, 4, 2, 1, 1]
    bits = sum(count / 128 * math.log2(128 / count) for count in counts)
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(2**bits, rel=1e-12)


def std(features: torch.Tensor) -> float:
    return direction_std(directions(features).mean(dim=0)).item()


def test_direction_std_is_the_deviation_of_unit_vectors() -> None:
    """A loop over rows in float64; float32 means, tolerance 1e-5."""
    features = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    expected = reference.direction_std(features.flatten(0, 1).tolist())
    assert std(features) == pytest.approx(expected, rel=1e-5)


def test_direction_std_of_equal_and_opposite_vectors() -> None:
    line = torch.tensor([[1.0, 2.0, 3.0]])
    assert std(torch.cat([line, 5 * line, 0.1 * line])) < 1e-3  # lengths play no part; rounding
    assert std(torch.cat([line, -line])) == pytest.approx(1.0)
    assert std(torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(math.sqrt(0.5), rel=1e-6)


def test_entropy_of_uniform_certain_and_binary_distributions() -> None:
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    expected = torch.tensor([math.log(4), 0.0, math.log(2)])
    torch.testing.assert_close(entropy(rows), expected, atol=1e-6, rtol=1e-6)
