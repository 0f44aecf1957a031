"""k nearest neighbours on frozen features: how good they are without any training."""

from __future__ import annotations

import numpy as np

from videomaskfeat.errors import UserError

_CELLS = 1 << 24  # similarities held at a time


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
