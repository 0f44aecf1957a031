"""From a video file to a batch: lists, readers, sampling, transforms, loading."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from videomaskfeat import import_submodule

if TYPE_CHECKING:
    from videomaskfeat.data.dataset import ActionDataset, VideoDataset

__all__ = ["ActionDataset", "VideoDataset"]


def __getattr__(name: str) -> Any:
    """Import a class of dataset.py, or a module of this package, on first use."""
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.dataset"), name)
    return import_submodule(__name__, name)
