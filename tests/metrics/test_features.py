"""k-NN scores and the linear probe, against closed forms and versions in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference.accuracy import knn_shares
from videomaskfeat.errors import UserError
from videomaskfeat.metrics import features
from videomaskfeat.metrics.features import knn_scores, linear_probe_scores


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training features of different lengths, their labels, and test features."""
    rng = np.random.default_rng(seed)
    train = rng.normal(size=(37, 5)).astype(np.float32)
    return train, rng.integers(4, size=37), 3 * rng.normal(size=(11, 5)).astype(np.float32)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (37, 0.07), (100, 2.0)])
def test_knn_equals_plain_python(k: int, temperature: float) -> None:
    """Float32 cosines divided by 0.07 against float64: tolerance 1e-5."""
    train, labels, test = draw()
    scores = knn_scores(train, labels, test, classes=6, k=k, temperature=temperature)
    expected = knn_shares(
        train.tolist(), labels.tolist(), test.tolist(), classes=6, k=k, temperature=temperature
    )
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)


def test_votes_of_two_neighbors() -> None:
    """Cosines 1 and 0: votes exp(1/t) and 1, independent of the features' lengths."""
    train, labels = np.array([[0.0, 7.0], [2.0, 0.0], [-1.0, 0.0]]), np.array([2, 0, 1])
    scores = knn_scores(train, labels, np.array([[3.0, 0.0]]), classes=3, k=2, temperature=0.5)
    near = np.exp(2.0)
    np.testing.assert_allclose(scores, [[near / (near + 1), 0, 1 / (near + 1)]], atol=1e-7)


def test_ties_prefer_the_first_neighbor() -> None:
    train = np.array([[1.0, 0.0]] * 5 + [[1.0, 0.1]])
    labels = np.array([3, 1, 1, 0, 0, 2])
    scores = knn_scores(train, labels, np.array([[5.0, 0.5]]), classes=4, k=2, temperature=1.0)
    assert (scores[0] > 0).tolist() == [False, False, True, True]  # the nearest, and the first of the equals
    lone = knn_scores(train[:5], labels[:5], np.array([[2.0, 0.0]]), classes=4, k=3, temperature=1.0)
    np.testing.assert_allclose(lone, [[0, 2 / 3, 0, 1 / 3]], atol=1e-7)


def test_chunk_size_does_not_change_knn(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test = draw(1)
    whole = knn_scores(train, labels, test, classes=4)
    monkeypatch.setattr(features, "_MAX_SIMILARITIES", 3 * len(train))
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
        ({"classes": 3}, r"labels are 0\.\.3, but there are 3 classes \(0\.\.2\)"),
    ],
)
def test_invalid_knn_arguments_are_refused(arguments: dict[str, float], words: str) -> None:
    train, labels, test = draw()
    with pytest.raises(UserError, match=words):
        knn_scores(train, labels, test, **{"classes": 4, **arguments})  # type: ignore[arg-type]


CLASSES, WIDTH = 3, 5


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of three overlapping clusters, their labels, and test features."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % CLASSES
    centers = rng.normal(size=(CLASSES, WIDTH))
    train = centers[labels] + rng.normal(size=(60, WIDTH)) * [1, 10, 0.1, 1, 1] + 5
    return train.astype(np.float32), labels, rng.normal(size=(7, WIDTH)).astype(np.float32) + 5


def gradient_descent(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, penalty: float
) -> np.ndarray:
    """The same fit by 20,000 gradient steps in numpy."""
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    x, queries = (train - mean) / deviation, (test - mean) / deviation
    one_hot = np.eye(CLASSES)[labels]
    weight, bias = np.zeros((CLASSES, WIDTH)), np.zeros(CLASSES)
    for _ in range(20_000):
        apart = (softmax(x @ weight.T + bias) - one_hot) / len(x)
        weight -= 0.3 * (apart.T @ x + penalty * weight)
        bias -= 0.3 * apart.sum(0)
    return softmax(queries @ weight.T + bias)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows to probabilities."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("penalty", [1e-2, 0.3])
def test_fit_equals_plain_gradient_descent(
    clouds: tuple[np.ndarray, np.ndarray, np.ndarray], penalty: float
) -> None:
    """Both float64 fits end with gradients near 1e-9; float32 results, tolerance 1e-6."""
    train, labels, test = clouds
    scores = linear_probe_scores(train, labels, test, classes=CLASSES, penalty=penalty)
    np.testing.assert_allclose(scores, gradient_descent(train, labels, test, penalty=penalty), atol=1e-6)


def test_scale_shift_and_constant_features_change_nothing(
    clouds: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Standardization removes them up to float32 rounding of the input (1e-7): tolerance 1e-5."""
    train, labels, test = clouds
    plain = linear_probe_scores(train, labels, test, classes=CLASSES)
    moved = [np.pad(3 * part - 2, ((0, 0), (0, 1)), constant_values=4) for part in (train, test)]
    np.testing.assert_allclose(
        linear_probe_scores(moved[0], labels, moved[1], classes=CLASSES), plain, atol=1e-5
    )


def test_class_without_examples_has_low_probability() -> None:
    """The bias of a class without examples decreases until its probability is near 0."""
    train = np.array([[0.0], [1.0], [0.0], [1.0]], np.float32)
    scores = linear_probe_scores(train, np.array([0, 1, 0, 1]), train, classes=3)
    assert scores.shape == (4, 3)
    assert scores[:, 2].max() < 1e-3
    assert (scores.argmax(1) == [0, 1, 0, 1]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"penalty": 0.0}, r"penalty=0 must be above 0"),
        ({"classes": 2}, r"the training labels are 0..2, but there are 2 classes \(0..1\)"),
    ],
)
def test_invalid_probe_arguments_are_refused(
    clouds: tuple[np.ndarray, np.ndarray, np.ndarray], change: dict[str, float], words: str
) -> None:
    train, labels, test = clouds
    options = {"classes": CLASSES, **change}
    with pytest.raises(UserError, match=words):
        linear_probe_scores(train, labels, test, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="differ in width; use one encoder for both"):
        linear_probe_scores(train, labels, test[:, :2], classes=CLASSES)
