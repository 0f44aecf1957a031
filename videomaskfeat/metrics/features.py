"""Quality of frozen features: k nearest neighbors, and an exactly fitted linear classifier."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError

_MAX_SIMILARITIES = 1 << 24  # in memory at a time
_MAX_STEPS = 500  # L-BFGS needs far fewer, except for features that are nearly equal


def knn_scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Class scores from the weighted votes of the k most similar training features.

    A neighbor votes for its label with weight exp(cosine similarity / temperature), as in instance
    discrimination (arXiv 1805.01978, section 3.4) and DINO (arXiv 2104.14294), the source of the defaults. Of
    equally similar features the first has precedence.

    Args:
        train, train_labels: float [m, D] without zero vectors; int [m] in 0..L-1.
        test: float [n, D], without zero vectors.
        classes: number of classes, L.
        k: number of neighbors; at most m are used.
        temperature: above 0; the lower, the more the nearest neighbor dominates.

    Returns:
        float32 [n, L], shares of the votes, sum 1.

    Raises:
        UserError: k or temperature out of range, or a label outside the classes.
    """
    check_knn(k=k, temperature=temperature)
    _check_labels(train_labels, classes)
    k = min(k, len(train))
    train, test = _directions(train), _directions(test)
    scores = np.empty((len(test), classes), np.float32)
    step = max(_MAX_SIMILARITIES // len(train), 1)
    for start in range(0, len(test), step):
        similarity = test[start : start + step] @ train.T  # [n', m]
        rows = np.arange(len(similarity))[:, None]
        neighbors = _most_similar(similarity, k)  # [n', k]
        nearest = similarity[rows, neighbors].astype(np.float64)
        # Relative to the nearest one, so that no temperature overflows; the shares do not change.
        votes = np.exp((nearest - nearest.max(axis=1, keepdims=True)) / temperature)
        shares = np.zeros((len(similarity), classes))
        np.add.at(shares, (rows, train_labels[neighbors]), votes)
        scores[start : start + step] = shares / shares.sum(axis=1, keepdims=True)
    return scores


def check_knn(*, k: int, temperature: float) -> None:
    """Check the arguments of :func:`knn_scores` before features are computed; raises UserError."""
    if k < 1 or temperature <= 0:
        raise UserError(f"k={k}, temperature={temperature:g}: k must be at least 1, temperature above 0")


def _directions(features: np.ndarray) -> np.ndarray:
    """float32 [n, D] of length 1."""
    lengths = np.linalg.norm(features.astype(np.float32), axis=1, keepdims=True)
    return (features / lengths).astype(np.float32)


def _most_similar(similarity: np.ndarray, k: int) -> np.ndarray:
    """Columns int64 [n, k] of each row's k largest values; the first of equal ones."""
    smallest = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]  # [n, 1]: the k-th largest
    above, equal = similarity > smallest, similarity == smallest
    missing = k - above.sum(axis=1, keepdims=True)
    selected = above | (equal & (equal.cumsum(axis=1) <= missing))
    return selected.nonzero()[1].reshape(-1, k)


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"the training labels are {labels.min()}..{labels.max()}, but there are {classes} classes "
            f"(0..{classes - 1})"
        )


def linear_probe_scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    penalty: float = 1e-2,
) -> np.ndarray:
    """Class probabilities float32 [n, L] of multinomial logistic regression on frozen features.

    Features are standardized over the training set (constant ones are dropped), and the mean cross-entropy
    plus ``penalty / 2`` times the squared weights (not the biases) is minimized exactly. The ``linear`` head
    of fine-tuning is another kind of linear probe, trained on augmented clips.

    Args:
        train, train_labels, test, classes: see :func:`knn_scores`; zero vectors are allowed.
        penalty: above 0.

    Raises:
        UserError: a label outside the classes, a penalty out of range, or features of different widths.
    """
    if penalty <= 0:
        raise UserError(
            f"penalty={penalty:g} must be above 0; without a penalty, separable classes have no best fit"
        )
    _check_labels(train_labels, classes)
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"features of shape {train.shape} and {test.shape} differ in width; use one encoder for both"
        )
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    varying = deviation > 1e-6 * np.abs(mean).max()  # a smaller variation is float32 rounding
    train_features, test_features = (
        torch.from_numpy((part[:, varying] - mean[varying]) / deviation[varying]) for part in (train, test)
    )
    labels = torch.from_numpy(np.asarray(train_labels, np.int64))
    weight, bias = _fit(train_features, labels, classes, penalty)
    return torch.softmax(F.linear(test_features, weight, bias), dim=1).float().numpy()


def _fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight [L, D] and bias [L] with the smallest penalized cross-entropy, float64."""
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_STEPS,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            value = F.cross_entropy(F.linear(features, weight, bias), labels)
            value = value + penalty / 2 * weight.square().sum()
            value.backward()
        return value

    solver.step(loss)
    return weight.detach(), bias.detach()
