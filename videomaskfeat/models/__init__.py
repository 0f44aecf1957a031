"""Encoders, heads and weights. Modules take and return tensors; they compute no loss."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from videomaskfeat import import_submodule

if TYPE_CHECKING:
    from videomaskfeat.models.zoo import (
        arguments_of,
        create_model,
        create_model_from,
        create_unset,
        list_models,
    )

__all__ = ["arguments_of", "create_model", "create_model_from", "create_unset", "list_models"]


def __getattr__(name: str) -> Any:
    """Import a function of zoo.py, or a module of this package, on first use."""
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.zoo"), name)
    return import_submodule(__name__, name)
