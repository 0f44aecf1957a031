"""Pre-training: the verbs ``pretrain`` and ``compare``; what is learnt is in ``tasks/methods``."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
