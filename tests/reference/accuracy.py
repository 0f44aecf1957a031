"""Accuracies by sorting the classes of each video in plain Python, without code of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence


def sorted_classes(scores: Sequence[float]) -> list[int]:
    """Classes by score, highest first; the lower class first if equal."""
    return sorted(range(len(scores)), key=lambda number: (-scores[number], number))


def top_k(scores: Sequence[Sequence[float]], labels: Sequence[int], k: int) -> float:
    """Percent of videos whose label is among the first k classes."""
    hits = [label in sorted_classes(row)[:k] for row, label in zip(scores, labels, strict=True)]
    return 100 * sum(hits) / len(hits)


def mean_class(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """Mean top-1 accuracy per class in percent, over the classes with videos."""
    shares = []
    for own_label in sorted(set(labels)):
        rows = [row for row, label in zip(scores, labels, strict=True) if label == own_label]
        shares.append(top_k(rows, [own_label] * len(rows), 1))
    return sum(shares) / len(shares)


def knn_shares(
    train: Sequence[Sequence[float]],
    train_labels: Sequence[int],
    test: Sequence[Sequence[float]],
    *,
    classes: int,
    k: int,
    temperature: float,
) -> list[list[float]]:
    """Shares of votes of the k most similar training rows (cosine; the first row if equal)."""

    def unit(row: Sequence[float]) -> list[float]:
        length = math.sqrt(sum(value * value for value in row))
        return [value / length for value in row]

    shares = []
    for row in map(unit, test):
        similar = [sum(a * b for a, b in zip(row, unit(other), strict=True)) for other in train]
        nearest = sorted(range(len(train)), key=lambda number: (-similar[number], number))[:k]
        votes = [0.0] * classes
        for number in nearest:
            votes[train_labels[number]] += math.exp(similar[number] / temperature)
        shares.append([vote / sum(votes) for vote in votes])
    return shares
