"""The linear probe is the one minimum of its objective, and refuses what has none."""

from __future__ import annotations

import numpy as np
import pytest

from videomaskfeat.errors import UserError
from videomaskfeat.metrics.features import linear_probe_scores

CLASSES, WIDTH = 3, 5


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of three overlapping clouds, their labels, and further features."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % CLASSES
    centres = rng.normal(size=(CLASSES, WIDTH))
    train = centres[labels] + rng.normal(size=(60, WIDTH)) * [1, 10, 0.1, 1, 1] + 5
    return train.astype(np.float32), labels, rng.normal(size=(7, WIDTH)).astype(np.float32) + 5


def gradient_descent(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, penalty: float
) -> np.ndarray:
    """The same fit by 20,000 plain steps in numpy."""
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    x, asked = (train - mean) / deviation, (test - mean) / deviation
    wanted = np.eye(CLASSES)[labels]
    weight, bias = np.zeros((CLASSES, WIDTH)), np.zeros(CLASSES)
    for _ in range(20_000):
        apart = (softmax(x @ weight.T + bias) - wanted) / len(x)
        weight -= 0.3 * (apart.T @ x + penalty * weight)
        bias -= 0.3 * apart.sum(0)
    return softmax(asked @ weight.T + bias)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows to probabilities."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("penalty", [1e-2, 0.3])
def test_the_fit_is_that_of_plain_gradient_descent(
    clouds: tuple[np.ndarray, np.ndarray, np.ndarray], penalty: float
) -> None:
    """Float32 results of float64 fits that both end at gradients near 1e-9: equal to 1e-6."""
    train, labels, test = clouds
    scores = linear_probe_scores(train, labels, test, classes=CLASSES, penalty=penalty)
    np.testing.assert_allclose(scores, gradient_descent(train, labels, test, penalty=penalty), atol=1e-6)


def test_scale_shift_and_constant_features_change_nothing(
    clouds: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Standardised features are what they were but for float32 rounding of the input (1e-7): 1e-5 allowed."""
    train, labels, test = clouds
    plain = linear_probe_scores(train, labels, test, classes=CLASSES)
    moved = [np.pad(3 * part - 2, ((0, 0), (0, 1)), constant_values=4) for part in (train, test)]
    np.testing.assert_allclose(
        linear_probe_scores(moved[0], labels, moved[1], classes=CLASSES), plain, atol=1e-5
    )


def test_a_class_without_examples_gets_little() -> None:
    """Its bias falls as far as the fit wants: the share of a class that never comes tends to 0."""
    train = np.array([[0.0], [1.0], [0.0], [1.0]], np.float32)
    scores = linear_probe_scores(train, np.array([0, 1, 0, 1]), train, classes=3)
    assert scores.shape == (4, 3)
    assert scores[:, 2].max() < 1e-3
    assert (scores.argmax(1) == [0, 1, 0, 1]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"penalty": 0.0}, r"penalty=0: must be above 0"),
        ({"classes": 2}, r"the labels are 0..2, and there are 2 classes \(0..1\)"),
    ],
)
def test_what_cannot_be_is_refused(
    clouds: tuple[np.ndarray, np.ndarray, np.ndarray], change: dict[str, float], words: str
) -> None:
    """In words that say why."""
    train, labels, test = clouds
    options = {"classes": CLASSES, **change}
    with pytest.raises(UserError, match=words):
        linear_probe_scores(train, labels, test, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="differ in width; take both from one encoder"):
        linear_probe_scores(train, labels, test[:, :2], classes=CLASSES)
