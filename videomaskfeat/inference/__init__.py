"""A trained model over lists and videos; shared by jobs."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
