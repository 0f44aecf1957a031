"""k-NN scores against closed forms and a version in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference.accuracy import knn_shares
from videomaskfeat.errors import UserError
from videomaskfeat.metrics import features
from videomaskfeat.metrics.features import knn_scores


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training features, their labels, and test features, of any lengths."""
    rng = np.random.default_rng(seed)
    train = rng.normal(size=(37, 5)).astype(np.float32)
    return train, rng.integers(4, size=37), 3 * rng.normal(size=(11, 5)).astype(np.float32)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (37, 0.07), (100, 2.0)])
def test_equals_plain_python(k: int, temperature: float) -> None:
    """Float32 cosines, divided by 0.07, against float64: 1e-5."""
    train, labels, test = draw()
    scores = knn_scores(train, labels, test, classes=6, k=k, temperature=temperature)
    expected = knn_shares(
        train.tolist(), labels.tolist(), test.tolist(), classes=6, k=k, temperature=temperature
    )
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)


def test_two_neighbours_by_hand() -> None:
    """Cosines 1 and 0: votes exp(1/t) and 1, whatever the features' lengths."""
    train, labels = np.array([[0.0, 7.0], [2.0, 0.0], [-1.0, 0.0]]), np.array([2, 0, 1])
    scores = knn_scores(train, labels, np.array([[3.0, 0.0]]), classes=3, k=2, temperature=0.5)
    near = np.exp(2.0)
    np.testing.assert_allclose(scores, [[near / (near + 1), 0, 1 / (near + 1)]], atol=1e-7)


def test_equally_similar_ones_come_in_order() -> None:
    train = np.array([[1.0, 0.0]] * 5 + [[1.0, 0.1]])
    labels = np.array([3, 1, 1, 0, 0, 2])
    scores = knn_scores(train, labels, np.array([[5.0, 0.5]]), classes=4, k=2, temperature=1.0)
    assert (scores[0] > 0).tolist() == [False, False, True, True]  # the nearest, and the first of the equals
    lone = knn_scores(train[:5], labels[:5], np.array([[2.0, 0.0]]), classes=4, k=3, temperature=1.0)
    np.testing.assert_allclose(lone, [[0, 2 / 3, 0, 1 / 3]], atol=1e-7)


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test = draw(1)
    whole = knn_scores(train, labels, test, classes=4)
    monkeypatch.setattr(features, "_CELLS", 3 * len(train))
    np.testing.assert_allclose(knn_scores(train, labels, test, classes=4), whole, atol=1e-5)


def test_low_temperature_does_not_overflow() -> None:
    train, labels, test = draw(2)
    scores = knn_scores(train, labels, test, classes=4, temperature=1e-6)
    nearest = knn_scores(train, labels, test, classes=4, k=1)
    np.testing.assert_allclose(scores, nearest, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, r"k=0, temperature=0\.07: k must be at least 1"),
        ({"temperature": 0.0}, "temperature=0: k must be at least 1, temperature above 0"),
        ({"classes": 3}, r"labels are 0\.\.3, and there are 3 classes \(0\.\.2\)"),
    ],
)
def test_impossible_numbers(arguments: dict[str, float], words: str) -> None:
    train, labels, test = draw()
    with pytest.raises(UserError, match=words):
        knn_scores(train, labels, test, **{"classes": 4, **arguments})  # type: ignore[arg-type]
