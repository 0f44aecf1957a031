"""From a video file to a batch: lists, readers, sampling, transforms, loading."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
