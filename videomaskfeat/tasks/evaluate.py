"""``evaluate``: score a classifier on a list, by the protocol of its data set."""

from __future__ import annotations

from videomaskfeat.tasks.multiview import VideoScores, evaluate_model

__all__ = ["VideoScores", "evaluate_model"]
