"""Average precision from its definition: a loop over the thresholds, and one over the videos."""

from __future__ import annotations

import numpy as np


def slow_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Sum over thresholds, from the highest down, of precision times the increase of recall."""
    positives = sum(bool(one) for one in targets)
    if not positives:
        return float("nan")
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        hits = sum(bool(t) for s, t in zip(scores, targets, strict=True) if s >= threshold)
        selected = sum(1 for s in scores if s >= threshold)
        recall = hits / positives
        total += (recall - recall_before) * hits / selected
        recall_before = recall
    return total
