"""Classifiers and features: the verbs ``finetune``, ``evaluate``, ``predict`` and ``extract-features``."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
