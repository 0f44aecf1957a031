"""Self-distillation in float64, one row, video and prototype at a time."""

from __future__ import annotations

import math


def softmax(values: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def cross_entropy(student: list[float], teacher: list[float], temperature: float) -> float:
    """Cross-entropy of student outputs and teacher probabilities."""
    shares = softmax(student, temperature)
    return -sum(p * math.log(share) for p, share in zip(teacher, shares, strict=True))


def across_views(
    student: list[list[list[float]]],
    local: list[list[list[float]]],
    teacher: list[list[list[float]]],
    temperature: float,
) -> float:
    """Loss of outputs [V][G][K] and [V][L][K] and probabilities [V][G][K] over pairs of different views."""
    terms = []
    for video, views in enumerate(teacher):
        for number, probabilities in enumerate(views):
            for other, outputs in enumerate(student[video]):
                if other != number:
                    terms.append(cross_entropy(outputs, probabilities, temperature))
            for outputs in local[video]:
                terms.append(cross_entropy(outputs, probabilities, temperature))
    return sum(terms) / len(terms)


def at_hidden_cells(
    student: list[list[list[float]]],
    teacher: list[list[list[float]]],
    hidden: list[list[bool]],
    temperature: float,
) -> float:
    """Loss of [B][cells][K]: the mean over the hidden cells of a clip, then over clips."""
    clips = []
    for outputs, probabilities, places in zip(student, teacher, hidden, strict=True):
        terms = [
            cross_entropy(one, other, temperature)
            for one, other, place in zip(outputs, probabilities, places, strict=True)
            if place
        ]
        clips.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(clips) / len(clips)


def centered(batches: list[list[list[float]]], momentum: float) -> list[float]:
    """The center after batches of outputs [n][K], from zero."""
    center = [0.0] * len(batches[0][0])
    for batch in batches:
        for k in range(len(center)):
            mean = sum(row[k] for row in batch) / len(batch)
            center[k] = momentum * center[k] + (1 - momentum) * mean
    return center


def direction_std(rows: list[list[float]]) -> float:
    """The root of the mean squared distance of unit vectors from their mean."""
    unit = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows]
    mean = [sum(row[d] for row in unit) / len(unit) for d in range(len(unit[0]))]
    squares = [sum((value - m) ** 2 for value, m in zip(row, mean, strict=True)) for row in unit]
    return math.sqrt(sum(squares) / len(squares))
