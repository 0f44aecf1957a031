"""Masked video pre-training: hide spacetime cubes, predict what they held, fine-tune the encoder."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "create_model": "videomaskfeat.models",
    "find_actions": "videomaskfeat.tasks.detection.video_actions",
    "load_classifier": "videomaskfeat.tasks.classification.video_models",
    "load_detector": "videomaskfeat.tasks.detection.detectors",
    "load_encoder": "videomaskfeat.tasks.classification.video_models",
    "load_model": "videomaskfeat.models.weights",
    "load_slowfast": "videomaskfeat.interop.slowfast",
    "open_video": "videomaskfeat.data.video",
    "read_features": "videomaskfeat.tasks.classification.feature_folder",
    "UserError": "videomaskfeat.errors",
    "VideoReadError": "videomaskfeat.data.reader",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use, so that ``import videomaskfeat`` stays quick (PEP 562)."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'videomaskfeat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
