"""Pictures, clips and the HTML report."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
