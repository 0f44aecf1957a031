"""Weights of and for other programs: the verbs ``import-slowfast`` and ``export``."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
