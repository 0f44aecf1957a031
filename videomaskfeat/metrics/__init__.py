"""Metrics: functions of arrays. AVA's metric also reads and writes its files."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
