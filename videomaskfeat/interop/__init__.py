"""Configs, checkpoints and models of other projects and formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from videomaskfeat import import_object, import_submodule

if TYPE_CHECKING:  # the types of the names that __getattr__ imports
    from videomaskfeat.interop.slowfast import Imported as Imported
    from videomaskfeat.interop.slowfast import load_slowfast as load_slowfast

__all__ = ["Imported", "load_slowfast"]


def __getattr__(name: str) -> Any:
    if name in ("Imported", "load_slowfast"):
        return import_object(f"videomaskfeat.interop.slowfast:{name}")
    return import_submodule(__name__, name)
