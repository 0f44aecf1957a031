"""Who does what, where: the verbs ``detect-train``, ``detect-evaluate``, ``detect`` and ``score-ava``."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
