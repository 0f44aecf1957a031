"""Fast CPU versions of ``dense.linear``, ``normed.normed_linear``, ``pooling.pool_tokens`` and
``attention.attention``.

Each has a plain version of torch's own operators, for exported graphs, which run without this package.
"""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
