"""What a score is: arrays of numbers in, numbers out; no video, no model. AVA's score knows its files too."""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
