"""Losses: predictions and targets in, one float32 scalar out, computed in float32."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
