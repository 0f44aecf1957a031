"""How good frozen features are: k nearest neighbors, and a linear classifier that is fitted exactly."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError

_CELLS = 1 << 24  # similarities held at a time
_STEPS = 500  # L-BFGS needs far fewer, except on features that are nearly equal


def knn_scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """The weighted votes of the most similar training features.

    Similarity is the cosine. Each of the k most similar features votes for its class with the weight
    exp(similarity / temperature), as in instance discrimination (Wu et al., arXiv 1805.01978, section 3.4)
    and DINO (arXiv 2104.14294), whose k and temperature these are. Of equally similar ones the earlier comes
    first.

    Args:
        train: float [m, D], none of them zero.
        train_labels: int [m] in 0..L-1.
        test: float [n, D], none of them zero.
        classes: L.
        k: neighbours that vote; all of them where there are fewer.
        temperature: above 0; the smaller, the more the nearest one decides.

    Returns:
        float32 [n, L], shares of the votes, sum 1.

    Raises:
        UserError: k or temperature out of its range, or a label outside the classes.
    """
    check_neighbours(k=k, temperature=temperature)
    if train_labels.min() < 0 or train_labels.max() >= classes:
        raise UserError(
            f"the neighbours' labels are {train_labels.min()}..{train_labels.max()}, and there are {classes} "
            f"classes (0..{classes - 1})"
        )
    k = min(k, len(train))
    known, asked = _directions(train), _directions(test)
    scores = np.empty((len(test), classes), np.float32)
    step = max(_CELLS // len(train), 1)
    for start in range(0, len(test), step):
        similarity = asked[start : start + step] @ known.T  # [n', m]
        rows = np.arange(len(similarity))[:, None]
        neighbours = _most_similar(similarity, k)  # [n', k]
        nearest = similarity[rows, neighbours].astype(np.float64)
        # Relative to the nearest one, so that no temperature overflows; shares stay what they are.
        votes = np.exp((nearest - nearest.max(axis=1, keepdims=True)) / temperature)
        shares = np.zeros((len(similarity), classes))
        np.add.at(shares, (rows, train_labels[neighbours]), votes)
        scores[start : start + step] = shares / shares.sum(axis=1, keepdims=True)
    return scores


def check_neighbours(*, k: int, temperature: float) -> None:
    """Refuse what :func:`knn_scores` would, before features are made for it.

    Raises:
        UserError: k or temperature out of its range.
    """
    if k < 1 or temperature <= 0:
        raise UserError(f"k={k}, temperature={temperature:g}: k must be at least 1, temperature above 0")


def _directions(features: np.ndarray) -> np.ndarray:
    """Float32 [n, D] of length 1."""
    lengths = np.linalg.norm(features.astype(np.float32), axis=1, keepdims=True)
    return (features / lengths).astype(np.float32)


def _most_similar(similarity: np.ndarray, k: int) -> np.ndarray:
    """Columns int64 [n, k] of each row's k largest values; of equals the first ones."""
    least = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]  # [n, 1]: the k-th largest
    above, equal = similarity > least, similarity == least
    room = k - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (equal.cumsum(axis=1) <= room))
    return chosen.nonzero()[1].reshape(-1, k)


def linear_probe_scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    penalty: float = 1e-2,
) -> np.ndarray:
    """Multinomial logistic regression: fitted on some features, asked about others.

    Each feature is brought to mean 0 and deviation 1 over the training set (one that never changes is left
    out), then the mean cross-entropy plus ``penalty / 2`` times the squared weights is brought to its one
    minimum. A full fit on stored features, as self-supervised encoders are often compared by; the ``linear``
    head of a fine-tuning is the other kind of probe, trained on augmented clips.

    Args:
        train: float [m, D].
        train_labels: int [m] in 0..L-1.
        test: float [n, D].
        classes: L.
        penalty: on the squared weights (not on the biases), above 0.

    Returns:
        Probabilities float32 [n, L].

    Raises:
        UserError: a label outside the classes, a penalty out of its range, or features of two widths.
    """
    if penalty <= 0:
        raise UserError(
            f"penalty={penalty:g}: must be above 0; without one, separable classes have no best fit"
        )
    if train_labels.min() < 0 or train_labels.max() >= classes:
        raise UserError(
            f"the labels are {train_labels.min()}..{train_labels.max()}, and there are {classes} "
            f"classes (0..{classes - 1})"
        )
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"features of shape {train.shape} and {test.shape} differ in width; take both from one encoder"
        )
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    kept = deviation > 1e-6 * np.abs(mean).max()  # what varies less does so by float32's rounding
    known, asked = (
        torch.from_numpy((part[:, kept] - mean[kept]) / deviation[kept]) for part in (train, test)
    )
    weight, bias = _fit(known, torch.from_numpy(np.asarray(train_labels, np.int64)), classes, penalty)
    return torch.softmax(F.linear(asked, weight, bias), dim=1).float().numpy()


def _fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight [L, D] and bias [L] of the least penalised cross-entropy, float64."""
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_STEPS,
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
