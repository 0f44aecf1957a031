"""Configs, checkpoints and models of other projects and formats."""

from functools import partial

from videomaskfeat import import_submodule
from videomaskfeat.interop.slowfast import Imported, load_slowfast

__getattr__ = partial(import_submodule, __name__)

__all__ = ["Imported", "load_slowfast"]
